"""Pronounceable names of invented places, from several families of sounds."""

from __future__ import annotations

import random
from collections.abc import Callable

from mmsearch_env.worlds.slugs import slug

_FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    # onsets, vowels, codas inside and at the end of a word
    (tuple("bcdfglmnprstv"), ("a", "e", "i", "o", "u", "ia", "io"), ("", "", "n", "r", "l", "s")),
    (("b", "br", "d", "g", "gr", "k", "kr", "l", "m", "n", "p", "r", "s", "st", "t", "v", "z"),
     ("a", "e", "i", "o", "u", "y"), ("", "", "v", "sk", "n", "r", "k", "l")),
    (("h", "k", "l", "m", "n", "p", "t", "v", "w", "ng"), ("a", "e", "i", "o", "u", "ai", "au", "oa"), ("",)),
    (("b", "d", "f", "h", "j", "k", "kh", "l", "m", "n", "q", "r", "s", "sh", "z"),
     ("a", "a", "i", "u", "aa", "ou"), ("", "b", "d", "m", "n", "r", "t")),
    (("b", "d", "f", "g", "h", "k", "kl", "l", "m", "n", "r", "s", "sch", "t", "w"),
     ("a", "e", "i", "o", "u", "ei", "au"), ("", "n", "r", "ld", "rg", "nd", "ck")),
    (("b", "bw", "d", "g", "k", "l", "m", "mb", "n", "nd", "ng", "s", "t", "w", "z"),
     ("a", "e", "i", "o", "u"), ("", "", "", "n")),
    (("ch", "d", "g", "h", "k", "l", "m", "n", "ph", "s", "t", "th", "tr", "x", "y"),
     ("a", "e", "i", "o", "u", "eo", "ua"), ("", "n", "ng", "m", "t")),
)  # fmt: skip
_COUNTRY_ENDS = ("", "", "", "", "ia", "land", "stan", "a", "os", "ey", "una", "ova")
_LONGEST = 20
_CITY_ENDS = ("", "", "", "", "", "ville", "burg", "grad", "abad", " City", "port", "ton", "o")
_FIRST_WORDS = ("New", "North", "South", "East", "West", "Saint", "Upper", "Lower", "Great", "Port", "San", "El")
_SIDES = ("Northern", "Southern", "Eastern", "Western", "Central")
_ACCENTS = {"a": "á", "e": "é", "i": "í", "o": "ó", "u": "ú"}


class Namer:
    """Makes names that it has not made before and that are not in ``taken`` (compared as slugs)."""

    def __init__(self, rng: random.Random, taken: set[str]) -> None:
        self._rng = rng
        self._taken = {slug(name) for name in taken}

    def country(self) -> str:
        """A country's name, sometimes of two words."""
        return self._new(lambda: self._decorated(self._stem(1, 3) + self._rng.choice(_COUNTRY_ENDS), 0.15))

    def city(self) -> str:
        """A city's name, sometimes of two words."""
        return self._new(lambda: self._decorated(self._stem(1, 3) + self._rng.choice(_CITY_ENDS), 0.12))

    def word(self) -> str:
        """One word: a language, a unit of money."""
        return self._new(lambda: _title(self._stem(1, 3)))

    def region(self) -> str:
        """A part of the world."""
        side = self._rng.choice(_SIDES)
        return self._new(lambda: f"{side} {_title(self._stem(2, 3))}")

    def _new(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if 4 <= len(name) <= _LONGEST and slug(name) not in self._taken:
                self._taken.add(slug(name))
                return name

    def _decorated(self, name: str, share: float) -> str:
        name = _title(name)
        if self._rng.random() < share:
            name = f"{self._rng.choice(_FIRST_WORDS)} {name}"
        elif self._rng.random() < 0.04:
            place = self._rng.randrange(1, len(name))
            name = name[:place] + _ACCENTS.get(name[place], name[place]) + name[place + 1 :]
        return name

    def _stem(self, fewest: int, most: int) -> str:
        onsets, vowels, codas = self._rng.choice(_FAMILIES)
        parts = []
        for syllable in range(self._rng.randint(fewest, most)):
            onset = "" if syllable == 0 and self._rng.random() < 0.2 else self._rng.choice(onsets)
            parts.append(onset + self._rng.choice(vowels) + self._rng.choice(codas))
        return "".join(parts)


def demonym(rng: random.Random, name: str) -> str:
    """What the people of a place are called."""
    stem = name.split()[-1].rstrip("aeiouáéíóúy") or name
    return stem + rng.choice(("an", "ian", "ese", "i", "er", "ish", "ite", "oise"))


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
