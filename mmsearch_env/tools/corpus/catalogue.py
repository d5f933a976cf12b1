"""What a corpus holds and where it came from: SQLite, one writer, any number of readers.

The catalogue is the truth about addresses, sources and pictures; what the documents say stands in the text index. Both
are committed batch by batch, the text index first: what it holds beyond the catalogue's last document after an
interruption is taken back from it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsearch_env.errors import DataError

FILE = "catalogue.sqlite"
VERSION = 3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sources (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, pass INTEGER NOT NULL, rows INTEGER NOT NULL, whole INTEGER NOT NULL,
    skipped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id INTEGER PRIMARY KEY, url TEXT UNIQUE NOT NULL, digest BLOB NOT NULL, source TEXT NOT NULL,
    pass INTEGER NOT NULL, pictured INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS documents_by_source ON documents (source, pass);
CREATE TABLE IF NOT EXISTS pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER UNIQUE, title TEXT NOT NULL, url TEXT NOT NULL,
    thumbnail BLOB NOT NULL, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS problems (source TEXT NOT NULL, row INTEGER NOT NULL, reason TEXT NOT NULL);
"""
_PUT_PICTURE = "INSERT INTO pictures (document, title, url, thumbnail, vector) VALUES (?, ?, ?, ?, ?)"
_OBJECTS = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
"""Tables, indices and whatever else; names that begin so are SQLite's alone."""
_BLOCK = 4096


@functools.cache
def _schema() -> frozenset[tuple[str, str, str]]:
    """Kind, name and SQL of all that a catalogue holds."""
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.executescript(_SCHEMA)
        return frozenset(database.execute(_OBJECTS))


@dataclass(frozen=True, slots=True)
class SourceState:
    """How far a source has been read.

    Attributes:
        state: of its files then.
        number: of the pass over it; grows by one each time it is read anew.
        rows: of it that are done.
        whole: whether all are.
        skipped: rows among them that could not be used.
    """

    state: str
    number: int
    rows: int
    whole: bool
    skipped: int


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue says of a document; ``number`` is the pass over ``source`` that saw it last."""

    id: int
    digest: bytes
    source: str
    number: int


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document as it is kept: ``number`` is the pass over ``source`` that saw it last."""

    id: int
    url: str
    digest: bytes
    source: str
    number: int
    is_pictured: bool


@dataclass(frozen=True, slots=True)
class PictureRow:
    """A picture as it is kept: what is shown with a hit, and its vector."""

    document: int
    title: str
    url: str
    thumbnail: bytes
    vector: bytes


