"""What the trainer needs from outside: a policy that can be trained, and something to play.

Both are protocols, so that the loop knows neither a model family nor an environment. :mod:`training.compose` builds
the real ones; a test may bring its own.

Letters: B trajectories, T tokens (padded to the longest).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from agents.evaluate import Evaluation
from agents.trajectory import Group, Trajectory
from mmsearch_env.questions import Question


class TokenScores(Protocol):
    """What a policy thinks of given tokens; both tensors are 0 where the loss mask is False.

    Attributes:
        logprobs: (B, T) log-probability of token t given the tokens before it, at the sampling temperature.
        entropy: (B, T) entropy of the distribution token t was drawn from, in nats.
        values: (B, T) a critic's value of the state in which token t was sampled; None without a critic.
        last_values: (B,) of the state after the last sampled token; only where values alone were wanted.
    """

    @property
    def logprobs(self) -> torch.Tensor:
        """(B, T)."""
        ...

    @property
    def entropy(self) -> torch.Tensor:
        """(B, T)."""
        ...

    @property
    def values(self) -> torch.Tensor | None:
        """(B, T)."""
        ...

    @property
    def last_values(self) -> torch.Tensor | None:
        """(B,)."""
        ...


Wanted = Literal["scores", "values"]
"""What a scorer is asked for: everything, or a critic's values alone, without log-probabilities."""


class TrainablePolicy(Protocol):
    """A policy whose adapter can be trained."""

    @property
    def scorer(self) -> torch.nn.Module:
        """Module with ``forward(inputs, loss_mask, temperature, wanted="scores") -> TokenScores``, on its device."""
        ...

    def packs(self, trajectories: Sequence[Trajectory]) -> bool:
        """Whether ``scorer`` pads nothing and runs a common prompt only once; decides how many fit a pass."""
        ...

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Any:
        """What ``scorer`` needs besides the loss mask, one row a trajectory; opaque to the trainer."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Within it, ``scorer`` scores as the policy did before any training (adapter off)."""
        ...

    def trainable_parameters(self) -> Iterable[torch.nn.Parameter]:
        """The adapter's parameters and a critic's, float32."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter (PEFT format for a LoRA) and a critic's head into a folder that exists."""
        ...

    def load_adapter(self, folder: Path) -> None:
        """Read what ``save_adapter`` wrote, into the same parameters."""
        ...


class Task(Protocol):
    """What is played, bound to one policy.

    ``rollout`` must draw an episode's randomness from ``seed``, the question, how often it was given before, and the
    episode's number in its group, so that a run does not depend on how questions are spread over processes.
    """

    @property
    def questions(self) -> Sequence[Question]:
        """The questions trained on."""
        ...

    def rollout(
        self,
        questions: Sequence[Question],
        *,
        group_size: int,
        seed: int,
        earlier: Sequence[int],
        search_penalty: float,
    ) -> Sequence[Group]:
        """Play ``group_size`` episodes of each question: one group per question, in order.

        ``earlier`` says how often each question was given before under this seed, on any process; ``search_penalty`` is
        the price of a search in these episodes. A question that cannot be played comes back as a group of trajectories
        without turns.
        """
        ...

    def catch_up(self) -> None:
        """Play with the weights that the policy has now, until this is called again. Never during ``rollout``."""
        ...

    def evaluate(self, questions: Sequence[Question]) -> Evaluation:
        """Play one episode of each question, the same way every time."""
        ...

    def transcript(self, group: Group) -> str:
        """One question's episodes as text for people (Markdown, headings from the second level)."""
        ...
