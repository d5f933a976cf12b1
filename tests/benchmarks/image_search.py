"""The nearest of many vectors against bare faiss, and what encoding a picture takes.

Vectors lie in clusters of few dimensions, as embeddings do; queries are stored vectors with noise. Bare faiss is the
same inverted file (as many lists, as many of them looked into), once scalar-quantised and once with whole vectors. Up
to some tens of thousands, all vectors are compared: against one matrix product. Also measured: how long both take to
build, and what memory a new process has that opens the vectors and searches them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import PIL.Image
import PIL.ImageDraw
from measuring import figures, in_own_process, in_turns, memory_mb, note, ratio, report

from mmsearch_env.images import Image
from mmsearch_env.tools.corpus.encoders import LayoutEncoder
from mmsearch_env.tools.corpus.sift import SiftEncoder
from mmsearch_env.tools.corpus.vectors import EXACT_ROWS, Vectors, write_vectors

LATENT, NOISE, TOP_K, QUERIES = 48, 0.15, 5, 200


def clustered(rows: int, size: int, seed: int) -> np.ndarray:
    """(rows, size) float32 of length 1: clusters of 50 in 48 hidden dimensions."""
    generator = np.random.default_rng(seed)
    basis = generator.normal(size=(LATENT, size)).astype(np.float32)
    centres = generator.normal(size=(max(1, rows // 50), LATENT)).astype(np.float32)
    hidden = centres[generator.integers(0, len(centres), rows)]
    hidden = hidden + 0.35 * generator.normal(size=hidden.shape).astype(np.float32)
    found = hidden @ basis / np.sqrt(LATENT)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def queries_of(matrix: np.ndarray, count: int) -> np.ndarray:
    generator = np.random.default_rng(1)
    chosen = matrix[generator.choice(len(matrix), count, replace=False)]
    noise = generator.normal(size=chosen.shape).astype(np.float32) / np.sqrt(matrix.shape[1])
    return np.ascontiguousarray(chosen + NOISE * noise, dtype=np.float32)


def true_nearest(matrix: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(queries, 5) rows, by comparing all."""
    gaps = np.square(matrix).sum(axis=1)[None] - 2.0 * queries @ matrix.T
    rows: np.ndarray = np.argpartition(gaps, TOP_K, axis=1)[:, :TOP_K]
    return rows


