"""How much memory a run needs, from shapes alone: the model is laid out on the meta device, no weight is read or made.

Activations are not a formula: the language model is run on shapes, and what it would keep for the gradient is counted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from agents.lora import LoRASettings, with_adapter
from agents.packing import Packing
from agents.playing import model_folder
from agents.scorer import LOGITS_AT_ONCE, base_model, checkpoint_activations
from mmsearch_env.errors import ConfigError
from training.config import RunConfig

_ARCHITECTURES = Path(__file__).parent / "architectures"
_TOKENS = 64
"""Of the group that is run on shapes; few, so that what grows with the square of a row has no part in it."""
_EPISODES = 8
"""In that group."""
_LOGITS_HELD = 3 * LOGITS_AT_ONCE
"""Rows of logits in float32 while they are scored: scores, probabilities and a product."""
_KEPT_FEATURES = 2 << 30
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that one process needs on its device.

    Attributes:
        frozen: parameters that are not trained.
        trained: adapter and critic, with the copy that ZeRO keeps.
        gradients: of these.
        optimiser: AdamW's two moments of these.
        activations: kept for the gradient of one micro-batch.
        logits: held while tokens are scored.
        keys_values: of all live episodes, each as long as it may become.
        features: of pictures, at most.
        whole: parameters of all processes together, which each of them gathers to play.
    """

    frozen: float
    trained: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    keys_values: float
    features: float
    whole: float

    @property
    def learning(self) -> float:
        """While weights are learnt."""
        held = self.frozen + self.trained + self.gradients + self.optimiser
        return held + self.activations + self.logits + self.features

    @property
    def playing(self) -> float:
        """While episodes are played, at the worst."""
        return self.whole + self.trained + self.optimiser + self.keys_values + self.features


@dataclass(frozen=True, slots=True)
class Shapes:
    """A model with its adapter on the meta device, and what running it costs.

    Attributes:
        model: with its adapter.
        frozen: numbers that are not trained.
        trained: numbers that are.
        activation_bytes: kept for the gradient, for a token.
        layer_bytes: of that, in one layer.
    """

    model: nn.Module
    frozen: int
    trained: int
    activation_bytes: float
    layer_bytes: float


def shapes_of(config: RunConfig) -> Shapes:
    """The recipe's model, on shapes. Raises ConfigError where its architecture is not known here."""
    dtype = getattr(torch, config.policy.dtype)
    with torch.device("meta"):
        bare = AutoModelForImageTextToText.from_config(architecture(config.policy.model), dtype=dtype)
        model = with_adapter(bare, LoRASettings(config.policy.lora_rank, config.policy.lora_alpha))
    kept = whole = kept_for_gradient(model, _TOKENS) / _TOKENS
    if config.engine.gradient_checkpointing:
        checkpoint_activations(model)
        kept = kept_for_gradient(model, _TOKENS) / _TOKENS
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    width = base_model(model).config.get_text_config().hidden_size
    return Shapes(
        model=model,
        frozen=sum(one.numel() for one in model.parameters() if not one.requires_grad),
        trained=trained + (width * (width + 2) + 1 if config.algorithm.name == "ppo" else 0),
        activation_bytes=kept,
        layer_bytes=whole / _layers(model),
    )


def estimate(config: RunConfig, shapes: Shapes, *, processes: int) -> Memory:
    """What one of so many processes needs."""
    stage, engine = config.engine.zero_stage, config.engine
    width = torch.finfo(getattr(torch, config.policy.dtype)).bits // 8
    share = {level: 1.0 / processes if stage >= level else 1.0 for level in (1, 2, 3)}
    text = base_model(shapes.model).config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * width
    on_device = 0.0 if engine.offload == "cpu" else 1.0
    one_layer = shapes.layer_bytes if engine.gradient_checkpointing else 0.0
    return Memory(
        frozen=shapes.frozen * width * share[3] * on_device,
        trained=4.0 * shapes.trained * (share[3] + (share[1] if stage else 0.0)) * on_device,
        gradients=4.0 * shapes.trained * share[2],
        optimiser=8.0 * shapes.trained * share[1] * on_device,
        activations=(shapes.activation_bytes + one_layer) * engine.micro_batch_tokens,
        logits=4.0 * _LOGITS_HELD * text.vocab_size,
        keys_values=float(token) * config.rollout.live_episodes * config.rollout.max_context_tokens,
        features=float(_KEPT_FEATURES),
        whole=float(shapes.frozen * width),
    )


def described(config: RunConfig, *, processes: int) -> list[str]:
    """The estimate in lines for people."""
    shapes = shapes_of(config)
    memory = estimate(config, shapes, processes=processes)
    parts = "  ".join(
        f"{name} {_gib(getattr(memory, name))}"
        for name in ("frozen", "trained", "gradients", "optimiser", "activations", "logits", "features")
    )
    return [
        f"parameters  {shapes.frozen:,} frozen, {shapes.trained:,} trained",
        f"memory      {_gib(memory.learning)} GiB in each of {processes} process(es) while it learns "
        f"({parts}), with passes of {config.engine.micro_batch_tokens} tokens",
        f"            up to {_gib(memory.playing)} GiB while it plays, were all {config.rollout.live_episodes} live "
        f"episodes {config.rollout.max_context_tokens} tokens long",
    ]


def architecture(model: str) -> Any:
    """A model's configuration: from its folder, from the files of a hub id at hand, or one that is bundled.

    Raises:
        ConfigError: none of these.
    """
    folder, bundled = model_folder(model), _ARCHITECTURES / f"{model.replace('/', '--')}.json"
    if not folder.is_dir() and bundled.is_file():
        return AutoConfig.for_model(**json.loads(bundled.read_text(encoding="utf-8")))
    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(path.stem.replace("--", "/") for path in _ARCHITECTURES.glob("*.json")))
        raise ConfigError(
            f"policy.model: expected a folder, a hub id whose files are at hand, or one of {known}, got {model!r}"
        ) from error


def kept_for_gradient(model: nn.Module, tokens: int) -> int:
    """Bytes that the language model keeps for the gradient of a group of so many tokens, parameters left out.

    A quarter of the tokens is the group's prompt; each of its episodes reads a copy of that one's keys and values.
    """
    network = base_model(model)
    device = next(model.parameters()).device
    known = {_storage(one) for one in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    rows = 3 if hasattr(network.model, "get_rope_index") else 1
    places = torch.zeros((rows, 1, tokens), dtype=torch.long, device=device)
    was_training = model.training
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden = network.model(
                input_ids=ids,
                attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),
                position_ids=places if rows == 3 else places[0],
                attend=packed_group(tokens, device),
                use_cache=False,
            )
        assert hidden is not None  # what is kept lives as long as this
        return sum(size for storage, size in kept.items() if storage not in known)
    finally:
        model.train(was_training)


def packed_group(tokens: int, device: torch.device) -> Packing:
    """Episodes of one prompt, of so many tokens all told."""
    rest = (tokens - tokens // 4) // _EPISODES
    return Packing.of([(tokens - _EPISODES * rest, *[rest] * _EPISODES)], device)


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _layers(model: nn.Module) -> int:
    return int(base_model(model).config.get_text_config().num_hidden_layers)


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f}"
