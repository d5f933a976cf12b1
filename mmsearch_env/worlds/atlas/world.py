"""The atlas as a world: pages and questions as shipped, written by :mod:`mmsearch_env.worlds.atlas.build`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

from mmsearch_env.errors import DataError
from mmsearch_env.questions import Question
from mmsearch_env.worlds.atlas.countries import Country, confusable_ids, load_countries
from mmsearch_env.worlds.drawings import FlagDrawing
from mmsearch_env.worlds.entities import Drawing, Entity
from mmsearch_env.worlds.pictures import QuestionPicture
from mmsearch_env.worlds.world import Page, World

NAME = "atlas"
PAGES_FILE = "pages.jsonl"
QUESTIONS_FILE = "questions.jsonl"
_FORMER_FILE = "former.json"


@cache
def atlas_world() -> World:
    """The atlas; one object per process."""
    entities = atlas_entities()
    drawings = {entity.id: entity.drawing for entity in entities if entity.drawing is not None}
    return World(
        NAME,
        entities,
        lambda: [page_from_record(record, drawings) for record in _records(PAGES_FILE)],
        lambda: [question_from_record(record, drawings) for record in _records(QUESTIONS_FILE)],
    )


def atlas_entities() -> list[Entity]:
    """Every country as an entity; those whose flag looks like another's are not asked about."""
    former = json.loads(_text(_FORMER_FILE))
    return [_entity(country, former.get(country.id)) for country in load_countries()]


def page_to_record(page: Page) -> dict[str, Any]:
    """A page as one JSON object; its picture is named by the subject."""
    record = {"id": page.id, "url": page.url, "title": page.title, "text": page.text, "subject": page.subject}
    return record | {"picture": page.picture is not None}


def page_from_record(record: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> Page:
    """The inverse of :func:`page_to_record`."""
    subject = record["subject"]
    return Page(
        record["id"],
        record["url"],
        record["title"],
        record["text"],
        drawings[subject] if record["picture"] else None,
        subject,
    )


def question_to_record(question: Question) -> dict[str, Any]:
    """A question as one JSON object; its picture is named by entity and seed."""
    assert isinstance(question.image, QuestionPicture)
    return {
        "id": question.id,
        "text": question.text,
        "answers": list(question.answers),
        "picture_seed": question.image.seed,
        **question.tags,
    }


def question_from_record(record: Mapping[str, Any], drawings: Mapping[str, Drawing]) -> Question:
    """The inverse of :func:`question_to_record`."""
    return Question(
        id=record["id"],
        text=record["text"],
        image=QuestionPicture(drawings[record["entity"]], record["picture_seed"]),
        answers=tuple(record["answers"]),
        category=record["kind"],
        source=NAME,
        tags={key: record[key] for key in ("kind", "relation", "entity", "split", "entity_split")},
    )


def _entity(country: Country, former: Mapping[str, list[str]] | None) -> Entity:
    return Entity(
        id=country.id,
        name=country.name,
        aliases=country.aliases,
        facts=dict(country.facts),
        drawing=FlagDrawing(country.flag),
        article="the" if country.article else "",
        asked_about=country.id not in confusable_ids(),
        former={relation: tuple(values) for relation, values in (former or {}).items()},
    )


def _records(file: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: expected a JSON object, got {line[:60]!r}; reinstall") from error


def _text(file: str) -> str:
    return resources.files("mmsearch_env.worlds.atlas").joinpath(file).read_text(encoding="utf-8")
