"""RootSIFT-VLAD: a picture as the sum of its local features, each seen from the nearest of a few typical ones.

SIFT: Lowe, *Distinctive Image Features from Scale-Invariant Keypoints*, 2004. RootSIFT: Arandjelović & Zisserman,
*Three things everyone should know to improve object retrieval*, 2012, section 3. VLAD: Jégou et al., *Aggregating Local
Image Descriptors into Compact Codes*, 2012, equation 9, with the intra-normalisation of Arandjelović & Zisserman, *All
about VLAD*, 2013, section 3.1, and a projection to principal components (Jégou et al., section 4).

A plain drawing has few local features, and noise has many: the embedded engine's descriptor of colours and edges by
place stands beside them with the same weight. Either alone finds less of collages and of flags under other views.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmsearch_env.errors import DataError
from mmsearch_env.images import Image
from mmsearch_env.tools.local.descriptors import descriptor, metric, metric_digest

Vectors = np.ndarray
CENTRES = 32
"""Typical features."""
LONGEST_SIDE_PX = 512
"""Larger pictures are made smaller first."""
MOST_FEATURES = 600
"""Strongest features of a picture that are used."""
PROJECTED_SIZE = 512
"""Principal components that are kept where the sample is large enough to tell them."""
_FILE = "sift.npz"
_FEATURE_SIZE = 128
_CONTRAST = 0.03
_SEED = 0
_FEATURES_FITTED = 100_000

cv2.setNumThreads(1)  # pictures are encoded side by side already


class SiftEncoder:
    """An :class:`~mmsearch_env.tools.corpus.encoders.ImageEncoder` fitted to a corpus."""

    def __init__(self, centres: np.ndarray, mean: np.ndarray, axes: np.ndarray) -> None:
        """
        Args:
            centres: (CENTRES, 128) typical features.
            mean: (CENTRES * 128,) mean of what is projected.
            axes: (CENTRES * 128, size) directions of the projection; (CENTRES * 128, 0) for none.
        """
        self._centres, self._mean, self._axes = centres, mean, axes
        parts = hashlib.sha256(b"".join(part.tobytes() for part in (centres, mean, axes)))
        self.identity = f"sift-1:{parts.hexdigest()[:16]}:{metric_digest()[:8]}"
        self.size = (axes.shape[1] or mean.size) + metric()[1].shape[1]

    @classmethod
    def fitted(cls, images: Sequence[Image]) -> SiftEncoder:
        """Learn the typical features, and the projection if there are half as many pictures again as components."""
        features = [_root_sift(image) for image in images]
        centres = _centres_of(np.concatenate([*features, np.zeros((0, _FEATURE_SIZE), np.float32)]))
        mean, axes = np.zeros(centres.size, np.float32), np.zeros((centres.size, 0), np.float32)
        if len(images) >= 1.5 * PROJECTED_SIZE:
            mean, axes = _principal(np.array([_vlad(found, centres) for found in features]))
        return cls(centres, mean, axes)

    @classmethod
    def stored(cls, folder: Path) -> SiftEncoder | None:
        """What :meth:`store` wrote; None if nothing was. Raises DataError when it is damaged."""
        path = folder / _FILE
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as parts:
                return cls(parts["centres"], parts["mean"], parts["axes"])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            got = type(error).__name__  # NumPy's own words advise to unpickle it
            raise DataError(
                f"{path}: expected a fitted encoder, got {got}; delete the folder and build it anew"
            ) from error

    def store(self, folder: Path) -> None:
        """Write what was fitted, whole or not at all."""
        half = folder / f".{_FILE}"
        with half.open("wb") as file:
            np.savez(file, centres=self._centres, mean=self._mean, axes=self._axes)
        half.rename(folder / _FILE)

    def encode(self, images: Sequence[Image]) -> Vectors:
        """(pictures, size) float32, each row no longer than 1."""
        return np.array([self._encoded(image) for image in images], dtype=np.float32).reshape(-1, self.size)

    def _encoded(self, image: Image) -> np.ndarray:
        summed = _vlad(_root_sift(image), self._centres)
        if self._axes.shape[1]:
            summed = _unit((summed - self._mean) @ self._axes)
        return np.concatenate([summed, _unit(descriptor(image))]) / np.float32(np.sqrt(2.0))


def _root_sift(image: Image) -> np.ndarray:
    """(features, 128) float32: the strongest local features, compared by the Hellinger kernel."""
    grey = cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY)
    scale = LONGEST_SIDE_PX / max(grey.shape)
    if scale < 1.0:
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    # One of its own for each call: a detector may not be shared between threads.
    finder: Any = cv2.SIFT_create(nfeatures=MOST_FEATURES, contrastThreshold=_CONTRAST)  # type: ignore[attr-defined]
    _, found = finder.detectAndCompute(grey, None)
    if found is None or not len(found):
        return np.zeros((0, _FEATURE_SIZE), np.float32)
    found = found[:MOST_FEATURES].astype(np.float32)
    shares: np.ndarray = np.sqrt(found / (found.sum(axis=1, keepdims=True) + 1e-7))
    return shares


def _centres_of(features: np.ndarray) -> np.ndarray:
    """(CENTRES, 128) by k-means from a fixed seed; random ones where the sample has too few features."""
    generator = np.random.default_rng(_SEED)
    if len(features) < 4 * CENTRES:
        drawn = generator.random((CENTRES, _FEATURE_SIZE), dtype=np.float32)
        random: np.ndarray = np.sqrt(drawn / drawn.sum(axis=1, keepdims=True))
        return random
    if len(features) > _FEATURES_FITTED:
        features = features[np.sort(generator.choice(len(features), _FEATURES_FITTED, replace=False))]
    cv2.setRNGSeed(_SEED)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-4)
    _, _, centres = cv2.kmeans(features, CENTRES, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    return np.ascontiguousarray(centres, dtype=np.float32)


def _vlad(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(CENTRES * 128,) float32 of length 1, or 0 without features."""
    sums = np.zeros_like(centres)
    if len(features):
        nearest = (np.square(centres).sum(axis=1) - 2.0 * (features @ centres.T)).argmin(axis=1)
        for centre in np.unique(nearest):
            sums[centre] = (features[nearest == centre] - centres[centre]).sum(axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return _unit((sums / np.maximum(lengths, 1e-9)).ravel())


def _principal(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and the first principal axes of (pictures, D), through the smaller matrix of inner products."""
    mean = sums.mean(axis=0)
    spread = (sums - mean).astype(np.float64)
    strengths, mixes = np.linalg.eigh(spread @ spread.T)
    kept = slice(-1, -PROJECTED_SIZE - 1, -1)
    axes = spread.T @ mixes[:, kept] / np.sqrt(np.maximum(strengths[kept], 1e-12))
    return mean.astype(np.float32), np.ascontiguousarray(axes, dtype=np.float32)


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    scaled: np.ndarray = (vector / length if length > 1e-9 else vector).astype(np.float32)
    return scaled
