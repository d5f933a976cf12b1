"""What the tiny LMM learns from, as trajectories: plain questions, documents, repetitions, demonstrations.

Nothing on the unknown side of the atlas is ever shown: no flag, no fact, no page. Everything about searching comes from
an invented world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agents.renderer import ChatRenderer
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.episode import Rules
from mmsearch_env.images import Image
from mmsearch_env.messages import Message, TextPart
from mmsearch_env.protocols import load_prompts
from mmsearch_env.protocols.mmsearch_r1 import MMSearchR1
from mmsearch_env.questions import Question
from mmsearch_env.worlds import Entity, Page, World
from mmsearch_env.worlds.asking import answers
from mmsearch_env.worlds.entities import ASKED_RELATIONS, IDENTIFY
from mmsearch_env.worlds.pages import sentence
from mmsearch_env.worlds.pictures import QuestionPicture
from mmsearch_env.worlds.wordings import asked, fill, noun, query_text, wordings
from training.tiny_lmm.demonstrations import (
    caption,
    demonstration,
    plain_questions,
    quiz,
    recognised,
    repetition,
    titles_read,
)
from training.tiny_lmm.knowledge import Knowledge, known
from training.tiny_lmm.strange_names import StrangeNames

_PROTOCOL = MMSearchR1(load_prompts("brief"))
_ONLY_ANSWER = Rules(max_rounds=1)
"""Under these rules the environment itself says that only an answer is left."""
_USUAL = Rules()
_IDENTIFY_SHARE = 0.25
"""Share of pictures that are to be named; there are nine facts for every name."""
_ALIKE = 0.33
"""Share of quizzes whose sentences all tell the same relation."""

Lesson = Callable[[random.Random], Trajectory]
"""Draws one trajectory to learn from."""


@dataclass(frozen=True, slots=True)
class Pupil:
    """What is taught: the countries of each kind, and the invented ones that are taught like them.

    Attributes:
        flags: entities whose picture is taught, with their names.
        facts: entities whose facts are taught.
    """

    flags: tuple[Entity, ...]
    facts: tuple[Entity, ...]

    @property
    def both(self) -> tuple[Entity, ...]:
        """Entities whose facts can be asked about a picture."""
        facts_of = self.facts_of
        return tuple(entity for entity in self.flags if entity.id in facts_of)

    @property
    def facts_of(self) -> frozenset[str]:
        """Ids of the entities whose facts are taught."""
        return frozenset(entity.id for entity in self.facts)


def pupil(atlas: World, knowledge: Knowledge, friends: Sequence[Entity]) -> Pupil:
    """The countries of the atlas that are taught, and ``friends``: invented ones taught like them."""
    return Pupil(
        (*known(atlas.entities, knowledge.flags), *friends), (*known(atlas.entities, knowledge.facts), *friends)
    )


class PictureAlbum:
    """A fixed number of disturbed pictures of each entity, drawn when first needed."""

    def __init__(self, entities: Sequence[Entity], *, seed: int, each: int) -> None:
        """Args: each: pictures of one entity."""
        self.entities = tuple(entity for entity in entities if entity.drawing is not None)
        self._pictures: Mapping[str, list[QuestionPicture]] = {
            entity.id: [QuestionPicture(entity.drawing, f"lesson/{seed}/{entity.id}/{n}") for n in range(each)]
            for entity in entities
            if entity.drawing is not None
        }
        self._drawn: dict[tuple[str, int], Image] = {}

    def draw(self, entity: Entity, rng: random.Random) -> Image:
        """One of the entity's pictures."""
        number = rng.randrange(len(self._pictures[entity.id]))
        key = (entity.id, number)
        if key not in self._drawn:
            self._drawn[key] = self._pictures[entity.id][number].load()
        return self._drawn[key]


def picture_lesson(renderer: ChatRenderer, taught: Pupil, album: PictureAlbum) -> Lesson:
    """A picture and a question that is answered from memory: who it is, or one of its facts."""
    both, facts_of = taught.both, taught.facts_of

    def draw(rng: random.Random) -> Trajectory:
        if rng.random() < _IDENTIFY_SHARE:
            entity, relation = rng.choice(taught.flags), IDENTIFY
        else:
            entity = rng.choice(both)
            relation = rng.choice([r for r in ASKED_RELATIONS if entity.fact(r)])
        question = Question("", rng.choice(asked(relation)), album.draw(entity, rng), answers(entity, relation))
        (message,) = _PROTOCOL.first_message(question, [question.load_image()], _ONLY_ANSWER)
        reason = recognised(entity, relation, facts_of)
        return plain_questions(renderer, [(message, reason, question.answers[0])])

    return draw


def caption_lesson(renderer: ChatRenderer, taught: Pupil, album: PictureAlbum, strangers: PictureAlbum) -> Lesson:
    """A picture and a question, and what is seen and recalled: half of the pictures show a known flag."""
    facts_of = taught.facts_of

    def draw(rng: random.Random) -> Trajectory:
        is_known = rng.random() < 0.5
        entity = rng.choice(taught.flags if is_known else strangers.entities)
        image = (album if is_known else strangers).draw(entity, rng)
        relation = rng.choice((IDENTIFY, *ASKED_RELATIONS))
        question = Question("", rng.choice(asked(relation)), image, answers(entity, IDENTIFY))
        (message,) = _PROTOCOL.first_message(question, [image], _ONLY_ANSWER if rng.random() < 0.5 else _USUAL)
        return caption(renderer, message, recognised(entity if is_known else None, relation, facts_of))

    return draw


