"""What AdamW remembers, whole and by parameter, whatever stage of ZeRO it is spread by.

Where it lies: without ZeRO under each parameter; at stages 1 and 2 in one flat tensor for each group of parameters, of
which a rank holds a part; at stage 3 likewise, and each parameter is cut on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.engine.adam import MOMENTS

Named = Sequence[tuple[str, nn.Parameter]]


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """Of the whole parameter, of which this rank may hold nothing."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def gathered_moments(optimiser: Any, named: Named, *, stage: int) -> dict[str, Tensor]:
    """``"exp_avg/<parameter>"`` and so on, from all ranks; every rank must call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    if stage in (1, 2):
        # DeepSpeed links parameters to their moments once, when only the first group's have been made.
        optimiser._hp_optimizer_states_linked = False
        optimiser._lazy_init_hp_params_optimizer_state()

    def whole(parameter: nn.Parameter, moment: str) -> Tensor:
        found = optimiser.state[parameter][moment] if stage == 0 else safe_get_full_optimizer_state(parameter, moment)
        # A copy: what is saved must not change with the next update.
        copied: Tensor = found.detach().to("cpu", copy=True).reshape(shape_of(parameter))
        return copied

    return {f"{moment}/{name}": whole(parameter, moment) for name, parameter in named for moment in MOMENTS}


def set_moments(optimiser: Any, named: Named, tensors: Mapping[str, Tensor], *, stage: int, steps: int) -> None:
    """Make the state that torch's AdamW would only make in its first step, and fill it.

    Args:
        optimiser: DeepSpeed's, or AdamW itself without ZeRO.
        named: the parameters.
        tensors: as :func:`gathered_moments` gave them.
        stage: of ZeRO.
        steps: updates applied so far.
    """
    if stage == 0:
        for name, parameter in named:
            moments = {moment: tensors[f"{moment}/{name}"].to(parameter, copy=True) for moment in MOMENTS}
            optimiser.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
        return
    flat = optimiser.fp32_partitioned_groups_flat if stage == 3 else optimiser.single_partition_of_fp32_groups
    for part in flat:
        moments = {moment: torch.zeros_like(part) for moment in MOMENTS}
        optimiser.optimizer.state[part] = {"step": torch.tensor(float(steps)), **moments}
    if stage < 3:
        optimiser._lazy_init_hp_params_optimizer_state()
    for name, parameter in named:
        for moment in MOMENTS:
            _set(optimiser, parameter, moment, tensors[f"{moment}/{name}"], stage)


def _set(optimiser: Any, parameter: nn.Parameter, moment: str, whole: Tensor, stage: int) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state

    if stage < 3:
        safe_set_full_optimizer_state(parameter, whole.to(parameter.device), moment)
        return
    # DeepSpeed's own call trips over parameters that the ranks do not divide evenly: the last part is padded.
    own, _ = optimiser._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=moment)
    padded = nn.functional.pad(whole.flatten(), (0, own.numel() * optimiser.partition_count - whole.numel()))
    start = own.numel() * optimiser._get_param_partition_rank(parameter)
    own.copy_(padded[start : start + own.numel()])
