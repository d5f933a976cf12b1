"""Tests of agents share random tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import FAMILIES, adapted_policy

from agents.engines.hf import SamplingLimits
from agents.lmm import LMMPolicy
from mmsearch_env.images import Image


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def policy(request: pytest.FixtureRequest) -> LMMPolicy:
    """A random adapted policy of each family; 12 tokens a completion."""
    return adapted_policy(request.param, limits=SamplingLimits(max_new_tokens=12))


def noise(seed: int, width: int = 168, height: int = 112) -> Image:
    """A picture of random pixels."""
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
