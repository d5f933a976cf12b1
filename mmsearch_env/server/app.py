"""The server's routes.

POST /v1/text_search    POST /v1/image_search      one query
POST /v1/text_searches  POST /v1/image_searches    several at once; a failed one spoils no other
POST /v1/visit_page                                what a page says
POST /retrieve                                     Search-R1's protocol
GET  /  /openapi.json  /healthz  /metrics
GET  /pictures/NAME                                a picture, for who has its signed address
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from aiohttp import web

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import BudgetError, ImageError, ToolError
from mmsearch_env.net.secret import Secret
from mmsearch_env.rendering import plain
from mmsearch_env.searching import ask
from mmsearch_env.server.checking import BadRequest, BodyChecker
from mmsearch_env.server.measuring import Measures
from mmsearch_env.server.openapi import document
from mmsearch_env.tools.search_tool import Query, SearchResult, SearchTool, TextQuery
from mmsearch_env.tools.web.picture_host import PATH, PictureHost
from mmsearch_env.tools.web.wire import image_query, page_query, result_to_json, text_query

_OPEN_PATHS = frozenset({"/", "/healthz"})
"""Served without a token: a load balancer has none, and the page is where a person gives it."""
_USUAL_TOP_K, _RETRIEVE_TOP_K = 5, 3
_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How the server may be used.

    Attributes:
        token: what a client has to show; None asks for none.
        pictures: whose pictures are shown to whoever has a signed address; None shows none.
        max_body_bytes: largest request.
        max_searches: searches at once; further requests are answered with 429.
        timeout_s: seconds for one search.
    """

    token: Secret | None = None
    pictures: PictureHost | None = None
    max_body_bytes: int = 20_000_000
    max_searches: int = 256
    timeout_s: float = 30.0


