"""What the model has read: keys and values of rows, begun once for rows that are alike, and kept from turn to turn.

A row that goes on where an earlier one ended is read from there: only the observation's tokens are new. What is kept
belongs to one state of the weights; whenever they have changed, it is let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.engines.forked_attention import ForkedAttention
from agents.engines.kv_cache import Beginning, KeysValues, RoomyCache, stacked
from agents.engines.weights import SeenWeights
from agents.inputs import InputBuilder, Parted, Row, distinct
from agents.scorer import TokenScorer, base_model
from agents.trajectory import Turn
from agents.vision import ByteCache

_KEPT_BYTES = 2 << 30
_WORTH_FORKING = 256
"""Tokens of a beginning; with fewer, holding it once saves less time than bringing its rows together takes."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """How much of a row had been said and read when an earlier turn ended."""

    tokens: int
    images: int


def end_of(row: Row) -> Prefix:
    """All of a row."""
    return Prefix(len(row.token_ids), len(row.images))


def ends_of(turns: Sequence[Turn]) -> tuple[Prefix, ...]:
    """Where these turns ended."""
    tokens = images = 0
    found = []
    for turn in turns:
        said = turn.completion
        tokens += len(turn.prompt_ids) + len(said.forced_ids) + len(said.token_ids)
        images += len(turn.images)
        found.append(Prefix(tokens, images))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Reading:
    """Rows that the model has read, left-padded.

    Attributes:
        cache: keys and values.
        hidden: (B, width) after the last token.
        mask: (B, T) 1 where a token stands; first of what rows have begun with, then of what is their own.
        next_place: (B,) position of the token that comes next.
    """

    cache: RoomyCache
    hidden: Tensor
    mask: Tensor
    next_place: Tensor

    def chosen(self, rows: Sequence[int]) -> Reading:
        """Some of the rows, in this order; the cache of this reading is used up."""
        picked = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(picked)
        return Reading(self.cache, self.hidden[picked], self.mask[picked], self.next_place[picked])


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keys and values of a row's tokens, all but the last.

    Attributes:
        begun: what it has begun with, the same object for all that have begun with it.
        layers: what is its own, (heads, tokens, width) for each layer.
    """

    begun: Beginning | None
    layers: tuple[KeysValues, ...]


