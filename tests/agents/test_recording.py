"""What is recorded comes back token by token, and damage is told with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from families import adapted_policy
from test_packing import group

from agents.engines.contract import SamplingLimits
from agents.recording import read_recording, write_recording
from agents.trajectory import Trajectory
from mmsearch_env.errors import DataError


@pytest.fixture(scope="module")
def episodes() -> list[Trajectory]:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=6))
    return group(policy, 0, 3)


def test_a_recording_comes_back(episodes: list[Trajectory], tmp_path: Path) -> None:
    assert write_recording(tmp_path, episodes[:2]) == 2
    assert write_recording(tmp_path, episodes[2:]) == 1
    assert read_recording(tmp_path) == episodes
    pictures = {image.digest for one in episodes for image in one.images}
    assert {path.stem for path in (tmp_path / "pictures").iterdir()} == pictures


def damaged(folder: Path, damage: str) -> None:
    lines = folder / "trajectories.jsonl"
    first, *rest = lines.read_text().splitlines()
    plain = json.loads(first)
    if damage == "picture":
        next((folder / "pictures").iterdir()).write_bytes(b"no picture")
    elif damage == "other picture":
        one, other = sorted((folder / "pictures").iterdir())[:2]
        one.write_bytes(other.read_bytes())
    elif damage == "no json":
        first = first[:50]
    elif damage == "missing key":
        del plain["turns"][0]["kind"]
    elif damage == "path":
        plain["turns"][0]["images"] = ["../../etc/passwd"]
    elif damage == "lengths":
        plain["turns"][0]["completion"]["logprobs"].pop()
    elif damage == "list":
        plain = ["a", "list"]
    first = json.dumps(plain) if damage != "no json" else first
    lines.write_text("\n".join([first, *rest, ""]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("picture", "line 1: expected a picture"),
        ("other picture", "expected the picture of that digest"),
        ("no json", "line 1: Unterminated|line 1: Expecting|line 1: Invalid"),
        ("missing key", "line 1: expected a recorded trajectory, got .*kind"),
        ("path", "line 1: expected the digest of a picture, got '../../etc/passwd'"),
        ("lengths", "line 1: expected a recorded trajectory, got ValueError: expected one logprob per token"),
        ("list", "line 1: "),
    ],
)
def test_damage_is_told_with_its_line(episodes: list[Trajectory], tmp_path: Path, damage: str, message: str) -> None:
    write_recording(tmp_path, episodes)
    damaged(tmp_path, damage)
    with pytest.raises(DataError, match=message):
        read_recording(tmp_path)


def test_what_a_kill_cut_off_is_passed_over_and_gone_on_from(episodes: list[Trajectory], tmp_path: Path) -> None:
    write_recording(tmp_path, episodes[:2])
    lines = tmp_path / "trajectories.jsonl"
    lines.write_bytes(lines.read_bytes()[:-40])
    assert read_recording(tmp_path) == episodes[:1]
    write_recording(tmp_path, episodes[2:])
    assert read_recording(tmp_path) == [episodes[0], episodes[2]]


def test_a_folder_without_a_recording_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a recording"):
        read_recording(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="expected to write a recording"):
        write_recording(tmp_path / "file", [])
