"""Which lessons each stage is mixed from, and the probes that say how far it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agents.renderer import ChatRenderer
from agents.trajectory import Trajectory
from mmsearch_env.worlds import World
from mmsearch_env.worlds.synthetic import invent_entities
from training.tiny_lmm.lessons import (
    Draw,
    Lesson,
    PictureAlbum,
    Pupil,
    document_lesson,
    fact_lesson,
    picture_lesson,
    quiz_lesson,
    recorded_lesson,
    renamed,
    repetition_lesson,
    some_of,
    title_lesson,
)
from training.tiny_lmm.strange_names import StrangeNames

HELD_OUT = 64
"""Trajectories of each probe."""
_STRANGERS_SEED = 99


@dataclass(frozen=True, slots=True)
class Mixtures:
    """The mixtures of the stages of language, as lessons with weights.

    Attributes:
        renderer: of the model that learns.
        taught: what it is to know.
        album: the pictures of that.
        invented: the world in which searching is taught.
        shown: whole demonstrations.
        parts: their endings, a query and what was read.
        names: names that cannot be guessed.
    """

    renderer: ChatRenderer
    taught: Pupil
    album: PictureAlbum
    invented: World
    shown: Sequence[Trajectory]
    parts: Sequence[Trajectory]
    names: StrangeNames

    def exercises(self) -> list[tuple[Lesson, float]]:
        """Copying, and reading where there is little to read: one sentence, one query."""
        invented = some_of(self.invented.entities)
        return [
            (repetition_lesson(self.renderer), 0.15),
            (document_lesson(self.renderer, self.invented.pages), 0.10),
            (quiz_lesson(self.renderer, invented, facts=(1, 1)), 0.50),
            (title_lesson(self.renderer, invented), 0.25),
        ]

    def mostly_reading(self) -> list[tuple[Lesson, float]]:
        """All that the model is to know and to do, most of it searching and reading."""
        return self._mixture(
            some_of(self.invented.entities),
            repetition=0.04, document=0.04, quiz=0.25, titles=0.08, parts=0.15, episodes=0.22, pictures=0.26,
            facts=(fact_lesson(self.renderer, self.taught), 0.16),
        )  # fmt: skip

    def mostly_knowledge(self) -> list[tuple[Lesson, float]]:
        """The same, most of it questions answered from memory; short lessons, so half of the tokens."""
        return self._mixture(
            some_of(self.invented.entities),
            repetition=0.01, document=0.01, quiz=0.07, titles=0.02, parts=0.05, episodes=0.08, pictures=0.70,
            facts=(fact_lesson(self.renderer, self.taught, questions=6), 0.06),
        )  # fmt: skip

    def balanced(self) -> list[tuple[Lesson, float]]:
        """The same in balance, and half of what is to be copied has names that cannot be guessed."""
        return self._mixture(
            renamed(self.invented.entities, self.names, share=0.5),
            repetition=0.04, document=0.01, quiz=0.18, titles=0.18, parts=0.08, episodes=0.14, pictures=0.32,
            facts=(fact_lesson(self.renderer, self.taught, questions=6), 0.05),
        )  # fmt: skip

    def _mixture(
        self,
        entities: Draw,
        *,
        repetition: float,
        document: float,
        quiz: float,
        titles: float,
        parts: float,
        episodes: float,
        pictures: float,
        facts: tuple[Lesson, float],
    ) -> list[tuple[Lesson, float]]:
        return [
            (repetition_lesson(self.renderer), repetition),
            (document_lesson(self.renderer, self.invented.pages), document),
            (quiz_lesson(self.renderer, entities, facts=(1, 4)), quiz),
            (title_lesson(self.renderer, entities), titles),
            (recorded_lesson(self.parts), parts),
            (recorded_lesson(self.shown), episodes),
            (picture_lesson(self.renderer, self.taught, self.album), pictures),
            facts,
        ]


def probes(lessons: Mixtures, shown: Sequence[Trajectory], parts: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Held-out lessons by name; those with invented entities are about some that no lesson is about."""
    strangers = some_of(invent_entities(_STRANGERS_SEED, 100))
    unguessable = renamed(invent_entities(_STRANGERS_SEED, 100), lessons.names, share=1.0)
    drawn = {
        "picture": picture_lesson(lessons.renderer, lessons.taught, lessons.album),
        "fact": fact_lesson(lessons.renderer, lessons.taught),
        "one sentence": quiz_lesson(lessons.renderer, strangers, facts=(1, 1)),
        "three sentences": quiz_lesson(lessons.renderer, strangers, facts=(3, 3)),
        "titles": title_lesson(lessons.renderer, strangers),
        "strange titles": title_lesson(lessons.renderer, unguessable),
        "strange sentences": quiz_lesson(lessons.renderer, unguessable, facts=(3, 3)),
    }
    probes = {name: [lesson(random.Random(f"probe/{n}")) for n in range(HELD_OUT)] for name, lesson in drawn.items()}
    return probes | {"reading": list(parts[:HELD_OUT]), "episode": list(shown[:HELD_OUT])}
