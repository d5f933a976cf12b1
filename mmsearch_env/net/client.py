"""Calling a service's API: time-outs, limits, retries, a circuit breaker; keys that nobody sees.

What a reply means differs from service to service, so each gives a ``judge`` that turns a reply into an error of the
one vocabulary (:class:`~mmsearch_env.errors.ServiceCode`) or into None. Only faults that pass are tried again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import aiohttp
import tenacity
from aiolimiter import AsyncLimiter
from yarl import URL

from mmsearch_env.errors import ServiceCode, ServiceError, ToolError, ToolTimeout
from mmsearch_env.net import metering
from mmsearch_env.net.breaker import Breaker
from mmsearch_env.net.budget import Budget
from mmsearch_env.net.per_loop import PerLoop
from mmsearch_env.net.secret import Secret
from mmsearch_env.net.sessions import release, session_for

_TRANSIENT = frozenset({ServiceCode.RATE_LIMITED, ServiceCode.PROVIDER_FAILED, "timeout"})
"""Codes of faults that may pass."""
_LASTING = frozenset({ServiceCode.AUTH, ServiceCode.QUOTA_EXHAUSTED})
"""Codes of faults that no further call mends."""
_RETRIES_PER_CALL = 0.1
_SAVED_RETRIES = 10.0
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Key:
    """A secret and where it goes.

    Attributes:
        secret: the key.
        place: part of the request.
        name: name of the header, parameter or form field.
        prefix: stands before the key, e.g. ``"Bearer "``.
    """

    secret: Secret
    place: Literal["header", "parameter", "form"]
    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file in a form."""

    name: str
    data: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an API.

    Attributes:
        method: GET or POST.
        url: the end point, without keys.
        parameters: of the query string.
        headers: besides the key.
        body: sent as JSON; None for no body.
        upload: sent as a form, with ``parameters`` in the query string still.
        key: the secret; None where none is needed.
        price_usd: list price in US dollars.
    """

    method: Literal["GET", "POST"]
    url: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    upload: Upload | None = None
    key: Key | None = None
    price_usd: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What a service answered, whole.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
        body: decompressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def data(self) -> dict[str, Any]:
        """The body as a JSON object. Raises ServiceError (``provider_failed``)."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            raise ServiceError("expected JSON, got something else", code=ServiceCode.PROVIDER_FAILED) from None
        if not isinstance(found, dict):
            message = f"expected a JSON object, got {type(found).__name__}"
            raise ServiceError(message, code=ServiceCode.PROVIDER_FAILED)
        return found


Judge = Callable[[Reply], ToolError | None]
"""What is wrong with a reply; None if nothing is."""


@dataclass(frozen=True, slots=True)
class ServiceLimits:
    """How a service may be used.

    Attributes:
        timeout_s: seconds for one try.
        deadline_s: seconds for a call with all its tries and waits.
        max_tries: tries of a call, the first included.
        concurrency: calls at once.
        per_second: calls begun in a second; None for no limit.
        max_bytes: largest body after decompression.
    """

    timeout_s: float = 10.0
    deadline_s: float = 25.0
    max_tries: int = 4
    concurrency: int = 32
    per_second: float | None = None
    max_bytes: int = 5_000_000


