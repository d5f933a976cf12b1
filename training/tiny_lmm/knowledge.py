"""What the tiny LMM is taught to know of the atlas, and what it is not.

Countries are dealt into four hands: flag and facts known, flag only, facts only, neither. The deal is stratified, so
countries that occur only in test are known and unknown in the same shares as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmsearch_env.worlds import Entity, World
from mmsearch_env.worlds.wordings import seeded

FLAG_AND_FACTS, FLAG_ONLY, FACTS_ONLY = 0.47, 0.07, 0.10
"""Shares of the countries; the rest is unknown altogether."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Ids of the countries whose flag, and whose facts, are taught."""

    flags: frozenset[str]
    facts: frozenset[str]


def deal_knowledge(world: World, *, seed: int) -> Knowledge:
    """Choose what is taught about the countries that questions ask about."""
    test_only = {q.tags["entity"] for q in world.questions("test") if q.tags["entity_split"] == "test_only"}
    asked = [entity for entity in world.entities if entity.drawing is not None and entity.asked_about]
    flags: set[str] = set()
    facts: set[str] = set()
    for stratum in (
        [entity.id for entity in asked if entity.id in test_only],
        [entity.id for entity in asked if entity.id not in test_only],
    ):
        seeded("knowledge", seed, len(stratum)).shuffle(stratum)
        _deal(stratum, flags, facts)
    return Knowledge(frozenset(flags), frozenset(facts))


def known(entities: Sequence[Entity], ids: frozenset[str]) -> list[Entity]:
    """The entities with these ids, in order."""
    return [entity for entity in entities if entity.id in ids]


def _deal(ids: Sequence[str], flags: set[str], facts: set[str]) -> None:
    both = round(FLAG_AND_FACTS * len(ids))
    flag_only = both + round(FLAG_ONLY * len(ids))
    facts_only = flag_only + round(FACTS_ONLY * len(ids))
    flags.update(ids[:flag_only])
    facts.update(ids[:both])
    facts.update(ids[flag_only:facts_only])
