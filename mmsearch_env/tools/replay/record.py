"""The record: a folder with ``calls.jsonl``, one search and its hits a line, and ``pictures/``, its thumbnails.

    {"kind": "image_search", "query": {"image": "<digest>", "bbox": [0, 0, 1, 1]}, "question_id": "fvqa_train_0",
     "top_k": 5, "hits": [{"title": ..., "url": ..., "snippet": "", "score": 0.0, "picture": "<sha256>.jpg"}]}

Lines are only ever added; of two for the same search the later one counts. A line cut off by a crash is left out.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mmsearch_env.actions import ActionKind
from mmsearch_env.cache.keys import canonical_text
from mmsearch_env.errors import ConfigError, DataError
from mmsearch_env.images import FULL_FRAME, Image
from mmsearch_env.tools.search_tool import Hit, ImageQuery, PageQuery, Query, SearchResult, TextQuery
from mmsearch_env.tools.web.query_parts import as_jpeg

CALLS, PICTURES = "calls.jsonl", "pictures"
_PICTURE_BYTES = 200_000
_TAIL_BYTES = 4096

Key = tuple[str, ...]
"""What makes two searches the same."""


@dataclass(frozen=True, slots=True)
class RecordedHit:
    """A hit whose picture lies in the record's folder; "" for none."""

    title: str
    url: str
    snippet: str
    score: float
    picture: str


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """What one search found.

    Attributes:
        top_k: hits that were asked for.
        hits: what came.
    """

    top_k: int
    hits: tuple[RecordedHit, ...]

    def serves(self, top_k: int) -> bool:
        """Whether it answers a search for ``top_k`` hits as the recorded tool would have."""
        return top_k <= self.top_k or len(self.hits) < self.top_k


def keys_of(query: Query) -> list[Key]:
    """The keys under which a search may stand in a record, the surest first."""
    if isinstance(query, TextQuery):
        return [(ActionKind.TEXT_SEARCH.value, canonical_text(query.text))]
    if isinstance(query, PageQuery):
        return [(ActionKind.VISIT_PAGE.value, query.url)]
    box = json.dumps([round(side, 4) for side in query.bbox])
    keys: list[Key] = [(ActionKind.IMAGE_SEARCH.value, query.image.digest, box)]
    if query.question_id and query.bbox == FULL_FRAME:
        keys.append((ActionKind.IMAGE_SEARCH.value, "question", query.question_id))
    return keys


def _state_of(folder: Path) -> tuple[int, int]:
    try:
        found = (folder / CALLS).stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


