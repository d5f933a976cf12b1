"""The least time that an iteration can take: the arithmetic it needs at the rate this machine multiplies matrices.

Needed is what no method can spare: a group's prompt once, every other token once for sampling and once for learning, a
picture once, logits where a token was sampled. While sampling, a step needs at least as long as reading the weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from trainer_models import Setup

from agents.linear import multiply_with_onednn, quick_to_read
from agents.scorer import base_model


@dataclass(frozen=True, slots=True)
class Machine:
    """What one process can do with the threads it has.

    Attributes:
        flops: of a product of float32 matrices, per second.
        bytes_read: of a product of 8 rows with a matrix that is too large for the caches, per second.
    """

    flops: float
    bytes_read: float


def measured_machine(weights: int) -> Machine:
    """Measure it, the latter with as many bytes as the model has weights."""
    width = max(1, weights // 1024)
    square, large = (_layer(1024, size) for size in (1024, width))
    large.weight.data = quick_to_read(large.weight.data)
    many, few = torch.randn(1024, 1024), torch.randn(8, 1024)
    with torch.no_grad():
        return Machine(
            flops=2 * 1024**3 / _seconds(lambda: square(many)),
            bytes_read=4 * width * 1024 / _seconds(lambda: large(few)),
        )


def _layer(before: int, after: int) -> nn.Linear:
    """As a policy has them: multiplied by whoever does it fastest here."""
    layers = nn.Sequential(nn.Linear(before, after, bias=False))
    multiply_with_onednn(layers)
    return layers[0]


def least_seconds(setup: Setup, model: nn.Module, tokens: list[int], machine: Machine) -> dict[str, float]:
    """Of the rollout and of learning, for (prompt, rest) tokens of an episode.

    With N weights in the linear layers of the language model, a token takes 2N flops forward and, as only an adapter
    learns, 2N backward. A head of V rows and width d takes 2Vd for a sampled token, and as much for its gradient.
    """
    network = base_model(model)
    prompt, rest = tokens
    sampled = setup.completion_tokens * setup.turns
    language = _weights(network.model.language_model)
    head = network.lm_head.weight.numel()
    pictures = setup.pictures + (setup.turns - 1) * setup.group_size
    tower = 2 * _weights(network.model.visual) * _pieces(setup, network) * pictures
    attention = _attention(setup, prompt, rest)
    once = 2 * language * (prompt + setup.group_size * rest) + attention
    heads = 2 * head * setup.group_size * sampled
    steps = sampled * 4 * (language + head) / machine.bytes_read
    return {
        "rollout": max((once + heads + tower) / machine.flops, steps),
        "learn": (2 * once + attention + 2 * heads) / machine.flops,
    }


def _weights(module: Any) -> int:
    return sum(
        layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" not in name
    )


def _pieces(setup: Setup, network: Any) -> float:
    """Pieces of the mean picture."""
    patch = network.config.vision_config.patch_size
    sides = [setup.picture_px] * setup.pictures + [setup.tool_px] * ((setup.turns - 1) * setup.group_size)
    return sum((side / patch) ** 2 for side in sides) / len(sides)


def _attention(setup: Setup, prompt: int, rest: int) -> float:
    """Flops of scores and their products with the values, forward: 4 x width x (tokens seen) for a token and layer."""
    seen = prompt * prompt / 2 + setup.group_size * (rest * prompt + rest * rest / 2)
    return 4.0 * setup.width * setup.layers * seen


def _seconds(work: Callable[[], Any]) -> float:
    """Of one call, the fastest of several: what the machine can do, not what it does beside other work."""
    work()
    found = []
    for _ in range(15):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)
