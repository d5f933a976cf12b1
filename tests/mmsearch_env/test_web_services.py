from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_services import KEY, ROWS, SERVICES, FakeService

from mmsearch_env.actions import ActionKind
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import BudgetError, ConfigError, ServiceError, ToolError, ToolTimeout, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.tools import WEB_TOOLS, build_tool
from mmsearch_env.tools.search_tool import ImageQuery, SearchResult, SearchTool, TextQuery
from mmsearch_env.tools.web import build

QUICK = {"timeout_s": 0.4, "deadline_s": 2.0, "max_tries": 2, "max_bytes": 100_000}
NO_KEY = ("searxng", "search_r1")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("SERPER", "SERPAPI", "BRAVE", "TAVILY"):
        monkeypatch.setenv(f"{name}_API_KEY", KEY)
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    return file


def tool(name: str, service: FakeService, kind: ActionKind = ActionKind.TEXT_SEARCH, **settings: Any) -> SearchTool:
    settings = {"base_url": service.url, "limits": QUICK, **settings}
    return build_tool(kind, {"name": name, **settings})


def played(name: str, act: Callable[[SearchTool, FakeService], Awaitable[Any]], **settings: Any) -> Any:
    """Run ``act`` against a tool and the fake server behind it."""

    async def run() -> Any:
        async with SERVICES[name]().running() as service:
            made = tool(name, service, **settings)
            try:
                return await act(made, service)
            finally:
                await made.aclose()

    return asyncio.run(run())


async def ask(made: SearchTool, text: str = "currency of Peru") -> SearchResult | ToolError:
    try:
        return await made.search(TextQuery(text), top_k=2)
    except ToolError as error:
        return error


def failing(fault: str | list[str]) -> Callable[[SearchTool, FakeService], Awaitable[Any]]:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = fault
        return await ask(made), len(service.seen)

    return act


def test_every_service_is_known_by_name() -> None:
    assert set(build.WEB_TOOLS) == set(WEB_TOOLS) == set(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_rows_become_hits_in_order(name: str) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        return await ask(made), service.seen

    found, seen = played(name, act)
    assert [hit.title for hit in found.hits] == [title for title, _, _ in ROWS]
    assert all(snippet in hit.snippet for hit, (_, _, snippet) in zip(found.hits, ROWS, strict=True))
    assert "<" not in "".join(hit.snippet for hit in found.hits)
    if name != "search_r1":
        assert [hit.url for hit in found.hits] == [url for _, url, _ in ROWS]
    assert len(seen) == 1
    assert "currency of Peru" in json.dumps([seen[0]["query"], seen[0]["body"]])


def test_a_service_that_cannot_be_reached_is_named_with_its_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{probe.getsockname()[1]}"

    async def run() -> None:
        made = build_tool(ActionKind.TEXT_SEARCH, {"name": "searxng", "base_url": dead, "limits": QUICK})
        try:
            await made.search(TextQuery("x"), top_k=1)
        finally:
            await made.aclose()

    with pytest.raises(ServiceError, match=f"searxng.*expected a reply from {dead}, got Client.*check the address"):
        asyncio.run(run())


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("fault", ["empty"])
def test_nothing_found_is_no_error(name: str, fault: str) -> None:
    found, calls = played(name, failing(fault))
    assert found == SearchResult(())
    assert calls == 1


LASTING = [
    ("serper", "quota", "quota_exhausted"),
    ("serper", "quota 429", "quota_exhausted"),
    ("serper", "auth", "auth"),
    ("serper", "bad request", "bad_request"),
    ("serpapi", "quota", "quota_exhausted"),
    ("serpapi", "auth", "auth"),
    ("serpapi", "target", "target_failed"),
    ("serpapi", "bad request", "bad_request"),
    ("brave", "quota", "quota_exhausted"),
    ("brave", "auth", "auth"),
    ("brave", "auth, missing", "auth"),
    ("brave", "bad request", "bad_request"),
    ("tavily", "quota", "quota_exhausted"),
    ("tavily", "quota 433", "quota_exhausted"),
    ("tavily", "auth", "auth"),
    ("tavily", "bad request", "bad_request"),
    ("searxng", "auth", "auth"),
    ("searxng", "bad request", "bad_request"),
    ("search_r1", "auth", "auth"),
    ("search_r1", "bad request", "bad_request"),
]


@pytest.mark.parametrize(("name", "fault", "code"), LASTING)
def test_a_fault_that_stays_is_named_and_not_tried_again(name: str, fault: str, code: str) -> None:
    found, calls = played(name, failing(fault))
    assert isinstance(found, ServiceError)
    assert (found.code, calls) == (code, 1)


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize("fault", ["rate", "500", "503", "truncated", "reset"])
def test_a_fault_that_passes_is_tried_again(name: str, fault: str) -> None:
    found, calls = played(name, failing([fault]))
    assert isinstance(found, SearchResult), found
    assert (len(found.hits), calls) == (2, 2)


@pytest.mark.parametrize("name", SERVICES)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("rate", "rate_limited"),
        ("500", "provider_failed"),
        ("hang", "timeout"),
        ("drip", "timeout"),
        ("huge", "provider_failed"),
        ("html", "provider_failed"),
        ("array", "provider_failed"),
        ("truncated", "provider_failed"),
        ("redirect", "provider_failed"),
    ],
)
def test_a_fault_that_does_not_pass_is_named(name: str, fault: str, code: str) -> None:
    found, calls = played(name, failing(fault))
    assert isinstance(found, ToolError)
    assert (found.code, calls) == (code, 2)
    assert str(found).startswith(f"{name}: expected ")


