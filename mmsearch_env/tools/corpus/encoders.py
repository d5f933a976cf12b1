"""From pictures to vectors: what an image encoder does, and which there are.

``"sift"``         local features, found again under other views and crops (:mod:`~mmsearch_env.tools.corpus.sift`)
``"layout"``       colours and edges by place: the embedded engine's descriptor; needs nothing installed
``"neural:MODEL"`` a vision model of the user's (:mod:`~mmsearch_env.tools.corpus.neural`): SigLIP 2, CLIP, DINOv2
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mmsearch_env.errors import ConfigError
from mmsearch_env.images import Image
from mmsearch_env.tools.local.descriptors import descriptor, metric, metric_digest

Vectors = np.ndarray
"""(pictures, size) float32."""
SAMPLE_PICTURES = 1000
"""Pictures of a corpus from which an encoder that is fitted learns."""


class ImageEncoder(Protocol):
    """Turns pictures into vectors; near in Euclidean distance means alike."""

    @property
    def identity(self) -> str:
        """Changes whenever the vectors do: those of different encoders do not compare."""
        ...

    @property
    def size(self) -> int:
        """Length of a vector."""
        ...

    def encode(self, images: Sequence[Image]) -> Vectors:
        """One row a picture. May be called from several threads."""
        ...


class LayoutEncoder:
    """The descriptor of the embedded engine: for flags, logos and other plain drawings."""

    identity = f"layout:{metric_digest()[:16]}"
    size = metric()[1].shape[1]

    def encode(self, images: Sequence[Image]) -> Vectors:
        """One row a picture."""
        return np.array([descriptor(image) for image in images], dtype=np.float32).reshape(-1, self.size)


def open_encoder(spec: str, folder: Path) -> ImageEncoder | None:
    """The encoder of a corpus; None for one that is still to be fitted.

    Args:
        spec: ``"sift"``, ``"layout"`` or ``"neural:MODEL"``.
        folder: of the corpus, where a fitted encoder is kept.

    Raises:
        ConfigError: unknown spec, or what it needs is not installed.
        DataError: what is kept is damaged.
    """
    if spec == "layout":
        return LayoutEncoder()
    if spec == "sift":
        _expect_installed("cv2", "images", spec)
        from mmsearch_env.tools.corpus.sift import SiftEncoder

        return SiftEncoder.stored(folder)
    if spec.startswith("neural:") and len(spec) > len("neural:"):
        _expect_installed("transformers", "train", spec)
        from mmsearch_env.tools.corpus.neural import NeuralEncoder

        return NeuralEncoder(spec.removeprefix("neural:"))
    raise ConfigError(f"encoder: expected sift, layout or neural:MODEL, got {spec!r}; name one of them")


def prepared_encoder(spec: str, folder: Path, sample: Callable[[], Sequence[Image]]) -> ImageEncoder:
    """The encoder of a corpus, fitted now to a sample of its pictures if that has not been done.

    Args:
        spec: as for :func:`open_encoder`.
        folder: of the corpus.
        sample: gives up to :data:`SAMPLE_PICTURES` pictures.

    Raises:
        ConfigError: as :func:`open_encoder`.
    """
    found = open_encoder(spec, folder)
    if found is not None:
        return found
    from mmsearch_env.tools.corpus.sift import SiftEncoder

    fitted = SiftEncoder.fitted(sample())
    fitted.store(folder)
    return fitted


def _expect_installed(package: str, extra: str, spec: str) -> None:
    if importlib.util.find_spec(package) is None:
        message = f"encoder {spec!r}: expected the extra {extra!r}, got no {package}; install mmsearch-env[{extra}]"
        raise ConfigError(f"{message} or use the encoder 'layout'")
