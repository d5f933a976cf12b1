"""A world: entities, the pages that tell about them, and the questions that ask about them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from mmsearch_env.errors import ConfigError, DataError
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.worlds.entities import Drawing, Entity

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Page:
    """One page that search can find.

    Attributes:
        id: unique within its world.
        url: where it is; always under a reserved domain.
        title: its heading.
        text: its sentences.
        picture: the picture on it; None when it has none. Only pages with a picture answer image search.
        subject: id of the entity it tells about; "" when it tells about several or none.
    """

    id: str
    url: str
    title: str
    text: str
    picture: Drawing | None = None
    subject: str = ""


def pages_digest(pages: Sequence[Page]) -> str:
    """SHA-256 of what the pages say and show, in hexadecimal: the key of what is built from them."""
    state = hashlib.sha256()
    for page in pages:
        picture = page.picture.key if page.picture is not None else ""
        state.update("\x1f".join((page.id, page.url, page.title, page.text, picture, "\x1e")).encode())
    return state.hexdigest()


class World:
    """Everything one episode may need, made when first used.

    Attributes:
        name: the spec it was loaded by; ``load_world(name)`` gives it again.
        entities: in a fixed order.
    """

    def __init__(
        self,
        name: str,
        entities: Sequence[Entity],
        write_pages: Callable[[], Sequence[Page]],
        write_questions: Callable[[], Sequence[Question]],
    ) -> None:
        """``write_pages`` and ``write_questions`` are called once, when pages or questions are first asked for."""
        self.name = name
        self.entities = tuple(entities)
        self._write_pages = write_pages
        self._write_questions = write_questions
        self._question_sets: dict[str, QuestionSet] = {}

    @cached_property
    def pages(self) -> tuple[Page, ...]:
        """All pages, in a fixed order."""
        return tuple(self._write_pages())

    @cached_property
    def page_images(self) -> tuple[Page, ...]:
        """The pages that have a picture."""
        return tuple(page for page in self.pages if page.picture is not None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all pages, in hexadecimal."""
        return pages_digest(self.pages)

    @cached_property
    def _all_questions(self) -> tuple[Question, ...]:
        return tuple(self._write_questions())

    @cached_property
    def _entity_by_id(self) -> dict[str, Entity]:
        return {entity.id: entity for entity in self.entities}

    def entity(self, entity_id: str) -> Entity:
        """The entity with this id. Raises DataError if there is none."""
        if entity_id not in self._entity_by_id:
            raise DataError(f"{self.name}: expected a known entity id, got {entity_id!r}; see `entities`")
        return self._entity_by_id[entity_id]

    def questions(self, split: str, labels: Mapping[str, str] | None = None) -> QuestionSet:
        """The questions of ``train``, ``validation`` or ``test``, or of all three with ``all``.

        Args:
            split: which part.
            labels: question id -> category; a question that is not in it gets the category "". Without
                labels the category is the kind of question (``identify`` or ``fact``).

        Raises:
            ConfigError: unknown split.
        """
        if split not in (*SPLITS, "all"):
            raise ConfigError(f"split: expected one of {', '.join(SPLITS)}, all; got {split!r}")
        if split not in self._question_sets:
            chosen = [q for q in self._all_questions if split in ("all", q.tags["split"])]
            self._question_sets[split] = QuestionSet(f"{self.name}:{split}", chosen)
        plain = self._question_sets[split]
        if labels is None:
            return plain
        labelled = [dataclasses.replace(question, category=labels.get(question.id, "")) for question in plain]
        return QuestionSet(plain.name, labelled)

    def __repr__(self) -> str:
        return f"World({self.name!r}, {len(self.entities)} entities)"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process is loaded from its spec: a world is large and its spec says all.
        from mmsearch_env.worlds import load_world

        return load_world, (self.name,)
