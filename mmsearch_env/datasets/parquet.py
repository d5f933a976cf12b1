"""Parquet files: the only file that imports pyarrow.

Rows are streamed in small batches, and pictures stay encoded in the file until somebody looks at one: the memory used
is a few batches, whatever the size of the file. Rows count from 1, as people count them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_env.errors import ConfigError, DataError, ImageError
from mmsearch_env.images import Image, check_header

BATCH_ROWS = 16
"""Rows that are decoded together; a published picture has about 300 kB."""
KEPT_PICTURES = 64
"""Encoded pictures a reader keeps for the next look (a group of rollouts asks for the same one again)."""


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
            self._file = self._arrow.parquet.ParquetFile(path)
        self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)

    def rows(self, columns: Sequence[str], *, first_group: int = 0) -> Iterator[dict[str, Any]]:
        """Every row in order from the start of a row group, as plain Python values."""
        groups = range(first_group, self._file.num_row_groups)
        with self._reading():
            for batch in self._file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=list(columns)):
                yield from batch.to_pylist()

    def group_of(self, row: int) -> tuple[int, int]:
        """The row group that holds ``row``, and that group's first row.

        Raises:
            ImageError: the file has fewer rows.
        """
        first = 1
        for group in range(self._file.num_row_groups):
            rows_in_group = self._file.metadata.row_group(group).num_rows
            if row < first + rows_in_group:
                return group, first
            first += rows_in_group
        raise ImageError(f"{self.path}: expected at most {first - 1} rows, got row {row}; the file has changed")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{self.path}: expected a sound parquet file, got {reason}; fetch it again") from error


@dataclass(frozen=True, slots=True)
class ParquetPicture:
    """The picture of one row, read and decoded each time it is loaded."""

    path: Path
    column: str
    row: int

    def load(self) -> Image:
        """The picture. Raises ImageError with the file and the row."""
        data = _reader(self.path, self.column).read(self.row)
        return Image.from_bytes(data, name=f"{self.path}, row {self.row}")


def picture_problems(table: ParquetTable, column: str) -> dict[int, str]:
    """Rows whose picture cannot be used, and why, judged by their number and header; nothing is decoded."""
    problems: dict[int, str] = {}
    for number, row in enumerate(table.rows([column]), start=1):
        try:
            check_header(io.BytesIO(_only_picture(row[column])), name="its picture")
        except ImageError as error:
            problems[number] = str(error)
    return problems


class _PictureReader:
    """Pictures of one column by row: reading in order passes over the file once, jumping back starts a group again."""

    def __init__(self, table: ParquetTable, column: str) -> None:
        self._table = table
        self._column = column
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, object] = OrderedDict()
        self._scan: Iterator[dict[str, Any]] = iter(())
        self._next_row = 0

    def read(self, row: int) -> bytes:
        """The encoded picture of a row."""
        with self._lock:
            if row not in self._kept:
                self._read_until(row)
            self._kept.move_to_end(row)
            return _only_picture(self._kept[row])

    def _read_until(self, row: int) -> None:
        group, first_row = self._table.group_of(row)
        if not first_row <= self._next_row <= row:
            self._scan = self._table.rows([self._column], first_group=group)
            self._next_row = first_row
        while self._next_row <= row:
            self._kept[self._next_row] = next(self._scan)[self._column]
            self._next_row += 1
            if len(self._kept) > KEPT_PICTURES:
                self._kept.popitem(last=False)


@functools.lru_cache(maxsize=8)
def _reader(path: Path, column: str) -> _PictureReader:
    return _PictureReader(ParquetTable(path), column)


def _only_picture(value: object) -> bytes:
    """The bytes of a cell that should be a list of one ``{bytes, path}``."""
    if not isinstance(value, list) or len(value) != 1:
        got = f"{len(value)} pictures" if isinstance(value, list) else repr(value)
        raise ImageError(f"expected exactly one picture, got {got}; drop or split the row")
    data = value[0].get("bytes") if isinstance(value[0], dict) else value[0]
    if not isinstance(data, bytes) or not data:
        raise ImageError("expected the picture's bytes in the file, got none; embed them")
    return data


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: expected pyarrow, got none; pip install 'mmsearch-env[data]'") from error
    return pyarrow
