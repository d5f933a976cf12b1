"""Sampling with a transformers model in this process.

One call samples one completion for each row, token by token after what was read (:mod:`agents.engines.reading`). Rows
that have ended leave the batch. Each row draws from its own seeded stream of uniform numbers, so what a row says does
not depend on which other rows were in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agents.engines.contract import Asked, SamplingLimits
from agents.engines.merging import MergedAdapter
from agents.engines.reading import Prefix, Reader, Reading, joined
from agents.inputs import InputBuilder, Row
from agents.renderer import ChatRenderer
from agents.scorer import TokenScorer, allowed_logits, base_model
from agents.trajectory import Completion, FinishReason


@dataclass(eq=False, slots=True)
class Saying:
    """A completion while it is sampled.

    Attributes:
        asked: what was asked for.
        stream: (most tokens,) numbers from which its tokens are drawn.
        ids: what was sampled so far.
        logprobs: of these.
        reason: why it ended, once it has.
    """

    asked: Asked
    stream: np.ndarray
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

    @contextmanager
    def sampling(self, limits: SamplingLimits) -> Iterator[HFSampling]:
        """See :class:`agents.engines.contract.Sampler`."""
        with self._ready():
            yield HFSampling(self, limits)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """Inside, the model is as it samples: its adapter is part of it, and what other weights have read is let go."""
        was_training = self._scorer.training
        self._scorer.eval()
        if self._reader.forget_if_changed():
            self._adapter.forget()
        try:
            with torch.no_grad(), self._adapter.applied():
                yield
        finally:
            self._scorer.train(was_training)

    def completion(self, saying: Saying) -> Completion:
        """What was sampled, once it has ended."""
        forced = saying.asked.forced
        text = self._renderer.decode([*forced, *saying.ids])
        return Completion(text, tuple(saying.ids), tuple(saying.logprobs), saying.reason, forced)

    def forget(self, row: Row, ended: Sequence[Prefix]) -> None:
        """Let go of what was read of a row until its turns ended."""
        self._reader.forget(row, ended)

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


class HFSampling:
    """Completions that are sampled together, token by token; others may join at any time."""

    def __init__(self, sampler: HFSampler, limits: SamplingLimits) -> None:
        """Args: sampler: is ready for as long as this is used; limits: of every completion."""
        self._sampler, self._limits = sampler, limits
        self._reading: Reading | None = None
        self.sayings: list[Saying] = []
        """Those that have not ended, in the order of the reading's rows."""

    def add(self, asked: Sequence[Asked]) -> list[Saying]:
        """Read rows, and have their completions sampled from the next step on."""
        most = self._limits.max_new_tokens
        new = [Saying(one, np.random.default_rng(one.seed).random(most)) for one in asked]
        reading = self._sampler._reader.read([one.whole for one in asked], [one.ended for one in asked])
        self._reading = reading if self._reading is None else joined(self._reading, reading)
        self.sayings += new
        return new

    def step(self) -> list[tuple[Saying, Completion]]:
        """One more token of every completion; those that end with it."""
        assert self._reading is not None
        sampler, reading = self._sampler, self._reading
        levels = np.array([saying.stream[len(saying.ids)] for saying in self.sayings])
        tokens, values = sampler._draw(reading.hidden, levels, self._limits.temperature)
        for saying, token, value in zip(self.sayings, tokens.tolist(), values.tolist(), strict=True):
            saying.ids.append(token)
            saying.logprobs.append(value)
        going: list[int] = []
        ended: list[Saying] = []
        for place, saying in enumerate(self.sayings):
            if self._has_ended(saying):
                sampler._reader.keep(reading, place, saying.asked.with_said(saying.ids))
                ended.append(saying)
            else:
                going.append(place)
        self.sayings = [self.sayings[place] for place in going]
        if not going:
            self._reading = None
        else:
            if ended:
                reading, tokens = reading.chosen(going), tokens[going]
            self._reading = sampler._reader.read_on(reading, tokens)
        return [(saying, sampler.completion(saying)) for saying in ended]

    def _has_ended(self, saying: Saying) -> bool:
        if self._sampler._has_ended(saying.asked.forced, saying.ids, self._limits.stop_tags):
            saying.reason = FinishReason.STOP
            return True
        return len(saying.ids) == min(self._limits.max_new_tokens, saying.asked.room)
