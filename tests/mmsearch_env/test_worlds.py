"""The atlas world: real facts, honest splits, and files that can be built again."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from importlib import resources

import pytest

from mmsearch_env.errors import ConfigError, DataError
from mmsearch_env.worlds import World, load_world
from mmsearch_env.worlds.atlas import build
from mmsearch_env.worlds.atlas.countries import confusable_ids
from mmsearch_env.worlds.entities import ASKED_RELATIONS, IDENTIFY
from mmsearch_env.worlds.slugs import slug
from mmsearch_env.worlds.wordings import asked, fill, queries, query_text, told


@pytest.fixture(scope="module")
def atlas() -> World:
    return load_world("atlas")


def test_atlas_is_as_large_as_promised(atlas: World) -> None:
    assert len(atlas.entities) >= 120
    assert all(len([values for values in entity.facts.values() if values]) >= 8 for entity in atlas.entities)
    assert len(atlas.page_images) == len(atlas.entities)
    assert len(atlas.pages) - len(atlas.entities) >= 500
    assert len(atlas.questions("all")) >= 1500


def test_known_facts_are_asked_about_with_every_accepted_answer(atlas: World) -> None:
    assert atlas.questions("all").by_id("atlas/france/capital/0").answers[0] == "Paris"
    assert "Côte d'Ivoire" in atlas.questions("all").by_id("atlas/ivory-coast/identify/1").answers
    assert atlas.questions("all").by_id("atlas/japan/internet_domain/0").answers == (".jp",)


def test_page_tells_the_facts_of_its_entity(atlas: World) -> None:
    page = next(page for page in atlas.pages if page.id == "article/japan")
    assert page.url == "https://atlas.example/article/japan"
    assert "Japan" in page.title and page.picture is not None
    for answer in ("Tokyo", "+81", ".jp", "Japanese"):
        assert answer in page.text


def test_every_article_tells_every_asked_fact_in_lines_a_snippet_can_hold(atlas: World) -> None:
    for entity in atlas.entities:
        text = next(page.text for page in atlas.page_images if page.subject == entity.id)
        assert all(entity.fact(relation) in text for relation in ASKED_RELATIONS)
        assert 6 <= len(text.splitlines()) <= 10
    assert max(len(line) for page in atlas.pages for line in page.text.splitlines()) <= 110


def test_pages_are_unique_and_under_a_reserved_domain(atlas: World) -> None:
    assert len({page.id for page in atlas.pages}) == len(atlas.pages)
    assert all(re.fullmatch(r"https://atlas\.example/[a-z0-9_/-]+", page.url) for page in atlas.pages)


def test_what_was_true_once_is_no_accepted_answer(atlas: World) -> None:
    with_past = [entity for entity in atlas.entities if entity.former]
    assert len(with_past) >= 50
    for entity in with_past:
        for relation, values in (entity.former or {}).items():
            assert not {value.lower() for value in values} & {value.lower() for value in entity.facts[relation]}


def test_splits_share_no_pair_of_entity_and_relation(atlas: World) -> None:
    pairs = {
        split: {(question.tags["entity"], question.tags["relation"]) for question in atlas.questions(split)}
        for split in ("train", "validation", "test")
    }
    assert not pairs["train"] & pairs["validation"]
    assert not pairs["train"] & pairs["test"]
    assert not pairs["validation"] & pairs["test"]
    assert sum(len(atlas.questions(split)) for split in pairs) == len(atlas.questions("all"))


def test_a_fifth_of_the_entities_occurs_only_in_test(atlas: World) -> None:
    only = {question.tags["entity"] for question in atlas.questions("test").where(_is_test_only)}
    elsewhere = {q.tags["entity"] for split in ("train", "validation") for q in atlas.questions(split)}
    asked_about = {question.tags["entity"] for question in atlas.questions("all")}
    assert not only & elsewhere
    assert len(only) == round(0.2 * len(asked_about))


def _is_test_only(question: object) -> bool:
    return question.tags["entity_split"] == "test_only"  # type: ignore[attr-defined, no-any-return]


def test_flags_that_look_alike_are_not_asked_about(atlas: World) -> None:
    assert {"chad", "romania", "indonesia", "monaco"} <= confusable_ids()
    assert not {question.tags["entity"] for question in atlas.questions("all")} & confusable_ids()


def test_question_never_names_what_it_asks_for(atlas: World) -> None:
    assert {question.text for question in atlas.questions("all")} == {
        template for relation in (IDENTIFY, *ASKED_RELATIONS) for template in asked(relation)
    }


def test_wording_says_nothing_about_entity_or_split(atlas: World) -> None:
    wordings = asked("capital")
    for split in ("train", "test"):
        counts = Counter(q.text for q in atlas.questions(split) if q.tags["relation"] == "capital")
        total = sum(counts.values())
        assert set(counts) == set(wordings)
        # Five wordings, so a fifth each; four standard deviations of a fair draw.
        assert all(abs(count / total - 0.2) < 4 * (0.16 / total) ** 0.5 for count in counts.values())


def test_two_questions_of_a_pair_differ_in_wording_and_picture(atlas: World) -> None:
    first, second = (atlas.questions("all").by_id(f"atlas/peru/currency/{count}") for count in (0, 1))
    assert first.text != second.text
    assert first.load_image() != second.load_image()


def test_question_set_is_found_by_split_and_labelled(atlas: World) -> None:
    test = atlas.questions("test")
    assert atlas.questions("test") is test
    assert {question.category for question in test} == {"identify", "fact"}
    labelled = atlas.questions("test", {test[0].id: "search_free"})
    assert [labelled[0].category, labelled[1].category] == ["search_free", ""]
    with pytest.raises(ConfigError, match="expected one of train, validation, test, all; got 'dev'"):
        atlas.questions("dev")


def test_building_again_gives_the_shipped_bytes() -> None:
    folder = resources.files("mmsearch_env.worlds.atlas")
    for name, content in build.shipped_files().items():
        same = folder.joinpath(name).read_bytes() == content
        assert same, f"{name} is stale: run python -m mmsearch_env.worlds.atlas.build"


def test_package_data_is_small() -> None:
    folder = resources.files("mmsearch_env.worlds.atlas")
    assert sum(len(file.read_bytes()) for file in folder.iterdir() if file.name.endswith((".json", ".jsonl"))) < 5e6


def test_world_is_loaded_once_and_pickled_by_name(atlas: World) -> None:
    assert load_world("atlas") is atlas
    assert pickle.loads(pickle.dumps(atlas)) is atlas
    assert len(pickle.dumps(atlas)) < 200


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mars", "expected 'atlas' or 'synthetic"),
        ("atlas:seed=1", "expected no options, got \\['seed'\\]"),
        ("synthetic:seed", "expected options like key=value"),
        ("synthetic:seed=1,seed=2", "each once"),
        ("synthetic:size=3", "expected an option of seed, entities"),
        ("synthetic:entities=many", "entities: expected a whole number >= 0, got 'many'"),
        ("synthetic:entities=0", "entities: expected at least 1, got 0"),
        ("synthetic:entities=3,poisoned=4", "poisoned: expected at most"),
    ],
)
def test_wrong_spec_is_refused_with_what_was_expected(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_world(spec)


def test_unknown_entity_is_refused(atlas: World) -> None:
    assert atlas.entity("peru").name == "Peru"
    with pytest.raises(DataError, match="expected a known entity id, got 'narnia'"):
        atlas.entity("narnia")


def test_wordings_are_filled_with_articles_and_capitals(atlas: World) -> None:
    netherlands = atlas.entity("netherlands")
    assert fill("{Name} has its capital in {value}.", netherlands, value="X") == "The Netherlands has its capital in X."
    assert fill("{value} is spoken in {name}.", netherlands, value="dutch") == "Dutch is spoken in the Netherlands."
    assert query_text(netherlands, "capital", 0) == "capital of the Netherlands"
    assert query_text(netherlands, "capital", 1) == "Netherlands capital"
    assert query_text(netherlands, "capital", len(queries("capital"))) == query_text(netherlands, "capital", 0)


def test_every_asked_relation_has_several_wordings() -> None:
    for relation in ASKED_RELATIONS:
        assert len(told(relation)) >= 4
        assert len(set(asked(relation))) >= 4


@pytest.mark.parametrize(("text", "expected"), [("Côte d'Ivoire", "cote-d-ivoire"), ("  ", "x"), ("Huế", "hue")])
def test_slug(text: str, expected: str) -> None:
    assert slug(text) == expected