def test_searxng_without_engines_is_down() -> None:
    found, _ = played("searxng", failing("down"))
    assert isinstance(found, ServiceError) and found.code == "provider_failed"


def test_an_asked_for_pause_beyond_the_deadline_is_not_waited_for() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.faults = {"rate": (429, {"Retry-After": "30"}, {"message": "slow"})}
        service.fault = "rate"
        begin = asyncio.get_running_loop().time()
        return await ask(made), len(service.seen), asyncio.get_running_loop().time() - begin

    found, calls, seconds = played("serper", act)
    assert isinstance(found, ServiceError)
    assert (found.code, found.retry_after_s, calls) == ("rate_limited", 30.0, 1)
    assert seconds < 1.5


@pytest.mark.parametrize("fault", ["auth", "quota"])
def test_a_wrong_key_or_an_empty_account_is_not_asked_again(fault: str) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = fault
        first, second = await ask(made, "a"), await ask(made, "b")
        return first, second, len(service.seen)

    _, second, calls = played("serper", act)
    assert isinstance(second, ServiceError)
    assert (second.code, calls) == ("circuit_open", 1)


def test_a_service_that_fails_again_and_again_is_left_alone() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = "500"
        found = [await ask(made, str(number)) for number in range(20)]
        return found, len(service.seen)

    found, calls = played("serper", act, limits={**QUICK, "max_tries": 1})
    assert [error.code for error in found[:10]] == ["provider_failed"] * 10
    assert {error.code for error in found[10:]} == {"circuit_open"}
    assert calls == 10


def test_an_outage_does_not_multiply_the_load() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = ["500", ""] * 100  # half of all calls fail, so the circuit stays closed at first
        await asyncio.gather(*(ask(made, str(number)) for number in range(60)))
        return len(service.seen)

    assert played("serper", act, limits={**QUICK, "max_tries": 50, "deadline_s": 5.0}) <= 60 + 10 + 6


def test_the_same_query_goes_out_once_however_many_ask() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        found = await asyncio.gather(*(ask(made) for _ in range(64)))
        return found, len(service.seen)

    found, calls = played("serper", act)
    assert calls == 1
    assert len({json.dumps([hit.title for hit in result.hits]) for result in found}) == 1


