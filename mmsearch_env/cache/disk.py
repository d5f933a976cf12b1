"""diskcache without its way to run code: the only file that knows diskcache.

A row of diskcache's table says how its value is to be read: unpickled, or from any file it names; another row lets a
file be removed (CVE-2025-69872, and what its ``JSONDisk`` leaves open). Here a key is a text, a value is bytes in the
row itself, and every other kind of row counts as missing.
"""

from __future__ import annotations

import functools
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskcache

Busy = diskcache.Timeout
"""Another process kept writing for too long."""
_RAW_MODE = 1
"""diskcache's mode of a value that lies in its row."""
_SETTINGS = frozenset(diskcache.core.DEFAULT_SETTINGS) | frozenset(diskcache.core.METADATA)
"""Settings that a database of diskcache may hold."""
_NO_FILES = 2**62
"""Values below so many bytes lie in their rows."""
_TIMEOUT_S = 30.0
"""How long a process waits for another one's writing."""
_READ = """
    SELECT value, expire_time + 0 FROM Cache
    WHERE key = ? AND raw = 1 AND mode = ? AND filename IS NULL AND typeof(value) = 'blob'
    AND (expire_time IS NULL OR expire_time + 0 > ?)
"""
"""Where no number is, adding one makes it 0."""
_NEXT_ROWS = """
    SELECT rowid, key, raw, store_time, tag, mode, filename, value FROM Cache
    WHERE rowid > ? AND (expire_time IS NULL OR expire_time > ?) ORDER BY rowid LIMIT 64
"""
_OBJECTS = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
"""Tables, indices and whatever else; names that begin so are SQLite's alone."""
_REMOVE_FOREIGN = """
    DELETE FROM Cache
    WHERE raw != 1 OR mode != ? OR filename IS NOT NULL OR typeof(key) != 'text' OR typeof(value) != 'blob'
"""


class BadRowError(OSError):
    """A row of a kind that is never written here. diskcache takes an OSError for a missing value."""


class StrictDisk(diskcache.Disk):  # type: ignore[misc]
    """Texts as keys, bytes as values, no files, no pickle."""

    def put(self, key: Any) -> tuple[str, bool]:
        """The key as it is stored. Raises TypeError for anything but a text."""
        if type(key) is not str:
            raise TypeError(f"expected a text as key, got {type(key).__name__}")
        return key, True

    def get(self, key: Any, raw: Any) -> str:
        """A stored key. Raises BadRowError."""
        if raw != 1 or type(key) is not str:
            raise BadRowError("expected a key stored as text, got another kind")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, memoryview]:
        """The columns of a value. Raises TypeError for anything but bytes."""
        if type(value) is not bytes or read:
            raise TypeError(f"expected bytes as value, got {type(value).__name__}")
        return 0, _RAW_MODE, None, sqlite3.Binary(value)

    def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> bytes:
        """A stored value. Raises BadRowError."""
        if mode != _RAW_MODE or filename is not None or type(value) is not bytes:
            raise BadRowError("expected a value stored as bytes in its row, got another kind")
        return value

    def remove(self, file_path: Any) -> None:
        """Nothing: no value is a file, so whatever a row names is not ours to remove."""


def open_database(folder: Path, *, size_limit: int) -> diskcache.Cache:
    """The cache in ``folder``, made if it is missing; the folder exists.

    Raises:
        sqlite3.Error, OSError, ValueError, TypeError: it cannot be opened, is damaged, or is no database of diskcache.
    """
    _check_planted(folder / diskcache.core.DBNAME)
    return _opened(folder, size_limit)


def _opened(folder: Path, size_limit: int) -> diskcache.Cache:
    settings = {
        **diskcache.core.DEFAULT_SETTINGS,
        "size_limit": size_limit,
        "disk_min_file_size": _NO_FILES,
        "sqlite_mmap_size": 0,  # a file that somebody cuts while it is mapped ends the process
    }
    return diskcache.Cache(str(folder), timeout=_TIMEOUT_S, disk=StrictDisk, **settings)


@functools.cache
def _schema(near: Path) -> frozenset[tuple[str, str, str]]:
    """Kind, name and SQL of all that a database of ours holds, by one made in ``near``."""
    with tempfile.TemporaryDirectory(dir=near, prefix=".schema-") as folder:
        database = _opened(Path(folder), 1)
        database.close()
        with _reading(Path(folder) / diskcache.core.DBNAME) as connection:
            return frozenset(connection.execute(_OBJECTS))


def read(database: diskcache.Cache, key: str) -> tuple[bytes, float | None] | None:
    """A value and when it expires; None for a missing one. Faster than diskcache's own ``get``.

    Raises:
        sqlite3.Error, OSError: the database cannot be read.
    """
    found: tuple[bytes, float | None] | None = database._sql(_READ, (key, _RAW_MODE, time.time())).fetchone()
    return found


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table.

    Attributes:
        key: "" where it is no text.
        stored: when it was stored, in seconds since 1970.
        tag: kind of the answer.
        value: None where the row is of a kind that is never written here.
    """

    key: str
    stored: float
    tag: str
    value: bytes | None


def rows(folder: Path) -> Iterator[Row]:
    """Every row that has not expired, oldest first. Raises sqlite3.Error."""
    with _reading(folder / diskcache.core.DBNAME) as connection:
        last, now = -1, time.time()
        while found := connection.execute(_NEXT_ROWS, (last, now)).fetchall():
            last = found[-1][0]
            for _, key, raw, stored, tag, mode, filename, value in found:
                is_sound = type(key) is str and raw == 1 and mode == _RAW_MODE and filename is None
                yield Row(
                    key=key if type(key) is str else "",
                    stored=float(stored) if isinstance(stored, (int, float)) else 0.0,
                    tag=str(tag or ""),
                    value=value if is_sound and type(value) is bytes else None,
                )


def remove_foreign_rows(folder: Path) -> int:
    """Remove the rows that are never written here; how many there were. Raises sqlite3.Error."""
    connection = sqlite3.connect(folder / diskcache.core.DBNAME, timeout=_TIMEOUT_S)
    try:
        with connection:
            return connection.execute(_REMOVE_FOREIGN, (_RAW_MODE,)).rowcount
    finally:
        connection.close()


def is_sound(folder: Path) -> bool:
    """Whether SQLite finds nothing wrong with the database in ``folder``."""
    try:
        _check_planted(folder / diskcache.core.DBNAME)
        with _reading(folder / diskcache.core.DBNAME) as connection:
            return connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
    except (sqlite3.Error, ValueError):
        return False


@contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)
    try:
        yield connection
    finally:
        connection.close()


def _check_planted(database: Path) -> None:
    """Raises ValueError for what only others put into a database: it would be run, or become part of the cache.

    A view or trigger in place of diskcache's own could keep a read busy for ever; and diskcache makes each setting it
    finds an attribute of the cache, whatever its name.
    """
    if not database.exists():
        return
    with _reading(database) as connection:
        objects = set(connection.execute(_OBJECTS))
        if strange := sorted(name for _, name, _ in objects - _schema(database.parent)):
            raise ValueError(f"expected the tables of diskcache, got {strange[0][:40]!r} of another kind")
        if not any(name == "Settings" for _, name, _ in objects):
            return  # whoever made it was stopped before there were any
        names = [name for (name,) in connection.execute("SELECT key FROM Settings")]
    if strange := [str(name) for name in names if name not in _SETTINGS]:
        raise ValueError(f"expected settings of diskcache, got {strange[0][:40]!r}")
