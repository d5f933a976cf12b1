"""Trackers beside TensorBoard; those that are not installed here are told apart, not imitated."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from training.trackers import Tracker, open_tracker


def test_every_finite_number_is_sent_and_an_unknown_name_is_refused() -> None:
    sent: list[tuple[dict[str, float], int]] = []
    tracker = Tracker(lambda values, step: sent.append((values, step)))
    tracker.iteration(3, {"reward/mean": 0.5, "loss/total": math.nan}, [])
    assert sent == [({"reward/mean": 0.5}, 3)]
    with pytest.raises(ValueError, match="reward/maen"):
        tracker.iteration(4, {"reward/maen": 0.5}, [])


def test_a_resumed_run_goes_on_in_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what would be sent is written to the run's folder."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    identities = set()
    for number in (1, 2):
        tracker = open_tracker("wandb", folder=tmp_path / "run", project="p", config={"seed": 0})
        tracker.iteration(number, {"reward/mean": 0.5}, [])
        assert wandb.run is not None
        identities.add(wandb.run.id)
        wandb.finish()
    assert len(identities) == 1
    assert list((tmp_path / "run").rglob("*.wandb"))


@pytest.mark.filterwarnings("ignore")  # of its own dependencies
def test_what_mlflow_gets_is_what_was_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for number in (1, 2):
        tracker = open_tracker("mlflow", folder=tmp_path, project="p", config={"a": {"b": 1}})
        tracker.iteration(number, {"reward/mean": number / 2}, [])
    (run,) = mlflow.MlflowClient().search_runs(["1"])
    assert run.data.params == {"a.b": "1"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "reward/mean")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 1.0)]