def test_tools_share_their_connections_until_the_last_one_is_closed() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        other = tool("serper", service)
        await ask(made, "one")
        await ask(other, "two")
        await other.aclose()
        await ask(made, "three")
        await made.aclose()
        await ask(made, "four")
        return [seen["connection"] for seen in service.seen]

    *shared, last = played("serper", act)
    assert len(shared) == 3 and len(set(shared)) == 1
    assert last not in shared


def test_a_cancelled_waiter_does_not_take_the_call_with_it() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        impatient, patient = asyncio.ensure_future(ask(made)), asyncio.ensure_future(ask(made))
        await asyncio.sleep(0)
        impatient.cancel()
        return await patient, len(service.seen)

    found, calls = played("serper", act)
    assert (len(found.hits), calls) == (2, 1)


def test_answers_are_kept_on_disk_and_errors_are_not(tmp_path: Path) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = ["500", "500"]
        failed = await ask(made)
        found = [await ask(made), await ask(made, "  currency   of Peru ")]
        again = tool("serper", service, cache_dir=str(tmp_path / "cache"))
        found.append(await ask(again))
        await again.aclose()
        return failed, found, len(service.seen)

    failed, found, calls = played("serper", act, cache_dir=str(tmp_path / "cache"))
    assert isinstance(failed, ServiceError)
    assert [len(result.hits) for result in found] == [2, 2, 2]
    assert calls == 3  # two that failed, and one that served all three


def test_the_budget_stops_before_the_call_that_goes_beyond_it(tmp_path: Path) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        await ask(made, "a")
        await ask(made, "a")  # kept, so free
        await ask(made, "b")
        with pytest.raises(BudgetError, match="expected at most 0.002 US dollars"):
            await ask(made, "c")
        return len(service.seen)

    budget = {"max_usd": 0.002, "ledger": str(tmp_path / "spent.json")}
    assert played("serper", act, budget=budget, cache_dir=str(tmp_path / "cache")) == 2
    assert json.loads((tmp_path / "spent.json").read_text()) == {"calls": 2, "usd": 0.002}


def test_a_picture_is_uploaded_and_found(tmp_path: Path) -> None:
    image = Image(np.random.default_rng(0).integers(0, 255, (900, 1600, 3), dtype=np.uint8))

    async def act(made: SearchTool, service: FakeService) -> Any:
        return await made.search(ImageQuery(image, (0.25, 0.0, 0.75, 1.0)), top_k=2), service.seen

    found, seen = played("serpapi", act, kind=ActionKind.IMAGE_SEARCH)
    assert [hit.title for hit in found.hits] == ["Peru", "Sol"]
    assert [(item["method"], item["path"]) for item in seen] == [("POST", "/image"), ("GET", "/search.json")]
    assert seen[1]["query"]["image_id"] == "picture-1"
    start = seen[0]["raw"].index(b"\xff\xd8\xff")
    uploaded = Image.from_bytes(seen[0]["raw"][start:])
    assert abs(uploaded.width / uploaded.height - 800 / 900) < 0.01
    assert max(uploaded.width, uploaded.height) <= 1024


def test_words_are_no_picture() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        with pytest.raises(ToolUnavailable, match="expected a picture, got TextQuery"):
            await made.search(TextQuery("x"), top_k=1)

    played("serpapi", act, kind=ActionKind.IMAGE_SEARCH)


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in NO_KEY])
@pytest.mark.parametrize("fault", ["", "auth", "500", "hang", "reset", "html", "redirect"])
def test_the_key_is_nowhere_to_be_seen(
    name: str, fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: Path
) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = fault
        found = await ask(made)
        assert KEY in json.dumps([service.seen[0]["query"], service.seen[0]["headers"]])
        chain: list[BaseException | None] = [found if isinstance(found, BaseException) else None]
        while (last := chain[-1]) is not None and (cause := last.__cause__ or last.__context__) is not None:
            chain.append(cause)
        return repr(chain) + str(found) + repr(made) + repr(vars(made))

    caplog.set_level(logging.DEBUG)
    shown = played(name, act, cache_dir=str(tmp_path / "cache"), key_file=str(key))
    assert KEY not in shown
    assert KEY not in caplog.text
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()


