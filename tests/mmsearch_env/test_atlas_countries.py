"""Countries: complete and correct facts, agreement with CLDR, flags that can be told apart."""

from __future__ import annotations

import re
import unicodedata
from importlib import resources

import numpy as np
import pytest

from mmsearch_env.errors import DataError
from mmsearch_env.worlds.atlas import countries as countries_module
from mmsearch_env.worlds.atlas.countries import (
    RELATIONS,
    Country,
    confusable_groups,
    confusable_ids,
    country_by_id,
    load_countries,
)
from mmsearch_env.worlds.atlas.flags import draw_flag

CONTINENTS = {"Africa", "Asia", "Europe", "North America", "South America", "Oceania"}
UNLISTED_NEIGHBOURS = {"Afghanistan", "Kosovo", "Palestine", "Saudi Arabia"}


def plain(text: str) -> str:
    """Letters only, lower case, without accents: how CLDR's names are compared with ours."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return re.sub("[^a-z]", "", bare.lower().replace("&", "and").replace("st. ", "saint "))


def test_there_are_many_countries_with_unique_names_and_codes() -> None:
    countries = load_countries()
    assert len(countries) == 192
    for attribute in ("id", "name", "iso2", "iso3"):
        assert len({getattr(country, attribute) for country in countries}) == len(countries)
    assert [country.id for country in countries] == sorted(country.id for country in countries)
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", country.id) for country in countries)
    assert all(re.fullmatch("[A-Z]{2}", c.iso2) and re.fullmatch("[A-Z]{3}", c.iso3) for c in countries)


def test_no_two_countries_share_a_name() -> None:
    owner: dict[str, str] = {}
    for country in load_countries():
        for name in (country.name, *country.aliases):
            assert owner.setdefault(name.casefold(), country.id) == country.id, name


@pytest.mark.parametrize("country", load_countries(), ids=lambda country: country.id)
def test_facts_are_complete_and_tidy(country: Country) -> None:
    assert tuple(country.facts) == RELATIONS
    assert sum(bool(answers) for answers in country.facts.values()) >= 9
    for relation, answers in country.facts.items():
        assert len(set(answers)) == len(answers), relation
        assert all(answer and answer == answer.strip() for answer in answers), relation
    assert set(country.facts["continent"]) <= CONTINENTS
    assert all(re.fullmatch(r"\+[0-9][0-9 -]*", code) for code in country.facts["calling_code"])
    assert all(re.fullmatch(r"\.[a-z]{2}", domain) for domain in country.facts["internet_domain"])


def test_neighbours_are_mutual_and_known() -> None:
    by_name = {country.name: country for country in load_countries()}
    for country in load_countries():
        for name in country.facts["neighbour"]:
            assert name in by_name or name in UNLISTED_NEIGHBOURS, (country.id, name)
            assert name not in by_name or country.name in by_name[name].facts["neighbour"], (country.id, name)


@pytest.mark.parametrize(
    ("country_id", "relation", "answers"),
    [
        ("france", "capital", ("Paris",)),
        ("ivory-coast", "capital", ("Yamoussoukro",)),
        ("ivory-coast", "largest_city", ("Abidjan",)),
        ("switzerland", "currency", ("Swiss franc", "franc", "CHF")),
        ("switzerland", "language", ("German", "French", "Italian", "Romansh")),
        ("brazil", "language", ("Portuguese",)),
        ("japan", "neighbour", ()),
        ("portugal", "neighbour", ("Spain",)),
        ("south-korea", "neighbour", ("North Korea",)),
        ("netherlands", "demonym", ("Dutch", "Dutchman")),
        ("united-kingdom", "internet_domain", (".uk", ".gb")),
        ("kenya", "calling_code", ("+254",)),
        ("mongolia", "capital", ("Ulaanbaatar", "Ulan Bator")),
        ("fiji", "subregion", ("Melanesia",)),
        ("estonia", "continent", ("Europe",)),
    ],
)
def test_facts_by_example(country_id: str, relation: str, answers: tuple[str, ...]) -> None:
    assert country_by_id(country_id).facts[relation] == answers


def test_phrase_puts_the_article_where_english_does() -> None:
    assert country_by_id("netherlands").phrase == "the Netherlands"
    assert country_by_id("france").phrase == "France"


def test_names_agree_with_cldr() -> None:
    babel = pytest.importorskip("babel")
    territories = babel.Locale("en").territories
    for country in load_countries():
        assert plain(territories[country.iso2]) in {plain(name) for name in (country.name, *country.aliases)}


def test_currencies_agree_with_cldr() -> None:
    numbers = pytest.importorskip("babel.numbers")
    for country in load_countries():
        legal = set(numbers.get_territory_currencies(country.iso2))
        shared = legal & set(country.facts["currency"])
        assert shared, (country.id, legal)
        names = {plain(numbers.get_currency_name(code, locale="en")) for code in shared}
        # CLDR writes "Kyrgystani Som".
        accepted = {plain(answer) for answer in country.facts["currency"]} | {"kyrgystanisom"}
        assert names & accepted, (country.id, names)


def test_languages_agree_with_cldr() -> None:
    babel = pytest.importorskip("babel")
    languages = pytest.importorskip("babel.languages")
    names = babel.Locale("en").languages
    for country in load_countries():
        codes = languages.get_official_languages(country.iso2, de_facto=True)
        official = {plain(names.get(code.split("_")[0], "?")) for code in codes}
        assert official & {plain(name) for name in country.facts["language"]}, country.id


def test_confusable_flags_are_named() -> None:
    groups = {frozenset(group) for group in confusable_groups()}
    assert frozenset({"chad", "romania"}) in groups
    assert frozenset({"indonesia", "monaco"}) in groups
    assert {"netherlands", "luxembourg"} <= confusable_ids()
    assert "france" not in confusable_ids()
    assert confusable_ids() <= {country.id for country in load_countries()}


def test_flags_outside_a_group_differ_somewhere() -> None:
    # The most different 2 % of the pixels of 72 x 48 pictures, as the mean of the largest channel difference of 255.
    countries = load_countries()
    small = [draw_flag(country.flag, 96).resized(72, 48).pixels.reshape(-1, 3).astype(int) for country in countries]
    together = {frozenset((a, b)) for group in confusable_groups() for a in group for b in group}
    for i, one in enumerate(countries):
        differences = np.abs(np.stack(small[:i] or [small[0]]) - small[i]).max(-1)
        strongest = np.partition(differences, -70, axis=1)[:, -70:].mean(1)
        for other, value in zip(countries[:i], strongest, strict=False):
            assert value > 55 or frozenset((one.id, other.id)) in together, (one.id, other.id, float(value))


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(DataError, match="expected a known country id, got 'atlantis'"):
        country_by_id("atlantis")


def test_the_file_is_compact() -> None:
    data = resources.files("mmsearch_env.worlds.atlas").joinpath("countries.json").read_bytes()
    assert len(data) <= 300_000


@pytest.mark.parametrize(
    ("facts", "message"),
    [({"motto": ["x"]}, "motto"), ({"capital": ["Nowhere"]}, "got none for")],
)
def test_a_damaged_row_is_refused_by_name(facts: dict[str, list[str]], message: str) -> None:
    row = {"id": "utopia", "name": "Utopia", "iso2": "XX", "iso3": "XXX", "facts": facts}
    with pytest.raises(DataError, match=f"utopia: .*{message}"):
        countries_module._country(row)
