"""Backward, optimiser step, and what a checkpoint keeps of them, spread over ranks by DeepSpeed's ZeRO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from mmsearch_env.errors import DataError, PolicyError
from training.engine.adam import MOMENTS, AdamSettings, CheckedAdamW, OptimiserState, parameter_groups
from training.engine.library import deepspeed_library, quiet
from training.engine.moments import Named, gathered_moments, set_moments, shape_of
from training.engine.processes import Place, wait_for_all


class Engine:
    """Trains one module's trainable parameters, together with the same engine on every other rank."""

    def __init__(
        self,
        module: nn.Module,
        *,
        place: Place,
        adam: AdamSettings | None = None,
        zero_stage: int = 1,
        offload: Literal["none", "cpu"] = "none",
    ) -> None:
        """
        Args:
            module: called as ``module(...)`` through :meth:`forward`; its trainable parameters must be float32.
            place: what :func:`join` returned.
            adam: the optimiser's settings.
            zero_stage: 0 holds everything on every rank, 1 shards the optimiser's state over the ranks, 2 the gradients
                too, 3 the parameters too, frozen ones included.
            offload: where parameters and optimiser state lie while they are not used, at stage 3.

        Raises:
            PolicyError: nothing to train, or trainable parameters in another number format.
        """
        self.place = place
        self.shards_parameters = zero_stage == 3
        """Whether a pass on one rank needs all the others to make one too."""
        self.can_drop_gradients = zero_stage < 2
        """Whether an update can be begun anew: from stage 2 on, gradients are spread out as soon as they are made."""
        self._module = module
        self._stage = zero_stage
        self._named = _trainable(module)
        adam = adam or AdamSettings()
        with quiet():
            self._engine, *_ = deepspeed_library().initialize(
                model=module,
                model_parameters=[parameter for _, parameter in self._named],
                optimizer=_optimiser(self._named, adam, zero_stage),
                config=_settings(adam.max_grad_norm, zero_stage, offload),
            )
        self._steps = 0
        module.eval()

    def close(self) -> None:
        """Let go of the parameters, so that another engine may train them; this one is of no further use."""
        with quiet():
            self._engine.destroy()

    def forward(self, *arguments: Any) -> Any:
        """Call the module, with gradient."""
        self._module.train()
        with quiet():
            return self._engine(*arguments)

    def score(self, *arguments: Any) -> Any:
        """Call the module without gradient."""
        self._module.eval()
        with torch.no_grad(), quiet():
            return self._module(*arguments)

    @contextmanager
    def gathered(self, which: Literal["all", "trained"] = "all") -> Iterator[None]:
        """Inside, this rank has whole parameters and may use the module without the others, as for sampling.

        Every rank must enter. Below stage 3 parameters are always whole.
        """
        if not self.shards_parameters:
            yield
            return
        parameters = [one for one in self._module.parameters() if which == "all" or one.requires_grad]
        hooks = self._engine.optimizer.parameter_offload
        # The hooks would give parameters back after the first pass, and wait for the other ranks in the next.
        hooks._remove_module_hooks()
        try:
            with quiet(), deepspeed_library().zero.GatheredParameters(parameters):
                yield
        finally:
            hooks.setup_zero_stage3_hooks()

    def backward(self, loss: Tensor) -> None:
        """Add a loss to the update. The update's loss is the sum over all calls on all ranks.

        Every rank must make the same number of calls between two steps; one that has less to do adds ``0 * loss``.
        """
        # DeepSpeed averages gradients over ranks; we want their sum.
        with quiet():
            self._engine.backward(loss * self.place.world_size, scale_wrt_gas=False)

    def drop_gradients(self) -> None:
        """Forget the gradients added so far. Only where ``can_drop_gradients``."""
        with quiet():
            (self._engine if self._stage == 0 else self._engine.optimizer).zero_grad()

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients added so far.

        Returns:
            The global 2-norm of the gradient before clipping; infinite when it was not finite, and then the update
            was skipped and the gradients dropped.
        """
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate * group["rate"]
        with quiet():
            self._engine.step()
        self._module.eval()
        self._steps += int(self._engine.was_step_applied())
        return float(self._engine.get_global_grad_norm())

    @property
    def _adamw(self) -> torch.optim.AdamW:
        found: torch.optim.AdamW = self._engine.optimizer if self._stage == 0 else self._engine.optimizer.optimizer
        return found

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over ranks; every rank gives the same names."""
        return self._reduced(values, torch.distributed.ReduceOp.SUM)

    def largest(self, values: Mapping[str, float]) -> dict[str, float]:
        """Largest values over ranks; every rank gives the same names."""
        return self._reduced(values, torch.distributed.ReduceOp.MAX)

    def texts(self, text: str) -> list[str]:
        """Every rank's text, in order of ranks; every rank must call it."""
        if self.place.world_size == 1:
            return [text]
        data = self._bytes_of(text)
        sizes = [torch.zeros((), dtype=torch.long, device=self.place.device) for _ in range(self.place.world_size)]
        torch.distributed.all_gather(sizes, torch.tensor(len(data), device=self.place.device))
        longest = max(int(size) for size in sizes)
        padded = [torch.zeros(longest, dtype=torch.uint8, device=self.place.device) for _ in sizes]
        torch.distributed.all_gather(padded, torch.nn.functional.pad(data, (0, longest - len(data))))
        return [row[: int(size)].cpu().numpy().tobytes().decode() for row, size in zip(padded, sizes, strict=True)]

    def passed(self, text: str, *, source: int, target: int) -> str:
        """The source's text on the target, "" on all others; these two must call it."""
        if self.place.rank == source:
            data = self._bytes_of(text)
            torch.distributed.send(torch.tensor([len(data)], device=self.place.device), target)
            torch.distributed.send(data, target)
        elif self.place.rank == target:
            size = torch.zeros(1, dtype=torch.long, device=self.place.device)
            torch.distributed.recv(size, source)
            data = torch.zeros(int(size), dtype=torch.uint8, device=self.place.device)
            torch.distributed.recv(data, source)
            return data.cpu().numpy().tobytes().decode()
        return ""

    def _bytes_of(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy()).to(self.place.device)

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        wait_for_all()

    def optimiser_state(self) -> OptimiserState:
        """The optimiser's state, gathered from all ranks; every rank must call it."""
        if not self._steps:
            return OptimiserState(0, {})
        with quiet():
            tensors = gathered_moments(self._engine.optimizer, self._named, stage=self._stage)
        return OptimiserState(self._steps, tensors)

    def load_optimiser_state(self, state: OptimiserState) -> None:
        """Continue from a saved state, on any number of ranks. Call it before the first step.

        Raises:
            DataError: the state belongs to other parameters.
        """
        self._steps = state.steps
        if not state.steps:
            return
        self._check_names(state.tensors)
        with quiet():
            set_moments(self._engine.optimizer, self._named, state.tensors, stage=self._stage, steps=state.steps)

    def _check_names(self, tensors: Mapping[str, Tensor]) -> None:
        expected = {f"{moment}/{name}": shape_of(parameter) for name, parameter in self._named for moment in MOMENTS}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if expected != found:
            odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise DataError(
                f"expected an optimiser state of this policy's parameters, got {len(odd)} that differ "
                f"(the first: {odd[0]}); resume with the model and adapter settings of the checkpoint"
            )

    def _reduced(self, values: Mapping[str, float], operation: Any) -> dict[str, float]:
        if self.place.world_size == 1 or not values:
            return dict(values)
        names = sorted(values)
        packed = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self.place.device)
        torch.distributed.all_reduce(packed, op=operation)
        return dict(zip(names, packed.tolist(), strict=True))