def through_faiss(rows: int, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Many vectors."""
    matrix = clustered(rows, size, 0)
    note(f"writing {rows:,} x {size}")
    begin = time.perf_counter()
    write_vectors(folder, [(np.arange(rows), matrix)], rows=rows, size=size)
    build_s = {"ours": round(time.perf_counter() - begin, 1)}
    ours = Vectors(folder)
    assert ours.coarse is not None
    plain = {}
    for kind in ("SQ8", "Flat"):
        note(f"bare faiss, {kind}")
        begin = time.perf_counter()
        plain[f"faiss IVF {kind}"] = bare(matrix, kind, ours.coarse.probes)
        build_s[f"faiss IVF {kind}"] = round(time.perf_counter() - begin, 1)
    asked = queries_of(matrix, min(QUERIES, rows))
    work: dict[str, list[Any]] = {"ours": [lambda q=q: ours.nearest(q, TOP_K) for q in asked]}
    for name, index in plain.items():
        work[name] = [lambda q=q, index=index: index.search(q[None], TOP_K) for q in asked]
    taken = in_turns(work, rounds)
    true = true_nearest(matrix, asked)
    recall = {"ours": _recall([[row for row, _ in ours.nearest(q, TOP_K)] for q in asked], true)}
    for name, index in plain.items():
        recall[name] = _recall(index.search(asked, TOP_K)[1].tolist(), true)
    return {
        "build_s": build_s,
        "lists": next(iter(plain.values())).nlist,
        "probes": ours.coarse.probes,
        "recall_at_5": recall,
        **{name: figures(taken[name]) for name in taken},
        "ratio": {name: ratio(taken["ours"], taken[name]) for name in plain},
        "process": in_own_process(__file__, "--memory-of", str(folder)),
    }


def bare(matrix: np.ndarray, kind: str, probes: int) -> Any:
    """An inverted file made as faiss's own manual says, held in memory."""
    rows, size = matrix.shape
    index = faiss.index_factory(size, f"IVF{int(4 * np.sqrt(rows))},{kind}")
    index.train(matrix[: 64 * index.nlist])
    index.add(matrix)
    index.nprobe = probes
    return index


def exactly(rows: int, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Few vectors, against one product and a sort."""
    matrix = clustered(rows, size, 0)
    write_vectors(folder, [(np.arange(rows), matrix)], rows=rows, size=size)
    ours = Vectors(folder)
    squares = np.square(matrix).sum(axis=1)

    def product(query: np.ndarray) -> np.ndarray:
        gaps = squares - np.float32(2.0) * (matrix @ query)
        best = np.argpartition(gaps, TOP_K)[:TOP_K]
        sorted_best: np.ndarray = best[np.argsort(gaps[best])]
        return sorted_best

    asked = queries_of(matrix, 50)
    same = [[row for row, _ in ours.nearest(q, TOP_K)] == product(q).tolist() for q in asked]
    work: dict[str, list[Any]] = {
        "ours": [lambda q=q: ours.nearest(q, TOP_K) for q in asked],
        "numpy": [lambda q=q: product(q) for q in asked],
    }
    taken = in_turns(work, rounds)
    found = {name: figures(taken[name]) for name in taken}
    return {**found, "ratio": ratio(taken["ours"], taken["numpy"]), "same_results": statistics.fmean(same)}


def show_memory(folder: Path) -> None:
    """In a process of its own: open, search, and say what memory that took and how long the first search."""
    before = memory_mb()
    begin = time.perf_counter()
    vectors = Vectors(folder)
    opened = time.perf_counter()
    generator = np.random.default_rng(2)
    for number, query in enumerate(generator.normal(size=(QUERIES, vectors.size)).astype(np.float32)):
        vectors.nearest(query / np.linalg.norm(query), TOP_K)
        if number == 0:
            first = time.perf_counter()
    times = {"open_ms": round((opened - begin) * 1e3, 2), "first_search_ms": round((first - opened) * 1e3, 2)}
    print(json.dumps({"before": before, "after": memory_mb(), **times}))


def encoding(pictures: int) -> dict[str, float]:
    """Milliseconds a picture of 320 x 240, by encoder."""
    images = [collage(seed) for seed in range(pictures)]
    found = {}
    for name, encoder in (("sift", SiftEncoder.fitted(images)), ("layout", LayoutEncoder())):
        taken = []
        for image in images:
            begin = time.perf_counter()
            encoder.encode([image])
            taken.append(time.perf_counter() - begin)
        found[f"{name}_ms"] = round(statistics.median(taken) * 1e3, 2)
    return found


def collage(seed: int) -> Image:
    generator = np.random.default_rng(seed)
    picture = PIL.Image.new("RGB", (320, 240), tuple(generator.integers(0, 255, 3).tolist()))
    pen = PIL.ImageDraw.Draw(picture)
    for _ in range(60):
        x, y, size = generator.integers(0, 320), generator.integers(0, 240), generator.integers(5, 50)
        pen.rectangle([x, y, x + size, y + size // 2 + 3], fill=tuple(generator.integers(0, 255, 3).tolist()))
    return Image.from_pil(picture)


def _recall(found: list[list[int]], true: np.ndarray) -> float:
    shares = [len(set(mine) & set(right.tolist())) / TOP_K for mine, right in zip(found, true, strict=True)]
    return round(statistics.fmean(shares), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--few", type=int, nargs="*", default=[10_000, 50_000], help="rows that are all compared")
    parser.add_argument("--sizes", type=int, nargs="+", default=[608, 768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small numbers, 1 round")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of:
        show_memory(given.memory_of)
    else:
        show(given)


def show(given: argparse.Namespace) -> None:
    """The benchmark itself."""
    rows, few, sizes, rounds, pictures = given.rows, given.few, given.sizes, given.rounds, 40
    if given.quick:
        rows, few, sizes, rounds, pictures = EXACT_ROWS + 1000, [2000], [16], 1, 4
    found = {
        str(size): {
            **{str(count): _in_folder(exactly, count, size, rounds) for count in few},
            str(rows): _in_folder(through_faiss, rows, size, rounds),
        }
        for size in sizes
    }
    settings = {"rounds": rounds, "top_k": TOP_K, "threads_of_faiss": faiss.omp_get_max_threads()}
    packages = ["faiss-cpu", "numpy", "opencv-python-headless"]
    report("image_search", settings, packages, by_size=found, encoders=encoding(pictures))


def _in_folder(work: Callable[[int, int, int, Path], dict[str, Any]], *sizes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        return work(*sizes, Path(folder))


if __name__ == "__main__":
    main()
