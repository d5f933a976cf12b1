"""Sampling with a transformers model in this process.

One call samples one completion for each row, token by token after what was read (:mod:`agents.engines.reading`). Rows
that have ended leave the batch. Each row draws from its own seeded stream of uniform numbers, so what a row says does
not depend on which other rows were in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agents.engines.merging import MergedAdapter
from agents.engines.reading import Prefix, Reader
from agents.inputs import InputBuilder, Row
from agents.renderer import ChatRenderer
from agents.scorer import TokenScorer, allowed_logits, base_model
from agents.trajectory import Completion, FinishReason

STOP_TAGS = ("</search>", "</text_search>", "</visit>", "</answer>", "</tool_call>")
"""An action ends a turn, so sampling ends at the tag that closes one."""


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """How a completion is sampled.

    Attributes:
        max_new_tokens: tokens per completion at most.
        temperature: 0 takes the likeliest token; its log-probability is still the one at temperature 1.
        stop_tags: text that ends a completion.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    stop_tags: tuple[str, ...] = STOP_TAGS


@dataclass(frozen=True, slots=True)
class Asked:
    """A completion that is asked for.

    Attributes:
        row: what the model is given.
        forced: tokens that follow the row's own and count as said but not sampled.
        seed: of the stream of numbers from which its tokens are drawn.
        ended: where earlier turns of the row ended, so that what was read of them is found again.
    """

    row: Row
    forced: tuple[int, ...]
    seed: int
    ended: tuple[Prefix, ...] = ()

    @property
    def whole(self) -> Row:
        """The row with what is forced."""
        return self.with_said(())

    def with_said(self, ids: Sequence[int]) -> Row:
        """The row with what is forced and what was sampled."""
        return Row((*self.row.token_ids, *self.forced, *ids), self.row.images)


@dataclass(slots=True)
class _Said:
    """A completion while it is sampled."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = FinishReason.LENGTH


class HFSampler:
    """Samples completions from a transformers model."""

    def __init__(self, scorer: TokenScorer, renderer: ChatRenderer, builder: InputBuilder) -> None:
        """Args: scorer: holds the model and the tokens that are never sampled, on whatever device it is moved to."""
        self._scorer = scorer
        self._renderer = renderer
        self._reader = Reader(scorer, builder)
        self._adapter = MergedAdapter(scorer.model)
        self._ending: dict[tuple[str, ...], frozenset[int]] = {}

    @torch.no_grad()
    def sample(self, asked: Sequence[Asked], limits: SamplingLimits) -> list[Completion]:
        """One completion for each row."""
        if not asked:
            return []
        was_training = self._scorer.training
        self._scorer.eval()
        if self._reader.forget_if_changed():
            self._adapter.forget()
        try:
            with self._adapter.applied():
                said = self._decode(asked, limits)
        finally:
            self._scorer.train(was_training)
        return [
            Completion(
                self._renderer.decode([*one.forced, *found.ids]),
                tuple(found.ids),
                tuple(found.logprobs),
                found.reason,
                one.forced,
            )
            for one, found in zip(asked, said, strict=True)
        ]

    def forget(self, row: Row, ended: Sequence[Prefix]) -> None:
        """Let go of what was read of a row until its turns ended."""
        self._reader.forget(row, ended)

    def _decode(self, asked: Sequence[Asked], limits: SamplingLimits) -> list[_Said]:
        streams = np.stack([np.random.default_rng(one.seed).random(limits.max_new_tokens) for one in asked])
        reading = self._reader.read([one.whole for one in asked], [one.ended for one in asked])
        said = [_Said() for _ in asked]
        alive = list(range(len(asked)))
        for position in range(limits.max_new_tokens):
            tokens, values = self._draw(reading.hidden, streams[alive, position], limits.temperature)
            for row, token, value in zip(alive, tokens.tolist(), values.tolist(), strict=True):
                said[row].ids.append(token)
                said[row].logprobs.append(value)
            is_last = position + 1 == limits.max_new_tokens
            going = []
            for place, row in enumerate(alive):
                if self._has_ended(asked[row].forced, said[row].ids, limits.stop_tags):
                    said[row].reason = FinishReason.STOP
                elif not is_last:
                    going.append(place)
                    continue
                self._reader.keep(reading, place, asked[row].with_said(said[row].ids))
            if not going:
                break
            if len(going) < len(alive):
                alive = [alive[place] for place in going]
                reading, tokens = reading.chosen(going), tokens[going]
            reading = self._reader.read_on(reading, tokens)
        return said

    def _draw(self, hidden: Tensor, uniforms: np.ndarray, temperature: float) -> tuple[Tensor, Tensor]:
        """One token for each row (B,) and its log-probability (B,), by inverting the cumulative distribution."""
        logits = base_model(self._scorer.model).lm_head(hidden)
        scores = allowed_logits(logits.float(), self._scorer.banned, temperature or 1.0).log_softmax(-1)
        if temperature == 0:
            tokens = scores.argmax(-1)
        else:
            heights = scores.double().exp().cumsum(-1)
            levels = torch.as_tensor(uniforms, device=heights.device)[:, None] * heights[:, -1:]
            tokens = torch.searchsorted(heights, levels, right=True)[:, 0].clamp(max=heights.shape[-1] - 1)
        return tokens, scores.gather(-1, tokens[:, None])[:, 0]

    def _has_ended(self, forced: Sequence[int], ids: Sequence[int], stop_tags: Sequence[str]) -> bool:
        if ids[-1] in self._renderer.end_ids:
            return True
        if ids[-1] not in self._tokens_that_may_end(tuple(stop_tags)):
            return False
        tail = self._renderer.decode([*forced, *ids][-24:])
        return any(tag in tail for tag in stop_tags)

    def _tokens_that_may_end(self, stop_tags: tuple[str, ...]) -> frozenset[int]:
        """Tokens whose text holds the last character of a stop tag; only after these is the text looked at."""
        if stop_tags not in self._ending:
            tokenizer = self._renderer.tokenizer
            last = {tag[-1] for tag in stop_tags}
            self._ending[stop_tags] = frozenset(
                token for token in range(len(tokenizer)) if last & set(tokenizer.decode([token]))
            )
        return self._ending[stop_tags]
