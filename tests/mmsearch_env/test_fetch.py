"""The guard in front of every address that comes from outside."""

from __future__ import annotations

import asyncio
import gzip
import socket
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_env.errors import ConfigError, ServiceError, ToolError, ToolTimeout
from mmsearch_env.net.addresses import networks, refusal
from mmsearch_env.net.fetch import PAGE_TYPES, Fetched, Fetcher, FetchPolicy

LOOPBACK = FetchPolicy(
    max_bytes=100_000, timeout_s=2.0, ports=tuple(range(1, 65536)), allowed_networks=("127.0.0.0/8",)
)
PRIVATE = [
    "127.0.0.1",
    "127.255.1.2",
    "10.0.0.1",
    "172.16.5.5",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "192.0.0.8",
    "192.88.99.1",
    "198.18.0.1",
    "203.0.113.5",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "2001:0:7f00:1::",
    "2002:7f00:1::",
    "2001:db8::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "not an address",
    "",
]
PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert refusal(address) is not None


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not(address: str) -> None:
    assert refusal(address) is None


def test_a_network_may_be_allowed_on_purpose() -> None:
    allowed = networks(("10.1.0.0/16", "fd00::/8"))
    assert refusal("10.1.2.3", allowed=allowed) is None
    assert refusal("::ffff:10.1.2.3", allowed=allowed) is None
    assert refusal("fd00::1", allowed=allowed) is None
    assert refusal("10.2.0.1", allowed=allowed) is not None
    with pytest.raises(ConfigError, match="expected networks such as"):
        networks(("10.1.2.3/16",))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_ipv6_dress(address: Any) -> None:
    bare = refusal(str(address)) is None
    assert (refusal(f"::ffff:{address}") is None) == bare
    assert (refusal(f"64:ff9b::{address}") is None) == bare


