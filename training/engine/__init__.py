"""The only folder that knows DeepSpeed: processes, backward, optimiser step, and what a checkpoint keeps of them.

Same code for one process or many, CPU (gloo) or GPU (NCCL). Started by plain ``python``, it sets the launcher's
variables itself; under ``deepspeed`` and ``torchrun`` it takes theirs. No C++ extension is built: the shared-memory
collective is switched off and the optimiser is torch's AdamW.

Losses add up: an update is any number of :meth:`Engine.backward` calls on any number of ranks, then one
:meth:`Engine.step`. Nothing is divided behind the caller's back.
"""

from __future__ import annotations

from training.engine.adam import AdamSettings, OptimiserState
from training.engine.processes import Place, join, leave, wait_for_all
from training.engine.zero import Engine

__all__ = ["AdamSettings", "Engine", "OptimiserState", "Place", "join", "leave", "wait_for_all"]
