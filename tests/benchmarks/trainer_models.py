"""The models, pictures and amounts of work that the trainer's benchmark gives to both sides."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from agents.processors import NoVideoProcessor, allow_missing_torchvision
from training.tiny_lmm.architecture import TinySize, trained_tokeniser

TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
LORA_RANK, LORA_ALPHA = 16, 32
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass(frozen=True, slots=True)
class Setup:
    """One row of the comparison.

    Attributes:
        family: ``"qwen2_5_vl"`` or ``"qwen3_vl"``.
        width, layers, heads, vocabulary: of the language model; two heads of keys and values, three widths inside.
        vision_width, vision_layers: of the tower.
        prompt_tokens: of the question with its pictures.
        pictures, picture_px: how many a question has, and their side.
        completion_tokens: of every turn.
        turns: of an episode.
        tool_px: side of the picture that each search returns.
        observation_tokens: of what is said with it.
        group_size: episodes of the one question of an iteration.
    """

    family: str
    prompt_tokens: int
    completion_tokens: int
    turns: int = 1
    width: int = 256
    layers: int = 4
    heads: int = 4
    vocabulary: int = 4096
    vision_width: int = 128
    vision_layers: int = 4
    pictures: int = 2
    picture_px: int = 280
    tool_px: int = 112
    observation_tokens: int = 0
    group_size: int = 8


SETUPS: Mapping[str, Setup] = {
    "S1": Setup("qwen2_5_vl", prompt_tokens=400, completion_tokens=64),
    "S2": Setup("qwen3_vl", prompt_tokens=604, completion_tokens=48, turns=3, observation_tokens=61),
    "S3": Setup(
        "qwen2_5_vl", prompt_tokens=600, completion_tokens=150, width=384, layers=6, heads=6, vocabulary=8192,
        vision_width=256, vision_layers=6,
    ),
    "quick": Setup(
        "qwen3_vl", prompt_tokens=440, completion_tokens=48, turns=2, width=64, layers=2, heads=2, vocabulary=600,
        vision_width=32, vision_layers=2, pictures=1, picture_px=112, group_size=2, observation_tokens=120,
    ),
}  # fmt: skip


def built(setup: Setup) -> tuple[Any, Any]:
    """A model with random weights and its processor."""
    allow_missing_torchvision()
    torch.manual_seed(0)
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(os.__file__).parent.glob("*.py"))[:60]]
    tags = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
    tokenizer = trained_tokeniser(texts, TinySize(vocabulary=setup.vocabulary - 16), tags)
    if setup.family == "qwen2_5_vl":
        pictures = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=448 * 448)
        processor = Qwen2_5_VLProcessor(pictures, tokenizer, NoVideoProcessor(), chat_template=TEMPLATE)
        config, kind = Qwen2_5_VLConfig(**_sections(setup, tokenizer)), Qwen2_5_VLForConditionalGeneration
    else:
        pictures = Qwen2VLImageProcessorPil(
            min_pixels=64 * 64, max_pixels=448 * 448, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        processor = Qwen3VLProcessor(pictures, tokenizer, NoVideoProcessor(), chat_template=TEMPLATE)
        config, kind = Qwen3VLConfig(**_sections(setup, tokenizer)), Qwen3VLForConditionalGeneration
    model = kind._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval(), processor


def _sections(setup: Setup, tokenizer: Any) -> dict[str, Any]:
    half = setup.width // setup.heads // 2
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half - 2 * (half // 3), half // 3, half // 3]}
    is_third = setup.family == "qwen3_vl"
    vision = {
        "depth": setup.vision_layers,
        "hidden_size": setup.vision_width,
        "intermediate_size": 2 * setup.vision_width,
        "num_heads": 4,
        "out_hidden_size": setup.width,
        "initializer_range": 0.02,
        "patch_size": 16 if is_third else 14,
    }
    own = (
        {"num_position_embeddings": 1024, "deepstack_visual_indexes": list(range(min(3, setup.vision_layers - 1)))}
        if is_third
        else {"window_size": 112, "fullatt_block_indexes": [setup.vision_layers - 1]}
    )
    token = tokenizer.convert_tokens_to_ids
    return {
        "text_config": {
            "vocab_size": len(tokenizer),
            "hidden_size": setup.width,
            "intermediate_size": 3 * setup.width,
            "num_hidden_layers": setup.layers,
            "num_attention_heads": setup.heads,
            "num_key_value_heads": 2,
            "head_dim": setup.width // setup.heads,
            "max_position_embeddings": 32768,
            "initializer_range": 0.02,
            "rope_parameters": {**rope, "mrope_interleaved": True} if is_third else rope,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        "vision_config": {**vision, **own},
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def picture(seed: int, side: int) -> PIL.Image.Image:
    """A square of random pixels, new for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def words(tokenizer: Any) -> list[str]:
    """Words that are one token each behind a blank."""
    vocabulary = [tokenizer.decode([number]) for number in range(300, min(900, len(tokenizer) - 40))]
    return [text for text in vocabulary if text.startswith(" ") and text.strip().isalpha()]
