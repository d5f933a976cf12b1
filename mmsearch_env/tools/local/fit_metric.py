"""Fits the linear map of the image descriptors: ``python -m mmsearch_env.tools.local.fit_metric``.

Linear discriminant analysis on disturbed views of invented flags: directions in which views of one flag differ little
and different flags differ much. No flag of the atlas and none of the synthetic worlds of small seeds takes part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmsearch_env.tools.local.descriptors import raw_descriptor
from mmsearch_env.worlds.entities import Drawing
from mmsearch_env.worlds.pictures import disturbed
from mmsearch_env.worlds.synthetic import invent_entities

SEED = 20_506
ENTITIES = 400
VIEWS = 8
SIZE = 96
"""Length of the weighed descriptor."""
RIDGE = 0.2
"""Added to the within-class scatter, as a share of its mean variance."""

Matrix = np.ndarray


def fitted(views: Matrix, size: int = SIZE) -> Matrix:
    """Mean and weights as one matrix, (D, 1 + size).

    Args:
        views: (entities, views, D) raw descriptors.
        size: number of directions kept.
    """
    flat = views.reshape(-1, views.shape[-1])
    centres = views.mean(axis=1)
    spread = (views - centres[:, None]).reshape(flat.shape)
    within = spread.T @ spread / len(spread)
    within += RIDGE * np.trace(within) / len(within) * np.eye(len(within))
    variances, axes = np.linalg.eigh(within)
    whitening = axes / np.sqrt(variances)
    _, directions = np.linalg.eigh(whitening.T @ np.cov(centres.T) @ whitening)
    weights = whitening @ directions[:, ::-1][:, :size]
    # Unit spread of views, so that a distance of 1 means "as far as two views of one flag may be".
    weights /= np.sqrt(2.0 * size)
    return np.column_stack([flat.mean(axis=0), weights])


def views_of(drawings: list[Drawing]) -> Matrix:
    """(entities, views, D) raw descriptors of disturbed views."""
    return np.array(
        [
            [raw_descriptor(disturbed(drawing, f"metric/{i}/{v}")) for v in range(VIEWS)]
            for i, drawing in enumerate(drawings)
        ],
        dtype=np.float64,
    )


def main() -> None:
    """Fit and write ``metric.npy``."""
    drawings = [entity.drawing for entity in invent_entities(SEED, ENTITIES) if entity.drawing is not None]
    matrix = fitted(views_of(drawings)).astype(np.float16)
    np.save(Path(__file__).with_name("metric.npy"), matrix, allow_pickle=False)


if __name__ == "__main__":
    main()
