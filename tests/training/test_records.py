from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from bandit import GuessPolicy, GuessTask, guess_questions
from rich.console import Console

from mmsearch_env.errors import DataError
from training.curves import draw, running_mean
from training.progress import RunProgress
from training.records import MetricsFile, TensorBoard, Transcripts, read_metrics

VALUES = {"reward/mean": 0.5, "optimiser/grad_norm": float("inf")}


def test_one_line_per_iteration_and_no_infinities(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    file = MetricsFile(path, after=0)
    file.iteration(1, VALUES, [])
    file.iteration(2, {"reward/mean": 0.75}, [])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"iteration": 1, "reward/mean": 0.5, "optimiser/grad_norm": None},
        {"iteration": 2, "reward/mean": 0.75},
    ]


def test_a_resumed_run_drops_what_it_plays_again_and_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iteration": 3}\n{"itera')
    MetricsFile(path, after=2)
    assert read_metrics(path) == [{"iteration": 1}, {"iteration": 2}]


def test_a_line_broken_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"itera\n{"iteration": 3}\n')
    with pytest.raises(DataError, match="line 2: expected JSON"):
        read_metrics(path)


def test_a_metric_without_documentation_cannot_be_logged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made/up"):
        MetricsFile(tmp_path / "metrics.jsonl", after=0).iteration(1, {"made/up": 1.0}, [])


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    board = TensorBoard(tmp_path, after=0)
    board.iteration(1, {"reward/mean": 0.5}, [])
    (path,) = tmp_path.iterdir()
    values = [(event.step, value.tag) for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert values == [(1, "reward/mean")]


def test_transcripts_show_the_group_that_differs_most(tmp_path: Path) -> None:
    task = GuessTask(GuessPolicy(), guess_questions())
    groups = task.rollout(guess_questions(), group_size=4, seed=0, earlier=[0] * len(guess_questions()))
    writer = Transcripts(tmp_path, every=5, render=task.transcript)
    writer.iteration(4, {}, groups)
    writer.iteration(5, {}, groups)
    (path,) = tmp_path.iterdir()
    text = path.read_text()
    assert path.name == "000005.md"
    differing = max(groups, key=lambda group: len({item.episode_return for item in group.trajectories}))
    assert text == f"# Iteration 5, question {differing.question_id}\n\n{task.transcript(differing)}"


def test_curves_are_a_picture_of_the_promised_size(tmp_path: Path) -> None:
    lines = [
        {"iteration": n, "reward/mean": n / 20, "episode/accuracy": 0.5, "policy/entropy": None, "policy/kl": 0.1}
        for n in range(1, 21)
    ]
    lines[9]["evaluation/reward"] = 0.4
    ends = [{"iteration": 0, "test/reward": 0.1}, {"iteration": 20, "test/reward": 0.9}]
    draw(lines, tmp_path / "curves.png", title="a run", ends=ends)
    with PIL.Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1600, 1000)
        pixels = np.asarray(picture.convert("RGB"))
    assert (pixels == (0x1B, 0x6C, 0xA8)).all(-1).sum() > 500
    assert (pixels == (0x22, 0x30, 0x3C)).all(-1).sum() > 2 * 80  # the diamonds of the two ends


def test_running_mean_by_hand() -> None:
    assert running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected metrics to draw, got none"):
        draw([], tmp_path / "curves.png", title="a run")


SHOWN = {
    "reward/mean": 0.5,
    "episode/accuracy": 0.25,
    "episode/search_ratio": 1.0,
    "speed/sampled_tokens_per_s": 123.4,
    "speed/iteration_s": 2.0,
    "speed/rollout_share": 0.43,
    "speed/learn_share": 0.55,
}


def test_without_a_terminal_progress_is_a_line_per_iteration() -> None:
    text = StringIO()
    progress = RunProgress(Console(file=text, width=60), total=31, done=0)
    with progress.shown(), progress.phase("rollout"):
        progress.iteration(1, SHOWN, [])
    assert text.getvalue() == (
        "iteration  1/31  reward 0.500  accuracy 25%  search 100%  tokens/s 123  play 43%  learn 55%  2.0 s  "
        "left 0:01:00\n"
    )


def test_on_a_terminal_progress_is_a_bar_with_the_time_left() -> None:
    text = StringIO()
    progress = RunProgress(Console(file=text, width=160, force_terminal=True), total=2, done=0)
    with progress.shown(), progress.phase("learn"):
        progress.iteration(1, SHOWN, [])
    for part in ("learning", "1/2", "reward 0.500", "accuracy 25%", "search 100%", "learn 55%", "left"):
        assert part in text.getvalue()


STRIKES = """
import os, signal, sys, threading, time
from training.interrupt import stop_on_signals
number = signal.Signals[sys.argv[1]]
threading.Thread(target=time.sleep, args=(60,)).start()
with stop_on_signals() as stop:
    assert not stop.made
    os.kill(os.getpid(), number)
    assert (stop.made, stop.signal_name) == (True, number.name)
    os.kill(os.getpid(), number)
    print("asked", flush=True)
    time.sleep(1.2)
    os.kill(os.getpid(), number)
    print("went on", flush=True)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", -signal.SIGTERM)])
def test_a_signal_asks_its_echo_is_not_counted_and_a_later_one_ends(name: str, status: int) -> None:
    """Though a thread still works."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", STRIKES, name], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("asked\n", status)
    assert time.monotonic() - start < 30
