"""Answers kept on disk, with the hot ones in memory."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import sqlite3
import stat
import threading
import time
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch_env.cache import disk
from mmsearch_env.cache.envelope import EnvelopeError, pack, unpack, unpack_about
from mmsearch_env.errors import CacheWarning, ConfigError

FOLDER = "v1"
"""Where a cache lies in its folder; another version lies in another one."""
_FAULTS = (sqlite3.Error, OSError, ValueError, TypeError, AttributeError, disk.Busy)
"""What diskcache raises over a database that is busy, damaged or was tampered with."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache holds.

    Attributes:
        folder: where it is.
        answers: how many.
        bytes_on_disk: size of its database.
        by_kind: answers of each kind.
        oldest_s: age of the oldest answer in seconds; 0 for none.
    """

    folder: Path
    answers: int
    bytes_on_disk: int
    by_kind: Mapping[str, int]
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        key: where it lies.
        kind: what kind of answer it is.
        request: what was asked.
        stored: when, in seconds since 1970.
        body: the answer itself.
    """

    key: str
    kind: str
    request: Mapping[str, Any]
    stored: float
    body: bytes


class ToolCache:
    """Answers by key, shared by threads and processes; whatever is wrong with it costs answers, never a run."""

    def __init__(self, folder: Path, *, size_limit: int = 2_000_000_000, hot_bytes: int = 32_000_000) -> None:
        """Open the cache in ``folder``, making it if it is missing; a damaged one is set aside with a warning.

        Args:
            folder: for this cache alone; made readable by its owner only.
            size_limit: bytes on disk beyond which the oldest answers go.
            hot_bytes: bytes of answers kept in memory as well; 0 for none.

        Raises:
            ConfigError: the folder cannot be made or written, or belongs to somebody else.
        """
        self.folder = folder / FOLDER
        self._size_limit = size_limit
        self._hot = _Hot(hot_bytes)
        self._lock = threading.Lock()
        self._database = self._opened()

    def get(self, key: str) -> bytes | None:
        """The answer under ``key``; None if there is none, if it has expired or if it is damaged."""
        if (hot := self._hot.get(key)) is not None:
            return hot
        try:
            found = disk.read(self._database, key)
            if found is None:
                return None
            body = unpack(key, found[0])
        except EnvelopeError:
            return None
        except _FAULTS as error:
            self._recover(error)
            return None
        self._hot.put(key, body, found[1])
        return body

    def put(self, key: str, body: bytes, *, kind: str, request: Mapping[str, Any], expire_s: float) -> None:
        """Keep an answer; one that is too large or cannot be written is kept in memory only.

        Args:
            key: see :func:`mmsearch_env.cache.keys.canonical_key`.
            body: the answer.
            kind: what kind of answer it is, for statistics and exports.
            request: what was asked, JSON-able and without keys of services.
            expire_s: seconds for which it is good.
        """
        self._hot.put(key, body, time.time() + expire_s)
        try:
            self._database.set(key, pack(key, body, {"kind": kind, "request": request}), expire=expire_s, tag=kind)
        except EnvelopeError:
            return
        except _FAULTS as error:
            self._recover(error)

    def answers(self) -> Iterator[Answer]:
        """Every sound answer, oldest first."""
        for row in disk.rows(self.folder):
            if (answer := _answer(row)) is not None:
                yield answer

    def verify(self) -> tuple[int, int]:
        """How many answers are sound, and how many were not and are removed now."""
        sound, damaged = 0, []
        for row in disk.rows(self.folder):
            if _answer(row) is not None:
                sound += 1
            elif row.value is not None:
                damaged.append(row.key)
        removed = disk.remove_foreign_rows(self.folder) + sum(int(self._database.delete(key)) for key in damaged)
        self._hot.clear()
        return sound, removed

    def prune(self, *, older_than_s: float = math.inf, kind: str | None = None) -> int:
        """Remove answers that have expired, and those older than so many seconds (of one kind, or of all); how many."""
        removed = int(self._database.expire(retry=True))
        before = time.time() - older_than_s
        old = [row.key for row in disk.rows(self.folder) if row.stored <= before and kind in (None, row.tag)]
        self._hot.clear()
        return removed + sum(int(self._database.delete(key)) for key in old)

    def stats(self) -> CacheStats:
        """What it holds."""
        rows = [(row.tag, row.stored) for row in disk.rows(self.folder)]
        return CacheStats(
            folder=self.folder,
            answers=len(rows),
            bytes_on_disk=sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
            by_kind=dict(sorted(Counter(tag for tag, _ in rows).items())),
            oldest_s=max([0.0, *(time.time() - stored for _, stored in rows)]),
        )

    def close(self) -> None:
        """Close this thread's connection; may be called twice."""
        self._database.close()

    def _opened(self) -> Any:
        """The database. Raises ConfigError if there cannot be one here."""
        try:
            _make_private(self.folder)
            with _exclusively(self.folder.parent):  # another process may be about to make it
                return disk.open_database(self.folder, size_limit=self._size_limit)
        except (sqlite3.OperationalError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"cache: expected a folder of one's own that can be written, got {self.folder} ({reason}); name another"
            ) from error
        except _FAULTS as error:
            return self._replaced(error)

    def _recover(self, error: BaseException) -> None:
        """Go on after a fault: a busy or full disk costs one answer, a damaged database is replaced."""
        if isinstance(error, (sqlite3.OperationalError, OSError, disk.Busy)):
            _log.warning("cache %s: an answer is not kept: %s", self.folder, error)
            return
        with self._lock:
            self._database = self._replaced(error)

    def _replaced(self, error: BaseException) -> Any:
        """A database in place of a damaged one, which keeps lying beside it under another name."""
        with _exclusively(self.folder.parent):
            # Another process may have replaced it already; then it is only opened.
            if not disk.is_sound(self.folder):
                aside = self.folder.with_name(f"{self.folder.name}.damaged-{time.time_ns()}")
                self.folder.rename(aside)
                _make_private(self.folder)
                message = f"cache {self.folder}: expected a sound database, got {type(error).__name__}: {error}; "
                warnings.warn(f"{message}it is kept as {aside.name}, and a new one begun", CacheWarning, stacklevel=2)
            return disk.open_database(self.folder, size_limit=self._size_limit)


