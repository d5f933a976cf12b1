"""Several values of a setting, trained and compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from tiny_run import RECIPE

from training import sweep
from training.folder import Folder


def outcome(number: int, *, reward: float, searched: float) -> dict[str, object]:
    return {
        "question_id": str(number), "cluster": str(number), "reward": reward, "accuracy": reward, "searched": searched,
        "category": "search_free" if number % 2 else "both_required", "image_searches": 0.0, "text_searches": searched,
        "valid": 1.0, "truncated": 0.0,
    }  # fmt: skip


def finished(folder: Path, *, gain: float) -> Folder:
    """A run whose every question gained as much; where a search is needed it searches afterwards, elsewhere before."""
    folder.mkdir(parents=True)
    found = Folder(folder)
    for path, reward, flip in ((found.before, 0.2, 0), (found.after, 0.2 + gain, 1)):
        rows = [outcome(n, reward=reward, searched=float((n + flip) % 2)) for n in range(20)]
        path.write_text(json.dumps({"outcomes": rows}))
    found.metrics.write_text("".join(json.dumps({"iteration": n, "speed/iteration_s": n}) + "\n" for n in (1, 2, 9)))
    return found


def test_a_row_is_the_change_over_seeds(tmp_path: Path) -> None:
    row = sweep.row_of("grpo", [finished(tmp_path / str(seed), gain=gain) for seed, gain in enumerate((0.1, 0.3))])
    assert row.reward.mean == pytest.approx(0.2)
    assert 0.1 <= row.reward.low < row.reward.mean < row.reward.high <= 0.3 + 1e-9
    assert row.after == pytest.approx((0.3, 0.5))
    assert row.searched.mean == 0.0
    assert row.gap is not None and row.gap.mean == pytest.approx(2.0)
    assert row.seconds == 2.0
    console = Console(width=80, record=True)
    console.print(sweep.table([row], varied="algorithm.name", seeds=2))
    shown = console.export_text()
    assert "+0.200" in shown and "+0.10…+0.30" in shown


def test_it_trains_each_value_and_does_nothing_twice(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    arguments = [
        str(tmp_path / "recipe.yaml"),
        *("--vary", "algorithm.name=grpo,rloo", "--seeds", "0", "--processes", "1"),
        *("--folder", str(tmp_path / "sweep"), "iterations=1", f"policy.model={model}"),
    ]
    assert sweep.main(arguments) == 0
    rows = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]
    assert [row["value"] for row in rows] == ["grpo", "rloo"]
    kept = (tmp_path / "sweep" / "rloo" / "0" / "after.json").stat().st_mtime_ns
    assert sweep.main(arguments) == 0
    assert (tmp_path / "sweep" / "rloo" / "0" / "after.json").stat().st_mtime_ns == kept


def test_a_mistake_is_told_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["quickstart", "--vary", "algorithm.name=grpo,gpro", "--folder", str(tmp_path)]) == 2
    assert "algorithm.name: expected" in capsys.readouterr().err
    assert sweep.main(["quickstart", "--vary", "algorithm.name", "--folder", str(tmp_path)]) == 2
    assert "--vary: expected section.key=A,B" in capsys.readouterr().err
    for given in ("output.folder=elsewhere", "seed=3"):
        arguments = ["quickstart", given, "--vary", "algorithm.name=grpo,rloo", "--folder", str(tmp_path)]
        assert sweep.main(arguments) == 2
        assert f"expected no '{given}'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
