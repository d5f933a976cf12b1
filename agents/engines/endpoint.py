"""A model behind an OpenAI-compatible end point, as a policy: for evaluation, since it gives no tokens to train on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from agents.engines.contract import SamplingLimits
from agents.policy import CONTEXT_FULL, CannotReply, Desk, Reply, Request
from agents.trajectory import Completion, FinishReason, Turn
from agents.workflows import Script, parted
from mmsearch_env import aio
from mmsearch_env.errors import PolicyError, ServiceCode, ServiceError, ToolError
from mmsearch_env.messages import Message, TextPart, to_openai
from mmsearch_env.net.client import Call, Key, ServiceLimits
from mmsearch_env.net.client import Reply as HttpReply
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.chat import chat_client
from mmsearch_env.tools.web.engine import endpoint

NO_REPLY = "no_reply"
"""The end point gave none, after all tries."""
_LASTING = (ServiceCode.AUTH, ServiceCode.QUOTA_EXHAUSTED, ServiceCode.BAD_REQUEST)
"""What is wrong with every request alike."""
_CALLS = ServiceLimits(timeout_s=120.0, deadline_s=300.0, concurrency=64, max_bytes=5_000_000)
_PAUSE_S = 0.05


class EndpointPolicy:
    """Plays through an end point; every request on its own, many at once.

    A scripted action takes the place of what the model would do after its reason; where the action is only begun, the
    model's own words follow it if it began so itself.
    """

    def __init__(
        self, base_url: str, model: str, *, limits: SamplingLimits, secret: Secret | None = None, system: str = ""
    ) -> None:
        """
        Args:
            base_url: where it is, e.g. ``"http://localhost:8000/v1"``.
            model: its name there.
            limits: of sampling; text behind the first stop tag is dropped.
            secret: the key; None if it asks for none.
            system: system message of every conversation; "" for none.

        Raises:
            ConfigError: no http(s) URL, or the key would travel unencrypted to another machine.
        """
        self._url = endpoint(base_url, "/chat/completions", with_key=secret is not None)
        self._model, self._limits = model, limits
        self._key = None if secret is None else Key(secret, "header", "Authorization", "Bearer ")
        self._opening = (Message("system", (TextPart(system),)),) if system else ()
        self._client = chat_client(limits=_CALLS)

    def generate(self, requests: Sequence[Request]) -> list[Reply | CannotReply]:
        """One reply for each request. Raises PolicyError when the end point refuses all of them alike."""

        async def every() -> list[Reply | CannotReply]:
            return await asyncio.gather(*map(self._reply, requests))

        return aio.run(every())

    def serve(self, desk: Desk, *, most: int) -> None:
        """Each request as it comes. Raises PolicyError as well."""
        aio.run(self._serve(desk, most))

    def forget(self, turns: Sequence[Turn]) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        """Close connections; may be called twice."""
        aio.run(self._client.aclose())

    async def _serve(self, desk: Desk, most: int) -> None:
        async def answered(number: int, request: Request) -> None:
            desk.answer(number, await self._reply(request))

        async with asyncio.TaskGroup() as group:
            running: set[asyncio.Task[None]] = set()
            while True:
                running |= {group.create_task(answered(*taken)) for taken in desk.take(most - len(running))}
                if not running:
                    return
                _, running = await asyncio.wait(running, timeout=_PAUSE_S, return_when=asyncio.FIRST_COMPLETED)

    async def _reply(self, request: Request) -> Reply | CannotReply:
        body = {
            "model": self._model,
            "messages": to_openai((*self._opening, *request.conversation)),
            "temperature": self._limits.temperature,
            "max_tokens": self._limits.max_new_tokens,
            "seed": request.seed % 2**31,
        }
        try:
            text, reason = _said(await self._client.send(Call("POST", self._url, body=body, key=self._key)))
        except ToolError as error:
            if error.code in _LASTING:
                raise PolicyError(
                    f"expected an end point that answers, got {error}; check address, key and model"
                ) from error
            return CannotReply(CONTEXT_FULL if error.code == ServiceCode.TARGET_FAILED else NO_REPLY, str(error))
        said = _scripted(_cut(text, self._limits.stop_tags), request.script)
        return Reply(Completion(said, (), (), reason))


def _said(found: HttpReply) -> tuple[str, FinishReason]:
    """The text of the first choice and why it ended. Raises ServiceError."""
    choices = found.data.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise ServiceError("chat: expected a message, got none", code=ServiceCode.PROVIDER_FAILED)
    return content, FinishReason.LENGTH if choice.get("finish_reason") == "length" else FinishReason.STOP


def _cut(text: str, stop_tags: Sequence[str]) -> str:
    """Up to the end of the first stop tag."""
    ends = [place + len(tag) for tag in stop_tags if (place := text.find(tag)) >= 0]
    return text[: min(ends)] if ends else text


def _scripted(text: str, script: Script) -> str:
    if not script.action:
        return text
    reason, said = parted(text, script.reason_end)
    if script.is_whole:
        return reason + script.action
    return reason + said[said.find(script.action) :] if script.action in said else reason + script.action + said
