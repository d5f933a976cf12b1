"""The contract of a protocol: the language between the environment and a player who writes text."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence

from mmsearch_env.actions import Action, ActionKind, Malformed
from mmsearch_env.episode import EpisodeView, RefusalCode, Rules
from mmsearch_env.errors import ConfigError
from mmsearch_env.images import Image
from mmsearch_env.messages import Message
from mmsearch_env.protocols.mmsearch_r1 import MMSearchR1
from mmsearch_env.protocols.prompt_set import PromptSet, load_prompts
from mmsearch_env.protocols.tool_call import ToolCall
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import SearchResult


class Protocol(typing.Protocol):
    """A grammar for actions and the wording of everything the environment says.

    Retrieved text, titles and questions pass :meth:`neutralise` before they reach a message: nothing that was not
    written by the player or by the protocol itself can read as an action.
    """

    def parse(self, text: str) -> Action:
        """What a completion means. Never raises: what means nothing is :class:`Malformed`."""
        ...

    def well_formed(self, text: str) -> bool:
        """Whether a completion keeps the form that earns the format point; stricter than :meth:`parse`."""
        ...

    def format(self, action: Action, *, reason: str) -> str:
        """The canonical, well-formed text of an action; ``parse`` gives the action back."""
        ...

    reason_end: typing.ClassVar[str]
    """What ends the reason of a completion; an action follows it."""

    def begun(self, kind: ActionKind) -> str:
        """How an action of this kind begins, up to what only the player can say; an image search is whole.

        It is made with the whole picture, the first of several.
        """
        ...

    def neutralise(self, text: str) -> str:
        """``text`` with every tag of the grammar made harmless and nothing else changed."""
        ...

    def first_message(self, question: Question, images: Sequence[Image], rules: Rules) -> tuple[Message, ...]:
        """What the player sees at reset."""
        ...

    def result_message(self, kind: ActionKind, result: SearchResult, view: EpisodeView) -> Message:
        """The hits of a search (or that there are none) and what to do next."""
        ...

    def failure_message(self, kind: ActionKind, view: EpisodeView) -> Message:
        """One fixed sentence: the tool failed."""
        ...

    def malformed_message(self, malformed: Malformed, view: EpisodeView) -> Message:
        """What was wrong with the completion, and the grammar."""
        ...

    def limit_message(self, kind: ActionKind, code: RefusalCode, view: EpisodeView) -> Message:
        """The search was not carried out, because of this limit."""
        ...


PROTOCOLS: dict[str, Callable[[PromptSet], Protocol]] = {"mmsearch_r1": MMSearchR1, "tool_call": ToolCall}
"""Protocols by the name a configuration uses."""
_OWN_WORDING = {"tool_call": "tool_call"}
"""Protocols whose standard prompts are not those of the paper's grammar."""


def load_protocol(name: str, prompts: str) -> Protocol:
    """The protocol of this name with a prompt set.

    Raises:
        ConfigError: unknown protocol, or a prompt set that cannot be used.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {name!r}; mend the setting")
    spec = _OWN_WORDING[name] if prompts == "standard" and name in _OWN_WORDING else prompts
    return PROTOCOLS[name](load_prompts(spec))
