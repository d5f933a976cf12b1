"""What plays an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agents.trajectory import Completion, Turn
from agents.workflows import FREE, Script
from mmsearch_env.images import Image
from mmsearch_env.messages import Message


@dataclass(frozen=True, slots=True)
class Request:
    """An episode waiting for its next completion.

    Attributes:
        conversation: every message so far.
        new_messages: those since the last completion.
        turns: the turns already played, token by token.
        seed: seeds the sampling of this completion, whatever else is in the batch.
        script: what the completion does after its reason; empty in free play.
    """

    conversation: tuple[Message, ...]
    new_messages: tuple[Message, ...]
    turns: tuple[Turn, ...]
    seed: int
    script: Script = FREE


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion, with the tokens and pictures the new messages became. A policy without tokens leaves them empty."""

    completion: Completion
    prompt_ids: tuple[int, ...] = ()
    images: tuple[Image, ...] = ()


CONTEXT_FULL = "context_full"
"""The conversation no longer fits the policy's context."""
UNREADABLE_PICTURE = "unreadable_picture"
"""The model's image processor refuses a picture."""


@dataclass(frozen=True, slots=True)
class CannotReply:
    """Given in place of a reply; the episode is cut off, the others go on.

    Attributes:
        reason: a stable word, the episode's stop reason.
        detail: what was expected and what came.
    """

    reason: str
    detail: str


class Desk(Protocol):
    """Where episodes wait for completions while others are being sampled; may be asked from any thread."""

    def take(self, most: int) -> Sequence[tuple[int, Request]]:
        """Up to so many requests that wait now, each with its episode's number; they are waited for here no more."""
        ...

    def answer(self, number: int, reply: Reply | CannotReply) -> None:
        """Give an episode its reply."""
        ...

    def over(self) -> Sequence[Sequence[Turn]]:
        """The turns of episodes that ended since this was asked last."""
        ...


class Policy(Protocol):
    """Maps waiting episodes to completions."""

    def generate(self, requests: Sequence[Request]) -> Sequence[Reply | CannotReply]:
        """One reply for each request, in order; a CannotReply where there can be none."""
        ...

    def serve(self, desk: Desk, *, most: int) -> None:
        """Reply to the requests at a desk, each as soon as it can be, until none waits any more.

        Args:
            desk: requests that come while others are being worked on are taken on as well.
            most: how many are worked on at once.
        """
        ...

    def forget(self, turns: Sequence[Turn]) -> None:
        """An episode with these turns is over: what was kept for its next one may go. Never during ``generate``."""
        ...
