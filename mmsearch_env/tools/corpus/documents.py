"""What a corpus is made of, and how one row of a table becomes a document."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_env.datasets.rows import expect_text, shown
from mmsearch_env.errors import DataError
from mmsearch_env.images import MAX_BYTES

TITLE = ("title", "name")
TEXT = ("text", "contents", "content", "body")
ADDRESS = ("url", "link", "id", "_id")
PICTURE = ("image", "picture", "image_path")
COLUMNS = (*TITLE, *TEXT, *ADDRESS, *PICTURE)
"""Columns that are read; the first one of each kind that a row has counts."""
MAX_TEXT_CHARACTERS = 1_000_000
"""Longer texts are cut."""
MAX_TITLE_CHARACTERS = 1_000
"""Longer titles are cut."""
MAX_ADDRESS_CHARACTERS = 4_000
"""Longest address: the index cannot hold longer terms."""
_CONTROL = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True, slots=True)
class Document:
    """One page of a corpus.

    Attributes:
        url: where it is; no two documents of a corpus have the same.
        title: its heading.
        text: what it says; "" for a bare picture.
        picture: the encoded picture on it; None if it has none.
    """

    url: str
    title: str
    text: str
    picture: bytes | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes that change when title, text or picture does."""
        state = hashlib.blake2b(f"{self.title}\x1f{self.text}\x1f".encode(), digest_size=16)
        state.update(self.picture or b"")
        return state.digest()


def document_of(row: Mapping[str, Any], file: Path, fallback_url: str) -> tuple[Document, str]:
    """The document a row of a table tells of, and why it goes without its picture; "" if it does not.

    Args:
        row: values by column; see :data:`COLUMNS`. A picture is a path, counted from the table's folder, or the bytes
            of one, bare or as ``{"bytes": ...}``, alone or as a list of one.
        file: the table.
        fallback_url: address of a row that has none.

    Raises:
        DataError: a value is of a wrong type, or there is neither text nor a picture that can be read.
    """
    text_column, text = _text(row, TEXT)
    _, title = _text(row, TITLE)
    if not title and text_column == "contents":  # as in the corpora of Search-R1: the first line is the title
        title, _, text = text.partition("\n")
        title = title.strip().strip('"')
    _, url = _first(row, ADDRESS)
    _, shown_picture = _first(row, PICTURE)
    picture, problem = None, ""
    try:
        picture = None if shown_picture is None else _picture(shown_picture, file)
    except DataError as error:
        if not text.strip():
            raise
        problem = str(error)
    if not text.strip() and picture is None:
        raise DataError(f"expected a text in one of {', '.join(TEXT)}, or a picture, got neither; drop the row")
    address = str(url) if isinstance(url, int) else expect_text(url, "url")
    return cleaned(Document(address or fallback_url, title, text, picture)), problem


def cleaned(document: Document) -> Document:
    """Cut to the limits, without what no file and no index can hold. Raises DataError for a bad address."""
    if len(document.url) > MAX_ADDRESS_CHARACTERS or _CONTROL.search(document.url):
        wanted = f"at most {MAX_ADDRESS_CHARACTERS} characters without control characters"
        raise DataError(f"expected an address of {wanted}, got {shown(document.url)}; shorten it")
    title = " ".join(document.title.split())[:MAX_TITLE_CHARACTERS]
    return Document(_valid(document.url), _valid(title), _valid(document.text[:MAX_TEXT_CHARACTERS]), document.picture)


def _valid(text: str) -> str:
    """Half a surrogate pair, which JSON can hold, becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """The first column of these that a row has, and its value; None where it has none."""
    for name in names:
        if (value := row.get(name)) is not None:
            return name, value
    return names[0], None


def _text(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, str]:
    """The same for columns of text; "" where it has none. Raises DataError for anything else than a text."""
    name, value = _first(row, names)
    return name, expect_text(value, name)


def _picture(value: object, file: Path) -> bytes | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None or value in ("", b"", []):
        return None
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return read_picture(file.parent / value)
    raise DataError(f"expected a picture as a path or as bytes, got {shown(value)}; mend the row")


def read_picture(path: Path) -> bytes:
    """The bytes of a picture file. Raises DataError when it cannot be read or is too large."""
    try:
        if not path.is_file():
            raise DataError(f"expected a picture at {path}, got none; check the path")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"expected at most {MAX_BYTES} bytes, got {path.stat().st_size}; shrink {path}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"expected a readable picture, got {path}: {error}; check the path") from error
