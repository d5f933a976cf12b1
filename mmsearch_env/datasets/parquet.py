"""Parquet files: the only file that imports pyarrow.

Rows are streamed in small batches. Pictures are copied, still encoded, to an unnamed temporary file on first sight,
where any one of them is found at once: in parquet itself a picture can only be reached through all that stand before
it in its page, and published files have pages of hundreds of megabytes. Rows count from 1, as people count them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_env.datasets.rows import shown
from mmsearch_env.errors import ConfigError, DataError, ImageError
from mmsearch_env.images import Image, check_header

BATCH_ROWS = 16
"""Rows that are decoded together where they hold pictures; a published one has about 300 kB."""
BUFFER_BYTES = 1_000_000
"""Read from the file at a time, in bytes."""


class ParquetTable:
    """One parquet file, open for reading.

    Raises:
        DataError: the file is not parquet or is damaged; also while rows are read.
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrow = _import_pyarrow(path)
        with self._reading():
            # Without these two, whole row groups are fetched ahead: a gigabyte for a published file.
            self._file = self._arrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES)
            self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
            self.row_count: int = self._file.metadata.num_rows

    def rows(self, columns: Sequence[str], *, batch_rows: int = BATCH_ROWS) -> Iterator[dict[str, Any] | DataError]:
        """Every row in order, as plain Python values; an error in place of a row that has none (text not in UTF-8).

        Args:
            columns: which to read.
            batch_rows: rows decoded together.
        """
        with self._reading():
            for batch in self._file.iter_batches(batch_rows, columns=list(columns)):
                try:
                    yield from batch.to_pylist()
                except (ValueError, OverflowError):
                    yield from (_row(batch.slice(position, 1)) for position in range(batch.num_rows))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path}: expected a sound parquet file, got {reason}; fetch it again") from error


@dataclass(frozen=True, slots=True)
class ParquetPicture:
    """One picture of a row, decoded each time it is loaded; ``place`` counts from 0."""

    path: Path
    column: str
    row: int
    place: int = 0

    def load(self) -> Image:
        """The picture. Raises ImageError with the file and the row."""
        name = f"{self.path}, row {self.row}" + (f", picture {self.place + 1}" if self.place else "")
        return Image.from_bytes(picture_column(self.path, self.column).read(self.row, self.place), name=name)


class PictureColumn:
    """The encoded pictures of one column, copied to a temporary file that vanishes with this object.

    Attributes:
        problems: rows of which a picture cannot be used, and why, judged by its header; nothing is decoded.
    """

    def __init__(self, table: ParquetTable, column: str) -> None:
        """Raises DataError when the file is damaged or the temporary folder is full."""
        self.problems: dict[int, str] = {}
        self._path = table.path
        self._starts = array("Q", [0])
        self._firsts = array("Q", [0])
        self._file = _large_temporary_file()
        weakref.finalize(self, self._file.close)
        for number, row in enumerate(table.rows([column]), start=1):
            try:
                pictures = _pictures(row, column)
                for place, data in enumerate(pictures):
                    check_header(io.BytesIO(data), name=f"its picture {place + 1}" if place else "its picture")
            except DataError as error:
                self.problems[number] = str(error)
                pictures = []
            for data in pictures:
                self._append(data)
            self._firsts.append(len(self._starts) - 1)

    def count(self, row: int) -> int:
        """How many pictures a row has; 0 for one whose pictures cannot be used."""
        return self._firsts[row] - self._firsts[row - 1]

    def read(self, row: int, place: int = 0) -> bytes:
        """An encoded picture of a row. Raises ImageError when it cannot be used."""
        if row in self.problems or not 0 < row < len(self._firsts) or not 0 <= place < self.count(row):
            problem = self.problems.get(row, f"expected at most {len(self._firsts) - 1} rows; the file has changed")
            raise ImageError(f"{self._path}, row {row}: {problem}")
        picture = self._firsts[row - 1] + place
        start, end = self._starts[picture], self._starts[picture + 1]
        return os.pread(self._file.fileno(), end - start, start)

    def _append(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            folder = _temporary_folder() or tempfile.gettempdir()
            raise DataError(
                f"{self._path}: expected room for its pictures in {folder}, got {error.strerror}; "
                "make room or set TMPDIR to another folder"
            ) from error
        self._starts.append(self._starts[-1] + len(data))


def picture_column(path: Path, column: str) -> PictureColumn:
    """The pictures of a file, copied once in this process unless the file changes."""
    try:
        state = path.stat()
    except OSError as error:
        raise ImageError(f"{path}: expected a readable file, got {error.strerror}; put it back") from error
    return _copied(path, column, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _copied(path: Path, column: str, modified_ns: int, size_bytes: int) -> PictureColumn:
    """The last two arguments are there to notice that the file changed."""
    return PictureColumn(ParquetTable(path), column)


def _large_temporary_file() -> io.FileIO:
    """Unbuffered, so that what is written can be read by position at once and a full disk shows where it happens."""
    return tempfile.TemporaryFile(buffering=0, prefix="mmsearch-", dir=_temporary_folder())


def _temporary_folder() -> str | None:
    """``/var/tmp``, which is on a disk where ``/tmp`` may be memory, unless somebody chose another folder."""
    chosen = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return None if chosen or not os.access("/var/tmp", os.W_OK) else "/var/tmp"


def _row(batch: Any) -> dict[str, Any] | DataError:
    """The row of a batch of one; an error when a value has no Python form."""
    try:
        (row,) = batch.to_pylist()
    except (ValueError, OverflowError) as error:
        return DataError(f"expected text in UTF-8 and values in range, got {error}; mend the row")
    return dict(row)


def _pictures(row: dict[str, Any] | DataError, column: str) -> list[bytes]:
    """The bytes in a cell that should be a list of ``{bytes, path}``."""
    if isinstance(row, DataError):
        raise row
    value = row[column]
    if not isinstance(value, list) or not value:
        got = "0 pictures" if isinstance(value, list) else shown(value)
        raise ImageError(f"expected one or more pictures, got {got}; drop the row")
    every = [one.get("bytes") if isinstance(one, dict) else one for one in value]
    found = [data for data in every if isinstance(data, bytes) and data]
    if len(found) < len(every):
        raise ImageError("expected the picture's bytes in the file, got none; embed them")
    return found


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: expected pyarrow, got none; pip install 'mmsearch-env[data]'") from error
    return pyarrow