class Reader:
    """Reads rows and remembers them."""

    def __init__(self, scorer: TokenScorer, builder: InputBuilder) -> None:
        """Args: scorer: holds the model; builder: makes its inputs."""
        self._scorer = scorer
        self._builder = builder
        self._kept: ByteCache[_Kept] = ByteCache(_KEPT_BYTES)
        self._weights = SeenWeights(scorer.model)
        # Another order of sums is of no weight in float32; between shorter numbers it decides too often.
        is_exact = next(scorer.model.parameters()).dtype == torch.float32
        self._forks_from = _WORTH_FORKING if builder.heeds_attend and is_exact else None

    def read(self, rows: Sequence[Row], ended: Sequence[Sequence[Prefix]]) -> Reading:
        """Read rows to their last token.

        Args:
            rows: what is read.
            ended: where earlier turns of each row ended.
        """
        found = [self._known(row, prefixes) for row, prefixes in zip(rows, ended, strict=True)]
        fresh = [number for number, known in enumerate(found) if known is None]
        known = [(number, known) for number, known in enumerate(found) if known is not None]
        parts = []
        if fresh:
            parts.append(self._begun([rows[number] for number in fresh]))
        if known:
            parts.append(self._continued([parted for _, (parted, _) in known], [kept for _, (_, kept) in known]))
        order = [*fresh, *(number for number, _ in known)]
        reading = joined(*parts) if len(parts) > 1 else parts[0]
        return reading if order == sorted(order) else reading.chosen([order.index(n) for n in range(len(rows))])

    def read_on(self, reading: Reading, tokens: Tensor) -> Reading:
        """One more token for each row (B,)."""
        mask = torch.cat([reading.mask, reading.mask.new_ones(len(tokens), 1)], dim=1)
        places = reading.next_place.expand(self._builder.position_rows, -1)[..., None]
        inputs = {
            "input_ids": tokens[:, None],
            "attention_mask": mask,
            "position_ids": places if len(places) > 1 else places[0],
        }
        return self._run(inputs, reading.cache)

    def keep(self, reading: Reading, number: int, row: Row) -> None:
        """Remember what was read of a row: ``row`` with all but its last token is row ``number`` of the reading."""
        cache = reading.cache
        if not cache.remembers_all or not self._builder.can_part:
            return
        begun = cache.beginning(number)
        places = reading.mask[number, cache.begun_length :].nonzero()[:, 0]
        layers = tuple(
            (layer.keys[number].index_select(1, places), layer.values[number].index_select(1, places))
            for layer in cache.layers
        )
        size = sum(tensor.nbytes for layer in layers for tensor in layer)
        self._kept.put(row.key, _Kept(begun, layers), size + (begun.bytes // begun.rows if begun else 0))

    def forget(self, row: Row, prefixes: Sequence[Prefix]) -> None:
        """Let go of what was remembered of a row when these turns ended."""
        for prefix in prefixes:
            self._kept.drop(_part(row, prefix).key)

    def _known(self, row: Row, prefixes: Sequence[Prefix]) -> tuple[Parted, _Kept] | None:
        """The longest part of a row that is remembered, all but its last token, with the rest of the row."""
        for prefix in sorted(prefixes, key=lambda one: -one.tokens):
            key = _part(row, prefix).key
            if key in self._kept:
                size = prefix.tokens - 1
                beginning = Row(row.token_ids[:size], row.images[: prefix.images])
                return Parted(beginning, Row(row.token_ids[size:], row.images[prefix.images :])), self._kept.get(key)
        return None

    def _begun(self, rows: Sequence[Row]) -> Reading:
        """Rows that are new; those that are alike only once."""
        different, which = distinct(rows)
        inputs = self._builder.build(different, padding="left")
        reading = self._run(inputs, RoomyCache(self._network.config.get_text_config()))
        if len(different) == len(rows):
            return reading
        sizes = reading.mask.sum(1).tolist()
        if self._forks_from is None or max(sizes) < self._forks_from or not reading.cache.remembers_all:
            return reading.chosen(which)
        reading.cache.fork(sizes, which)
        return Reading(reading.cache, reading.hidden[which], reading.mask[which], reading.next_place[which])

    def _continued(self, rows: Sequence[Parted], kept: Sequence[_Kept]) -> Reading:
        """Rows of which the beginning is remembered."""
        inputs = self._builder.build_rests(rows)
        cache = RoomyCache(self._network.config.get_text_config())
        for number, layer in enumerate(cache.layers):
            pairs = [one.layers[number] for one in kept]
            length = max(keys.shape[1] for keys, _ in pairs)
            layer.replace(*(stacked([pair[side] for pair in pairs], length) for side in (0, 1)))
        read = [_left([one.layers[0][0].shape[1] for one in kept])]
        if any(one.begun is not None for one in kept):
            nothing = _nothing_like(kept[0])
            begun = [one.begun or nothing for one in kept]
            different = list({id(one): one for one in begun}.values())
            cache.begin(different, [different.index(one) for one in begun])
            read.insert(0, _left([one.tokens for one in begun]))
        mask = inputs["attention_mask"]
        whole = torch.cat([*(part.to(mask) for part in read), mask], dim=1)
        return self._run({**inputs, "attention_mask": whole}, cache)

    def _run(self, inputs: dict[str, Any], cache: RoomyCache) -> Reading:
        forked = {} if cache.forks is None else {"attend": ForkedAttention(cache, cache.forks)}
        read = self._network.model(**inputs, **forked, past_key_values=cache, use_cache=True)
        hidden = read.last_hidden_state[:, -1]
        places = inputs["position_ids"]
        last = places[..., -1] if places.dim() == 2 else places[..., -1].amax(0)
        return Reading(cache, hidden, inputs["attention_mask"], last + 1)

    @property
    def _network(self) -> Any:
        return base_model(self._scorer.model)

    def forget_if_changed(self) -> bool:
        """Let go of what other weights have read; whether they are other ones."""
        if not self._weights.have_changed():
            return False
        self._kept = ByteCache(_KEPT_BYTES)
        return True


def _part(row: Row, prefix: Prefix) -> Row:
    return Row(row.token_ids[: prefix.tokens], row.images[: prefix.images])


def _left(sizes: Sequence[int]) -> Tensor:
    """(B, longest) 1 on the right, as often as each says, and 0 on the left."""
    longest = max(sizes)
    return torch.tensor([[0] * (longest - size) + [1] * size for size in sizes])


def _nothing_like(kept: _Kept) -> Beginning:
    return Beginning(tuple((keys[:, :0], values[:, :0]) for keys, values in kept.layers), 1)


def joined(one: Reading, other: Reading) -> Reading:
    """The rows of both, the first's first; both readings are used up."""
    parts = [
        (reading.mask[:, : reading.cache.begun_length], reading.mask[:, reading.cache.begun_length :])
        for reading in (one, other)
    ]
    one.cache.append(other.cache)
    return Reading(
        one.cache,
        torch.cat([one.hidden, other.hidden]),
        torch.cat([_below(*masks) for masks in zip(*parts, strict=True)], dim=1),
        torch.cat([one.next_place, other.next_place]),
    )


def _below(mask: Tensor, other: Tensor) -> Tensor:
    """The rows of both, padded on the left."""
    length = max(mask.shape[1], other.shape[1])
    return torch.cat([pad(one, (length - one.shape[1], 0)) for one in (mask, other)])