class SearchServer:
    """Serves one tool for each kind of search."""

    def __init__(self, tools: Mapping[ActionKind, SearchTool], settings: ServerSettings) -> None:
        self.settings = settings
        self.measures = Measures()
        self._tools = tools
        self._checker = BodyChecker()
        self._document = document()
        self._page = files("mmsearch_env.server").joinpath("page.html").read_text(encoding="utf-8")
        self._searching = 0

    def app(self) -> web.Application:
        """The application; closing it closes the tools."""
        app = web.Application(
            client_max_size=self.settings.max_body_bytes,
            middlewares=[self._measured, self._errors_told, self._authorised],
        )
        app.router.add_post("/v1/text_search", self._one(ActionKind.TEXT_SEARCH, text_query))
        app.router.add_post("/v1/image_search", self._one(ActionKind.IMAGE_SEARCH, image_query))
        app.router.add_post("/v1/visit_page", self._one(ActionKind.VISIT_PAGE, page_query))
        app.router.add_post("/v1/text_searches", self._many(ActionKind.TEXT_SEARCH, text_query))
        app.router.add_post("/v1/image_searches", self._many(ActionKind.IMAGE_SEARCH, image_query))
        app.router.add_post("/retrieve", self._retrieve)
        app.router.add_get("/", self._shown_page)
        app.router.add_get("/openapi.json", self._shown_document)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        if self.settings.pictures is not None:
            app.router.add_get(PATH + "/{name}", self._picture)
        app.on_cleanup.append(self._close_tools)
        return app

    def runner(self) -> web.AppRunner:
        """The application, ready to be given addresses; what is under way at its end has the time of a search left."""
        # Decompressing is not left to aiohttp, which does it before anybody has looked at the token or the size.
        return web.AppRunner(
            self.app(), access_log=None, shutdown_timeout=self.settings.timeout_s, auto_decompress=False
        )

    def _one(self, kind: ActionKind, read: Callable[[Mapping[str, Any]], Query]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await self._body(request)
            async with self._places(1):
                query = await _understood(read, body["query"])
                return _found(await self._search(kind, query, int(body.get("top_k", _USUAL_TOP_K))))

        return handle

    def _many(self, kind: ActionKind, read: Callable[[Mapping[str, Any]], Query]) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            body = await self._body(request)
            top_k = int(body.get("top_k", _USUAL_TOP_K))

            async def one(item: Mapping[str, Any]) -> dict[str, Any]:
                try:
                    result = await self._search(kind, await _understood(read, item), top_k)
                except ImageError as error:
                    return _told("bad_request", str(error))
                return result_to_json(result) if isinstance(result, SearchResult) else _told_of(result)

            async with self._places(len(body["queries"])):
                return web.json_response({"results": await asyncio.gather(*map(one, body["queries"]))})

        return handle

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        top_k = int(body.get("topk") or _RETRIEVE_TOP_K)
        async with self._places(len(body["queries"])):
            searches = (self._search(ActionKind.TEXT_SEARCH, TextQuery(text), top_k) for text in body["queries"])
            results = await asyncio.gather(*searches)
        for result in results:
            if isinstance(result, ToolError):
                return _error(_STATUS.get(result.code, 502), _told_of(result))
        scored = bool(body.get("return_scores", False))
        return web.json_response({"result": [_passages(result, scored) for result in results]})

    async def _search(self, kind: ActionKind, query: Query, top_k: int) -> SearchResult | ToolError:
        begin = time.perf_counter()
        result = await ask(self._tools[kind], query, top_k=top_k, timeout_s=self.settings.timeout_s)
        code = result.code if isinstance(result, ToolError) else "ok" if result.hits else "empty"
        self.measures.searched(kind.value, code, time.perf_counter() - begin)
        return result

    async def _body(self, request: web.Request) -> Mapping[str, Any]:
        """What was posted, checked. Raises BadRequest, or aiohttp's error for a body too large."""
        if request.content_type != "application/json" or "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(text="expected application/json, not compressed")
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                sent = await request.read()
        except TimeoutError:
            raise web.HTTPRequestTimeout(text=f"expected a body within {self.settings.timeout_s:g} s") from None
        return self._checker.checked(request.path, sent)

    def _places(self, count: int) -> _Places:
        return _Places(self, count)

    async def _shown_page(self, request: web.Request) -> web.StreamResponse:
        nonce = secrets.token_urlsafe(16)
        own = f"'self' 'nonce-{nonce}'"
        policy = f"default-src 'self'; img-src data:; style-src {own}; script-src {own}; frame-ancestors 'none'"
        text = self._page.replace("NONCE", nonce)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _shown_document(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._document)

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(
            {"status": "ok", "tools": {kind.value: tool.name for kind, tool in self._tools.items()}}
        )

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.measures.exposition(), headers={"Content-Type": self.measures.content_type})

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        assert self.settings.pictures is not None
        signed = (request.match_info["name"], request.query.get("until", ""), request.query.get("signature", ""))
        body = await asyncio.to_thread(self.settings.pictures.opened, *signed)
        if body is None:
            raise web.HTTPNotFound(text="no such picture")
        return web.Response(body=body, content_type="image/jpeg", headers={"X-Content-Type-Options": "nosniff"})

    @web.middleware
    async def _measured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        begin = time.perf_counter()
        response = await handler(request)
        route = request.match_info.route.resource
        self.measures.answered(route.canonical if route else "none", response.status, time.perf_counter() - begin)
        return response

    @web.middleware
    async def _errors_told(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error as JSON of one shape, and none with a trace."""
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(400, _told("bad_request", str(error)))
        except ImageError as error:
            return _error(400, _told("bad_request", str(error)))
        except BudgetError as error:
            return _error(503, _told("budget_exhausted", str(error)))
        except _Busy:
            return _error(429, _told("rate_limited", "too many searches at once; try again", retry_after_s=1.0))
        except web.HTTPException as error:
            return _error(error.status, _told(_CODES.get(error.status, "bad_request"), error.text or error.reason))
        except Exception:  # noqa: BLE001  whoever asked gets an answer, and the log the trace
            _log.exception("a request to %s failed", plain(request.path[:200]))
            return _error(500, _told("provider_failed", "the server failed; its log says why"))

    @web.middleware
    async def _authorised(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        token = self.settings.token
        # A picture's address is signed.
        is_open = request.path in _OPEN_PATHS or request.path.startswith(f"{PATH}/")
        if token is not None and not is_open:
            given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Bearer {token.reveal()}".encode()):
                got = "another" if given else "none"
                wanted = (
                    f"expected the header Authorization: Bearer TOKEN, got {got}; name its key_variable or key_file"
                )
                return _error(401, _told("auth", wanted))
        return await handler(request)

    async def _close_tools(self, app: web.Application) -> None:
        for tool in self._tools.values():
            try:
                async with asyncio.timeout(_CLOSING_S):
                    await tool.aclose()
            except Exception:  # noqa: BLE001  the others are to be closed all the same
                _log.exception("%s could not be closed", plain(tool.name))


class _Busy(Exception):
    """More searches than allowed."""


class _Places:
    """Room for some searches. Raises _Busy when there is none."""

    def __init__(self, server: SearchServer, count: int) -> None:
        self._server, self._count = server, count

    async def __aenter__(self) -> None:
        if self._server._searching + self._count > self._server.settings.max_searches:
            raise _Busy
        self._server._searching += self._count

    async def __aexit__(self, *_: object) -> None:
        self._server._searching -= self._count


async def _understood(read: Callable[[Mapping[str, Any]], Query], item: Mapping[str, Any]) -> Query:
    """The query; a picture is decoded in a thread. Raises ImageError."""
    return await asyncio.to_thread(read, item) if "image" in item else read(item)


def _found(result: SearchResult | ToolError) -> web.Response:
    if isinstance(result, ToolError):
        return _error(_STATUS.get(result.code, 502), _told_of(result))
    return web.json_response(result_to_json(result))


def _passages(result: SearchResult | ToolError, scored: bool) -> list[dict[str, Any]]:
    assert isinstance(result, SearchResult)
    documents = [
        {"id": hit.url, "contents": f'"{hit.title}"\n{hit.snippet}', "title": hit.title, "url": hit.url}
        for hit in result.hits
    ]
    if not scored:
        return documents
    return [{"document": item, "score": hit.score} for item, hit in zip(documents, result.hits, strict=True)]


def _told_of(error: ToolError) -> dict[str, Any]:
    return _told(error.code, str(error), retry_after_s=getattr(error, "retry_after_s", None))


def _told(code: str, message: str, *, retry_after_s: float | None = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "retry_after_s": retry_after_s}}


def _error(status: int, body: dict[str, Any]) -> web.Response:
    wait = body["error"]["retry_after_s"]
    headers = {} if wait is None else {"Retry-After": str(int(wait) + 1)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(body, status=status, headers=headers)


_STATUS = {"timeout": 504, "rate_limited": 429, "bad_request": 400, "unavailable": 502}
_CODES = {401: "auth", 404: "not_found", 405: "not_allowed", 408: "timeout", 413: "too_large", 429: "rate_limited"}
_CLOSING_S = 10.0
"""Seconds a tool is given to close."""
