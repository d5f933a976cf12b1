"""Many rows as one, nothing padded: in all but attention a token is a token, whosever it is.

Rows that begin alike are a *group*. In the one row stand, group by group, what the group begins with, once, and behind
it what follows in each of its rows:

    beginning 1 | rest of row 0 | rest of row 1 | ... | beginning 2 | rest of row 4 | ...

A token of a beginning sees what stands before it in there; a token of a rest its group's beginning, and its own rest up
to itself. So every row is scored as if it stood alone, with P + R_1 + ... + R_G tokens run in place of G (P + R_max).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from agents.attention import Layer
from mmsearch_env.errors import PolicyError


@dataclass(frozen=True, slots=True)
class _Lengths:
    """For kernels that take stretches of unequal length: one of asking tokens for each of seen ones.

    Attributes:
        seen: (M,) places of the tokens that are seen, stretch by stretch.
        asking_ends: (stretches + 1,) where the stretches of asking tokens end, 0 first.
        seen_ends: the same of the tokens that are seen.
        most_asking: tokens of the longest.
        most_seen: the same.
    """

    seen: Tensor
    asking_ends: Tensor
    seen_ends: Tensor
    most_asking: int
    most_seen: int


@dataclass(frozen=True, eq=False)
class Packing:
    """Which tokens of a packed row belong together: does the attention of a model that is given one.

    Attributes:
        groups: tokens of each group's beginning, and of the rests behind it.
        device: where the row is.
    """

    groups: tuple[tuple[int, ...], ...]
    device: torch.device
    _masks: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, groups: Iterable[Sequence[int]], device: torch.device) -> Packing:
        """Of groups that may have one row only, or rests without a token."""
        found: list[tuple[int, ...]] = []
        for beginning, *rests in groups:
            if len(rests) == 1:  # what nobody shares needs no part of its own
                found.append((beginning + rests[0],))
            else:
                found.append((beginning, *(size for size in rests if size)))
        return cls(tuple(found), device)

    def __call__(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one packed row of N tokens; ``mask`` is of no use here.

        Raises:
            PolicyError: the layer sees only so far back.
        """
        if layer.settings.get("sliding_window") is not None:
            raise PolicyError("expected attention to all tokens before, got a layer with a sliding window")
        if layer.takes_lengths:
            return self._at_once(layer, query, key, value)
        return torch.cat(list(self._one_by_one(layer, query, key, value)), dim=1)

    def _one_by_one(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
        """(1, tokens, heads, width) of each beginning and each rest."""
        sizes = [size for group in self.groups for size in group]
        stretches = zip(*(torch.split(one, sizes, dim=2) for one in (query, key, value)), strict=True)
        for group in self.groups:
            begun, begun_key, begun_value = next(stretches)
            yield layer.attended(begun, begun_key, begun_value, None)
            for _ in group[1:]:
                asking, own_key, own_value = next(stretches)
                keys, values = torch.cat([begun_key, own_key], dim=2), torch.cat([begun_value, own_value], dim=2)
                yield layer.attended(asking, keys, values, self._mask(asking, begun.shape[2]))

    def _mask(self, asking: Tensor, begun: int) -> Tensor | None:
        """For a rest (1, heads, R, width): all P tokens of its beginning are seen, its own up to each; None for all."""
        size = asking.shape[2]
        if size == 1:
            return None
        if self.device.type == "cuda":  # has kernels for just that
            return causal_lower_right(size, begun + size)
        # Of the largest, the columns in which its beginning ends where this one does.
        start = self._most_begun - begun
        return self._largest_mask(asking.dtype)[:, :, :size, start : start + begun + size]

    def _largest_mask(self, dtype: torch.dtype) -> Tensor:
        """(1, 1, R, P + R) of which those of all rests are parts, so that all layers keep the same for the gradient."""
        if dtype not in self._masks:
            begun, size = self._most_begun, max(max(rests) for _, *rests in self.groups if rests)
            mask = torch.full((1, 1, size, begun + size), -torch.inf, dtype=dtype, device=self.device)
            self._masks[dtype] = mask.triu(begun + 1)
        return self._masks[dtype]

    @cached_property
    def _most_begun(self) -> int:
        """Tokens of the longest beginning that rests go on from."""
        return max(beginning for beginning, *rests in self.groups if rests)

    def _at_once(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, N, heads, width) with a kernel that takes stretches of unequal length, each pair's ends aligned."""
        lengths = self._lengths
        return layer.attended(
            query,
            key[:, :, lengths.seen],
            value[:, :, lengths.seen],
            None,
            cu_seq_lens_q=lengths.asking_ends,
            cu_seq_lens_k=lengths.seen_ends,
            max_length_q=lengths.most_asking,
            max_length_k=lengths.most_seen,
        )

    @cached_property
    def _lengths(self) -> _Lengths:
        asking, seen, places = [], [], list[Tensor]()
        end = 0
        for group in self.groups:
            start = end
            for number, size in enumerate(group):
                own = torch.arange(end, end + size)
                places.append(own if number == 0 else torch.cat([torch.arange(start, start + group[0]), own]))
                asking.append(size)
                seen.append(len(places[-1]))
                end += size
        asking_ends, seen_ends = (
            torch.tensor([0, *accumulate(one)], dtype=torch.int32, device=self.device) for one in (asking, seen)
        )
        return _Lengths(torch.cat(places).to(self.device), asking_ends, seen_ends, max(asking), max(seen))
