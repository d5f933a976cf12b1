"""Fake servers of the search services, over real loopback HTTP.

Each checks the request as its service would and answers with bodies of the shapes its service documents; ``fault``
chooses what goes wrong.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "canary-key-123"

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, and a body: bytes as they are, anything else as JSON."""

ROWS = [("Peru", "https://peru.example/a", "The sol is used in Peru."), ("Sol", "https://sol.example/b", "A coin.")]


@dataclass
class FakeService:
    """A service on loopback.

    Attributes:
        routes: (method, path) -> what a sound request is answered with, or an error status with a body.
        faults: name -> answer to every request.
        fault: the fault now, or one for each request in turn; "" answers as usual.
        seen: every request: method, path, query, headers, body, and the connection it came by.
    """

    routes: Mapping[tuple[str, str], Callable[[Mapping[str, Any]], Answer]]
    faults: Mapping[str, Answer]
    fault: str | list[str] = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        seen = {
            "method": request.method,
            "path": request.path,
            "query": dict(request.query),
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "raw": raw,
            "body": _parsed(raw),
            "connection": request.get_extra_info("peername"),
        }
        self.seen.append(seen)
        fault = self.fault if isinstance(self.fault, str) else (self.fault.pop(0) if self.fault else "")
        if fault in ("hang", "drip", "huge", "truncated", "reset"):
            return await _misbehave(request, fault)
        if fault:
            return _response(*{**GENERAL_FAULTS, **self.faults}[fault])
        route = self.routes.get((request.method, request.path))
        return _response(*(route(seen) if route else (404, {}, {"error": "no such path"})))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeService]:
        """Serve on a free port of loopback."""
        app = web.Application(client_max_size=10_000_000)
        app.router.add_route("*", "/{path:.*}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()


GENERAL_FAULTS: Mapping[str, Answer] = {
    "500": (500, {}, {"error": "internal"}),
    "503": (503, {"Retry-After": "0"}, {"error": "down"}),
    "html": (200, {"Content-Type": "text/html"}, b"<html>We are improving our service.</html>"),
    "array": (200, {}, [1, 2]),
    "redirect": (302, {"Location": "http://127.0.0.1:1/"}, b""),
}


async def _misbehave(request: web.Request, fault: str) -> web.StreamResponse:
    if fault == "hang":
        await asyncio.sleep(60)
    if fault == "reset":
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    headers = {"Content-Type": "application/json"}
    if fault == "truncated":
        headers["Content-Length"] = "100"
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if fault == "truncated":
        await response.write(b'{"organic": [')
        assert request.transport is not None
        request.transport.abort()
    elif fault == "huge":
        for _ in range(50):
            await response.write(b" " * 1_000_000)
    else:
        for _ in range(600):
            await response.write(b" ")
            await asyncio.sleep(0.1)
    return response


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _response(status: int, headers: Mapping[str, str], body: Any) -> web.Response:
    if isinstance(body, bytes):
        return web.Response(status=status, headers=dict(headers), body=body)
    return web.json_response(body, status=status, headers=dict(headers))


def serper() -> FakeService:
    def search(seen: Mapping[str, Any]) -> Answer:
        if seen["headers"].get("x-api-key") != KEY:
            return 403, {}, {"message": "Unauthorized. Sign up for a free account.", "statusCode": 403}
        if not isinstance(seen["body"], dict) or not seen["body"].get("q"):
            return 400, {}, {"message": "Missing query parameter", "statusCode": 400}
        rows = [{"title": t, "link": u, "snippet": s, "position": n} for n, (t, u, s) in enumerate(ROWS, 1)]
        return 200, {}, {"searchParameters": {"q": seen["body"]["q"]}, "organic": rows, "credits": 1}

    def lens(seen: Mapping[str, Any]) -> Answer:
        if seen["headers"].get("x-api-key") != KEY:
            return 403, {}, {"message": "Unauthorized. Sign up for a free account.", "statusCode": 403}
        if not isinstance(seen["body"], dict) or not str(seen["body"].get("url", "")).startswith("http"):
            return 400, {}, {"message": "Missing url parameter", "statusCode": 400}
        pages = [{"title": t, "link": u, "source": "x", "imageUrl": None} for t, u, _ in ROWS]
        return 200, {}, {"organic": [{"title": "no link"}, *pages], "credits": 3}

    return FakeService(
        {("POST", "/search"): search, ("POST", "/lens"): lens},
        {
            "empty": (200, {}, {"organic": [], "credits": 1}),
            "rate": (429, {}, {"message": "Too many requests", "statusCode": 429}),
            "quota": (400, {}, {"message": "Not enough credits", "statusCode": 400}),
            "quota 429": (429, {}, {"message": "You have run out of credits", "statusCode": 429}),
            "auth": (403, {}, {"message": "Unauthorized. Sign up for a free account.", "statusCode": 403}),
            "bad request": (400, {}, {"message": "Query not allowed", "statusCode": 400}),
        },
    )


def serpapi() -> FakeService:
    def keyed(answer: Callable[[Mapping[str, Any]], Answer]) -> Callable[[Mapping[str, Any]], Answer]:
        def route(seen: Mapping[str, Any]) -> Answer:
            given = seen["query"].get("api_key")
            if given != KEY and f'name="api_key"\r\n\r\n{KEY}\r\n'.encode() not in seen["raw"]:
                return 401, {}, {"error": "Invalid API key. Your API key should be here: https://serpapi.com/manage"}
            return answer(seen)

        return route

    def search(seen: Mapping[str, Any]) -> Answer:
        query = seen["query"]
        done = {"search_metadata": {"status": "Success"}, "search_parameters": {"engine": query.get("engine")}}
        if query.get("engine") == "google" and query.get("q"):
            rows = [{"title": t, "link": u, "snippet": s, "position": n} for n, (t, u, s) in enumerate(ROWS, 1)]
            return 200, {}, {**done, "organic_results": rows}
        if query.get("engine") == "google_lens" and query.get("image_id") == "picture-1":
            pages = [{"title": t, "link": u, "position": n} for n, (t, u, _) in enumerate(ROWS, 1)]
            odd = [{"position": 3, "thumbnail": "x"}, {"position": 4, "title": None, "link": "javascript:alert(1)"}, 7]
            return 200, {}, {**done, "visual_matches": [odd[0], *pages, *odd[1:]]}
        return 400, {}, {"error": "Missing query `q` parameter."}

    def upload(seen: Mapping[str, Any]) -> Answer:
        if b'name="image"' not in seen["raw"] or b"\xff\xd8\xff" not in seen["raw"] or len(seen["raw"]) > 500 * 1024:
            return 400, {}, {"error": "no image"}
        return 200, {}, {"image_id": "picture-1"}

    none = "Google hasn't returned any results for this query."
    return FakeService(
        {("GET", "/search.json"): keyed(search), ("POST", "/image"): keyed(upload)},
        {
            "empty": (200, {}, {"search_metadata": {"status": "Success"}, "error": none}),
            "rate": (429, {}, {"error": "Your account is sending too many requests this hour."}),
            "quota": (429, {}, {"error": "Your account has run out of searches."}),
            "auth": (401, {}, {"error": f"Invalid API key {KEY}."}),
            "target": (200, {}, {"search_metadata": {"status": "Error"}, "error": "We couldn't process the search."}),
            "bad request": (400, {}, {"error": "Unsupported `hl`"}),
        },
    )


def brave() -> FakeService:
    def search(seen: Mapping[str, Any]) -> Answer:
        if seen["headers"].get("x-subscription-token") != KEY:
            return invalid
        if not seen["query"].get("q") or not 1 <= int(seen["query"].get("count", 20)) <= 20:
            return 422, {}, {"error": {"code": "VALIDATION", "status": 422, "meta": {}}}
        rows = [{"title": t, "url": u, "description": f"<strong>{s}</strong> &amp; more"} for t, u, s in ROWS]
        return 200, {}, {"query": {"original": "x"}, "web": {"results": rows}}

    invalid = 422, {}, {"error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "status": 422}}
    reset = {"X-RateLimit-Remaining": "0, 1200", "X-RateLimit-Reset": "0, 86400"}
    missing = {"errors": [{"loc": ["header", "x-subscription-token"]}]}
    return FakeService(
        {("GET", "/res/v1/web/search"): search},
        {
            "empty": (200, {}, {"query": {"original": "x"}}),
            "rate": (429, reset, {"error": {"code": "RATE_LIMITED", "status": 429}}),
            "quota": (429, reset, {"error": {"code": "QUOTA_LIMITED", "status": 429}}),
            "auth": invalid,
            "auth, missing": (422, {}, {"error": {"code": "VALIDATION", "status": 422, "meta": missing}}),
            "bad request": (422, {}, {"error": {"code": "VALIDATION", "status": 422, "meta": {}}}),
        },
    )


def tavily() -> FakeService:
    def search(seen: Mapping[str, Any]) -> Answer:
        if seen["headers"].get("authorization") != f"Bearer {KEY}":
            return 401, {}, {"detail": {"error": "Unauthorized: missing or invalid API key."}}
        body = seen["body"]
        if not isinstance(body, dict) or not body.get("query") or not 0 <= body.get("max_results", 5) <= 20:
            return 422, {}, {"detail": "bad"}
        rows = [{"title": t, "url": u, "content": s, "score": 0.9} for t, u, s in ROWS]
        return 200, {}, {"query": body["query"], "results": rows, "response_time": 1.0, "images": []}

    return FakeService(
        {("POST", "/search"): search},
        {
            "empty": (200, {}, {"query": "x", "results": []}),
            "rate": (429, {"Retry-After": "0"}, {"detail": {"error": "Too many requests"}}),
            "quota": (432, {}, {"detail": {"error": "This request exceeds your plan's set usage limit"}}),
            "quota 433": (433, {}, {"detail": {"error": "This request exceeds the pay-as-you-go limit"}}),
            "auth": (401, {}, {"detail": {"error": "Unauthorized"}}),
            "bad request": (400, {}, {"detail": {"error": "bad"}}),
        },
    )


def searxng() -> FakeService:
    def search(seen: Mapping[str, Any]) -> Answer:
        if seen["query"].get("format") != "json":
            return 200, {}, b"<html></html>"
        if not seen["query"].get("q"):
            return 400, {}, {"error": "No query"}
        rows = [{"title": t, "url": u, "content": s, "engine": "duckduckgo", "score": 1.0} for t, u, s in ROWS]
        return 200, {}, {"query": "x", "results": rows, "unresponsive_engines": [["google", "timeout"]]}

    return FakeService(
        {("GET", "/search"): search},
        {
            "empty": (200, {}, {"query": "x", "results": [], "unresponsive_engines": []}),
            "rate": (429, {}, b"Too Many Requests"),
            "auth": (403, {}, b"Forbidden"),
            "down": (200, {}, {"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}),
            "bad request": (400, {}, {"error": "No query"}),
        },
    )


def search_r1() -> FakeService:
    def retrieve(seen: Mapping[str, Any]) -> Answer:
        body = seen["body"]
        if not isinstance(body, dict) or {*body} != {"queries", "topk", "return_scores"} or len(body["queries"]) != 1:
            return 422, {}, {"detail": "bad"}
        documents = [{"id": str(n), "contents": f'"{t}"\n{s}'} for n, (t, _, s) in enumerate(ROWS)]
        return 200, {}, {"result": [[{"document": d, "score": 0.5} for d in documents[: body["topk"]]]]}

    return FakeService(
        {("POST", "/retrieve"): retrieve},
        {
            "empty": (200, {}, {"result": [[]]}),
            "rate": (429, {"Retry-After": "0"}, b""),
            "auth": (401, {}, {"detail": "Unauthorized"}),
            "bad request": (422, {}, {"detail": "bad"}),
        },
    )


SERVICES: Mapping[str, Callable[[], FakeService]] = {
    "serper": serper,
    "serpapi": serpapi,
    "brave": brave,
    "tavily": tavily,
    "searxng": searxng,
    "search_r1": search_r1,
}
