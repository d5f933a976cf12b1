"""Where documents come from: folders of pages and pictures, JSON lines, parquet.

A folder is read file by file. A picture beside a page of the same name (``owl.md``, ``owl.jpg``) belongs to that page;
a picture alone is a page without text.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_env.datasets.parquet import BATCH_ROWS, ParquetTable
from mmsearch_env.datasets.rows import json_object
from mmsearch_env.errors import DataError
from mmsearch_env.tools.corpus.documents import COLUMNS, PICTURE, Document, cleaned, document_of, read_picture
from mmsearch_env.tools.pages.parsing import PageParsers, ParsersGoneError

TABLES = (".jsonl", ".parquet", ".pq")
PAGES = (".txt", ".md", ".html", ".htm")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".jp2")
MAX_LINE_CHARACTERS = 20_000_000
"""Longest line of a JSON-lines file that is parsed."""
_UNREADABLE = "\ufffd"
"""Stands for bytes that are no UTF-8."""
_MOST_UNREADABLE = 0.02
"""Share of such characters in a page that still is one, with a few bytes broken."""
_PARSE_S = 20.0
"""Seconds allowed for a page of HTML, the start of a process included."""
_TEXT_ROWS = 1024
"""Rows of a parquet file decoded together where none holds a picture."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Attributes:
        number: counts from 1.
        document: what it tells of; None if it cannot be used.
        problem: why not, or what of it could not be had; "" if nothing is wrong.
        position: share of the source that lies behind, from 0 to 1.
    """

    number: int
    document: Document | None
    problem: str
    position: float


@dataclass(frozen=True, slots=True)
class Source:
    """A table, or a page with its picture.

    Attributes:
        files: the table; or the page, the picture, or both.
        name: by which a corpus remembers it; its address where a row has none of its own.
    """

    files: tuple[Path, ...]
    name: str

    @property
    def state(self) -> str:
        """Changes when a file does; "" when one is missing."""
        try:
            found = [file.stat() for file in self.files]
        except OSError:
            return ""
        return ";".join(f"{one.st_size}:{one.st_mtime_ns}" for one in found)

    @property
    def size_bytes(self) -> int:
        """Of all files that are still there."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    def rows(self, start: int = 0) -> Iterator[Row]:
        """All rows after the first ``start``. Raises DataError when the file is damaged as a whole."""
        kind = self.files[0].suffix.lower()
        found: Iterator[tuple[Any, float]]
        if kind == ".jsonl":
            found = _jsonl_rows(self.files[0])
        elif kind in TABLES:
            found = _parquet_rows(self.files[0])
        else:
            found = iter([(self.files, 1.0)])
        for number, (value, position) in enumerate(found, start=1):
            if number > start:
                yield self._row(number, value, position)

    def _row(self, number: int, value: Any, position: float) -> Row:
        try:
            if isinstance(value, DataError):
                raise value
            if isinstance(value, tuple):
                document, problem = _page(value, self.name), ""
            else:
                parsed = json_object(value) if isinstance(value, bytes) else value
                document, problem = document_of(parsed, self.files[0], f"{self.name}#{number}")
        except DataError as error:
            return Row(number, None, str(error), position)
        return Row(number, document, problem, position)


def find_sources(paths: Sequence[Path]) -> list[Source]:
    """The sources at these places, in a fixed order.

    Args:
        paths: tables, pages, pictures, and folders of them. Hidden files and those of other kinds are passed over in
            folders.

    Raises:
        DataError: a path does not exist or is of an unknown kind, or two places would give the same names.
    """
    found: list[Source] = []
    for path in paths:
        path = path.expanduser().resolve()
        if path.is_dir():
            found += _in_folder(path)
        elif path.is_file() and path.suffix.lower() in (*TABLES, *PAGES, *PICTURES):
            found.append(Source((path,), path.name))
        else:
            kinds = ", ".join((*TABLES, *PAGES, *PICTURES))
            raise DataError(f"{path}: expected a folder, or a file ending in {kinds}; check the path")
    if not found:
        kinds = ", ".join((*TABLES, *PAGES, *PICTURES))
        raise DataError(f"{', '.join(map(str, paths))}: expected files ending in {kinds}, got none; check the path")
    names = [source.name for source in found]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise DataError(f"expected places with names of their own, got {twice!r} twice; rename a folder or a file")
    return found


