"""What a player can do in one turn.

An action is meaning, not text: a protocol (:mod:`mmsearch_env.protocols`) turns text into an action and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mmsearch_env.images import FULL_FRAME, BBox

MAX_ACTION_CHARS = 2_048
"""Longest answer or query, in characters; a longer one is malformed (``too_long``)."""


class ActionKind(StrEnum):
    """Names of the legal actions, in the order of the environment's ``Discrete``; the last only where allowed."""

    ANSWER = "answer"
    IMAGE_SEARCH = "image_search"
    TEXT_SEARCH = "text_search"
    VISIT_PAGE = "visit_page"


class MalformedCode(StrEnum):
    """Why a text meant no action. Stable: they appear in ``info`` and in logs."""

    NO_ACTION = "no_action"
    SEVERAL_ACTIONS = "several_actions"
    UNCLOSED_TAG = "unclosed_tag"
    EMPTY_ACTION = "empty_action"
    TRAILING_TEXT = "trailing_text"
    TOO_LONG = "too_long"
    BAD_ARGUMENT = "bad_argument"


@dataclass(frozen=True, slots=True)
class Answer:
    """End the episode with this answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageSearch:
    """Look for pages that show a picture of the question, or the part of it inside ``bbox``.

    ``index`` says which picture, counted from 0; most questions have one.
    """

    bbox: BBox = FULL_FRAME
    index: int = 0


@dataclass(frozen=True, slots=True)
class TextSearch:
    """Look for pages about ``query``."""

    query: str


@dataclass(frozen=True, slots=True)
class VisitPage:
    """Read a page that a search of this episode found."""

    url: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """The text meant no action; the round is spent and the player is told why."""

    code: MalformedCode
    detail: str


Action = Answer | ImageSearch | TextSearch | VisitPage | Malformed
