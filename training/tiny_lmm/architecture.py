"""A tiny Qwen2.5-VL with its tokeniser and processor: the real architecture, made small.

Nothing is downloaded: the tokeniser is trained on given texts, the weights are random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from agents.processors import NoVideoProcessor, allow_missing_torchvision

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""The control tokens of the Qwen2.5-VL family that its model and processor need."""

_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the family's tokeniser cuts text before merging."""


@dataclass(frozen=True, slots=True)
class TinySize:
    """Sizes of the tiny model.

    Attributes:
        vocabulary: tokens learnt from text, control tokens and tags not counted.
        width, layers, heads, inner: of the language model.
        vision_width, vision_layers, vision_heads, vision_inner: of the vision tower.
        min_pixels, max_pixels: a picture is scaled to this range before it is cut into 28 x 28 pieces.
    """

    vocabulary: int = 1000
    width: int = 128
    layers: int = 4
    heads: int = 4
    inner: int = 344
    vision_width: int = 96
    vision_layers: int = 4
    vision_heads: int = 4
    vision_inner: int = 192
    min_pixels: int = 6 * 28 * 28
    max_pixels: int = 32 * 28 * 28


def trained_tokeniser(texts: Iterable[str], size: TinySize, tags: Iterable[str]) -> Qwen2Tokenizer:
    """A byte-level BPE tokeniser of the Qwen2 form; ``tags`` become whole tokens without being control tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size.vocabulary, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=dict(learnt["vocab"]),
        merges=[tuple(merge) for merge in learnt["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        padding_side="left",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL_TOKENS)})
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def tiny_processor(tokenizer: Qwen2Tokenizer, size: TinySize) -> Qwen2_5_VLProcessor:
    """The family's processor around a tokeniser; pictures only."""
    allow_missing_torchvision()
    pictures = Qwen2VLImageProcessorPil(min_pixels=size.min_pixels, max_pixels=size.max_pixels)
    return Qwen2_5_VLProcessor(pictures, tokenizer, NoVideoProcessor(), chat_template=_CHAT_TEMPLATE)


def tiny_model(tokenizer: Qwen2Tokenizer, size: TinySize, *, seed: int) -> Any:
    """A Qwen2.5-VL with random weights (float32)."""
    torch.manual_seed(seed)
    half = size.width // size.heads // 2
    sections = [half - 2 * (half // 3), half // 3, half // 3]
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections},
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_width,
            "intermediate_size": size.vision_inner,
            "num_heads": size.vision_heads,
            "patch_size": 14,
            "out_hidden_size": size.width,
            "window_size": 448,
            "fullatt_block_indexes": list(range(size.vision_layers)),
            "initializer_range": 0.04,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model.eval()
