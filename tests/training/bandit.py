"""A second policy and a second task: a tiny recurrent language model that plays a guessing game.

A *known* question says its answer, a *hidden* one does not; searching reveals it, at a price. The best policy searches
exactly when the question is hidden. Everything is real but small: tokens, log-probabilities, an adapter, files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.evaluate import Evaluation, Outcome, scores, search_gap
from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from mmsearch_env.images import Image
from mmsearch_env.questions import Question
from training.order import seed_of

WORDS = ("pad", "begin", "known", "hidden", "blank", "found", "search", "a", "b", "c")
PAD, BEGIN, KNOWN, HIDDEN, BLANK, FOUND, SEARCH = range(7)
ANSWERS = (7, 8, 9)
PRICE = 0.1
_WIDTH = 16
_PICTURE = Image(np.zeros((1, 1, 3), dtype=np.uint8))


class Scores(NamedTuple):
    """(B, T) each, 0 where the loss mask is False."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    last_values: Tensor | None = None


class GuessScorer(nn.Module):
    """A frozen random GRU with a trainable adapter on its input and its output, and perhaps a critic."""

    def __init__(self, *, critic: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embed = nn.Embedding(len(WORDS), _WIDTH)
            self.gru = nn.GRU(_WIDTH, _WIDTH, batch_first=True)
            self.head = nn.Linear(_WIDTH, len(WORDS))
            self.adapter_in = nn.Linear(_WIDTH, _WIDTH, bias=False)
            self.adapter_out = nn.Linear(_WIDTH, len(WORDS), bias=False)
        self.requires_grad_(False)
        for adapter in (self.adapter_in, self.adapter_out):
            nn.init.zeros_(adapter.weight)
            adapter.requires_grad_(True)
        self.critic = nn.Linear(_WIDTH, 1) if critic else None
        if self.critic is not None:
            nn.init.zeros_(self.critic.weight)
            nn.init.zeros_(self.critic.bias)
        self.scale = 1.0

    def hidden(self, ids: Tensor) -> Tensor:
        """(B, T) token ids -> (B, T, width)."""
        embedded = self.embed(ids)
        hidden: Tensor = self.gru(embedded + self.scale * self.adapter_in(embedded))[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, V)."""
        only_said = torch.full((len(WORDS),), -1e9).index_fill(0, torch.tensor([SEARCH, *ANSWERS]), 0.0)
        return self.head(hidden) + self.scale * self.adapter_out(hidden) + only_said

    def forward(
        self, inputs: Mapping[str, Any], loss_mask: Tensor, temperature: float, wanted: str = "scores"
    ) -> Scores:
        """See training.task.TrainablePolicy.scorer."""
        ids = inputs["input_ids"]
        hidden = self.hidden(ids)
        distribution = torch.log_softmax(self.logits(hidden)[:, :-1] / temperature, dim=-1)
        taken = distribution.gather(-1, ids[:, 1:, None])[..., 0]
        entropy = -(distribution.exp() * distribution).sum(-1)
        first = torch.zeros_like(taken[:, :1])
        zero = torch.zeros(())
        scores = Scores(
            torch.where(loss_mask, torch.cat([first, taken], 1), zero),
            torch.where(loss_mask, torch.cat([first, entropy], 1), zero).detach(),
        )
        if self.critic is None:
            return scores
        worth = self.critic(hidden)[..., 0]
        last = [row.nonzero()[-1, 0] for row in loss_mask]
        return scores._replace(
            values=torch.where(loss_mask, torch.cat([first, worth[:, :-1]], 1), zero),
            last_values=worth[torch.arange(len(last)), torch.stack(last)] if wanted == "values" else None,
        )


class GuessPolicy:
    """The scorer as a trainable policy that can sample."""

    def __init__(self, *, critic: bool = False) -> None:
        self.scorer = GuessScorer(critic=critic)

    def packs(self, trajectories: Sequence[Trajectory]) -> bool:
        return False

    def forward_inputs(self, trajectories: Sequence[Trajectory]) -> Mapping[str, Any]:
        rows = [torch.tensor(trajectory.token_ids) for trajectory in trajectories]
        return {"input_ids": nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)}

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.scorer.parameters() if parameter.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.scorer.scale = 0.0
        try:
            yield
        finally:
            self.scorer.scale = 1.0

    def save_adapter(self, folder: Path) -> None:
        adapter = {name: p.detach().clone() for name, p in self.scorer.named_parameters() if p.requires_grad}
        save_file(adapter, folder / "adapter.safetensors")

    def load_adapter(self, folder: Path) -> None:
        named = dict(self.scorer.named_parameters())
        for name, saved in load_file(folder / "adapter.safetensors").items():
            named[name].data.copy_(saved)

    def say(self, ids: Sequence[int], seed: int | None) -> Completion:
        """One sampled word; the likeliest one without a seed."""
        with torch.no_grad():
            logprobs = torch.log_softmax(self.scorer.logits(self.scorer.hidden(torch.tensor([ids])))[0, -1], dim=-1)
        if seed is None:
            token = int(logprobs.argmax())
        else:
            generator = torch.Generator().manual_seed(seed)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
        return Completion(WORDS[token], (token,), (float(logprobs[token]),), FinishReason.STOP)


class GuessTask:
    """The game; see training.task.Task."""

    def __init__(self, policy: GuessPolicy, questions: Sequence[Question]) -> None:
        self.policy = policy
        self.questions = questions

    def rollout(
        self,
        questions: Sequence[Question],
        *,
        group_size: int,
        seed: int,
        earlier: Sequence[int],
        search_penalty: float = PRICE,
    ) -> list[Group]:
        return [
            Group(
                question.id,
                tuple(
                    self._play(question, seed_of(seed, int(question.id), n, i), search_penalty)
                    for i in range(group_size)
                ),
            )
            for question, n in zip(questions, earlier, strict=True)
        ]

    def catch_up(self) -> None:
        """Always plays with the newest weights."""

    def evaluate(self, questions: Sequence[Question]) -> Evaluation:
        played = tuple(self._play(question, None) for question in questions)
        outcomes = tuple(_outcome(question, item) for question, item in zip(questions, played, strict=True))
        kinds = sorted({outcome.category for outcome in outcomes})
        return Evaluation(
            workflow="on_demand",
            overall=scores(outcomes),
            by_category={kind: scores([o for o in outcomes if o.category == kind]) for kind in kinds},
            search_gap=search_gap(outcomes),
            unplayed=0,
            truncated=0,
            tool_errors=0,
            outcomes=outcomes,
            trajectories=played,
        )

    def transcript(self, group: Group) -> str:
        return "\n".join(" ".join(WORDS[token] for token in item.token_ids) for item in group.trajectories)

    def _play(self, question: Question, seed: int | None, price: float = PRICE) -> Trajectory:
        is_known, answer = question.category == "search_free", int(question.answers[0])
        prompt = (BEGIN, KNOWN if is_known else HIDDEN, ANSWERS[answer] if is_known else BLANK)
        said = self.policy.say(prompt, seed)
        turns = []
        if said.token_ids == (SEARCH,):
            turns.append(Turn(prompt, (), said, 0.0, "text_search", True))
            prompt = (FOUND, ANSWERS[answer])
            said = self.policy.say((*turns[0].prompt_ids, SEARCH, *prompt), None if seed is None else seed + 1)
        is_right = said.token_ids == (ANSWERS[answer],)
        is_answer = said.token_ids[0] in ANSWERS
        reward = float(is_right) - price * len(turns)
        turns.append(Turn(prompt, (), said, reward, "answer" if is_answer else "malformed", is_answer))
        counts = {
            "n_image_search": 0.0,
            "n_text_search": float(len(turns) - 1),
            "n_tool_errors": 0.0,
            "n_malformed": float(not is_answer),
            "n_judge_errors": 0.0,
            "n_service_calls": 0.0,
            "cost_usd": 0.0,
        }
        return Trajectory(question.id, tuple(turns), True, False, "answered", float(is_right), {}, counts, said.text)


def guess_questions(count: int = 12) -> list[Question]:
    """Known and hidden questions in turn."""
    return [
        Question(
            id=str(number),
            text="Which word?",
            image=_PICTURE,
            answers=(str(number % 3),),
            category="search_required" if number % 2 else "search_free",
        )
        for number in range(count)
    ]


def _outcome(question: Question, trajectory: Trajectory) -> Outcome:
    return Outcome(
        question_id=question.id,
        cluster=question.id,
        category=question.category,
        reward=trajectory.episode_return,
        accuracy=trajectory.success,
        searched=float(trajectory.n_searches > 0),
        image_searches=0.0,
        text_searches=trajectory.counts["n_text_search"],
        valid=1.0,
        truncated=0.0,
    )
