from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmsearch_env.errors import DataError
from training.checkpoint import latest, write, write_folder, write_text
from training.engine import OptimiserState

OPTIMISER = OptimiserState(7, {"exp_avg/a": torch.arange(3.0), "exp_avg_sq/a": torch.ones(3)})


def save(folder: Path, iteration: int, *, keep: int = 2, text: str = "weights") -> Path:
    return write(
        folder,
        iteration=iteration,
        save_adapter=lambda place: (place / "adapter.txt").write_text(text),
        optimiser=OPTIMISER,
        state={"counters": {"iteration": iteration}},
        keep=keep,
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    save(tmp_path / "deep" / "down", 5)
    found = latest(tmp_path / "deep" / "down")
    assert found is not None
    assert found.state["counters"] == {"iteration": 5}
    assert (found.adapter / "adapter.txt").read_text() == "weights"
    optimiser = found.optimiser()
    assert optimiser.steps == 7
    assert optimiser.tensors["exp_avg/a"].tolist() == [0.0, 1.0, 2.0]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for iteration in (2, 10, 4, 9):
        save(tmp_path, iteration)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000009", "000010"]


def test_nothing_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_a_checkpoint_cut_off_while_written_does_not_count(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".writing-000002" / "adapter").mkdir(parents=True)
    found = latest(tmp_path)
    assert found is not None
    assert found.folder.name == "000001"
    save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000001", "000002"]


def test_a_failed_write_leaves_earlier_checkpoints_and_no_rubbish(tmp_path: Path) -> None:
    save(tmp_path, 1, keep=1)

    def full_disk(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="000002: expected to write a checkpoint, got .*No space left.*make room"):
        write(tmp_path, iteration=2, save_adapter=full_disk, optimiser=OPTIMISER, state={}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


def test_a_checkpoint_already_there_is_left_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 1, text="other")
    assert (path / "adapter" / "adapter.txt").read_text() == "weights"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "expected a checkpoint's state"), ('{"format": 0}', "expected format 1, got 0")]
)
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    (save(tmp_path, 1) / "state.json").write_text(text)
    with pytest.raises(DataError, match=message):
        latest(tmp_path)


def test_an_optimiser_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "optimiser.safetensors").write_bytes(b"torn")
    found = latest(tmp_path)
    assert found is not None
    with pytest.raises(DataError, match=r"optimiser\.safetensors: expected an optimiser state"):
        found.optimiser()


def test_a_text_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected to write the file"):
        write_text(tmp_path / "file" / "a.json", "x")


def test_an_adapter_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_folder(folder, lambda place: (place / "old").touch())
    write_folder(folder, lambda place: (place / "new").touch())
    assert [path.name for path in folder.iterdir()] == ["new"]

    def full_disk(place: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="adapter: expected to write the folder"):
        write_folder(folder, full_disk)
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "new"]