class HttpClient:
    """Calls one service, within its limits."""

    def __init__(
        self,
        name: str,
        *,
        judge: Judge,
        limits: ServiceLimits | None = None,
        budget: Budget | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """
        Args:
            name: of the service, for messages.
            judge: what is wrong with a reply.
            limits: how it may be used.
            budget: entered once for every call, however often it is tried.
            breaker: its circuit breaker.
        """
        self.name = name
        self.limits = limits or ServiceLimits()
        self.budget = budget or Budget()
        self._judge = judge
        self._breaker = breaker or Breaker()
        self._saved_retries = _SAVED_RETRIES
        self._timeout = aiohttp.ClientTimeout(total=self.limits.deadline_s)
        self._places = PerLoop(lambda: asyncio.Semaphore(self.limits.concurrency))
        self._rates = PerLoop(self._rate)

    async def send(self, call: Call) -> Reply:
        """The service's reply, a JSON object, after as many tries as its limits allow.

        Raises:
            ServiceError, ToolTimeout: what went wrong in the last try; no message holds the key.
            BudgetError: the budget does not allow the call.
        """
        self.budget.spend(call.price_usd)
        metering.enter(call.price_usd)
        self._saved_retries = min(_SAVED_RETRIES, self._saved_retries + _RETRIES_PER_CALL)
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(self._may_pass),
            wait=_pause,
            stop=self._stops,
            before_sleep=self._spend_retry,
            reraise=True,
        )
        return await tries(self._try, call)

    async def aclose(self) -> None:
        """Close the running loop's connections if nobody else uses them; may be called twice."""
        await release(self)

    async def _try(self, call: Call) -> Reply:
        if (reason := self._breaker.refusal()) is not None:
            raise self._error(f"a service that answers, got one left alone for a while ({reason})", ServiceCode.OPEN)
        try:
            reply = await self._reply(call)
            if (error := self._judge(reply)) is not None:
                raise error
            _ = reply.data  # a web page in place of JSON is a fault like others
        except ToolError as error:
            named = self._named(error, call)
            self._report(named)
            raise named from None
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return reply

    async def _reply(self, call: Call) -> Reply:
        """One reply of any kind. Raises ServiceError or ToolTimeout for none."""
        try:
            # The place and the turn are waited for outside the time-out of the try itself.
            async with self._places.get():
                if (rate := self._rates.get()) is not None:
                    await rate.acquire()
                async with asyncio.timeout(self.limits.timeout_s), self._request(call) as response:
                    return await self._whole(response)
        except TimeoutError:
            raise ToolTimeout(f"expected a reply within {self.limits.timeout_s:g} s, got none") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The error's own text may hold the URL, and with it a key.
            wanted = f"a reply from {URL(call.url).origin()}, got {type(error).__name__}"
            raise self._error(f"{wanted}; check the address and the network", ServiceCode.PROVIDER_FAILED) from None

    def _request(self, call: Call) -> Any:
        parameters, headers, form = dict(call.parameters), dict(call.headers), _form(call)
        if call.key is not None and call.key.place != "form":
            place = headers if call.key.place == "header" else parameters
            place[call.key.name] = _shown(call.key)
        return session_for(self).request(
            call.method,
            URL(call.url),
            params=parameters,
            headers=headers,
            json=call.body if form is None else None,
            data=form,
            allow_redirects=False,
            timeout=self._timeout,
        )

    async def _whole(self, response: aiohttp.ClientResponse) -> Reply:
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > self.limits.max_bytes:
                message = f"at most {self.limits.max_bytes} bytes, got more"
                raise self._error(message, ServiceCode.PROVIDER_FAILED)
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, headers, bytes(body))

    def _report(self, error: ToolError) -> None:
        """Tell the breaker about a failed try; what is wrong with one page or request says nothing of the service."""
        if error.code in _LASTING:
            self._breaker.trip(error.code, getattr(error, "retry_after_s", None))
        elif error.code in _TRANSIENT:
            self._breaker.failed(error.code)
        else:
            self._breaker.succeeded()

    def _may_pass(self, error: BaseException) -> bool:
        return isinstance(error, ToolError) and error.code in _TRANSIENT

    def _stops(self, state: tenacity.RetryCallState) -> bool:
        """Whether a failed call is not tried again: the tries, the time or the saved retries are used up."""
        # An outage must not multiply the load: in the long run, retries are a tenth of the calls.
        return (
            state.attempt_number >= self.limits.max_tries
            or tenacity.stop_before_delay(self.limits.deadline_s)(state)
            or self._saved_retries < 1.0
        )

    def _spend_retry(self, state: tenacity.RetryCallState) -> None:
        self._saved_retries -= 1.0

    def _named(self, error: ToolError, call: Call) -> ToolError:
        """The error with the service's name, and without the key whatever the service echoed."""
        text = str(error) if str(error).startswith(f"{self.name}: ") else f"{self.name}: {error}"
        if call.key is not None:
            text = call.key.secret.masked(text)
        if isinstance(error, ServiceError):
            return ServiceError(text, code=ServiceCode(error.code), retry_after_s=error.retry_after_s)
        return ToolTimeout(text) if isinstance(error, ToolTimeout) else ToolError(text, code=error.code)

    def _error(self, expected_and_got: str, code: ServiceCode) -> ServiceError:
        return ServiceError(f"{self.name}: expected {expected_and_got}", code=code)

    def _rate(self) -> AsyncLimiter | None:
        rate = self.limits.per_second
        return None if rate is None else AsyncLimiter(max(1.0, rate), max(1.0, rate) / rate)


def _form(call: Call) -> aiohttp.FormData | None:
    """The upload as a form, with the key if it belongs there; None if nothing is uploaded."""
    if call.upload is None:
        return None
    form = aiohttp.FormData()
    form.add_field(call.upload.name, call.upload.data, content_type=call.upload.content_type, filename="picture")
    if call.key is not None and call.key.place == "form":
        form.add_field(call.key.name, _shown(call.key))
    return form


def _shown(key: Key) -> str:
    return key.prefix + key.secret.reveal()


_AFTER_A_FAULT = tenacity.wait_random_exponential(multiplier=0.1, max=10.0)
_AFTER_TOO_MANY = tenacity.wait_random_exponential(multiplier=0.5, max=10.0)
"""Limits are counted by the second, faults pass at once or not so soon."""


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: random, growing, and at least what the service asks for."""
    error = state.outcome.exception() if state.outcome is not None else None
    asked = getattr(error, "retry_after_s", None) or 0.0
    is_too_many = getattr(error, "code", "") == ServiceCode.RATE_LIMITED
    return max(float((_AFTER_TOO_MANY if is_too_many else _AFTER_A_FAULT)(state)), float(asked))
