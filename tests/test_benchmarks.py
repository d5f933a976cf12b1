"""Every benchmark runs and reports what it is for; its figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
REPORTED = {
    "text_search": "by_documents",
    "image_search": "by_size",
    "cache": "one_flight",
    "server": "loads",
    "episodes": "ways",
    "trainer": "table",
    "trainer_growth": "table",
    "overlap": "table",
}


def test_every_benchmark_is_run() -> None:
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {
        "measuring",
        "search_r1_peer",
        "trainer_bound",
        "trainer_models",
        "trainer_peer",
    }
    assert scripts == set(REPORTED)


@pytest.mark.parametrize("name", REPORTED)
def test_a_benchmark_reports_one_json_object(name: str) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py", "--quick"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["benchmark"] == name and found[REPORTED[name]] and found["machine"]["cores"] >= 1
