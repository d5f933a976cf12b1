"""A stage of supervised training that can be killed and goes on: its weights and optimiser, kept every few updates."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from mmsearch_env.errors import DataError
from training import checkpoint
from training.engine import Engine

_WEIGHTS = "weights.safetensors"


class Stage:
    """One stage's folder. Everything else a stage depends on is a function of its update's number."""

    def __init__(self, folder: Path | None, *, made_of: str = "", every: int = 200) -> None:
        """
        Args:
            folder: where to keep it; None to keep nothing.
            made_of: states all that the stage depends on; a stage made of something else is refused.
            every: updates between two checkpoints.
        """
        self._folder = folder
        self._made_of = made_of
        self._every = every

    def weights_into(self, module: nn.Module) -> int:
        """Put the newest checkpoint's weights into a module, and give the update to go on with; 0 without one.

        Call it before the engine is made: the engine copies the weights it finds.

        Raises:
            DataError: the checkpoint is of another module, or was made of something else.
        """
        found = None if self._folder is None else checkpoint.latest(self._folder)
        if found is None:
            return 0
        if found.state.get("made_of") != self._made_of:
            raise DataError(
                f"{found.folder}: expected a stage of this recipe, got another's; delete {found.folder.parent.parent} "
                "to begin anew, or call the recipe that began it"
            )
        saved = load_file(found.adapter / _WEIGHTS)
        own = _trained(module)
        if {name: value.shape for name, value in saved.items()} != {name: value.shape for name, value in own.items()}:
            raise DataError(f"{found.folder}: expected weights of this model, got others; delete {self._folder}")
        for name, parameter in own.items():
            parameter.data.copy_(saved[name])
        return int(found.state["iteration"])

    def optimiser_into(self, engine: Engine) -> None:
        """Put the newest checkpoint's optimiser state into an engine that has made no step."""
        found = None if self._folder is None else checkpoint.latest(self._folder)
        if found is not None:
            engine.load_optimiser_state(found.optimiser())

    def keep(self, module: nn.Module, engine: Engine, *, done: int, of: int) -> None:
        """Write a checkpoint after ``done`` of ``of`` updates when it is time; every rank calls it.

        Raises:
            DataError: the disk is full or not writable.
        """
        if self._folder is None or (done % self._every and done != of):
            return
        optimiser = engine.optimiser_state()
        if engine.place.rank == 0:
            checkpoint.write(
                self._folder,
                iteration=done,
                save_adapter=lambda folder: save_file(
                    {name: value.detach().cpu().contiguous() for name, value in _trained(module).items()},
                    folder / _WEIGHTS,
                ),
                optimiser=optimiser,
                state={"made_of": self._made_of},
                keep=1,
            )
        engine.wait_for_all()


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """What a stage changes; the rest is as whoever begins the stage made it."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


NOT_KEPT = Stage(None)
"""A stage that is not kept."""
