"""The search server: its routes, its limits, its manners, and the tool that is its client."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import PIL.Image
import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, settings

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import BudgetError, ServiceError, ToolError, ToolTimeout, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.net.secret import Secret
from mmsearch_env.server.app import SearchServer, ServerSettings
from mmsearch_env.server.checking import BadRequest, BodyChecker
from mmsearch_env.server.openapi import BODIES, document
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import Hit, ImageQuery, SearchResult, SearchTool, TextQuery
from mmsearch_env.worlds import load_world

ROOT = Path(__file__).parents[2]
TOKEN = "canary-token-1"
RED = Image.from_pil(PIL.Image.new("RGB", (32, 24), "red"))
FOUND = SearchResult((Hit("Peru", "https://a.example/1", "The sol.", 2.5, RED), Hit("Sol", "https://a.example/2")))
PICTURE = base64.b64encode(RED.to_png()).decode()


@asynccontextmanager
async def serving(
    text: SearchTool | None = None, image: SearchTool | None = None, **limits: Any
) -> AsyncIterator[tuple[str, SearchServer]]:
    tools = {ActionKind.TEXT_SEARCH: text or FakeSearch([FOUND]), ActionKind.IMAGE_SEARCH: image or FakeSearch([FOUND])}
    tools[ActionKind.VISIT_PAGE] = build_tool(ActionKind.VISIT_PAGE, "local", load_world("atlas"))
    server = SearchServer(tools, ServerSettings(**limits))
    runner = server.runner()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", server
    finally:
        await runner.cleanup()


Act = Callable[[aiohttp.ClientSession, str], Awaitable[Any]]


def with_server(act: Act, **settings: Any) -> Any:
    async def run() -> Any:
        async with serving(**settings) as (url, _), aiohttp.ClientSession() as session:
            return await act(session, url)

    return asyncio.run(run())


async def post(session: aiohttp.ClientSession, url: str, body: Any, **more: Any) -> tuple[int, Any]:
    async with session.post(url, json=body, **more) as reply:
        return reply.status, await reply.json()


def posted(path: str, body: Any, **settings: Any) -> tuple[int, Any]:
    async def act(session: aiohttp.ClientSession, url: str) -> Any:
        return await post(session, url + path, body)

    return with_server(act, **settings)


def test_words_and_pictures_are_searched_for() -> None:
    status, found = posted("/v1/text_search", {"query": {"text": "sol"}})
    assert status == 200
    assert [hit["title"] for hit in found["hits"]] == ["Peru", "Sol"]
    assert Image.from_bytes(base64.b64decode(found["hits"][0]["thumbnail"])) == RED
    image = FakeSearch([FOUND])
    body = {"query": {"image": PICTURE, "bbox": [0.5, 0.0, 1.0, 1.0], "question_id": "q"}, "top_k": 1}
    status, found = posted("/v1/image_search", body, image=image)
    assert (status, len(found["hits"])) == (200, 1)
    assert image.queries == [ImageQuery(RED, (0.5, 0.0, 1.0, 1.0), "q")]


def test_several_at_once_and_a_failed_one_spoils_no_other() -> None:
    text = FakeSearch([FOUND, ToolTimeout("slow"), SearchResult(())])
    status, found = posted("/v1/text_searches", {"queries": [{"text": word} for word in "abc"]}, text=text)
    assert status == 200
    assert [len(item.get("hits", "none")) for item in found["results"]] == [2, 4, 0]
    assert found["results"][1]["error"]["code"] == "timeout"
    status, found = posted("/v1/image_searches", {"queries": [{"image": PICTURE}, {"image": "no picture"}]})
    assert [list(item) for item in found["results"]] == [["hits"], ["error"]]


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_search_r1s_protocol(scored: bool, count: int) -> None:
    body = {"queries": ["sol"] * count, "topk": 2, "return_scores": scored}
    status, found = posted("/retrieve", body)
    assert (status, len(found["result"])) == (200, count)
    first = found["result"][0][0]
    assert (first["document"] if scored else first)["contents"] == '"Peru"\nThe sol.'
    assert not scored or first["score"] == 2.5


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ToolTimeout("slow"), 504, "timeout"),
        (ToolUnavailable("down"), 502, "unavailable"),
        (ToolError("odd", code="bad_reply"), 502, "bad_reply"),
        (BudgetError("spent"), 503, "budget_exhausted"),
    ],
)
def test_a_tools_failure_has_a_status_of_its_own(error: Exception, status: int, code: str) -> None:
    class Failing:
        name = "failing"

        async def search(self, query: Any, *, top_k: int) -> SearchResult:
            raise error

        async def aclose(self) -> None: ...

    told = posted("/v1/text_search", {"query": {"text": "x"}}, text=Failing())
    assert told[0] == status
    assert told[1]["error"]["code"] == code


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/v1/text_search", {}, "'query' is a required property"),
        ("/v1/text_search", [], "is not of type 'object'"),
        ("/v1/text_search", {"query": {"text": 3}}, "query.text: 3 is not of type 'string'"),
        ("/v1/text_search", {"query": {"text": "x" * 3000}}, "query.text"),
        ("/v1/text_search", {"query": {"text": "x"}, "top_k": 0}, "top_k: 0 is less than the minimum"),
        ("/v1/text_search", {"query": {"text": "x"}, "top_k": 1e9}, "top_k"),
        ("/v1/text_search", {"query": {"text": "x"}, "topk": 3}, "'topk' was unexpected"),
        ("/v1/text_searches", {"queries": []}, "queries"),
        ("/v1/text_searches", {"queries": [{"text": "x"}] * 65}, "queries"),
        ("/v1/image_search", {"query": {"image": "!"}}, "expected a picture in base64"),
        ("/v1/image_search", {"query": {"image": ""}}, "expected"),
        ("/v1/image_search", {"query": {"image": PICTURE, "bbox": [0, 0, 1]}}, "query.bbox"),
        ("/retrieve", {"queries": ["x"], "topk": "many"}, "topk"),
    ],
)
def test_a_wrong_request_is_told_where_it_is_wrong(path: str, body: Any, told: str) -> None:
    status, found = posted(path, body)
    assert (status, found["error"]["code"]) == (400, "bad_request")
    assert told in found["error"]["message"]
    assert len(found["error"]["message"]) < 600


def test_what_is_not_json_and_what_is_too_large() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> list[tuple[int, str]]:
        found = []
        json_type, large = "application/json", io.BytesIO(b" " * 2_000_000)
        for data, kind in ((b"{", json_type), (b"{}", "text/plain"), (large, json_type)):
            async with session.post(f"{url}/v1/text_search", data=data, headers={"Content-Type": kind}) as reply:
                found.append((reply.status, (await reply.json())["error"]["code"]))
        async with session.get(f"{url}/nowhere") as reply:
            found.append((reply.status, (await reply.json())["error"]["code"]))
        async with session.get(f"{url}/v1/text_search") as reply:
            found.append((reply.status, (await reply.json())["error"]["code"]))
        return found

    found = with_server(act, max_body_bytes=1_000_000)
    assert found == [
        (400, "bad_request"),
        (415, "bad_request"),
        (413, "too_large"),
        (404, "not_found"),
        (405, "not_allowed"),
    ]


def test_without_the_token_there_is_only_health_and_the_page_to_give_it() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> list[int]:
        statuses = []
        for given in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer \u00fc", f"Bearer {TOKEN}"):
            headers = {} if given is None else {"Authorization": given}
            statuses.append(
                (await post(session, f"{url}/v1/text_search", {"query": {"text": "x"}}, headers=headers))[0]
            )
        for path in ("/", "/openapi.json", "/metrics", "/healthz"):
            async with session.get(url + path) as reply:
                statuses.append(reply.status)
        return statuses

    assert with_server(act, token=Secret(TOKEN, name="token")) == [401, 401, 401, 401, 200, 200, 401, 401, 200]


def test_too_many_searches_at_once_are_sent_away() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> Any:
        one = {"query": {"text": "x"}}
        statuses = [
            status
            for status, _ in await asyncio.gather(*(post(session, f"{url}/v1/text_search", one) for _ in range(9)))
        ]
        async with session.post(f"{url}/v1/text_searches", json={"queries": [{"text": "x"}] * 9}) as reply:
            return statuses, reply.status, reply.headers["Retry-After"]

    statuses, batch, wait = with_server(act, text=FakeSearch([FOUND], delay_s=0.3), max_searches=4)
    assert sorted(statuses) == [200] * 4 + [429] * 5
    assert (batch, wait) == (429, "2")


def test_places_are_given_back_when_a_client_leaves() -> None:
    async def run() -> int:
        async with serving(FakeSearch([FOUND], delay_s=0.2), max_searches=3) as (url, server):
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.05)) as session:
                for _ in range(3):
                    with pytest.raises(TimeoutError):
                        await post(session, f"{url}/v1/text_search", {"query": {"text": "x"}})
            await asyncio.sleep(1.0)
            return server._searching

    assert asyncio.run(run()) == 0


def test_metrics_count_requests_and_searches() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> str:
        await post(session, f"{url}/v1/text_search", {"query": {"text": "x"}})
        await post(session, f"{url}/v1/text_search", {})
        async with session.get(f"{url}/metrics") as reply:
            assert reply.content_type == "text/plain"
            return await reply.text()

    found = with_server(act)
    assert 'mmsearch_requests_total{route="/v1/text_search",status="200"} 1.0' in found
    assert 'mmsearch_requests_total{route="/v1/text_search",status="400"} 1.0' in found
    assert 'mmsearch_searches_total{kind="text_search",outcome="ok"} 1.0' in found


def test_the_page_runs_only_its_own_script() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> tuple[str, str]:
        async with session.get(url) as reply:
            return await reply.text(), reply.headers["Content-Security-Policy"]

    text, policy = with_server(act)
    nonce = policy.split("'nonce-")[1].split("'")[0]
    assert text.count(f'nonce="{nonce}"') == 2
    assert "unsafe" not in policy


@pytest.mark.parametrize("kind", [ActionKind.TEXT_SEARCH, ActionKind.IMAGE_SEARCH])
def test_through_the_server_everything_is_found_as_without_it(kind: ActionKind) -> None:
    world = load_world("atlas")
    questions = world.questions("test")[:12]
    local = build_tool(kind, "local", world)

    async def run() -> None:
        async with serving(**{"text" if kind is ActionKind.TEXT_SEARCH else "image": local}) as (url, _):
            remote = build_tool(kind, {"name": "server", "base_url": url})
            for question in questions:
                image = question.load_image()
                query = (
                    TextQuery(question.text)
                    if kind is ActionKind.TEXT_SEARCH
                    else ImageQuery(image, (0.1, 0.0, 0.9, 1.0))
                )
                assert await remote.search(query, top_k=3) == await local.search(query, top_k=3)
            await remote.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "code"),
    [(ToolTimeout("slow"), "timeout"), (ToolUnavailable("down"), "unavailable"), (ToolError("x"), "tool_error")],
)
def test_the_client_says_what_the_servers_tool_said(error: ToolError, code: str) -> None:
    async def run() -> ToolError:
        async with serving(FakeSearch([error])) as (url, _):
            limits = {"max_tries": 1}
            remote = build_tool(ActionKind.TEXT_SEARCH, {"name": "server", "base_url": url, "limits": limits})
            with pytest.raises(ToolError) as raised:
                await remote.search(TextQuery("x"), top_k=1)
            await remote.aclose()
            return raised.value

    assert asyncio.run(run()).code == code


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_HERE", TOKEN)

    async def run() -> list[int]:
        token = Secret(TOKEN, name="token")
        async with serving(FakeSearch([FOUND], delay_s=0.05), max_searches=2, token=token) as (url, _):
            remote = build_tool(
                ActionKind.TEXT_SEARCH, {"name": "server", "base_url": url, "key_variable": "TOKEN_HERE"}
            )
            found = await asyncio.gather(*(remote.search(TextQuery(str(n)), top_k=1) for n in range(4)))
            await remote.aclose()
            return [len(result.hits) for result in found]

    assert asyncio.run(run()) == [1, 1, 1, 1]


def test_a_wrong_token_is_told_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_HERE", "wrong-token")

    async def run() -> str:
        async with serving(token=Secret(TOKEN, name="token")) as (url, _):
            remote = build_tool(
                ActionKind.TEXT_SEARCH, {"name": "server", "base_url": url, "key_variable": "TOKEN_HERE"}
            )
            with pytest.raises(ServiceError) as raised:
                await remote.search(TextQuery("x"), top_k=1)
            await remote.aclose()
            assert raised.value.code == "auth"
            return str(raised.value)

    told = asyncio.run(run())
    assert "wrong-token" not in told and TOKEN not in told


@pytest.fixture(scope="module")
def live_url() -> Iterator[str]:
    """A server in a thread of its own, for clients that are not coroutines."""
    started, stop, found = threading.Event(), asyncio.Event(), {}

    async def run() -> None:
        async with serving() as (url, _):
            found["url"], found["loop"] = url, asyncio.get_running_loop()
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    started.wait(10)
    yield found["url"]
    found["loop"].call_soon_threadsafe(stop.set)
    thread.join(10)


schema = schemathesis.openapi.from_dict(document())


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_breaks_the_server_or_its_document(case: Any, live_url: str) -> None:
    response = case.call(base_url=live_url)
    case.validate_response(response, checks=[schemathesis.checks.not_a_server_error])
    assert response.status_code in (200, 400, 401, 404, 405, 406, 413, 415, 429, 502, 503, 504)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"code", "message", "retry_after_s"}


def test_the_document_names_every_route() -> None:
    routes = {
        route.resource.canonical for route in SearchServer({}, ServerSettings()).app().router.routes() if route.resource
    }
    assert set(BODIES) | {"/", "/openapi.json", "/healthz", "/metrics"} == routes


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mmsearch_env", "serve", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
    )


def test_the_command_serves_and_ends_what_is_under_way() -> None:
    slow = json.dumps({"name": "fake", "script": [[{"title": "a", "url": "b"}]], "delay_s": 1.0})
    process = start("--text", slow)
    assert process.stdout is not None
    url = process.stdout.readline().split(" at ")[1].split("/  ")[0]
    answers: list[Any] = []

    def ask() -> None:
        body = json.dumps({"query": {"text": "x"}}).encode()
        request = urllib.request.Request(f"{url}/v1/text_search", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            answers.append(json.load(reply))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))):
        pass
    asking.join()
    _, told = process.communicate(timeout=20)
    assert (process.returncode, told) == (0, "")
    assert answers[0]["hits"][0]["title"] == "a"


def test_compressed_bodies_are_refused_unread() -> None:
    bomb = gzip.compress(bytes(300_000_000))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}

    async def act(session: aiohttp.ClientSession, url: str) -> tuple[int, str, float]:
        begin = time.process_time()
        async with session.post(f"{url}/v1/text_search", data=bomb, headers=headers) as reply:
            told = await reply.json()
        return reply.status, told["error"]["message"], time.process_time() - begin

    status, message, seconds = with_server(act)
    assert (status, message) == (415, "expected application/json, not compressed")
    assert seconds < 0.5


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async def act(session: aiohttp.ClientSession, url: str) -> bytes:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/text_search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        writer.write(b"Content-Length: 100\r\n\r\n{")
        reply = await asyncio.wait_for(reader.readuntil(b"}"), 10.0)
        writer.close()
        return reply

    assert b"408 Request Timeout" in with_server(act, timeout_s=0.3)


def test_every_tool_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Stubborn(FakeSearch):
        async def aclose(self) -> None:
            closed.append(self.name)
            raise RuntimeError("no")

    async def act(session: aiohttp.ClientSession, url: str) -> None:
        pass

    with_server(act, text=Stubborn(), image=Stubborn())
    assert len(closed) == 2 and "could not be closed" in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_the_command_refuses_to_serve_others_without_a_token(host: str) -> None:
    process = start("--host", host)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "expected a token beside an address that others reach" in told


def test_a_body_full_of_faults_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, looked_at = BodyChecker(), 0
    validator = checker._validators["/v1/text_searches"]

    class Counting:
        def iter_errors(self, body: object) -> Iterator[object]:
            nonlocal looked_at
            for error in validator.iter_errors(body):
                looked_at += 1
                yield error

    monkeypatch.setitem(checker._validators, "/v1/text_searches", Counting())
    with pytest.raises(BadRequest, match="is not of type 'object'"):
        checker.checked("/v1/text_searches", json.dumps({"queries": [1] * 5_000}).encode())
    assert looked_at <= 20