def test_without_a_key_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY")
    with pytest.raises(ConfigError, match="environment variable SERPER_API_KEY, got none; export it or set key_file"):
        build_tool(ActionKind.TEXT_SEARCH, "serper")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "serper", "base_url": "http://example.com"}, "expected https, since a key is sent"),
        ({"name": "serper", "base_url": "ftp://example.com"}, "expected http"),
        ({"name": "serper", "keyfile": "x"}, "got keyfile; mend the setting's name"),
        ({"name": "serper", "limits": {"timeout": 3}}, "got timeout; mend"),
        ({"name": "serper", "limits": {"timeout_s": "3"}}, "expected something like 10.0, got '3'"),
        ({"name": "serper", "limits": {"max_tries": 0}}, "expected a number above 0, got 0"),
        ({"name": "serper", "budget": {"max_usd": -1}}, "max_usd: expected at least 0"),
        ({"name": "serper", "reader": "curl"}, "expected none, local or jina, got 'curl'"),
        ({"name": "serper", "summariser": "passages"}, "expected a reader beside it"),
        ({"name": "serper", "reader": "local", "summariser": {"name": "chat"}}, "expected base_url and model"),
        ({"name": "serper", "fetch": {"allowed_networks": ["10.0.0.1/8"]}}, "expected networks such as"),
        ({"name": "searxng"}, "expected base_url, the address of your server"),
        ({"name": "serper", "key_file": "/nowhere/key"}, "expected a readable file with a key, got /nowhere/key"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, Any], told: str) -> None:
    async def first() -> None:
        made = build_tool(ActionKind.TEXT_SEARCH, settings)
        await made.search(TextQuery("x"), top_k=1)

    with pytest.raises(ConfigError, match=told):
        asyncio.run(first())


def test_a_service_without_image_search_says_so() -> None:
    with pytest.raises(ConfigError, match="'brave': expected a service with image_search"):
        build_tool(ActionKind.IMAGE_SEARCH, "brave")


def test_a_hanging_service_is_given_up_in_time() -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        service.fault = "hang"
        begin = asyncio.get_running_loop().time()
        found = await ask(made)
        return found, asyncio.get_running_loop().time() - begin

    found, seconds = played("serper", act)
    assert isinstance(found, ToolTimeout)
    assert seconds < 3.0


def test_what_a_search_costs_is_in_info(tmp_path: Path) -> None:
    async def act(made: SearchTool, service: FakeService) -> Any:
        env = MMSearchEnv(tools={"text_search": made})
        ask = "<reason>r</reason><text_search>currency of Peru</text_search>"
        costs = []
        for _ in range(2):
            env.reset(seed=0)
            *_, info = await env.astep(ask)
            costs.append((info["n_text_search"], info["n_service_calls"], info["cost_usd"]))
        return costs

    costs = played("serper", act, cache_dir=str(tmp_path / "cache"))
    assert costs == [(1.0, 1.0, 0.001), (1.0, 0.0, 0.0)]


DECODED_AFTER_A_FORK = """
import asyncio, os
import numpy as np
from mmsearch_env.images import Image
from mmsearch_env.tools.web.query_parts import as_jpeg
from mmsearch_env.tools.web.web_search import _in_decoder

body = as_jpeg(Image(np.zeros((8, 8, 3), dtype=np.uint8)), most_bytes=100_000)

async def decoded():
    async with asyncio.timeout(20):
        return await _in_decoder(Image.from_bytes, body)

assert asyncio.run(decoded()).width == 8
child = os.fork()
if child == 0:
    os._exit(0 if asyncio.run(decoded()).width == 8 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_pictures_are_decoded_in_a_forked_child() -> None:
    subprocess.run([sys.executable, "-c", DECODED_AFTER_A_FORK], check=True, timeout=60)
