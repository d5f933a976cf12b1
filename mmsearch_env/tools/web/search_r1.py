r"""Any retriever that speaks Search-R1's protocol.

``POST /retrieve {"queries": [...], "topk": k, "return_scores": true}`` is answered with
``{"result": [[{"document": {"contents": "title\ntext"}, "score": 1.0}, ...]]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Key, Reply, ServiceLimits
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import (
    MAX_SNIPPET_CHARACTERS,
    Dialogue,
    Row,
    endpoint,
    number,
    status_error,
    text,
    title,
)
from mmsearch_env.tools.web.query_parts import words


@dataclass(frozen=True, slots=True)
class SearchR1Retriever:
    """A retriever's passages for words.

    Attributes:
        base_url: where it is.
        secret: a bearer token; None if it asks for none.
        limits: how it may be used.
    """

    base_url: str
    secret: Secret | None = None
    limits: ServiceLimits = ServiceLimits()
    name: str = "search_r1"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        body = {"queries": [words(query)], "topk": top_k, "return_scores": True}
        key = None if self.secret is None else Key(self.secret, "header", "Authorization", "Bearer ")
        url = endpoint(self.base_url, "/retrieve", with_key=key is not None)
        reply = yield Call("POST", url, body=body, key=key)
        result = reply.data.get("result")
        if not isinstance(result, list) or len(result) != 1 or not isinstance(result[0], list):
            raise ServiceError("expected one list of passages, got something else", code=ServiceCode.PROVIDER_FAILED)
        return [row for item in result[0] if (row := _row(item)) is not None][:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return status_error(reply)


def _row(item: object) -> Row | None:
    """A passage, which the protocol allows with its score or bare."""
    if not isinstance(item, Mapping):
        return None
    document = item.get("document", item)
    if not isinstance(document, Mapping):
        return None
    contents = document.get("contents")
    first, _, rest = contents.partition("\n") if isinstance(contents, str) else ("", "", "")
    heading = title(document, "title") or title({"title": first.strip('"')}, "title")
    passage = text(document, "text") or text({"text": rest or first}, "text", most=MAX_SNIPPET_CHARACTERS)
    return Row(
        heading,
        str(document.get("url") or f"document:{document.get('id', heading)}")[:MAX_SNIPPET_CHARACTERS],
        passage,
        score=number(item, "score"),
    )
