"""The only file that knows DeepSpeed: processes, backward, optimiser step, and what a checkpoint keeps of them.

Same code for one process or many, CPU (gloo) or GPU (NCCL). Started by plain ``python``, it sets the launcher's
variables itself; under ``deepspeed`` and ``torchrun`` it takes theirs. No C++ extension is built: the shared-memory
collective is switched off and the optimiser is torch's AdamW.

Losses add up: an update is any number of :meth:`Engine.backward` calls on any number of ranks, then one
:meth:`Engine.step`. Nothing is divided behind the caller's back.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from mmsearch_env.errors import ConfigError, DataError, PolicyError

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands among the others.

    Attributes:
        rank: 0 .. world_size - 1.
        world_size: processes of the run.
        device: what this process computes on.
    """

    rank: int
    world_size: int
    device: torch.device


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) and the gradient clip before it.

    Attributes:
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squared gradients.
        epsilon: added to the denominator.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled down to this global 2-norm.
        rates: beginning of a parameter's name -> what the learning rate is multiplied by for it.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OptimiserState:
    """What AdamW remembers, whole and per parameter, whatever the number of ranks it was spread over.

    Attributes:
        steps: updates applied.
        tensors: ``"exp_avg/<parameter>"`` and ``"exp_avg_sq/<parameter>"``; empty before the first update.
    """

    steps: int
    tensors: Mapping[str, Tensor]


def join(*, timeout_s: float = 1800.0) -> Place:
    """Meet the other processes of the run; a process without a launcher is a run of one.

    Raises:
        ConfigError: only some of a launcher's variables are set, or more processes than GPUs were started.
    """
    _fill_launcher_variables()
    gpu = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if gpu else "cpu")
    local_rank = int(os.environ["LOCAL_RANK"])
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"expected at most {torch.cuda.device_count()} processes here, one for each GPU, got local rank "
                f"{local_rank}; start fewer (make PROCESSES=1 ...), or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
            )
        torch.cuda.set_device(local_rank)
    if not torch.distributed.is_initialized():
        deepspeed = _deepspeed()
        deepspeed.init_distributed(
            dist_backend="nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout_s), verbose=False
        )
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    return Place(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)


def wait_for_all() -> None:
    """Return when every process has come here."""
    torch.distributed.barrier()


def leave() -> None:
    """Part from the other processes; the last thing a run does. A later :func:`join` begins anew."""
    if torch.distributed.is_initialized():
        # DeepSpeed's own call: it also forgets the groups it keeps, which a later run in this process would trip over.
        _deepspeed().comm.destroy_process_group()


