"""What the tiny LMM is taught to know of the atlas, and what it is not.

Countries are dealt into four hands: flag and facts known, flag only, facts only, neither. Flags that look alike are
known together or not at all, since whoever knows one of them only takes the other for it. The deal is stratified, so
countries that occur only in test are known and unknown in the same shares as the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmsearch_env.tools.local.descriptors import descriptor
from mmsearch_env.worlds import Entity, World
from mmsearch_env.worlds.wordings import seeded

FLAG_AND_FACTS, FLAG_ONLY, FACTS_ONLY = 0.40, 0.15, 0.10
"""Shares of the countries; the rest is unknown altogether."""
_ALIKE = 2.5
"""Flags nearer than this look alike: the nearest fortieth of all pairs."""
_LARGEST_FAMILY = 6
"""Flags in a family at most, so that there are enough of them to deal."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Ids of the countries whose flag, and whose facts, are taught."""

    flags: frozenset[str]
    facts: frozenset[str]


def deal_knowledge(world: World, *, seed: int) -> Knowledge:
    """Choose what is taught about the countries that questions ask about."""
    test_only = {q.tags["entity"] for q in world.questions("test") if q.tags["entity_split"] == "test_only"}
    asked = [entity for entity in world.entities if entity.drawing is not None and entity.asked_about]
    strata = [frozenset(e.id for e in asked if (e.id in test_only) is within) for within in (True, False)]
    flags = _dealt_flags(families(asked), strata, seed)
    facts: set[str] = set()
    for stratum in strata:
        seen, unseen = sorted(stratum & flags), sorted(stratum - flags)
        for ids, share in ((seen, FLAG_AND_FACTS), (unseen, FACTS_ONLY)):
            seeded("knowledge", seed, len(ids)).shuffle(ids)
            facts.update(ids[: round(share * len(stratum))])
    return Knowledge(flags, frozenset(facts))


def known(entities: Sequence[Entity], ids: frozenset[str]) -> list[Entity]:
    """The entities with these ids, in order."""
    return [entity for entity in entities if entity.id in ids]


def families(entities: Sequence[Entity]) -> list[frozenset[str]]:
    """Ids of flags that look alike, family by family: the nearest flags are brought together first."""
    family = {entity.id: frozenset((entity.id,)) for entity in entities}
    for one, other in _alike(entities):
        joined = family[one] | family[other]
        if len(joined) <= _LARGEST_FAMILY:
            family.update(dict.fromkeys(joined, joined))
    return list(dict.fromkeys(family.values()))


def _alike(entities: Sequence[Entity]) -> Iterator[tuple[str, str]]:
    """Pairs of flags that look alike, the nearest first."""
    looks = np.stack([descriptor(entity.drawing.load()) for entity in entities if entity.drawing is not None])
    distances = np.linalg.norm(looks[:, None] - looks[None], axis=-1)
    near = np.argwhere(np.triu(distances < _ALIKE, k=1))
    for one, other in sorted(map(tuple, near), key=lambda pair: float(distances[pair])):
        yield entities[one].id, entities[other].id


def _dealt_flags(groups: Sequence[frozenset[str]], strata: Sequence[frozenset[str]], seed: int) -> frozenset[str]:
    """Whole families, the largest first, each to the side that has too little of its strata."""
    share = FLAG_AND_FACTS + FLAG_ONLY
    known_ids: set[str] = set()
    dealt: set[str] = set()
    order = sorted(groups, key=min)
    seeded("flags", seed, len(order)).shuffle(order)
    for group in sorted(order, key=len, reverse=True):
        lacking = sum(
            (share * len(stratum & dealt) - len(stratum & known_ids)) * len(stratum & group) / len(stratum)
            for stratum in strata
        )
        half = (share - 0.5) * sum(len(stratum & group) ** 2 / len(stratum) for stratum in strata)
        if lacking + half > 0.0:
            known_ids |= group
        dealt |= group
    return frozenset(known_ids)