class Record:
    """A record for reading."""

    def __init__(self, folder: Path) -> None:
        """Read the calls; pictures are read when they are wanted.

        Raises:
            DataError: there is no record, or a line of it is none.
        """
        self.folder = folder
        self._calls: dict[Key, RecordedCall] = {}
        self._state = _state_of(folder)
        path = folder / CALLS
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{folder}: expected a record with {CALLS}, got {type(error).__name__}; record one"
            ) from error
        for number, line in enumerate(lines, start=1):
            self._read(line, is_last=number == len(lines), where=f"{path}, line {number}")

    @property
    def has_grown(self) -> bool:
        """Whether somebody has written to it since it was read."""
        return _state_of(self.folder) != self._state

    def __len__(self) -> int:
        return len(self._calls)

    def find(self, query: Query, *, top_k: int) -> SearchResult | None:
        """What the record says; None if it does not hold this search. Raises DataError for a broken picture."""
        for key in keys_of(query):
            call = self._calls.get(key)
            if call is not None and call.serves(top_k):
                return SearchResult(tuple(self._hit(hit) for hit in call.hits[:top_k]))
        return None

    def recorded_top_k(self, query: Query) -> int | None:
        """How many hits were asked for when a search was recorded; None if it was not."""
        return next((call.top_k for key in keys_of(query) if (call := self._calls.get(key)) is not None), None)

    def add(self, key: Key, call: RecordedCall) -> None:
        """Enter a call that has just been written."""
        self._calls[key] = call

    def _hit(self, hit: RecordedHit) -> Hit:
        picture = Image.from_file(self.folder / PICTURES / hit.picture) if hit.picture else None
        return Hit(hit.title, hit.url, hit.snippet, hit.score, picture)

    def _read(self, text: str, *, is_last: bool, where: str) -> None:
        try:
            line = json.loads(text)
            call = RecordedCall(int(line["top_k"]), tuple(_hit(item) for item in line["hits"]))
            keys = _keys(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if is_last:
                return
            raise DataError(f"{where}: expected a recorded search, got {error!r}; delete the line") from error
        for key in keys:
            self._calls[key] = call


class Recorder:
    """A record for writing, by any number of processes."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is missing. Raises ConfigError."""
        self.folder = folder
        try:
            (folder / PICTURES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"record: expected a folder that can be written, got {folder}: {error.strerror}"
            ) from error

    def write(self, query: Query, result: SearchResult, *, top_k: int) -> RecordedCall:
        """Add a search and what it found. Raises OSError."""
        call = RecordedCall(top_k, tuple(self._stored(hit) for hit in result.hits))
        line: dict[str, Any] = {"question_id": query.question_id}
        if isinstance(query, ImageQuery):
            line |= {
                "kind": ActionKind.IMAGE_SEARCH.value,
                "query": {"image": query.image.digest, "bbox": list(query.bbox)},
            }
        elif isinstance(query, PageQuery):
            line |= {"kind": ActionKind.VISIT_PAGE.value, "query": {"url": query.url}}
        else:
            line |= {"kind": ActionKind.TEXT_SEARCH.value, "query": {"text": canonical_text(query.text)}}
        self.write_line(line, call)
        return call

    def write_line(self, about: Mapping[str, Any], call: RecordedCall) -> None:
        """Add a line. Raises OSError."""
        hits = [{name: getattr(hit, name) for name in RecordedHit.__slots__} for hit in call.hits]
        text = json.dumps({**about, "top_k": call.top_k, "hits": hits}, ensure_ascii=False) + "\n"
        with (self.folder / CALLS).open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _drop_cut_line(file)
            file.write(text.encode("utf-8", "replace"))
            file.flush()

    def store_picture(self, image: Image) -> str:
        """Store a thumbnail once; its file's name. Raises OSError, ToolUnavailable."""
        data = as_jpeg(image, most_bytes=_PICTURE_BYTES)
        name = f"{hashlib.sha256(data).hexdigest()}.jpg"
        place = self.folder / PICTURES / name
        if not place.exists():
            beside = place.with_suffix(f".{os.getpid()}")
            beside.write_bytes(data)
            beside.replace(place)
        return name

    def _stored(self, hit: Hit) -> RecordedHit:
        picture = "" if hit.thumbnail is None else self.store_picture(hit.thumbnail)
        return RecordedHit(hit.title, hit.url, hit.snippet, hit.score, picture)


def _hit(item: Mapping[str, Any]) -> RecordedHit:
    picture = item.get("picture", "")
    if picture and Path(picture).name != picture:
        raise ValueError(f"expected the name of a picture, got {picture!r}")
    return RecordedHit(
        str(item["title"]), str(item["url"]), str(item.get("snippet", "")), float(item.get("score", 0.0)), str(picture)
    )


def _keys(line: Mapping[str, Any]) -> list[Key]:
    """Under which keys a line stands."""
    kind, query = ActionKind(line["kind"]), line["query"]
    if kind is ActionKind.TEXT_SEARCH:
        return [(kind.value, canonical_text(query["text"]))]
    if kind is ActionKind.VISIT_PAGE:
        return [(kind.value, str(query["url"]))]
    keys: list[Key] = []
    box = [round(float(side), 4) for side in query.get("bbox", FULL_FRAME)]
    if "image" in query:
        keys.append((kind.value, str(query["image"]), json.dumps(box)))
    if line.get("question_id") and tuple(box) == FULL_FRAME:
        keys.append((kind.value, "question", str(line["question_id"])))
    return keys


def _drop_cut_line(file: BinaryIO) -> None:
    """Take away what a crash left of a line, which the next one would be glued to."""
    end = place = file.seek(0, os.SEEK_END)
    while place:
        begin = max(0, place - _TAIL_BYTES)
        file.seek(begin)
        at = file.read(place - begin).rfind(b"\n")
        if at >= 0:
            place = begin + at + 1
            break
        place = begin
    if place < end:
        file.truncate(place)
