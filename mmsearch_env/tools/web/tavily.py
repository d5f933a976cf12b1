"""Tavily: words only.

``POST https://api.tavily.com/search`` with the key as bearer token. 432 and 433 mean that the plan or the
pay-as-you-go limit is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Key, Reply, ServiceLimits
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import Dialogue, Row, endpoint, lines, link, number, status_error, text, title
from mmsearch_env.tools.web.query_parts import words

BASE_URL = "https://api.tavily.com"
_MOST_ROWS = 20
_CREDIT_USD = 0.008


@dataclass(frozen=True, slots=True)
class TavilySearch:
    """Tavily's results for words.

    Attributes:
        secret: the key.
        base_url: where the service is.
        depth: ``"basic"`` costs one credit, ``"advanced"`` two.
        limits: how it may be used.
    """

    secret: Secret
    base_url: str = BASE_URL
    depth: Literal["basic", "advanced"] = "basic"
    limits: ServiceLimits = ServiceLimits()
    name: str = "tavily"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        body = {"query": words(query), "search_depth": self.depth, "max_results": min(top_k, _MOST_ROWS)}
        url = endpoint(self.base_url, "/search", with_key=True)
        key = Key(self.secret, "header", "Authorization", "Bearer ")
        price_usd = _CREDIT_USD * (1 if self.depth == "basic" else 2)
        reply = yield Call("POST", url, body=body, key=key, price_usd=price_usd)
        rows = [
            Row(title(line, "title"), found, text(line, "content"), score=number(line, "score"))
            for line in lines(reply.data, "results")
            if (found := link(line, "url"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        if reply.status in (432, 433):
            return ServiceError(f"expected credits, got status {reply.status}", code=ServiceCode.QUOTA_EXHAUSTED)
        return status_error(reply)
