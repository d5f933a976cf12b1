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
    Lesson,
    PictureAlbum,
    Pupil,
    document_lesson,
    fact_lesson,
    picture_lesson,
    quiz_lesson,
    recorded_lesson,
    repetition_lesson,
    title_lesson,
)

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
    """

    renderer: ChatRenderer
    taught: Pupil
    album: PictureAlbum
    invented: World
    shown: Sequence[Trajectory]
    parts: Sequence[Trajectory]

    def exercises(self) -> list[tuple[Lesson, float]]:
        """Copying, and reading where there is little to read: one sentence, one query."""
        return [
            (repetition_lesson(self.renderer), 0.15),
            (document_lesson(self.renderer, self.invented.pages), 0.10),
            (quiz_lesson(self.renderer, self.invented.entities, facts=(1, 1)), 0.50),
            (title_lesson(self.renderer, self.invented.entities), 0.25),
        ]

    def mostly_reading(self) -> list[tuple[Lesson, float]]:
        """All that the model is to know and to do, most of it searching and reading."""
        return [
            (repetition_lesson(self.renderer), 0.04),
            (document_lesson(self.renderer, self.invented.pages), 0.04),
            (quiz_lesson(self.renderer, self.invented.entities, facts=(1, 4)), 0.25),
            (title_lesson(self.renderer, self.invented.entities), 0.08),
            (recorded_lesson(self.parts), 0.15),
            (recorded_lesson(self.shown), 0.22),
            (picture_lesson(self.renderer, self.taught, self.album), 0.26),
            (fact_lesson(self.renderer, self.taught), 0.16),
        ]

    def mostly_knowledge(self) -> list[tuple[Lesson, float]]:
        """The same, most of it questions answered from memory; short lessons, so half of the tokens."""
        return [
            (repetition_lesson(self.renderer), 0.01),
            (document_lesson(self.renderer, self.invented.pages), 0.01),
            (quiz_lesson(self.renderer, self.invented.entities, facts=(1, 4)), 0.07),
            (title_lesson(self.renderer, self.invented.entities), 0.02),
            (recorded_lesson(self.parts), 0.05),
            (recorded_lesson(self.shown), 0.08),
            (picture_lesson(self.renderer, self.taught, self.album), 0.70),
            (fact_lesson(self.renderer, self.taught, questions=6), 0.06),
        ]

    def balanced(self) -> list[tuple[Lesson, float]]:
        """The same, a quarter of the tokens for questions about pictures."""
        return [
            (repetition_lesson(self.renderer), 0.02),
            (document_lesson(self.renderer, self.invented.pages), 0.02),
            (quiz_lesson(self.renderer, self.invented.entities, facts=(1, 4)), 0.15),
            (title_lesson(self.renderer, self.invented.entities), 0.05),
            (recorded_lesson(self.parts), 0.13),
            (recorded_lesson(self.shown), 0.16),
            (picture_lesson(self.renderer, self.taught, self.album), 0.42),
            (fact_lesson(self.renderer, self.taught, questions=6), 0.05),
        ]


def probes(lessons: Mixtures, shown: Sequence[Trajectory], parts: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Held-out lessons by name; those with invented entities are about some that no lesson is about."""
    strangers = invent_entities(_STRANGERS_SEED, 100)
    drawn = {
        "picture": picture_lesson(lessons.renderer, lessons.taught, lessons.album),
        "fact": fact_lesson(lessons.renderer, lessons.taught),
        "one sentence": quiz_lesson(lessons.renderer, strangers, facts=(1, 1)),
        "three sentences": quiz_lesson(lessons.renderer, strangers, facts=(3, 3)),
        "titles": title_lesson(lessons.renderer, strangers),
    }
    probes = {name: [lesson(random.Random(f"probe/{n}")) for n in range(HELD_OUT)] for name, lesson in drawn.items()}
    return probes | {"reading": list(parts[:HELD_OUT]), "episode": list(shown[:HELD_OUT])}
