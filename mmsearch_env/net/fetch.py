"""Fetching an address that came from data or from the web: the only way in for such content.

What is promised, whatever a server or a page says:

- only http and https, only the ports allowed, only public addresses, judged at the socket;
- redirects are followed by hand, at most a few, each judged like the first address;
- the body is read as a stream and counted after decompression, never beyond the limit;
- the whole takes no longer than the time allowed, however slowly bytes drip;
- no cookies, no proxies from the environment, no credentials.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from mmsearch_env.errors import ServiceCode, ServiceError, ToolTimeout
from mmsearch_env.net.addresses import networks, refusal
from mmsearch_env.net.per_loop import PerLoop
from mmsearch_env.net.sessions import USER_AGENT

REDIRECTS = frozenset({301, 302, 303, 307, 308})
PAGE_TYPES = ("text/html", "application/xhtml+xml", "text/plain")
"""Kinds of content that are pages."""
IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "image/bmp")
"""Kinds of content that are pictures."""
MAX_URL_CHARACTERS = 2048
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What may be fetched.

    Attributes:
        max_bytes: largest body after decompression.
        max_redirects: redirects that are followed.
        timeout_s: seconds for the whole fetch, redirects included.
        ports: ports that may be dialled.
        allowed_networks: networks that may be dialled although they are not public, e.g. of a company's own pages.
        connections: fetches at once.
    """

    max_bytes: int = 5_000_000
    max_redirects: int = 5
    timeout_s: float = 15.0
    ports: tuple[int, ...] = (80, 443)
    allowed_networks: tuple[str, ...] = ()
    connections: int = 32

    def __post_init__(self) -> None:
        """Raises ConfigError for what is no network."""
        networks(self.allowed_networks)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came.

    Attributes:
        url: where it was found in the end.
        content_type: its kind, in lower case, without parameters.
        charset: the encoding the server named; "" if none.
        body: the content, decompressed.
    """

    url: str
    content_type: str
    charset: str
    body: bytes


class _Refused(OSError):
    """The guard at the socket refuses an address."""


class Fetcher:
    """Fetches under a :class:`FetchPolicy`."""

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        resolver: Callable[[], aiohttp.abc.AbstractResolver] | None = None,
        make_socket: Callable[[int, int, int], socket.socket] = socket.socket,
    ) -> None:
        """
        Args:
            policy: what may be fetched.
            resolver: makes what turns names into addresses; the system's by default.
            make_socket: makes a socket of a family, type and protocol, once the address has passed.
        """
        self.policy = policy or FetchPolicy()
        self._allowed = networks(self.policy.allowed_networks)
        self._resolver = resolver
        self._make_socket = make_socket
        self._sessions = PerLoop(self._session)

    async def fetch(self, url: str, *, types: Sequence[str]) -> Fetched:
        """The content at ``url``.

        Args:
            url: where it is said to be.
            types: kinds of content that are wanted, e.g. :data:`PAGE_TYPES`.

        Raises:
            ServiceError: ``blocked_by_policy`` or ``target_failed``; the message names the host, not the whole URL.
            ToolTimeout: it took too long.
        """
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                return await self._follow(url, types)
        except TimeoutError as error:
            seconds = self.policy.timeout_s
            raise ToolTimeout(f"{_host(url)}: expected the content within {seconds:g} s, got no end of it") from error

    async def aclose(self) -> None:
        """Close the running loop's connections; may be called twice."""
        if (session := self._sessions.pop()) is not None:
            await session.close()

    async def _follow(self, url: str, types: Sequence[str]) -> Fetched:
        for _ in range(self.policy.max_redirects + 1):
            target = self._accepted(url)
            try:
                async with self._sessions.get().get(target, allow_redirects=False) as response:
                    if response.status not in REDIRECTS:
                        return await self._read(response, types)
                    url = _next_url(target, response.headers.get("Location", ""))
            except TimeoutError:
                raise
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _translated(target, error) from error
        raise _blocked(url, f"at most {self.policy.max_redirects} redirects", "one more")

    def _accepted(self, url: str) -> URL:
        """The URL in parts. Raises ServiceError for what is not even dialled."""
        if len(url) > MAX_URL_CHARACTERS:
            raise _blocked(url, f"at most {MAX_URL_CHARACTERS} characters of URL", str(len(url)))
        try:
            target = URL(url)
            port = target.port
        except ValueError as error:
            raise _blocked(url, "a URL", "a malformed one") from error
        if target.scheme not in ("http", "https"):
            raise _blocked(url, "http or https", repr(target.scheme[:20]))
        if not target.host:
            raise _blocked(url, "a URL with a host", "one without")
        if port not in self.policy.ports:
            raise _blocked(url, f"a port of {', '.join(map(str, self.policy.ports))}", str(port))
        return target.with_user(None).with_fragment(None)

    async def _read(self, response: aiohttp.ClientResponse, types: Sequence[str]) -> Fetched:
        url, kind = str(response.url), response.content_type.lower()
        if response.status != 200:
            raise _failed(url, "status 200", str(response.status))
        if kind not in types:
            raise _blocked(url, f"content of {', '.join(types)}", kind[:80])
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self.policy.max_bytes:
                raise _blocked(url, f"at most {self.policy.max_bytes} bytes", "more")
        return Fetched(url, kind, response.charset or "", bytes(body))

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self.policy.connections,
            resolver=self._resolver() if self._resolver else None,
            socket_factory=self._socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=self.policy.timeout_s),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"},
            max_line_size=8190,
            max_field_size=8190,
        )

    def _socket(self, address_info: Any) -> socket.socket:
        """A socket for an address that has just been resolved, if it may be dialled."""
        family, kind, protocol, _, address = address_info
        if (reason := refusal(str(address[0]), allowed=self._allowed)) is not None:
            raise _Refused(reason)
        return self._make_socket(family, kind, protocol)


def _next_url(current: URL, location: str) -> str:
    if not location:
        raise _failed(str(current), "a redirect with a target", "one without")
    return str(current.join(URL(location)))


def _translated(target: URL, error: Exception) -> ServiceError:
    """Our error for what the network said."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _Refused):
            return _blocked(str(target), "a public address", str(cause))
        cause = cause.__cause__ or cause.__context__
    return _failed(str(target), "a reply", type(error).__name__)


def _host(url: str) -> str:
    try:
        return URL(url).host or "no host"
    except ValueError:
        return "malformed URL"


def _blocked(url: str, expected: str, got: str) -> ServiceError:
    message = f"{_host(url)}: expected {expected}, got {got}; it is not fetched"
    return ServiceError(message, code=ServiceCode.BLOCKED)


def _failed(url: str, expected: str, got: str) -> ServiceError:
    message = f"{_host(url)}: expected {expected}, got {got}; another page may do"
    return ServiceError(message, code=ServiceCode.TARGET_FAILED)
