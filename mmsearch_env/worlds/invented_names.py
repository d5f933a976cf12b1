"""Pronounceable names of invented places, from several families of sounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

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

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {slug(name) for name in taken}

    def country(self, rng: random.Random) -> str:
        """A country's name, sometimes of two words."""
        return self._new(lambda: _decorated(rng, _stem(rng, 1, 3) + rng.choice(_COUNTRY_ENDS), 0.15))

    def city(self, rng: random.Random) -> str:
        """A city's name, sometimes of two words."""
        return self._new(lambda: _decorated(rng, _stem(rng, 1, 3) + rng.choice(_CITY_ENDS), 0.12))

    def word(self, rng: random.Random) -> str:
        """One word: a language, a unit of money."""
        return self._new(lambda: _title(_stem(rng, 1, 3)))

    def region(self, rng: random.Random) -> str:
        """A part of the world."""
        side = rng.choice(_SIDES)
        return self._new(lambda: f"{side} {_title(_stem(rng, 2, 3))}")

    def _new(self, make: Callable[[], str]) -> str:
        while True:
            name = make()
            if 4 <= len(name) <= _LONGEST and slug(name) not in self._taken:
                self._taken.add(slug(name))
                return name


def demonym(rng: random.Random, name: str) -> str:
    """What the people of a place are called."""
    stem = name.split()[-1].rstrip("aeiouáéíóúy") or name
    return stem + rng.choice(("an", "ian", "ese", "i", "er", "ish", "ite", "oise"))


def _decorated(rng: random.Random, name: str, share: float) -> str:
    """With a first word, now and then with an accent."""
    name = _title(name)
    if rng.random() < share:
        return f"{rng.choice(_FIRST_WORDS)} {name}"
    if len(name) > 3 and rng.random() < 0.04:
        place = rng.randrange(1, len(name))
        return name[:place] + _ACCENTS.get(name[place], name[place]) + name[place + 1 :]
    return name


def _stem(rng: random.Random, fewest: int, most: int) -> str:
    """Some syllables of one family."""
    onsets, vowels, codas = rng.choice(_FAMILIES)
    parts = []
    for syllable in range(rng.randint(fewest, most)):
        onset = "" if syllable == 0 and rng.random() < 0.2 else rng.choice(onsets)
        parts.append(onset + rng.choice(vowels) + rng.choice(codas))
    return "".join(parts)


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
