"""What the model is given for a request: the row of its episode so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.engines.contract import Asked
from agents.engines.reading import end_of, ends_of
from agents.inputs import Row
from agents.policy import Request
from agents.renderer import Prompt
from agents.trajectory import Turn


@dataclass(frozen=True, slots=True)
class Given:
    """A request as the model is given it.

    Attributes:
        request: which completion is wanted.
        prompt: what the new messages add.
        row: everything seen and said, the prompt included.
        forced: what a scripted turn begins with.
        begun: the row with the reason that was sampled just now.
    """

    request: Request
    prompt: Prompt
    row: Row
    forced: tuple[int, ...] = ()
    begun: Row | None = None

    @property
    def length(self) -> int:
        """Tokens before those that are sampled."""
        return len(self.row.token_ids) + len(self.forced)

    def sampled(self, seed: int, context: int) -> Asked:
        """For the sampler; the whole fills ``context`` tokens at most."""
        ends = ends_of(self.request.turns)
        known = ends if self.begun is None else (*ends, end_of(self.begun))
        return Asked(self.row, self.forced, seed, known, context - self.length)


def row_of(request: Request, prompt: Prompt) -> Row:
    """Everything the model has seen and said so far in an episode, and the new prompt."""
    before = played(request.turns)
    return Row((*before.token_ids, *prompt.token_ids), (*before.images, *prompt.images))


def played(turns: Sequence[Turn]) -> Row:
    """What was seen and said in these turns."""
    ids = (
        token
        for turn in turns
        for part in (turn.prompt_ids, turn.completion.forced_ids, turn.completion.token_ids)
        for token in part
    )
    return Row(tuple(ids), tuple(image for turn in turns for image in turn.images))
