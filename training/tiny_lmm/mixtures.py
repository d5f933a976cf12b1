"""Which lessons each stage is mixed from, and the probes that say how far it is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from agents.renderer import ChatRenderer
from agents.trajectory import Trajectory
from mmsearch_env.worlds import World
from mmsearch_env.worlds.synthetic import invent_entities
from training.tiny_lmm.demonstrations import reading_part
from training.tiny_lmm.lessons import (
    Draw,
    Lesson,
    PictureAlbum,
    Pupil,
    caption_lesson,
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
"""Of a world that no lesson is about."""


@dataclass(frozen=True, slots=True)
class Mixtures:
    """The mixtures of the stages of language, as lessons with weights.

    Attributes:
        renderer: of the model that learns.
        taught: what it is to know.
        album: the pictures of that.
        strangers: pictures of flags it is not to know.
        invented: the world in which searching is taught.
        shown: whole demonstrations.
        names: names that cannot be guessed.
    """

    renderer: ChatRenderer
    taught: Pupil
    album: PictureAlbum
    strangers: PictureAlbum
    invented: World
    shown: Sequence[Trajectory]
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
            repetition=0.04, document=0.04, quiz=0.20, titles=0.08, parts=0.12, episodes=0.20, captions=0.18,
            pictures=0.06, facts=0.08,
        )  # fmt: skip

    def mostly_knowledge(self) -> list[tuple[Lesson, float]]:
        """The same, most of it questions answered from memory; short lessons, so half of the tokens."""
        return self._mixture(
            some_of(self.invented.entities),
            repetition=0.01, document=0.01, quiz=0.08, titles=0.02, parts=0.05, episodes=0.08, captions=0.30,
            pictures=0.25, facts=0.20,
        )  # fmt: skip

    def balanced(self) -> list[tuple[Lesson, float]]:
        """The same in balance, and half of what is to be copied has names that cannot be guessed."""
        return self._mixture(
            renamed(self.invented.entities, self.names, share=0.5),
            repetition=0.04, document=0.01, quiz=0.16, titles=0.16, parts=0.09, episodes=0.16, captions=0.14,
            pictures=0.18, facts=0.06,
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
        captions: float,
        pictures: float,
        facts: float,
    ) -> list[tuple[Lesson, float]]:
        endings = [part for played in self.shown if (part := reading_part(self.renderer, played))]
        return [
            (repetition_lesson(self.renderer), repetition),
            (document_lesson(self.renderer, self.invented.pages), document),
            (quiz_lesson(self.renderer, entities, facts=(1, 4)), quiz),
            (title_lesson(self.renderer, entities), titles),
            (recorded_lesson(endings), parts),
            (recorded_lesson(self.shown), episodes),
            (caption_lesson(self.renderer, self.taught, self.album, self.strangers), captions),
            (picture_lesson(self.renderer, self.taught, self.album), pictures),
            (fact_lesson(self.renderer, self.taught, questions=6), facts),
        ]


def probes(lessons: Mixtures, reserved: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Held-out lessons by name: their pictures, episodes and invented entities are no lessons; the facts asked for are.

    Args:
        lessons: whose renderer, knowledge and names they use.
        reserved: demonstrations that are no lessons.
    """
    invented = invent_entities(_STRANGERS_SEED, 100)
    strangers, unguessable = some_of(invented), renamed(invented, lessons.names, share=1.0)
    album = PictureAlbum(lessons.taught.flags, seed=_STRANGERS_SEED, each=1)
    unseen = PictureAlbum(invented, seed=_STRANGERS_SEED, each=1)
    drawn = {
        "caption": caption_lesson(lessons.renderer, lessons.taught, album, unseen),
        "picture": picture_lesson(lessons.renderer, lessons.taught, album),
        "fact": fact_lesson(lessons.renderer, lessons.taught),
        "one sentence": quiz_lesson(lessons.renderer, strangers, facts=(1, 1)),
        "three sentences": quiz_lesson(lessons.renderer, strangers, facts=(3, 3)),
        "titles": title_lesson(lessons.renderer, strangers),
        "strange titles": title_lesson(lessons.renderer, unguessable),
        "strange sentences": quiz_lesson(lessons.renderer, unguessable, facts=(3, 3)),
    }
    probes = {name: [lesson(random.Random(f"probe/{n}")) for n in range(HELD_OUT)] for name, lesson in drawn.items()}
    parts = [part for played in reserved if (part := reading_part(lessons.renderer, played))]
    return probes | {"reading": parts[:HELD_OUT], "episode": list(reserved[:HELD_OUT])}