class NoNetwork:
    """Takes the place of sockets and names: what would be dialled is written down, and nothing leaves."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.dialled: list[tuple[int, int, int]] = []

    def make_socket(self, *kind: int) -> socket.socket:
        self.dialled.append(kind)  # type: ignore[arg-type]
        raise OSError("there is no network in this test")

    def resolver(self) -> AbstractResolver:
        return _Resolver(self.answers)


class _Resolver(AbstractResolver):
    def __init__(self, answers: list[str]) -> None:
        self._answers = answers

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        address = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def attempt(url: str, *answers: str, policy: FetchPolicy | None = None) -> tuple[ToolError, list[Any]]:
    """What fetching ``url`` ends in where there is no network, and what would have been dialled."""

    async def run() -> tuple[ToolError, list[Any]]:
        network = NoNetwork(*(answers or ("93.184.216.34",)))
        fetcher = Fetcher(policy, resolver=network.resolver, make_socket=network.make_socket)
        try:
            await fetcher.fetch(url, types=PAGE_TYPES)
        except ToolError as error:
            return error, network.dialled
        finally:
            await fetcher.aclose()
        raise AssertionError("nothing can be fetched without a network")

    return asyncio.run(run())


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://[fe80::1]/",
        "http://[ff02::1]/",
        "https://192.168.0.1/",
    ],
)
def test_a_literal_address_inside_is_never_dialled(url: str) -> None:
    # A host the parser takes for a name is looked up; names that lead inside are refused like literals.
    error, dialled = attempt(url, "127.0.0.1")
    assert error.code in ("blocked_by_policy", "target_failed")
    assert dialled == []


@pytest.mark.parametrize(
    "address", [address for address in PRIVATE if address and " " not in address and "%" not in address]
)
def test_a_name_that_leads_inside_is_never_dialled(address: str) -> None:
    error, dialled = attempt("http://innocent.example/", address)
    assert (error.code, dialled) == ("blocked_by_policy", [])


def test_a_public_name_is_dialled() -> None:
    error, dialled = attempt("http://innocent.example/", "93.184.216.34")
    assert error.code == "target_failed"
    assert dialled != []


def test_a_name_that_changes_its_address_is_judged_anew() -> None:
    """A resolver that is asked twice answers outside first, then inside: only what is dialled counts."""

    async def run() -> list[Any]:
        network = NoNetwork("93.184.216.34", "127.0.0.1")
        fetcher = Fetcher(resolver=network.resolver, make_socket=network.make_socket)
        codes = []
        for number in range(2):
            try:
                await fetcher.fetch(f"http://rebinding.example/{number}", types=PAGE_TYPES)
            except ToolError as error:
                codes.append(error.code)
            # names are remembered for seconds; the attacker waits
            fetcher._sessions.get().connector.clear_dns_cache()  # type: ignore[union-attr]
        await fetcher.aclose()
        return [*codes, len(network.dialled)]

    assert asyncio.run(run()) == ["target_failed", "blocked_by_policy", 1]


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("ftp://a.example/", "http or https"),
        ("file:///etc/passwd", "http or https"),
        ("gopher://a.example/", "http or https"),
        ("javascript:alert(1)", "http or https"),
        ("data:text/html,x", "http or https"),
        ("//a.example/", "http or https"),
        ("", "http or https"),
        ("http://", "a URL"),
        ("http:///path", "a URL"),
        ("http://a.example:22/", "a port of 80, 443"),
        ("http://a.example:99999/", "a URL"),
        ("http://[::1", "a URL"),
        ("http://a.example/" + "x" * 3000, "at most 2048 characters"),
    ],
)
def test_what_is_not_even_dialled(url: str, told: str) -> None:
    error, dialled = attempt(url)
    assert (error.code, dialled) == ("blocked_by_policy", [])
    assert told in str(error)


@given(st.text(max_size=200))
def test_any_text_is_a_clear_error(url: str) -> None:
    error, _ = attempt(url)
    assert isinstance(error, ServiceError)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def site(**pages: Handler) -> Any:
    """A site on loopback; a page for each name."""
    app = web.Application()
    for name, handler in pages.items():
        app.router.add_get(f"/{name}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def fetched(handler: Handler, policy: FetchPolicy = LOOPBACK, **more: Handler) -> Fetched:
    async def run() -> Fetched:
        async with site(page=handler, **more) as url:
            fetcher = Fetcher(policy)
            try:
                return await fetcher.fetch(f"{url}/page", types=PAGE_TYPES)
            finally:
                await fetcher.aclose()

    return asyncio.run(run())


async def page(request: web.Request) -> web.Response:
    assert "Cookie" not in request.headers and "Authorization" not in request.headers
    return web.Response(text="<p>hello</p>", content_type="text/html")


def test_a_page_comes_whole() -> None:
    found = fetched(page)
    assert (found.body, found.content_type, found.charset) == (b"<p>hello</p>", "text/html", "utf-8")


def test_a_redirect_is_followed_and_where_it_ends_is_told() -> None:
    async def go(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/end"})

    found = fetched(go, end=page)
    assert found.url.endswith("/end")


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/", "http://10.0.0.1/", "file:///etc/passwd", "http://[::1]/"])
def test_a_redirect_inside_is_refused(target: str) -> None:
    async def go(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": target})

    only_this_host = FetchPolicy(ports=LOOPBACK.ports, allowed_networks=("127.0.0.1/32",))
    allowed = target.startswith("http://127.0.0.1")
    with pytest.raises(ServiceError) as raised:
        fetched(go, only_this_host)
    assert raised.value.code == ("target_failed" if allowed else "blocked_by_policy")


def test_a_redirect_in_circles_ends() -> None:
    async def go(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": "/page"})

    with pytest.raises(ServiceError, match="at most 5 redirects"):
        fetched(go)


def test_no_cookie_is_kept() -> None:
    async def go(request: web.Request) -> web.Response:
        response = web.Response(status=302, headers={"Location": "/end"})
        response.set_cookie("who", "me")
        return response

    assert fetched(go, end=page).body == b"<p>hello</p>"


@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_beyond_the_limit_is_not_read_to_its_end(compressed: bool) -> None:
    sent = 0

    async def go(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        headers = {"Content-Type": "text/html"} | ({"Content-Encoding": "gzip"} if compressed else {})
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        chunk = gzip.compress(bytes(50_000_000)) if compressed else bytes(1_000_000)
        for _ in range(1 if compressed else 50):
            await response.write(chunk)
            sent += len(chunk)
        return response

    with pytest.raises(ServiceError, match="at most 100000 bytes, got more") as raised:
        fetched(go)
    assert raised.value.code == "blocked_by_policy"
    assert sent < 40_000_000


def test_bytes_that_drip_are_given_up_in_time() -> None:
    async def go(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/html"})
        await response.prepare(request)
        for _ in range(100):
            await response.write(b"x")
            await asyncio.sleep(0.05)
        return response

    with pytest.raises(ToolTimeout, match="within 0.5 s"):
        fetched(go, FetchPolicy(timeout_s=0.5, ports=LOOPBACK.ports, allowed_networks=LOOPBACK.allowed_networks))


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (404, "text/html", "target_failed"),
        (500, "text/html", "target_failed"),
        (200, "application/pdf", "blocked_by_policy"),
    ],
)
def test_what_is_no_page(status: int, kind: str, code: str) -> None:
    async def go(request: web.Request) -> web.Response:
        return web.Response(status=status, body=b"x", content_type=kind)

    with pytest.raises(ServiceError) as raised:
        fetched(go)
    assert raised.value.code == code


@pytest.fixture(autouse=True)
def proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the environment are not used: they would dial on our behalf, unguarded."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
