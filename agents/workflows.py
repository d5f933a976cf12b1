"""Ways to use one model: answer directly, search by a fixed plan, search on demand (arXiv 2506.20670, section 4.1).

A workflow decides what some turns do and may narrow the episode's rules. Why, and what exactly, the policy says itself:
a turn begins with a reason of its own, as in free play, and the scripted action follows it. The reason and action of a
scripted turn are seen by the model but never trained on. A scripted image search is made with the first picture: of
several, only a policy that plays freely can choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mmsearch_env.actions import ActionKind
from mmsearch_env.protocols import Protocol


def parted(said: str, reason_end: str) -> tuple[str, str]:
    """A completion's reason, "" if it gives none that ends, and the rest."""
    reason, end, rest = said.partition(reason_end)
    return (reason + end, rest) if end else ("", said)


@dataclass(frozen=True, slots=True)
class Script:
    """What a turn does after its reason, in a protocol's words.

    Attributes:
        action: the action, or how it begins; "" in free play.
        is_whole: whether that is all of it.
        reason_end: what ends the reason that the action follows.
    """

    action: str = ""
    is_whole: bool = False
    reason_end: str = ""


FREE = Script()
"""Nothing is scripted."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A way to play.

    Attributes:
        name: how reports call it.
        kinds: what the turns do, first turn first; later turns are free.
        rules: limits of the environment that differ under this workflow.
    """

    name: str
    kinds: tuple[ActionKind, ...] = ()
    rules: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def script(self, turn: int, protocol: Protocol) -> Script:
        """The script of turn number ``turn``, counted from 0; free play after the last."""
        if turn >= len(self.kinds):
            return FREE
        kind = self.kinds[turn]
        return Script(protocol.begun(kind), kind is ActionKind.IMAGE_SEARCH, protocol.reason_end)


_ANSWER, _LOOK, _READ = ActionKind.ANSWER, ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH

ON_DEMAND = Workflow("on_demand")
"""The policy decides in every turn."""

DIRECT = Workflow("direct", (_ANSWER,), MappingProxyType({"max_rounds": 1}))
"""One turn, and it is an answer."""

FIXED_RAG = Workflow("fixed_rag", (_LOOK, _READ, _ANSWER), MappingProxyType({"max_rounds": 3}))
"""Always an image search, then always a text search whose query the policy writes, then an answer."""

IMAGE_ONLY = Workflow("image_only", (_LOOK, _ANSWER), MappingProxyType({"max_rounds": 2}))
"""An image search, then an answer."""

TEXT_ONLY = Workflow("text_only", (_READ, _ANSWER), MappingProxyType({"max_rounds": 2}))
"""A text search whose query the policy writes, then an answer."""

WORKFLOWS: Mapping[str, Workflow] = MappingProxyType(
    {workflow.name: workflow for workflow in (ON_DEMAND, DIRECT, FIXED_RAG, IMAGE_ONLY, TEXT_ONLY)}
)
"""Every workflow by name."""