class _Hot:
    """The answers used last, in memory."""

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._answers: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        if (found := self._answers.get(key)) is None:
            return None
        body, expires = found
        if expires <= time.time():
            with self._lock:
                self._forget(key)
            return None
        # Without the lock, which would be most of the time this takes: each operation is whole in itself.
        try:  # noqa: SIM105  a with statement would be slow here
            self._answers.move_to_end(key)
        except KeyError:  # another thread has just removed it
            pass
        return body

    def put(self, key: str, body: bytes, expires: float | None) -> None:
        if len(body) > self._limit:
            return
        with self._lock:
            self._forget(key)
            self._answers[key] = (body, math.inf if expires is None else expires)
            self._size += len(body)
            while self._size > self._limit:
                _, (oldest, _) = self._answers.popitem(last=False)
                self._size -= len(oldest)

    def clear(self) -> None:
        with self._lock:
            self._answers.clear()
            self._size = 0

    def _forget(self, key: str) -> None:
        if (found := self._answers.pop(key, None)) is not None:
            self._size -= len(found[0])


def _answer(row: disk.Row) -> Answer | None:
    """The answer in a row; None if it is damaged."""
    if row.value is None:
        return None
    try:
        about, body = unpack_about(row.key, row.value)
        return Answer(row.key, str(about["kind"]), dict(about["request"]), row.stored, body)
    except (EnvelopeError, KeyError, TypeError, ValueError):
        return None


def _make_private(folder: Path) -> None:
    """A folder of this user alone. Raises OSError: it cannot be made, or belongs to somebody else."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, "it is not this user's own folder")
    folder.chmod(0o700)


@contextmanager
def _exclusively(folder: Path) -> Iterator[None]:
    """While no other process opens or replaces a database in ``folder``."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
