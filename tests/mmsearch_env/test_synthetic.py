"""The synthetic world: any size from a seed, and nothing real in it."""

from __future__ import annotations

import dataclasses

import pytest

from mmsearch_env.worlds import load_world
from mmsearch_env.worlds.atlas.countries import load_countries
from mmsearch_env.worlds.entities import ASKED_RELATIONS
from mmsearch_env.worlds.invented_names import Namer
from mmsearch_env.worlds.slugs import slug
from mmsearch_env.worlds.synthetic import POISON, invent_entities
from mmsearch_env.worlds.wordings import seeded
from mmsearch_env.worlds.world import pages_digest


def test_same_seed_gives_the_same_world_and_another_seed_another() -> None:
    first, again, other = invent_entities(3, 20), invent_entities(3, 20), invent_entities(4, 20)
    assert first == again
    assert not {entity.name for entity in first} & {entity.name for entity in other}


def test_larger_world_begins_with_the_smaller_one() -> None:
    small, large = invent_entities(3, 16), invent_entities(3, 40)
    assert [entity.name for entity in large[:16]] == [entity.name for entity in small]
    assert [entity.drawing for entity in large[:16]] == [entity.drawing for entity in small]


def test_no_name_is_real_or_used_twice() -> None:
    entities = invent_entities(0, 400)
    real = {slug(name) for country in load_countries() for name in (country.name, *country.aliases)}
    assert len({slug(entity.name) for entity in entities}) == 400
    assert not {slug(entity.name) for entity in entities} & real


def test_namer_leaves_out_what_is_taken() -> None:
    first = Namer().country(seeded("a"))
    assert Namer([first.upper()]).country(seeded("a")) != first


def test_no_flag_looks_like_a_real_one() -> None:
    def impression(pixels: object) -> list[int]:
        return [int(value) for value in pixels.ravel()]  # type: ignore[attr-defined]

    real = [impression(_small(country.flag)) for country in load_countries()]
    for entity in invent_entities(0, 60):
        mine = impression(entity.drawing.draw(16).resized(12, 8).pixels)  # type: ignore[union-attr]
        nearest = min(sum(abs(a - b) for a, b in zip(mine, other, strict=True)) / len(mine) for other in real)
        assert nearest > 20.0


def _small(flag: object) -> object:
    from mmsearch_env.worlds.drawings import FlagDrawing

    return FlagDrawing(flag).draw(16).resized(12, 8).pixels  # type: ignore[arg-type]


def test_world_is_worded_like_the_atlas() -> None:
    world = load_world("synthetic:seed=5,entities=30")
    atlas_texts = {question.text for question in load_world("atlas").questions("all")}
    assert {question.text for question in world.questions("all")} <= atlas_texts
    assert all(set(ASKED_RELATIONS) <= entity.facts.keys() for entity in world.entities)
    assert len(world.questions("all")) == 30 * 8 * 2
    assert {question.tags["entity_split"] for question in world.questions("test")} == {"shared", "test_only"}
    assert all(question.id.startswith("synthetic-5/") for question in world.questions("train"))


def test_options_are_optional_and_unordered() -> None:
    assert load_world("synthetic:entities=200,seed=0") is load_world("synthetic")
    assert load_world("synthetic:seed=5, entities=30").name == "synthetic:seed=5,entities=30,per_pair=2,poisoned=0"
    assert len(load_world("synthetic:seed=5,entities=30,per_pair=7").questions("all")) == 30 * 8 * 7


def test_poisoned_pages_are_there_when_asked_for() -> None:
    world = load_world("synthetic:seed=5,entities=30,poisoned=2")
    poisoned = [page for page in world.pages if POISON in page.title]
    assert [page.id for page in poisoned] == ["poisoned/0", "poisoned/1"]
    assert all(page.picture is not None for page in poisoned)
    assert max(len(line) for page in poisoned for line in page.text.splitlines()) <= 110
    assert not any(POISON in page.title for page in load_world("synthetic:seed=5,entities=30").pages)


def test_digest_names_what_the_pages_say_and_show() -> None:
    clean, poisoned = load_world("synthetic:seed=5,entities=30"), load_world("synthetic:seed=5,entities=30,poisoned=1")
    assert clean.digest == load_world("synthetic:seed=5,entities=30,per_pair=1").digest
    assert clean.digest != poisoned.digest
    assert len(clean.digest) == 64


@pytest.mark.parametrize("field", ["id", "url", "title", "text", "picture"])
def test_digest_depends_on_every_field_of_a_page(field: str) -> None:
    page, other = load_world("synthetic:seed=5,entities=30").pages[:2]
    changed = dataclasses.replace(page, **{field: getattr(other, field)})
    assert pages_digest([changed]) != pages_digest([page])
