"""Ways to use one model: answer directly, search by a fixed plan, search on demand (arXiv 2506.20670, section 4.1).

A workflow scripts a part of some turns and may narrow the episode's rules; the rest the policy says itself. Scripted
tokens are seen by the model but were not sampled, so they are never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

REASON_KNOWN = "I know it."
"""Reason a scripted turn gives for answering at once."""
REASON_LOOK = "I search the picture."
"""Reason a scripted turn gives for an image search."""
REASON_READ = "I search the text."
"""Reason a scripted turn gives for a text search."""
REASON_FOUND = "I found it."
"""Reason a scripted turn gives for answering after a search."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a turn begins with, and whether that is all of it."""

    text: str = ""
    is_whole: bool = False


FREE = Script()
"""Nothing is scripted."""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A way to play.

    Attributes:
        name: how reports call it.
        scripts: what the turns begin with, first turn first; later turns are free.
        rules: limits of the environment that differ under this workflow.
    """

    name: str
    scripts: tuple[Script, ...] = ()
    rules: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def script(self, turn: int) -> Script:
        """The script of turn number ``turn``, counted from 0; free play after the last."""
        return self.scripts[turn] if turn < len(self.scripts) else FREE


_KNOW = Script(f"<reason>{REASON_KNOWN}</reason><answer>")
_LOOK = Script(f"<reason>{REASON_LOOK}</reason><search><img></search>", is_whole=True)
_READ = Script(f"<reason>{REASON_READ}</reason><text_search>")
_FOUND = Script(f"<reason>{REASON_FOUND}</reason><answer>")

ON_DEMAND = Workflow("on_demand")
"""The policy decides in every turn."""

DIRECT = Workflow("direct", (_KNOW,), MappingProxyType({"max_rounds": 1}))
"""One turn, and it is an answer."""

FIXED_RAG = Workflow("fixed_rag", (_LOOK, _READ, _FOUND), MappingProxyType({"max_rounds": 3}))
"""Always an image search, then always a text search whose query the policy writes, then an answer."""

IMAGE_ONLY = Workflow("image_only", (_LOOK,), MappingProxyType({"max_rounds": 2}))
"""An image search, then an answer."""

TEXT_ONLY = Workflow("text_only", (_READ, _FOUND), MappingProxyType({"max_rounds": 2}))
"""A text search whose query the policy writes, then an answer."""

WORKFLOWS: Mapping[str, Workflow] = MappingProxyType(
    {workflow.name: workflow for workflow in (ON_DEMAND, DIRECT, FIXED_RAG, IMAGE_ONLY, TEXT_ONLY)}
)
"""Every workflow by name."""
