"""Tests of agents share random tiny models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from families import FAMILIES, adapted_policy

from agents.engines.contract import SamplingLimits
from agents.lmm import LMMPolicy


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def policy(request: pytest.FixtureRequest) -> LMMPolicy:
    """A random adapted policy of each family; 12 tokens a completion."""
    return adapted_policy(request.param, limits=SamplingLimits(max_new_tokens=12))
