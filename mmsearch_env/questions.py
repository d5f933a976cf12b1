"""Questions and sets of questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from mmsearch_env.errors import DataError, QuestionError
from mmsearch_env.images import Image, ImageSource


@dataclass(frozen=True, slots=True)
class Question:
    """One visual question.

    Attributes:
        id: unique within its set.
        text: the bare question.
        image: the picture asked about, loaded when needed.
        answers: accepted answers; the first is the one shown to people.
        category: what evaluation groups by (``search_free``, ``search_required``, a kind of question, ...); may be "".
        source: the data set it came from.
        tags: further facts about the question for reports (never shown to a player).
        more_images: further pictures asked about; most questions have none.
    """

    id: str
    text: str
    image: ImageSource
    answers: tuple[str, ...]
    category: str = ""
    source: str = ""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    more_images: tuple[ImageSource, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise QuestionError(f"question {self.id!r}: expected a text, got an empty one; drop or mend the row")
        if not any(answer.strip() for answer in self.answers):
            raise QuestionError(f"question {self.id!r}: expected an answer, got none; drop or mend the row")

    @property
    def n_images(self) -> int:
        """How many pictures it has."""
        return 1 + len(self.more_images)

    def load_image(self) -> Image:
        """The picture, the first of several. Raises ImageError if it cannot be read."""
        return self.image.load()

    def load_images(self, most: int | None = None) -> tuple[Image, ...]:
        """All pictures, in order.

        Args:
            most: how many there may be; None for any number.

        Raises:
            QuestionError: there are more.
            ImageError: one cannot be read.
        """
        if most is not None and self.n_images > most:
            raise QuestionError(
                f"question {self.id!r}: expected at most {most} pictures, got {self.n_images}; "
                f"set max_images to {self.n_images}"
            )
        return (self.load_image(), *(image.load() for image in self.more_images))


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that could not become a question, and why."""

    row: int
    reason: str


class QuestionSet(Sequence[Question]):
    """Questions in a fixed order, found by position or by id.

    ``skipped`` counts what a reader had to leave out, so that nothing disappears silently.
    """

    def __init__(self, name: str, questions: Sequence[Question], skipped: Sequence[SkippedRow] = ()) -> None:
        """Raises DataError when there is no question or two share an id."""
        if not questions:
            raise DataError(
                f"{name}: expected at least one usable question, got none"
                + (f" ({len(skipped)} rows skipped, the first: {skipped[0].reason})" if skipped else "")
            )
        self.name = name
        self.skipped = tuple(skipped)
        self._questions = tuple(questions)
        self._position = {question.id: position for position, question in enumerate(self._questions)}
        if len(self._position) != len(self._questions):
            twice = next(q.id for i, q in enumerate(self._questions) if self._position[q.id] != i)
            raise DataError(f"{name}: expected unique question ids, got {twice!r} twice; rename one")

    @overload
    def __getitem__(self, position: int) -> Question: ...
    @overload
    def __getitem__(self, position: slice) -> QuestionSet: ...
    def __getitem__(self, position: int | slice) -> Question | QuestionSet:
        if isinstance(position, slice):
            return QuestionSet(self.name, self._questions[position], self.skipped)
        return self._questions[position]

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[Question]:
        return iter(self._questions)

    def by_id(self, question_id: str) -> Question:
        """The question with this id. Raises DataError if there is none."""
        if question_id not in self._position:
            raise DataError(f"{self.name}: expected a known question id, got {question_id!r}; see `ids`")
        return self._questions[self._position[question_id]]

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids in order."""
        return tuple(self._position)

    def spread(self, count: int) -> QuestionSet:
        """At most ``count`` of the questions, at even distances, in order."""
        if count >= len(self):
            return self
        chosen = [self._questions[index * len(self) // count] for index in range(count)]
        return QuestionSet(self.name, chosen, self.skipped)

    def where(self, keep: Callable[[Question], bool]) -> QuestionSet:
        """The questions for which ``keep`` holds, in order."""
        return QuestionSet(self.name, [question for question in self._questions if keep(question)], self.skipped)