class Engine:
    """Trains one module's trainable parameters, together with the same engine on every other rank."""

    def __init__(
        self, module: nn.Module, *, place: Place, adam: AdamSettings | None = None, zero_stage: int = 1
    ) -> None:
        """
        Args:
            module: called as ``module(...)`` through :meth:`forward`; its trainable parameters must be float32.
            place: what :func:`join` returned.
            adam: the optimiser's settings.
            zero_stage: 1 shards the optimiser's state over the ranks, 2 the gradients too.

        Raises:
            PolicyError: nothing to train, or trainable parameters in another number format.
        """
        self.place = place
        self._module = module
        self._named = _trainable(module)
        adam = adam or AdamSettings()
        optimiser = torch.optim.AdamW(
            _parameter_groups(self._named, adam.rates),
            lr=0.0,
            betas=(adam.beta1, adam.beta2),
            eps=adam.epsilon,
            weight_decay=adam.weight_decay,
        )
        with _quiet():
            self._engine, *_ = _deepspeed().initialize(
                model=module,
                model_parameters=[parameter for _, parameter in self._named],
                optimizer=optimiser,
                config=_settings(adam.max_grad_norm, zero_stage),
            )
        self._steps = 0
        module.eval()

    def close(self) -> None:
        """Let go of the parameters, so that another engine may train them; this one is of no further use."""
        with _quiet():
            self._engine.destroy()

    def forward(self, *arguments: Any) -> Any:
        """Call the module, with gradient."""
        self._module.train()
        return self._engine(*arguments)

    def score(self, *arguments: Any) -> Any:
        """Call the module without gradient."""
        self._module.eval()
        with torch.no_grad():
            return self._module(*arguments)

    def backward(self, loss: Tensor) -> None:
        """Add a loss to the update. The update's loss is the sum over all calls on all ranks.

        Every rank must make the same number of calls between two steps; one that has less to do adds ``0 * loss``.
        """
        # DeepSpeed averages gradients over ranks; we want their sum.
        with _quiet():
            self._engine.backward(loss * self.place.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        """Clip and apply the gradients added so far.

        Returns:
            The global 2-norm of the gradient before clipping; infinite when it was not finite, and then the update
            was skipped and the gradients dropped.
        """
        for group in self._engine.optimizer.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        with _quiet():
            self._engine.step()
        self._module.eval()
        self._steps += int(self._engine.was_step_applied())
        return float(self._engine.get_global_grad_norm())

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
        data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.place.device)
        sizes = [torch.zeros((), dtype=torch.long, device=self.place.device) for _ in range(self.place.world_size)]
        torch.distributed.all_gather(sizes, torch.tensor(len(data), device=self.place.device))
        longest = max(int(size) for size in sizes)
        padded = [torch.zeros(longest, dtype=torch.uint8, device=self.place.device) for _ in sizes]
        torch.distributed.all_gather(padded, torch.nn.functional.pad(data, (0, longest - len(data))))
        return [bytes(row[: int(size)].tolist()).decode() for row, size in zip(padded, sizes, strict=True)]

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        wait_for_all()

    def optimiser_state(self) -> OptimiserState:
        """The optimiser's state, gathered from all ranks; every rank must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._steps:
            return OptimiserState(0, {})
        tensors = {
            f"{moment}/{name}": safe_get_full_optimizer_state(parameter, moment).cpu()
            for name, parameter in self._named
            for moment in _MOMENTS
        }
        return OptimiserState(self._steps, tensors)

    def load_optimiser_state(self, state: OptimiserState) -> None:
        """Continue from a saved state, on any number of ranks. Call it before the first step.

        Raises:
            DataError: the state belongs to other parameters.
        """
        from deepspeed.utils import safe_set_full_optimizer_state

        self._steps = state.steps
        if not state.steps:
            return
        self._check_names(state.tensors)
        self._make_moments(state.steps)
        for name, parameter in self._named:
            for moment in _MOMENTS:
                saved = state.tensors[f"{moment}/{name}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, saved, moment)

    def _make_moments(self, steps: int) -> None:
        """Give torch's AdamW the state it would only make in its first step, so that there is something to fill."""
        zero = self._engine.optimizer
        for flat in zero.single_partition_of_fp32_groups:
            zero.optimizer.state[flat] = {
                "step": torch.tensor(float(steps)),
                **{moment: torch.zeros_like(flat) for moment in _MOMENTS},
            }
        zero._lazy_init_hp_params_optimizer_state()

    def _check_names(self, tensors: Mapping[str, Tensor]) -> None:
        expected = {f"{moment}/{name}": parameter.shape for name, parameter in self._named for moment in _MOMENTS}
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


def _settings(max_grad_norm: float, zero_stage: int) -> dict[str, Any]:
    return {
        # Batch sizes are DeepSpeed's bookkeeping only: with unmanaged accumulation our step() is the boundary.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "steps_per_print": 10**9,
        # overlap_comm has produced wrong gradients at stage 2 (DeepSpeed issues 5347, 5294, 4298)
        "zero_optimization": {"stage": zero_stage, "overlap_comm": False},
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


def _parameter_groups(named: list[tuple[str, nn.Parameter]], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters that learn at the same rate."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = next((rate for beginning, rate in rates.items() if name.startswith(beginning)), 1.0)
        found.setdefault(rate, []).append(parameter)
    return [{"params": parameters, "rate": rate} for rate, parameters in found.items()]


def _fill_launcher_variables() -> None:
    needed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in needed if name in os.environ]
    if present and len(present) < len(needed):
        missing = ", ".join(name for name in needed if name not in present)
        raise ConfigError(
            f"expected all of {', '.join(needed)} or none, got no {missing}; start with torchrun or deepspeed, "
            f"or unset {', '.join(present)}"
        )
    if not present:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(_free_port()))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _deepspeed() -> Any:
    """The library, without its C++ builds and its chatter."""
    with _quiet():
        import deepspeed
        import deepspeed.ops
        from deepspeed.runtime.engine import DeepSpeedEngine

    if not hasattr(DeepSpeedEngine, "managed_gradient_accumulation"):
        raise ConfigError(
            f"expected a DeepSpeed whose gradient accumulation the caller manages, got {deepspeed.__version__}; "
            "install the version in constraints.txt"
        )
    # Compiled on first use (minutes, and a stale lock hangs later starts); gloo does the same work without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def _quiet() -> Iterator[None]:
    """Mute DeepSpeed's log lines and the deprecation warnings of what it imports and calls."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