def _in_folder(folder: Path) -> list[Source]:
    groups: dict[str, list[Path]] = {}
    for place, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            kind = path.suffix.lower()
            if name.startswith(".") or kind not in (*TABLES, *PAGES, *PICTURES):
                continue
            if not path.is_file():  # a pipe would be waited for; a link may lead nowhere
                continue
            key = path if kind in TABLES else path.with_suffix("")
            groups.setdefault(str(key.relative_to(folder)), []).append(path)
    return [source for key in sorted(groups) for source in _sources_of(folder, groups[key])]


def _sources_of(folder: Path, files: list[Path]) -> list[Source]:
    """Files of one stem: the first page takes the first picture; what is left stands alone."""
    pages = [file for file in files if file.suffix.lower() not in PICTURES]
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    together = [(pages[0], *pictures[:1])] if pages else []
    alone = [(file,) for file in (*pages[1:], *pictures[1 if pages else 0 :])]
    return [Source(group, f"{folder.name}/{group[0].relative_to(folder).as_posix()}") for group in (*together, *alone)]


def _jsonl_rows(path: Path) -> Iterator[tuple[bytes | DataError, float]]:
    try:
        with path.open("rb") as file:
            total, done = max(1, path.stat().st_size), 0
            while line := file.readline(MAX_LINE_CHARACTERS):
                done += len(line)
                if len(line) == MAX_LINE_CHARACTERS and not line.endswith(b"\n"):
                    done += _skip_line(file)
                    problem = f"expected at most {MAX_LINE_CHARACTERS} bytes a line, got more; keep pictures in files"
                    yield DataError(problem), done / total
                elif line.strip():
                    yield line, done / total
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror}; check its permissions") from error


def _skip_line(file: Any) -> int:
    skipped = 0
    while part := file.readline(MAX_LINE_CHARACTERS):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _parquet_rows(path: Path) -> Iterator[tuple[dict[str, Any] | DataError, float]]:
    table = ParquetTable(path)
    columns = [name for name in table.columns if name in COLUMNS]
    if not columns:
        raise DataError(
            f"{path}: expected a column of {', '.join(COLUMNS)}, got {', '.join(table.columns)}; rename one"
        )
    total = max(1, table.row_count)
    batch_rows = BATCH_ROWS if any(name in PICTURE for name in columns) else _TEXT_ROWS
    for number, row in enumerate(table.rows(columns, batch_rows=batch_rows), start=1):
        yield row, number / total


def _page(files: tuple[Path, ...], name: str) -> Document:
    """The page of a text file and a picture, or of one of them."""
    page = files[0] if files[0].suffix.lower() in PAGES else None
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    title, text = _title_and_text(page) if page is not None else ("", "")
    if not text and not pictures:
        raise DataError(f"expected a page with text, got none in {files[0].name}; drop it")
    title = title or " ".join(files[0].stem.replace("_", " ").replace("-", " ").split())
    return cleaned(Document(name, title, text, read_picture(pictures[0]) if pictures else None))


def _title_and_text(path: Path) -> tuple[str, str]:
    try:
        said = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"expected a readable page, got {path}: {error.strerror}; check it") from error
    if said.count(_UNREADABLE) > _MOST_UNREADABLE * len(said):
        raise DataError(f"expected a page in UTF-8, got {path.name} in another encoding; convert it")
    if path.suffix.lower() in (".html", ".htm"):
        return _of_html(path, said)
    first, _, rest = said.lstrip().partition("\n")
    return (first.lstrip("#").strip(), rest.strip()) if first.startswith("# ") else ("", said.strip())


def _of_html(path: Path, markup: str) -> tuple[str, str]:
    try:
        found = _parsers().submit(markup).result(_PARSE_S)
    except ImportError as error:
        raise DataError(
            f"{path}: expected the extra 'web' to read HTML, got no {error.name}; install mmsearch-env[web]"
        ) from error
    except (TimeoutError, ParsersGoneError) as error:
        _parsers().end()
        _parsers.cache_clear()
        wanted = f"expected a page that is parsed within {_PARSE_S:g} s"
        raise DataError(f"{wanted}, got {path.name}, which is not; drop it") from error
    return found.title, found.text


@functools.cache
def _parsers() -> PageParsers:
    """One process, which the next page uses as well. Raises ImportError."""
    return PageParsers(1)
