"""Brave Search: words only.

``GET https://api.search.brave.com/res/v1/web/search`` with the key in ``X-Subscription-Token``. A missing or wrong key
is answered with 422. 429 is told apart by its code: ``RATE_LIMITED`` (this second) or ``QUOTA_LIMITED`` (this month);
``X-RateLimit-Reset`` names the seconds until each of the two windows begins anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Key, Reply, ServiceLimits
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import Dialogue, Row, endpoint, lines, link, status_error, text, title
from mmsearch_env.tools.web.query_parts import words

BASE_URL = "https://api.search.brave.com"
_MOST_ROWS = 20
_PRICE_USD = 0.005


@dataclass(frozen=True, slots=True)
class BraveSearch:
    """Brave's results for words.

    Attributes:
        secret: the key.
        base_url: where the service is.
        country: two letters, e.g. ``"us"``.
        language: two letters, e.g. ``"en"``.
        limits: how it may be used.
    """

    secret: Secret
    base_url: str = BASE_URL
    country: str = "us"
    language: str = "en"
    limits: ServiceLimits = ServiceLimits()
    name: str = "brave"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        reply = yield Call(
            "GET",
            endpoint(self.base_url, "/res/v1/web/search", with_key=True),
            parameters={
                "q": words(query)[:400],  # longer ones are refused
                "count": str(min(top_k, _MOST_ROWS)),
                "country": self.country,
                "search_lang": self.language,
                "text_decorations": "0",
            },
            headers={"Accept": "application/json"},
            key=Key(self.secret, "header", "X-Subscription-Token"),
            price_usd=_PRICE_USD,
        )
        rows = [
            Row(title(line, "title"), url, text(line, "description"))
            for line in lines(reply.data.get("web"), "results")
            if (url := link(line, "url"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        error = status_error(reply)
        if error is None:
            return None
        code = _code(reply)
        is_about_key = code == "SUBSCRIPTION_TOKEN_INVALID" or b"x-subscription-token" in reply.body.lower()
        if reply.status == 422 and is_about_key:
            return ServiceError("expected a valid key, got one that is refused", code=ServiceCode.AUTH)
        if reply.status == 429:
            is_month = code == "QUOTA_LIMITED"
            which = ServiceCode.QUOTA_EXHAUSTED if is_month else ServiceCode.RATE_LIMITED
            wait = _reset(reply, window=1 if is_month else 0)
            return ServiceError("expected room in the plan, got status 429", code=which, retry_after_s=wait)
        return error


def _code(reply: Reply) -> str:
    """The error's code in the body; "" if there is none."""
    try:
        error = reply.data.get("error")
    except ServiceError:
        return ""
    return str(error.get("code", "")) if isinstance(error, Mapping) else ""


def _reset(reply: Reply, *, window: int) -> float | None:
    """Seconds until a window begins anew; None if the service does not say."""
    parts = reply.headers.get("x-ratelimit-reset", "").split(",")
    try:
        return max(0.0, float(parts[window]))
    except (IndexError, ValueError):
        return None