def fact_lesson(renderer: ChatRenderer, taught: Pupil, *, questions: int = 1) -> Lesson:
    """Questions that name their country, without a picture, each about another one."""
    blank = Image(np.zeros((28, 28, 3), dtype=np.uint8))
    facts_of = taught.facts_of

    def ask(entity: Entity, rng: random.Random) -> tuple[Message, str, str]:
        relation = rng.choice([r for r in ASKED_RELATIONS if entity.fact(r)])
        text = f"What is the {noun(relation)} of {entity.spoken}?"
        question = Question("", text, blank, answers(entity, relation))
        (message,) = _PROTOCOL.first_message(question, [blank], _ONLY_ANSWER)
        unpictured = Message("user", tuple(part for part in message.parts if isinstance(part, TextPart)))
        return unpictured, recognised(entity, relation, facts_of), question.answers[0]

    def draw(rng: random.Random) -> Trajectory:
        return plain_questions(renderer, [ask(entity, rng) for entity in rng.sample(taught.facts, questions)])

    return draw


def document_lesson(renderer: ChatRenderer, pages: Sequence[Page]) -> Lesson:
    """Some lines of an invented page, to be predicted word by word."""

    def draw(rng: random.Random) -> Trajectory:
        lines = rng.choice(pages).text.split("\n")
        rng.shuffle(lines)
        ids = renderer.text_ids("".join(f"\n- {line}" for line in lines[:6]))
        return _predicted(ids)

    return draw


Draw = Callable[[random.Random, int], list[Entity]]
"""Draws different entities."""


def some_of(entities: Sequence[Entity]) -> Draw:
    """Draws from ``entities``."""
    return lambda rng, count: rng.sample(entities, count)


def renamed(entities: Sequence[Entity], names: StrangeNames, *, share: float) -> Draw:
    """Draws from ``entities`` and renames all that were drawn, in that share of draws."""

    def draw(rng: random.Random, count: int) -> list[Entity]:
        drawn = rng.sample(entities, count)
        return [names.rename(entity, rng) for entity in drawn] if rng.random() < share else drawn

    return draw


def quiz_lesson(renderer: ChatRenderer, entities: Draw, *, facts: tuple[int, int]) -> Lesson:
    """Sentences about countries, the fewest and the most of them given, and a query for each.

    A third of the time they tell the same relation of different countries, as the results of a search do.
    """

    def draw(rng: random.Random) -> Trajectory:
        count = rng.randint(*facts)
        is_alike = rng.random() < _ALIKE
        chosen = entities(rng, count if is_alike else rng.randint(1, min(3, count)))
        relations = (rng.choice(ASKED_RELATIONS),) if is_alike else ASKED_RELATIONS
        told = [(entity, relation) for entity in chosen for relation in relations if entity.fact(relation)]
        pairs = rng.sample(told, min(count, len(told)))
        lines = [sentence(rng, relation, entity) for entity, relation in pairs]
        asked_for = [(query_text(entity, relation), entity.fact(relation)) for entity, relation in pairs]
        return quiz(renderer, lines, rng.sample(asked_for, len(asked_for)))

    return draw


def title_lesson(renderer: ChatRenderer, entities: Draw) -> Lesson:
    """Titles without pictures, as an image search would find them, and a query about the first."""
    titles: Sequence[str] = wordings()["titles"]

    def draw(rng: random.Random) -> Trajectory:
        found = entities(rng, rng.randint(1, 3))
        relation = rng.choice([r for r in ASKED_RELATIONS if found[0].fact(r)])
        shown = [fill(rng.choice(titles), entity) for entity in found]
        return titles_read(renderer, rng.choice(asked(relation)), shown, found[0], relation)

    return draw


def repetition_lesson(renderer: ChatRenderer, *, length: int = 80) -> Lesson:
    """Random tokens said again and again, drawn from a few, so that one token alone does not tell the next."""
    usable = [i for i in range(len(renderer.tokenizer)) if i not in renderer.control_ids]

    def draw(rng: random.Random) -> Trajectory:
        few = rng.sample(usable, rng.randint(6, 60))
        return repetition([rng.choice(few) for _ in range(rng.randint(6, length // 2))], length)

    return draw


def recorded_lesson(trajectories: Sequence[Trajectory]) -> Lesson:
    """One of the recorded demonstrations."""
    return lambda rng: rng.choice(trajectories)


def mixed(lessons: Sequence[tuple[Lesson, float]], *, seed: str, rows: int) -> Callable[[int], list[Trajectory]]:
    """Update number -> ``rows`` trajectories, each of a lesson drawn by its weight."""
    weights = [weight for _, weight in lessons]

    def draw(update: int) -> list[Trajectory]:
        rng = random.Random(f"{seed}/{update}")
        return [lesson(rng) for lesson, _ in rng.choices(lessons, weights, k=rows)]

    return draw


def _predicted(ids: Sequence[int]) -> Trajectory:
    said = Completion("", tuple(ids[1:]), (0.0,) * (len(ids) - 1), FinishReason.STOP)
    return demonstration("document", [Turn(tuple(ids[:1]), (), said, 0.0, "", True)])
