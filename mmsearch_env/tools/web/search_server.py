"""The client of a search server (``python -m mmsearch_env serve``)."""

from __future__ import annotations

import asyncio

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ImageError, ServiceCode, ServiceError, ToolError, ToolTimeout, ToolUnavailable
from mmsearch_env.net.client import Call, HttpClient, Key, Reply
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import ImageQuery, PageQuery, Query, SearchResult, TextQuery
from mmsearch_env.tools.web.engine import endpoint, retry_after, status_error
from mmsearch_env.tools.web.wire import query_to_json, result_from_json

_KINDS: dict[type[Query], ActionKind] = {
    TextQuery: ActionKind.TEXT_SEARCH,
    ImageQuery: ActionKind.IMAGE_SEARCH,
    PageQuery: ActionKind.VISIT_PAGE,
}


class ServerSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that asks a search server, which keeps and limits."""

    def __init__(self, kind: ActionKind, client: HttpClient, base_url: str, secret: Secret | None = None) -> None:
        """
        Args:
            kind: of the searches it makes.
            client: its connections, with :func:`judge`.
            base_url: where the server is.
            secret: the token it asks for; None for none.
        """
        self.name = "search server"
        self._client = client
        self._key = None if secret is None else Key(secret, "header", "Authorization", "Bearer ")
        self._kind = kind
        self._url = endpoint(base_url, f"/v1/{kind.value}", with_key=secret is not None)

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """What the server's tool finds. Raises ToolError: also what the server's tool raised."""
        if _KINDS[type(query)] is not self._kind:
            raise ToolUnavailable(f"{self.name}: expected a query for {self._kind}, got {type(query).__name__}")
        # A picture takes milliseconds to be encoded.
        is_picture = isinstance(query, ImageQuery)
        told = await asyncio.to_thread(query_to_json, query) if is_picture else query_to_json(query)
        body = {"query": told, "top_k": top_k}
        reply = await self._client.send(Call("POST", self._url, body=body, key=self._key))
        try:
            return result_from_json(reply.data)
        except (KeyError, TypeError, ValueError, ImageError) as error:
            message = f"{self.name}: expected hits, got {type(error).__name__}"
            raise ServiceError(message, code=ServiceCode.PROVIDER_FAILED) from error

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self._client.aclose()


def judge(reply: Reply) -> ToolError | None:
    """What is wrong with a server's reply: its own word for it."""
    if (error := status_error(reply)) is None:
        return None
    try:
        told = reply.data["error"]
        code, message = str(told["code"]), str(told["message"])[:500]
    except (ServiceError, KeyError, TypeError):
        return error
    if code == "timeout":
        return ToolTimeout(message)
    if code in set(ServiceCode):
        return ServiceError(message, code=ServiceCode(code), retry_after_s=retry_after(reply))
    return ToolError(message, code=code)
