"""The nearest of many vectors against bare faiss, and what encoding a picture takes.

Vectors lie in clusters of few dimensions, as embeddings do; queries are stored vectors with noise. Bare faiss is the
same inverted file (as many lists, as many of them looked into), once scalar-quantised and once with whole vectors. Up
to some tens of thousands, all vectors are compared: against one matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import PIL.Image
import PIL.ImageDraw
from measuring import figures, in_turns, memory_mb, note, ratio, report

from mmsearch_env.images import Image
from mmsearch_env.tools.corpus.encoders import LayoutEncoder
from mmsearch_env.tools.corpus.sift import SiftEncoder
from mmsearch_env.tools.corpus.vectors import Vectors, write_vectors

LATENT, NOISE, TOP_K = 48, 0.15, 5


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
    build_s = time.perf_counter() - begin
    ours = Vectors(folder)
    assert ours.coarse is not None
    plain = {}
    for kind in ("SQ8", "Flat"):
        note(f"bare faiss, {kind}")
        index = faiss.index_factory(size, f"IVF{int(4 * np.sqrt(rows))},{kind}")
        index.train(matrix[: 64 * index.nlist])
        index.add(matrix)
        index.nprobe = ours.coarse.probes
        plain[f"faiss IVF {kind}"] = index
    asked = queries_of(matrix, 200)
    true = true_nearest(matrix, asked)
    work: dict[str, list[Any]] = {"ours": [lambda q=q: ours.nearest(q, TOP_K) for q in asked]}
    for name, index in plain.items():
        work[name] = [lambda q=q, index=index: index.search(q[None], TOP_K) for q in asked]
    taken = in_turns(work, rounds)
    recall = {"ours": _recall([[row for row, _ in ours.nearest(q, TOP_K)] for q in asked], true)}
    for name, index in plain.items():
        recall[name] = _recall(index.search(asked, TOP_K)[1].tolist(), true)
    names = list(plain)
    return {
        "build_s": round(build_s, 1),
        "probes": ours.coarse.probes,
        "recall_at_5": recall,
        **{name: figures(taken[name]) for name in taken},
        "ratio": {name: ratio(taken["ours"], taken[name]) for name in names},
    }


def exactly(rows: int, size: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Few vectors, against one product and a sort."""
    matrix = clustered(rows, size, 0)
    write_vectors(folder, [(np.arange(rows), matrix)], rows=rows, size=size)
    ours = Vectors(folder)
    squares = np.square(matrix).sum(axis=1)
    asked = queries_of(matrix, 50)
    plain = [lambda q=q: np.argpartition(squares - 2.0 * (matrix @ q), TOP_K)[:TOP_K] for q in asked]
    taken = in_turns({"ours": [lambda q=q: ours.nearest(q, TOP_K) for q in asked], "numpy": plain}, rounds)
    return {**{name: figures(taken[name]) for name in taken}, "ratio": ratio(taken["ours"], taken["numpy"])}


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
    parser.add_argument("--size", type=int, default=608)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small numbers, 1 round")
    given = parser.parse_args()
    rows, size, rounds, few = (51_000, 16, 1, [2000]) if given.quick else (
        given.rows, given.size, given.rounds, [10_000, 50_000]
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        places = {count: Path(folder) / str(count) for count in [rows, *few]}
        for place in places.values():
            place.mkdir()
        found = {
            str(rows): through_faiss(rows, size, rounds, places[rows]),
            **{str(count): exactly(count, size, rounds, places[count]) for count in few},
        }
    encoders = encoding(4 if given.quick else 40)
    settings = {"size": size, "rounds": rounds, "top_k": TOP_K}
    report("image_search", settings, ["faiss-cpu", "numpy"], by_rows=found, encoders=encoders, memory=memory_mb())


if __name__ == "__main__":
    main()
