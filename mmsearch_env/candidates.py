"""A fixed number of actions to choose from, for algorithms that cannot write text.

The list is made anew in every round from the question and what was found. Its layout never changes, so that a number
keeps its meaning; a place that means nothing yet is None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmsearch_env.actions import MAX_ACTION_CHARS, Action, Answer, ImageSearch, TextSearch
from mmsearch_env.episode import EpisodeView
from mmsearch_env.moves import kind_of
from mmsearch_env.tools.search_tool import SearchResult

GIVE_UP, LOOK, ASK, ASK_ABOUT, FIRST_ANSWER = range(5)
"""Places 0 to 3, and the first of the places for answers."""
GIVE_UP_ANSWER = "unknown"
"""The answer at place ``GIVE_UP``; it can always be given."""

# A run of capitalised words, with the small words that names hold: "Bosnia and Herzegovina", "Isle of Man".
_NAME = re.compile(r"\b[^\W\d_a-z][\w'’-]*(?:\s+(?:(?:of|and|the|de|da|do)\s+)*[^\W\d_a-z][\w'’-]*)*")
_LEADING = re.compile(r"^(?:the|a|an|in|on|it|its|this|that)(?:\s+|$)", re.IGNORECASE)
_ONLY_FIRST = re.compile(r"[^\W\d_a-z][\w'’-]* (?!(?:of|and|the|de|da|do) )[^\W\d_A-Z]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[+.]?\w[\w'’-]*")
_SMALL_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been by called for from had has have in into is it its known lies named of on or that "
        "the their there they this to was were which who with",
    )
)


@dataclass(frozen=True, slots=True)
class CandidateLayout:
    """How many places there are for answers.

    Attributes:
        n_titles: names found in the titles of image hits.
        n_snippets: what is new in the passages of text hits.
        vocabulary: answers that are always offered.
        n_images: pictures that a question may have; searches with the second and further ones stand last.
    """

    n_titles: int = 4
    n_snippets: int = 4
    vocabulary: tuple[str, ...] = ()
    n_images: int = 1

    @property
    def size(self) -> int:
        """The number of places, K."""
        return FIRST_ANSWER + self.n_titles + self.n_snippets + len(self.vocabulary) + self.n_images - 1

    def actions(self, view: EpisodeView, results: Sequence[SearchResult]) -> tuple[Action | None, ...]:
        """K places: give up; search with the picture; search with the question; the same with the first name found;
        answer with a name from a title, with what a passage says that the question did not, with a vocabulary word;
        search with a further picture.

        Args:
            view: where the episode stands; what it does not allow is None.
            results: what the tools delivered so far, in order.
        """
        hits = [hit for result in results for hit in result.hits]
        titles = names(hit.title for hit in hits if not hit.snippet)
        known = f"{view.question.text} {titles[0] if titles else ''}"
        passages = news((hit.snippet for hit in hits), known)
        question = view.question.text
        about = TextSearch(f"{titles[0]} {question}"[:MAX_ACTION_CHARS]) if titles else None
        searches = (ImageSearch(), TextSearch(question[:MAX_ACTION_CHARS]), about)
        answers = (
            *_padded(titles, self.n_titles),
            *_padded(passages, self.n_snippets),
            *self.vocabulary,
        )
        further = (
            ImageSearch(index=index) if index < view.question.n_images else None for index in range(1, self.n_images)
        )
        places = (
            Answer(GIVE_UP_ANSWER),
            *searches,
            *(None if text is None else Answer(text) for text in answers),
            *further,
        )
        return tuple(place if _allowed(place, view) else None for place in places)


def names(texts: Iterable[str]) -> list[str]:
    """Names in ``texts`` in order, each once: runs of capitalised words without a leading article.

    A first word that is capital only because it comes first (``"National flag of Chad"``) is left out where the text
    holds another name.
    """
    found: dict[str, None] = {}
    for text in texts:
        matches = list(_NAME.finditer(text))
        if len(matches) > 1 and _ONLY_FIRST.match(text):
            matches = matches[1:]
        for match in matches:
            name = _LEADING.sub("", match.group())
            if len(name) > 1 and name[0].isupper():
                found.setdefault(name)
    return list(found)


def news(passages: Iterable[str], known: str) -> list[str]:
    """What ``passages`` say beyond the words of ``known``: runs of other words, each once, small words left out.

    Within a sentence the last run comes first, since that is where a statement puts what is new.
    """
    old = {word.casefold() for word in _WORD.findall(known)} | _SMALL_WORDS
    found: dict[str, None] = {}
    for passage in passages:
        for sentence in _SENTENCE_END.split(passage):
            for run in reversed(_runs(sentence, old)):
                found.setdefault(run)
    return list(found)


def _runs(sentence: str, old: set[str] | frozenset[str]) -> list[str]:
    """Words that stand next to each other and are not ``old``."""
    runs: list[str] = []
    end = -1
    for match in _WORD.finditer(sentence):
        if match.group().casefold() in old:
            end = -1
        elif runs and match.start() == end + 1 and sentence[end] == " ":
            runs[-1] += f" {match.group()}"
            end = match.end()
        else:
            runs.append(match.group())
            end = match.end()
    return runs


def _padded(texts: Sequence[str], places: int) -> list[str | None]:
    return [*texts[:places], *[None] * (places - len(texts))]


def _allowed(action: Action | None, view: EpisodeView) -> bool:
    kind = None if action is None else kind_of(action)
    return kind is not None and view.allows(kind)
