"""A language model behind an OpenAI-compatible chat end point: one question, one answer in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.budget import Budget
from mmsearch_env.net.client import Call, HttpClient, Key, Reply, ServiceLimits
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.web.engine import endpoint, lines, status_error

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ChatModel:
    """Where a model is and what it is called there.

    Attributes:
        client: calls it.
        base_url: where it is, e.g. ``"http://localhost:8000/v1"``.
        model: its name there.
        secret: the key; None if it asks for none.
        price_usd: of one call, as you reckon it; 0 for a model of one's own.
    """

    client: HttpClient
    base_url: str
    model: str
    secret: Secret | None = None
    price_usd: float = 0.0

    async def said(self, task: str, shown: str, *, max_tokens: int) -> str:
        """What the model says when it is given a task and something to do it on, its thoughts left out.

        Raises:
            ServiceError: it could not be asked, or said nothing.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "system", "content": task}, {"role": "user", "content": shown}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        key = None if self.secret is None else Key(self.secret, "header", "Authorization", "Bearer ")
        url = endpoint(self.base_url, "/chat/completions", with_key=key is not None)
        return _words(await self.client.send(Call("POST", url, body=body, key=key, price_usd=self.price_usd)))

    async def aclose(self) -> None:
        """Close connections; may be called twice."""
        await self.client.aclose()


def chat_client(budget: Budget | None = None, limits: ServiceLimits | None = None) -> HttpClient:
    """A client that knows what the replies of OpenAI-compatible end points mean."""
    limits = limits or ServiceLimits(timeout_s=20.0, concurrency=16)
    return HttpClient("chat", judge=_judge_chat, limits=limits, budget=budget)


def _words(reply: Reply) -> str:
    choices = lines(reply.data, "choices")
    message = choices[0].get("message") if choices else None
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str):
        raise ServiceError("chat: expected a message, got none", code=ServiceCode.PROVIDER_FAILED)
    said = _THOUGHT.sub("", content)
    if not said.strip():
        raise ServiceError("chat: expected words, got none", code=ServiceCode.TARGET_FAILED)
    return said


def _judge_chat(reply: Reply) -> ServiceError | None:
    error = status_error(reply)
    if error is not None and reply.status == 429 and b"insufficient_quota" in reply.body[:4000]:
        return ServiceError("expected quota, got none left", code=ServiceCode.QUOTA_EXHAUSTED)
    if error is not None and reply.status == 400 and b"context_length" in reply.body[:4000]:
        return ServiceError("expected a page the model can take, got one too long", code=ServiceCode.TARGET_FAILED)
    return error
