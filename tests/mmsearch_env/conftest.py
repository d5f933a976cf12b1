"""Fake servers of search services for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

# Tests are imported by path, so what they share is found by path too.
sys.path.insert(0, str(Path(__file__).parent))