@contextlib.contextmanager
def damage_told(folder: Path) -> Iterator[None]:
    """Inside, what SQLite finds wrong with a corpus's catalogue becomes a DataError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        wanted = f"{folder}: expected a sound catalogue, got {error}"
        raise DataError(f"{wanted}; delete the folder and build it anew") from error


class Catalogue:
    """The catalogue of one corpus."""

    def __init__(self, folder: Path, *, mode: str) -> None:
        """Open it.

        Args:
            folder: of the corpus.
            mode: ``"read"`` or ``"write"``; the latter makes it if need be.

        Raises:
            DataError: there is none, it is damaged, or of another version.
        """
        self._path = folder / FILE
        self._folder = folder
        try:
            self._database = self._connected(mode)
            self._check_planted()
            if mode == "write":
                self._database.executescript(_SCHEMA)
                self._database.execute("INSERT OR IGNORE INTO settings VALUES ('version', ?)", (json.dumps(VERSION),))
                self._database.commit()
            found = self.setting("version")
        except sqlite3.Error as error:
            raise DataError(
                f"{self._path}: expected a corpus's catalogue, got {error}; delete the folder and build it anew"
            ) from error
        if found != VERSION:
            raise DataError(
                f"{self._path}: expected version {VERSION}, got {found}; delete the folder and build it anew"
            )

    def _connected(self, mode: str) -> sqlite3.Connection:
        if mode == "write":
            database = sqlite3.connect(self._path, timeout=60.0, check_same_thread=False)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            return database
        # SQLite shares memory with writers through files beside it; where there can be none, nobody writes either.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            place = f"{self._path.absolute().as_uri()}?{options}"
            with contextlib.suppress(sqlite3.OperationalError):
                database = sqlite3.connect(place, uri=True, check_same_thread=False)
                database.execute("SELECT 1 FROM settings").fetchone()
                return database
        raise sqlite3.OperationalError("unable to open the database file")

    def _check_planted(self) -> None:
        """Raises DataError for what only others put there: a view that never ends, a trigger."""
        found = set(self._database.execute(_OBJECTS))
        if strange := sorted(name for _, name, _ in found - _schema()):
            wanted = f"{self._path}: expected a corpus's tables, got {strange[0][:40]!r}"
            raise DataError(f"{wanted}; delete the folder and build it anew")

    def close(self) -> None:
        """Close it; may be called twice."""
        self._database.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written inside, or nothing. Raises DataError when the disk is full."""
        try:
            with self._database:
                yield
        except sqlite3.OperationalError as error:
            message = f"{self._path}: expected room and the right to write, got {error}; what was committed is kept"
            raise DataError(message) from error

    def setting(self, name: str) -> object:
        """A setting's value; None if it was never set."""
        row = self._database.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set(self, name: str, value: object) -> None:
        """Write a setting."""
        self._database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value)))

    def sources(self) -> dict[str, SourceState]:
        """Every source by name."""
        rows = self._database.execute("SELECT name, state, pass, rows, whole, skipped FROM sources")
        return {
            name: SourceState(state, n, done, bool(whole), skipped) for name, state, n, done, whole, skipped in rows
        }

    def set_source(self, name: str, state: SourceState) -> None:
        """Write how far a source has been read."""
        values = (name, state.state, state.number, state.rows, int(state.whole), state.skipped)
        self._database.execute("INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?, ?, ?)", values)

    def forget_source(self, name: str) -> None:
        """Remove a source's row and its problems; its documents are removed by :meth:`remove`."""
        self._database.execute("DELETE FROM sources WHERE name = ?", (name,))
        self._database.execute("DELETE FROM problems WHERE source = ?", (name,))

    def note_problems(self, source: str, problems: Iterable[tuple[int, str]]) -> None:
        """Keep why rows of a source cannot be used."""
        self._database.executemany("INSERT INTO problems VALUES (?, ?, ?)", [(source, *one) for one in problems])

    def forget_problems(self, source: str) -> None:
        """A source is read anew."""
        self._database.execute("DELETE FROM problems WHERE source = ?", (source,))

    def problems(self, limit: int) -> list[tuple[str, int, str]]:
        """Source, row and reason of the first rows that could not be used."""
        query = "SELECT source, row, reason FROM problems ORDER BY source, row LIMIT ?"
        return self._database.execute(query, (limit,)).fetchall()

    def known(self, urls: Sequence[str]) -> dict[str, Known]:
        """Documents by address, of those that are known."""
        query = "SELECT url, id, digest, source, pass FROM documents WHERE url IN (SELECT value FROM json_each(?))"
        rows = self._database.execute(query, (json.dumps(list(urls)),))
        return {url: Known(*known) for url, *known in rows}

    def last_id(self) -> int:
        """The greatest id of a document; 0 if there are none."""
        return int(self._database.execute("SELECT COALESCE(MAX(id), 0) FROM documents").fetchone()[0])

    def distrust(self) -> None:
        """Have every source read and every document written again: what was written before got lost."""
        self._database.execute("UPDATE documents SET digest = x''")
        self._database.execute("UPDATE sources SET state = ''")

    def doubt_skipped(self) -> None:
        """Have every source read again that has rows which could not be used."""
        self._database.execute("UPDATE sources SET state = '' WHERE skipped > 0 AND whole")

    def put(self, rows: Iterable[DocumentRow]) -> None:
        """Write documents, in place of what was known of them."""
        values = [(row.id, row.url, row.digest, row.source, row.number, int(row.is_pictured)) for row in rows]
        self._database.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?, ?)", values)

    def see_again(self, source: str, number: int, ids: Sequence[int]) -> None:
        """Documents that a pass over a source found as they were."""
        values = [(source, number, one) for one in ids]
        self._database.executemany("UPDATE documents SET source = ?, pass = ? WHERE id = ?", values)

    def stale(self, source: str, number: int) -> list[int]:
        """Ids of a source's documents that this pass over it has not seen."""
        query = "SELECT id FROM documents WHERE source = ? AND pass < ?"
        return [row[0] for row in self._database.execute(query, (source, number))]

    def remove(self, ids: Sequence[int]) -> None:
        """Remove documents."""
        self._database.executemany("DELETE FROM documents WHERE id = ?", [(one,) for one in ids])

    def detach_pictures(self, ids: Sequence[int]) -> None:
        """Documents have no picture any more; who still has the vectors that were published last can show it."""
        self._database.executemany("UPDATE pictures SET document = NULL WHERE document = ?", [(one,) for one in ids])

    def remove_detached_pictures(self) -> None:
        """Nobody has their vectors any more."""
        self._database.execute("DELETE FROM pictures WHERE document IS NULL")

    def put_pictures(self, rows: Sequence[PictureRow]) -> None:
        """Write pictures, in place of those their documents had; each gets an id that none ever had."""
        self.detach_pictures([row.document for row in rows])
        values = [(row.document, row.title, row.url, row.thumbnail, row.vector) for row in rows]
        self._database.executemany(_PUT_PICTURE, values)

    def shown(self, ids: Sequence[int]) -> dict[int, tuple[str, str, bytes]]:
        """Title, address and thumbnail of pictures, by id."""
        query = "SELECT id, title, url, thumbnail FROM pictures WHERE id IN (SELECT value FROM json_each(?))"
        rows = self._database.execute(query, (json.dumps(list(ids)),))
        return {number: (title, url, thumbnail) for number, title, url, thumbnail in rows}

    def counts(self) -> tuple[int, int]:
        """Documents and pictures."""
        query = "SELECT COUNT(*), COALESCE(SUM(pictured), 0) FROM documents"
        documents, pictures = self._database.execute(query).fetchone()
        return int(documents), int(pictures)

    def vectors(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and vectors of all pictures, ascending by id, in blocks."""
        cursor = self._database.execute("SELECT id, vector FROM pictures WHERE document IS NOT NULL ORDER BY id")
        while rows := cursor.fetchmany(_BLOCK):
            block = np.frombuffer(b"".join(vector for _, vector in rows), dtype=np.float32)
            yield np.array([number for number, _ in rows], dtype=np.int64), block.reshape(len(rows), -1)
