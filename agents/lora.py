"""The LoRA adapter of a policy: the only file that knows peft."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from mmsearch_env.errors import PolicyError

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """The adapter on the language model's linear layers (Hu et al. 2021, arXiv 2106.09685).

    Attributes:
        rank: r, the adapter's inner width.
        alpha: the update is scaled by alpha / rank.
    """

    rank: int = 16
    alpha: float = 32.0

    @classmethod
    def stored(cls, folder: str | Path) -> Self:
        """The settings of an adapter in PEFT's format. Raises PolicyError if there is none."""
        try:
            found = LoraConfig.from_pretrained(str(folder))
        except (OSError, ValueError) as error:
            raise PolicyError(
                f"expected an adapter in {folder}, got {error}; give a folder made by save_adapter"
            ) from error
        return cls(found.r, found.lora_alpha)

    @classmethod
    def of(cls, model: Any) -> Self:
        """The settings of a model's own adapter. Raises PolicyError if it has none."""
        configs = list(getattr(model, "peft_config", {}).values())
        if not configs:
            raise PolicyError("expected a model with a LoRA adapter, got a bare one; load it with lora=LoRASettings()")
        return cls(configs[0].r, configs[0].lora_alpha)


def adapter_is_on(model: Any) -> bool:
    """Whether the model has an adapter that takes part in what it computes."""
    return any(getattr(module, "disable_adapters", True) is False for module in model.modules())


def with_adapter(model: Any, lora: LoRASettings) -> Any:
    """The model with a fresh float32 LoRA adapter on its language model; the vision tower stays frozen and untouched.

    Raises:
        PolicyError: no linear layer of a language model was found.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.rsplit(".", 1)[-1] in _PROJECTIONS
        and re.search(r"language_model|text_model", name)
    ]
    if not names:
        raise PolicyError("expected linear layers under a language model, got none; this architecture is not supported")
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names)
    with warnings.catch_warnings():  # peft still asks the model by names that transformers has deprecated
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # Small steps vanish in bfloat16: the adapter is float32 whatever the base weights are.
            parameter.data = parameter.data.float()
    return adapted


def read_adapter(model: Any, folder: Path) -> None:
    """Read stored adapter weights into a model's adapter. Raises PolicyError for none, or one of another shape."""
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise PolicyError(f"expected adapter weights at {path}, got no file; give a folder made by save_adapter")
    weights = load_file(path)
    expected = get_peft_model_state_dict(model)
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in expected.items()}:
        own, found = LoRASettings.of(model).rank, LoRASettings.stored(folder).rank
        raise PolicyError(
            f"{path}: expected an adapter of rank {own} on this model's layers, got one of rank {found}; give the rank "
            f"it was trained with (policy.lora_rank={found}), or an adapter of this model"
        )
    set_peft_model_state_dict(model, weights)
