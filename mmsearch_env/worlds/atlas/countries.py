"""The countries of the atlas world: names, facts and flags.

Use::

    for country in load_countries():                    # tuple[Country, ...], in alphabetical order of ids
        country.id, country.name, country.aliases       # "ivory-coast", "Ivory Coast", ("Côte d'Ivoire", ...)
        country.facts["capital"]                        # ("Paris",): the main answer, then other accepted ones
        draw_flag(country.flag, height_px=120)          # mmsearch_env.worlds.atlas.flags
    asked = [c for c in load_countries() if c.id not in confusable_ids()]

``country.phrase`` is the name as it stands in a sentence ("the Netherlands"). The facts of a country have exactly the
keys :data:`RELATIONS`. ``facts["neighbour"]`` names every land neighbour, each of which is right; it is empty for
islands. Every other relation has at least one answer. Subregions are those of the United Nations' M49 standard. The
base holds the members of the United Nations and the Vatican City, but for Afghanistan and Saudi Arabia, whose flags
are mostly writing, which a simplified drawing would garble.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from mmsearch_env.errors import DataError
from mmsearch_env.worlds.atlas.flags import FlagSpec

RELATIONS: tuple[str, ...] = (
    "capital",
    "continent",
    "currency",
    "language",
    "neighbour",
    "calling_code",
    "internet_domain",
    "demonym",
    "largest_city",
    "subregion",
)
"""What is known of every country."""

_FILE = "countries.json"


@dataclass(frozen=True, slots=True)
class Country:
    """One sovereign state.

    Attributes:
        id: a slug, unique.
        name: the common English name.
        aliases: other accepted names.
        iso2: ISO 3166-1 alpha-2 code.
        iso3: ISO 3166-1 alpha-3 code.
        facts: relation -> accepted answers, the main one first.
        flag: how its flag is drawn.
        article: whether a sentence puts "the" before the name.
    """

    id: str
    name: str
    aliases: tuple[str, ...]
    iso2: str
    iso3: str
    facts: Mapping[str, tuple[str, ...]] = field(hash=False)
    flag: FlagSpec
    article: bool = False

    @property
    def phrase(self) -> str:
        """The name as it stands within a sentence: "France", "the Netherlands"."""
        return f"the {self.name}" if self.article else self.name


@lru_cache(maxsize=1)
def load_countries() -> tuple[Country, ...]:
    """Every country of the atlas, in alphabetical order of ids; read once per process.

    Raises:
        DataError: the package's own data file is damaged.
    """
    rows: Sequence[Mapping[str, Any]] = _read()["countries"]
    countries = tuple(sorted((_country(row) for row in rows), key=lambda country: country.id))
    if len({country.id for country in countries}) != len(countries):
        raise DataError(f"{_FILE}: expected unique ids, got one twice; rename it")
    return countries


@lru_cache(maxsize=1)
def confusable_groups() -> tuple[tuple[str, ...], ...]:
    """Ids of countries whose flags cannot be told apart once a picture is cropped, tilted and unevenly lit.

    A group holds flags that stay alike under the best crop of up to 6 % a side, gamma, brightness and colour cast: the
    most different 2 % of a 72 x 48 picture differ by less than 30 in CIE Lab, or only a small emblem differs.
    """
    return tuple(tuple(group) for group in _read()["confusable"])


def confusable_ids() -> frozenset[str]:
    """Countries whose pictures are not to be asked about: every member of a confusable group."""
    return frozenset(country_id for group in confusable_groups() for country_id in group)


def country_by_id(country_id: str) -> Country:
    """The country with this id. Raises DataError if there is none."""
    for country in load_countries():
        if country.id == country_id:
            return country
    raise DataError(f"atlas: expected a known country id, got {country_id!r}; see load_countries()")


def _read() -> Mapping[str, Any]:
    """The data file as parsed JSON."""
    text = resources.files(__package__).joinpath(_FILE).read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def _country(row: Mapping[str, Any]) -> Country:
    """One row of the file. Raises DataError with the row's id."""
    name = f"{_FILE}: {row.get('id')}"
    facts = {relation: tuple(row["facts"].get(relation, ())) for relation in RELATIONS}
    if unknown := row["facts"].keys() - facts.keys():
        raise DataError(f"{name}: expected the relations {RELATIONS}, got {sorted(unknown)} besides; remove them")
    if missing := [key for key, answers in facts.items() if not answers and key != "neighbour"]:
        raise DataError(f"{name}: expected an answer for every relation, got none for {missing}; add it")
    return Country(
        id=row["id"],
        name=row["name"],
        aliases=tuple(row.get("aliases", ())),
        iso2=row["iso2"],
        iso3=row["iso3"],
        facts=MappingProxyType(facts),
        flag=FlagSpec.from_json(row["flag"], name=name),
        article=bool(row.get("article", False)),
    )
