"""Names and facts put together from pieces of words: whoever answers with them has copied, not guessed.

An invented country's name follows the sounds of its world, so its end can be guessed from its beginning. These cannot.
"""

from __future__ import annotations

import random
import string
from collections.abc import Iterable
from dataclasses import replace

from mmsearch_env.worlds import Entity

_LONGEST_PIECE = 5
_FORMS = (
    "{0}",
    "{0}",
    "{0}",
    "{0}",
    "{0} {1}",
    "{0} {1}",
    "{0} and {1}",
    "{0} of {1}",
    "{0}-{1}",
    "Republic of {0}",
) + (
    "{0} Republic",
    "Saint {0}",
    "United {0} {1}",
    "North {0}",
    "{0} and the {1}",
    "Republic of the {0}",
    "{0} Republic of the {1}",
)
_SHARE_OF_LONG_CODES = 0.2
_ACCENTED = "áãçéíñôöü"


class StrangeNames:
    """Renames entities, each time differently."""

    def __init__(self, vocabulary: Iterable[str], *, avoided: Iterable[str] = ()) -> None:
        """
        Args:
            vocabulary: texts whose short, purely alphabetic ones become pieces of words.
            avoided: names that are never made.
        """
        self._avoided = frozenset(avoided)
        found = {text.strip().lower() for text in vocabulary} | set(_ACCENTED)
        self._pieces = sorted(p for p in found if 0 < len(p) <= _LONGEST_PIECE and p.isalpha())

    def rename(self, entity: Entity, rng: random.Random) -> Entity:
        """The entity with another name and other values of all its facts."""
        facts = {relation: (self._value(relation, rng),) for relation in entity.facts}
        name = rng.choice(_FORMS).format(self._word(rng), self._word(rng))
        return replace(entity, name=name, article="", facts=facts)

    def _value(self, relation: str, rng: random.Random) -> str:
        if relation == "calling_code":
            long = rng.random() < _SHARE_OF_LONG_CODES
            return f"+1-{rng.randint(100, 999)}" if long else f"+{rng.randint(1, 999)}"
        if relation == "internet_domain":
            return "." + "".join(rng.choices(string.ascii_lowercase, k=2))
        words = [self._word(rng) for _ in range(1 + (rng.random() < 0.3))]
        return " ".join(words).lower() if relation == "currency" and rng.random() < 0.5 else " ".join(words)

    def _word(self, rng: random.Random) -> str:
        while (word := "".join(rng.choices(self._pieces, k=rng.randint(1, 5)))[:16].capitalize()) in self._avoided:
            pass
        return word