def _optimiser(named: Named, adam: AdamSettings, zero_stage: int) -> torch.optim.AdamW:
    settings: dict[str, Any] = {
        "lr": 0.0,
        "betas": (adam.beta1, adam.beta2),
        "eps": adam.epsilon,
        "weight_decay": adam.weight_decay,
    }
    groups = parameter_groups(named, adam.rates)
    if zero_stage == 0:
        return CheckedAdamW(groups, max_grad_norm=adam.max_grad_norm, **settings)
    return torch.optim.AdamW(groups, **settings)


def _settings(max_grad_norm: float, zero_stage: int, offload: str) -> dict[str, Any]:
    # overlap_comm has produced wrong gradients at stage 2 (DeepSpeed issues 5347, 5294, 4298)
    zero: dict[str, Any] = {"stage": zero_stage, "overlap_comm": False}
    if offload == "cpu":
        zero |= {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    return {
        # Batch sizes are DeepSpeed's bookkeeping only: with unmanaged accumulation our step() is the boundary.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if zero_stage == 0 else max_grad_norm,  # without ZeRO the optimiser clips
        "steps_per_print": 10**9,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise PolicyError("expected a policy with trainable parameters, got none; load it with an adapter")
    odd = next((name for name, parameter in named if parameter.dtype != torch.float32), None)
    if odd is not None:
        dtype = dict(named)[odd].dtype
        raise PolicyError(f"expected float32 trainable parameters, got {dtype} in {odd}; keep the adapter in float32")
    return named
