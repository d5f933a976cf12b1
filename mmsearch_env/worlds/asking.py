"""Questions about pictured entities, and their division into train, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmsearch_env.questions import Question
from mmsearch_env.worlds.entities import ASKED_RELATIONS, IDENTIFY, Entity
from mmsearch_env.worlds.pictures import QuestionPicture
from mmsearch_env.worlds.wordings import asked, seeded
from mmsearch_env.worlds.world import Split

TEST_ONLY_SHARE = 0.2
"""Share of the entities whose questions are all in test."""
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.1
"""Shares of the other (entity, relation) pairs; the rest is test."""


def write_questions(world: str, entities: Iterable[Entity], *, seed: int, per_pair: int = 2) -> list[Question]:
    """Ask about every pictured entity: who it is, and each of its facts.

    The wording depends on a random draw only, never on the entity. All questions of one (entity, relation) pair are
    in the same split.

    Args:
        world: short name; the first part of every id.
        entities: those without a picture, or not to be asked about, are passed over.
        seed: of wordings, pictures and division.
        per_pair: questions for each (entity, relation) pair; they differ in wording and picture.
    """
    pictured = [entity for entity in entities if entity.drawing is not None and entity.asked_about]
    splits = _divide(pictured, seed)
    questions = []
    for entity in pictured:
        for relation in _relations(entity):
            split, entity_split = splits[entity.id, relation]
            rng = seeded(seed, "asked", entity.id, relation)
            texts = rng.sample(asked(relation), per_pair) if per_pair <= len(asked(relation)) else asked(relation)
            for count in range(per_pair):
                text = texts[count % len(texts)]
                questions.append(_question(world, entity, relation, count, text, seed, split, entity_split))
    return questions


def _question(
    world: str, entity: Entity, relation: str, count: int, text: str, seed: int, split: str, entity_split: str
) -> Question:
    assert entity.drawing is not None
    name = f"{entity.id}/{relation}/{count}"
    kind = IDENTIFY if relation == IDENTIFY else "fact"
    tags = {"kind": kind, "relation": relation, "entity": entity.id, "split": split, "entity_split": entity_split}
    return Question(
        id=f"{world}/{name}",
        text=text,
        image=QuestionPicture(entity.drawing, f"{seed}/{name}"),
        answers=answers(entity, relation),
        category=kind,
        source=world,
        tags=tags,
    )


def answers(entity: Entity, relation: str) -> tuple[str, ...]:
    """Accepted answers to a question about an entity."""
    return (entity.name, *entity.aliases) if relation == IDENTIFY else entity.facts[relation]


def _relations(entity: Entity) -> list[str]:
    return [IDENTIFY, *(relation for relation in ASKED_RELATIONS if entity.facts.get(relation))]


def _divide(entities: Sequence[Entity], seed: int) -> dict[tuple[str, str], tuple[Split, str]]:
    """(entity id, relation) -> (split, ``"test_only"`` or ``"shared"``)."""
    shuffled = list(entities)
    seeded(seed, "entities").shuffle(shuffled)
    held_out = round(TEST_ONLY_SHARE * len(shuffled))
    places: dict[tuple[str, str], tuple[Split, str]] = {}
    for entity in shuffled[:held_out]:
        places.update({(entity.id, relation): ("test", "test_only") for relation in _relations(entity)})
    for relation in (IDENTIFY, *ASKED_RELATIONS):
        # Relation by relation, so that every split asks about every relation.
        having = [entity for entity in shuffled[held_out:] if relation in _relations(entity)]
        seeded(seed, "pairs", relation).shuffle(having)
        train, validation = round(TRAIN_SHARE * len(having)), round((TRAIN_SHARE + VALIDATION_SHARE) * len(having))
        for position, entity in enumerate(having):
            split: Split = "train" if position < train else "validation" if position < validation else "test"
            places[entity.id, relation] = (split, "shared")
    return places
