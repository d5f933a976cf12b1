"""The example of the documents: an algorithm that knows only Gymnasium learns here."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def path(root: Path) -> Path:
    return root / "docs" / "examples" / "plug_in.py"


@pytest.fixture
def plug_in(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plug_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_imports_nothing_of_ours(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported == {"__future__", "typing", "gymnasium", "numpy"}


@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns(plug_in: ModuleType, seed: int) -> None:
    returns = plug_in.learn(seed=seed)
    assert len(returns) == plug_in.EPISODES
    early, late = np.mean(returns[:100]), np.mean(returns[-200:])
    assert late > early + 0.2
    assert late > 0.3
