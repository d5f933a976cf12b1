"""Sampling with a transformers model in this process.

One call samples one completion for each row: a left-padded prefill, in which a prompt that several rows share is run
once, then token by token on a key-value cache. Rows that have ended leave the batch. Each row draws from its own seeded
stream of uniform numbers, so what a row says does not depend on which other rows were in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from agents.inputs import InputBuilder, Row, distinct
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


class HFSampler:
    """Samples completions from a transformers model."""

    def __init__(self, scorer: TokenScorer, renderer: ChatRenderer, builder: InputBuilder) -> None:
        """Args: scorer: holds the model and the tokens that are never sampled, on whatever device it is moved to."""
        self._scorer = scorer
        self._renderer = renderer
        self._builder = builder
        self._ending: dict[tuple[str, ...], frozenset[int]] = {}

    @torch.no_grad()
    def sample(
        self, rows: Sequence[Row], forced: Sequence[tuple[int, ...]], seeds: Sequence[int], limits: SamplingLimits
    ) -> list[Completion]:
        """One completion for each row. ``forced`` tokens follow a row's own and count as said but not sampled."""
        if not rows:
            return []
        was_training = self._scorer.training
        self._scorer.eval()
        try:
            drawn = self._decode(rows, forced, seeds, limits)
        finally:
            self._scorer.train(was_training)
        return [
            Completion(self._renderer.decode([*start, *ids]), tuple(ids), tuple(logprobs), reason, tuple(start))
            for start, (ids, logprobs, reason) in zip(forced, drawn, strict=True)
        ]

    def _decode(
        self, rows: Sequence[Row], forced: Sequence[tuple[int, ...]], seeds: Sequence[int], limits: SamplingLimits
    ) -> list[tuple[list[int], list[float], FinishReason]]:
        streams = np.stack([np.random.default_rng(seed).random(limits.max_new_tokens) for seed in seeds])
        full = [Row((*row.token_ids, *start), row.images) for row, start in zip(rows, forced, strict=True)]
        network = base_model(self._scorer.model)
        cache, hidden, mask, next_place = self._prefill(network, full)
        ids: list[list[int]] = [[] for _ in rows]
        logprobs: list[list[float]] = [[] for _ in rows]
        reasons = [FinishReason.LENGTH] * len(rows)
        alive = list(range(len(rows)))
        for position in range(limits.max_new_tokens):
            tokens, values = self._draw(network.lm_head(hidden), streams[alive, position], limits.temperature)
            for row, token, value in zip(alive, tokens.tolist(), values.tolist(), strict=True):
                ids[row].append(token)
                logprobs[row].append(value)
            ended = [self._has_ended(forced[row], ids[row], limits.stop_tags) for row in alive]
            for row in (row for row, end in zip(alive, ended, strict=True) if end):
                reasons[row] = FinishReason.STOP
            going = [index for index, end in enumerate(ended) if not end]
            alive = [alive[index] for index in going]
            if not alive or position + 1 == limits.max_new_tokens:
                break
            if len(going) < len(ended):
                keep = torch.tensor(going, device=mask.device)
                cache.batch_select_indices(keep)
                tokens, mask, next_place = tokens[keep], mask[keep], next_place[keep]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            step_places = next_place.expand(self._builder.position_rows, -1)[..., None]
            hidden = network.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=step_places if len(step_places) > 1 else step_places[0],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state[:, -1]
            next_place = next_place + 1
        return list(zip(ids, logprobs, reasons, strict=True))

    def _prefill(self, network: Any, rows: Sequence[Row]) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Run the prompts, those that several rows share only once.

        Returns:
            The cache, the last hidden states (B, width), the attention mask (B, T) and the next positions (B,).
        """
        different, which = distinct(rows)
        inputs = self._builder.build(different, padding="left")
        cache = DynamicCache(config=network.config.get_text_config())
        hidden = network.model(**inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        mask, places = inputs["attention_mask"], inputs["position_ids"]
        next_place = places.amax(dim=tuple(i for i in range(places.dim()) if i != places.dim() - 2)) + 1  # (U,)
        chosen = torch.tensor(which, device=mask.device)
        if len(different) < len(rows):
            cache.batch_select_indices(chosen)
        return cache, hidden[chosen], mask[chosen], next_place[chosen]

    def _draw(self, logits: Tensor, uniforms: np.ndarray, temperature: float) -> tuple[Tensor, Tensor]:
        """One token for each row (B,) and its log-probability (B,), by inverting the cumulative distribution."""
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
