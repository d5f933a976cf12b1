"""The nearest of many vectors: exactly up to some tens of thousands, through faiss beyond.

A set of vectors is a folder of ``ids.npy``, ``vectors.npy`` and, where it is large, ``coarse.faiss``: an inverted file
of scalar-quantised vectors (Jégou et al., *Product Quantization for Nearest Neighbor Search*, 2011, section IV) that
proposes candidates, which are then compared exactly. Vectors that came after it was trained are always compared so;
another vector must have another, greater id.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch_env.errors import ConfigError, DataError

EXACT_ROWS = 50_000
"""Up to as many vectors all are compared: some milliseconds a query."""
WANTED_RECALL = 0.97
"""Share of the true five nearest that the candidates must hold, on a sample of the vectors themselves."""
CANDIDATES = 6
"""Vectors compared exactly, as a multiple of those wanted."""
_STALE_SHARE = 0.2
"""Trained anew when as large a part has come or gone since."""
_PROBES = (4, 8, 16, 32, 64, 128, 256)
_SAMPLE = 200
_TRAINED_PER_LIST = 64
_BLOCK = 16_384
_INFO = "coarse.json"
_NO_ROWS: np.ndarray = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Coarse:
    """What is known of the inverted file.

    Attributes:
        rows: vectors it was made of.
        last_id: the greatest of their ids.
        probes: lists looked into for a query.
        recall_at_5: share of the true five nearest found with so many, measured when it was made.
    """

    rows: int
    last_id: int
    probes: int
    recall_at_5: float


class Vectors:
    """Vectors by id, memory-mapped and ready to be searched."""

    def __init__(self, folder: Path) -> None:
        """Open what :func:`write_vectors` wrote. Raises DataError when it is damaged, ConfigError without faiss."""
        try:
            self._ids = _mapped(folder / "ids.npy")
            self._matrix = _mapped(folder / "vectors.npy")
            self.coarse = _coarse_of(folder)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{folder}: expected vectors, got {error}; run the index command again") from error
        first_exact = 0
        self._index: Any = None
        if self.coarse is not None:
            first_exact = int(np.searchsorted(self._ids, self.coarse.last_id, side="right"))
            self._index = _opened(folder, self.coarse.probes)
        self._first_exact = first_exact
        self._tail_squares: np.ndarray = np.square(self._matrix[first_exact:]).sum(axis=1)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def size(self) -> int:
        """Length of a vector."""
        return int(self._matrix.shape[1])

    def nearest(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        """Ids and squared distances of the nearest, nearest first.

        Args:
            query: (size,) float32.
            count: how many at most.
        """
        if count < 1 or not len(self._ids):
            return []
        query = np.ascontiguousarray(query, dtype=np.float32)
        rows = self._candidates(query, count) if self._index is not None else _NO_ROWS
        if self._first_exact < len(self._ids):
            rows = np.concatenate([rows, self._exact(query, count)])
        apart = self._matrix[rows] - query
        gaps = np.einsum("ij,ij->i", apart, apart)
        best = np.lexsort((rows, gaps))[:count]
        return [(int(self._ids[rows[i]]), float(gaps[i])) for i in best]

    def _exact(self, query: np.ndarray, count: int) -> np.ndarray:
        """Rows of the nearest among those the inverted file does not have."""
        tail = self._matrix[self._first_exact :]
        gaps = self._tail_squares - np.float32(2.0) * (tail @ query)
        if count < len(gaps):
            return np.argpartition(gaps, count)[:count].astype(np.int64) + self._first_exact
        return np.arange(self._first_exact, len(self._ids), dtype=np.int64)

    def _candidates(self, query: np.ndarray, count: int) -> np.ndarray:
        """Rows that the inverted file proposes and that still exist."""
        _, found = self._index.search(query[None], CANDIDATES * count)
        ids = found[0][found[0] >= 0]
        rows = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        existing: np.ndarray = rows[self._ids[rows] == ids].astype(np.int64)
        return existing


def _mapped(path: Path) -> np.ndarray:
    """A file's array, left on disk. As a plain array: NumPy's own class for such files is slow to index."""
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return mapped


def write_vectors(folder: Path, blocks: Iterable[tuple[np.ndarray, np.ndarray]], *, rows: int, size: int) -> None:
    """Write vectors into a folder, with an inverted file if they are many.

    Args:
        folder: exists already; an inverted file in it is kept while it is young enough.
        blocks: ids (n,), ascending throughout, and vectors (n, size).
        rows: vectors in all blocks together.
        size: length of a vector.

    Raises:
        ConfigError: there are many and faiss is not installed.
        DataError: the disk is full.
    """
    ids = _blank(folder / "ids.npy", np.int64, (rows,))
    matrix = _blank(folder / "vectors.npy", np.float32, (rows, size))
    done = 0
    for some_ids, some in blocks:
        ids[done : done + len(some)], matrix[done : done + len(some)] = some_ids, some
        done += len(some)
    ids.flush()
    matrix.flush()
    if rows <= EXACT_ROWS:
        for name in ("coarse.faiss", _INFO):
            (folder / name).unlink(missing_ok=True)
    elif not _is_young(_coarse_of(folder), ids):
        _train(folder, ids, matrix)


def _blank(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    """A file's array, whose room on the disk is taken already: without it, writing would end the process."""
    try:
        mapped: np.memmap = np.lib.format.open_memmap(path, "w+", kind, shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        needed = math.prod(shape) * np.dtype(kind).itemsize / 1e6
        wanted = f"expected room for {needed:,.1f} MB of vectors, got {error.strerror}"
        raise DataError(f"{path.parent}: {wanted}; make room and run it again") from error
    return mapped


def keep_coarse(old: Path, new: Path) -> None:
    """Take the inverted file of an older set over into a newer one."""
    for name in ("coarse.faiss", _INFO):
        if (old / name).is_file():
            shutil.copyfile(old / name, new / name)


def _is_young(coarse: Coarse | None, ids: np.ndarray) -> bool:
    if coarse is None:
        return False
    kept = int(np.searchsorted(ids, coarse.last_id, side="right"))
    return max(len(ids) - kept, coarse.rows - kept) <= _STALE_SHARE * coarse.rows


def _train(folder: Path, ids: np.ndarray, matrix: np.ndarray) -> None:
    faiss = _faiss()
    rows, size = matrix.shape
    lists = int(4 * math.sqrt(rows))
    index = faiss.index_factory(size, f"IVF{lists},SQ8")
    generator = np.random.default_rng(0)
    chosen = np.sort(generator.choice(rows, min(rows, _TRAINED_PER_LIST * lists), replace=False))
    index.train(np.ascontiguousarray(matrix[chosen]))
    for start in range(0, rows, _BLOCK):
        part = slice(start, start + _BLOCK)
        index.add_with_ids(np.ascontiguousarray(matrix[part]), np.ascontiguousarray(ids[part]))
    sample = np.sort(generator.choice(rows, min(rows, _SAMPLE), replace=False))
    probes, recall = _probes_for(index, ids, matrix, sample)
    try:
        faiss.write_index(index, str(folder / "coarse.faiss"))
    except RuntimeError as error:
        raise DataError(f"{folder}: expected room for an inverted file, got {error}; make room") from error
    info = Coarse(rows, int(ids[-1]), probes, round(recall, 4))
    (folder / _INFO).write_text(json.dumps(asdict(info)), encoding="utf-8")


def _probes_for(index: Any, ids: np.ndarray, matrix: np.ndarray, sample: np.ndarray) -> tuple[int, float]:
    """The least number of lists to look into that finds enough, and the share it finds.

    Queries lie between two vectors of the sample that are no neighbours: a stored vector itself would be too easy.
    """
    queries = np.ascontiguousarray(0.75 * matrix[sample] + 0.25 * np.roll(matrix[sample], 1, axis=0))
    true = ids[_true_nearest(matrix, queries, 5)]
    recall = 0.0
    for probes in (found for found in _PROBES if found <= index.nlist):
        index.nprobe = probes
        _, found = index.search(queries, 5 * CANDIDATES)
        recall = float(np.mean([np.isin(true[i], found[i]).mean() for i in range(len(sample))]))
        if recall >= WANTED_RECALL:
            return probes, recall
    return int(index.nprobe), recall


def _true_nearest(matrix: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """(queries, count) rows of the nearest vectors, block by block."""
    best_gaps = np.full((len(queries), count), np.inf, np.float32)
    best_rows = np.zeros((len(queries), count), np.int64)
    for start in range(0, len(matrix), _BLOCK):
        block = matrix[start : start + _BLOCK]
        gaps = np.square(block).sum(axis=1)[None] - 2.0 * (queries @ block.T)
        gaps = np.concatenate([best_gaps, gaps.astype(np.float32)], axis=1)
        rows = np.concatenate(
            [best_rows, np.broadcast_to(np.arange(start, start + len(block)), gaps[:, count:].shape)], 1
        )
        order = np.argsort(gaps, axis=1)[:, :count]
        best_gaps = np.take_along_axis(gaps, order, axis=1)
        best_rows = np.take_along_axis(rows, order, axis=1)
    return best_rows


def _coarse_of(folder: Path) -> Coarse | None:
    try:
        return Coarse(**json.loads((folder / _INFO).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _opened(folder: Path, probes: int) -> Any:
    faiss = _faiss()
    try:
        index = faiss.read_index(str(folder / "coarse.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:
        wanted = f"{folder}: expected an inverted file, got {' '.join(str(error).split())[:200]}"
        raise DataError(f"{wanted}; run the index command again") from error
    index.nprobe = probes
    # Left alone, faiss starts 32 threads at every search to read ahead.
    faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0
    return index


def _faiss() -> Any:
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError(
            f"expected faiss for more than {EXACT_ROWS:,} pictures, got none; install mmsearch-env[images]"
        )
    import faiss

    return faiss
