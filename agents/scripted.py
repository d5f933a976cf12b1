"""Policies without a model: for tests, demonstrations and lower bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agents.policy import Desk, Reply, Request
from agents.trajectory import Completion, FinishReason, Turn
from agents.workflows import parted


class ScriptedPolicy:
    """Says what a function says. It has no tokens, so it can be evaluated but not trained."""

    def __init__(self, say: Callable[[Request], str]) -> None:
        """Args: say: the text of the next completion."""
        self._say = say

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request; where a workflow scripts the action, it follows the reason, if there is one."""
        return [Reply(Completion(_scripted(request, self._say), (), (), FinishReason.STOP)) for request in requests]

    def serve(self, desk: Desk, *, most: int) -> None:
        """Each request in turn."""
        while waiting := desk.take(most):
            for (number, _), reply in zip(waiting, self.generate([request for _, request in waiting]), strict=True):
                desk.answer(number, reply)

    def forget(self, turns: Sequence[Turn]) -> None:
        """Nothing is kept."""


def random_policy(answers: Sequence[str], queries: Sequence[str]) -> ScriptedPolicy:
    """Answers, looks or reads with equal chance, with a random answer or query of those given."""

    def say(request: Request) -> str:
        rng = np.random.default_rng(request.seed)
        answer, query = answers[int(rng.integers(len(answers)))], queries[int(rng.integers(len(queries)))]
        choices = (
            f"<answer>{answer}</answer>",
            "<search><img></search>",
            f"<text_search>{query}</text_search>",
        )
        return f"<reason>By chance.</reason>{choices[int(rng.integers(len(choices)))]}"

    return ScriptedPolicy(say)


def _scripted(request: Request, say: Callable[[Request], str]) -> str:
    action = request.script.action
    if not action:
        return say(request)
    reason, said = parted(say(request), request.script.reason_end)
    return reason + action if request.script.is_whole else reason + action + said.removeprefix(action)
