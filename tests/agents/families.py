"""Random tiny models of real architectures, with tokenisers trained on this file's own text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from agents.lmm import LMMPolicy
from agents.lora import LoRASettings, with_adapter
from agents.processors import NoVideoProcessor, allow_missing_torchvision
from mmsearch_env.images import Image
from training.tiny_lmm.architecture import TinySize, tiny_model, tiny_processor, trained_tokeniser

TAGS = ("</reason>", "<answer>", "</answer>", "<search>", "</search>", "<img>", "<text_search>", "</text_search>")
SIZE = TinySize(
    vocabulary=400, width=64, layers=2, heads=2, inner=96, vision_width=32, vision_layers=2, vision_heads=2,
    vision_inner=48,
)  # fmt: skip


def tokeniser() -> Any:
    """A tokeniser of the Qwen2 form."""
    return trained_tokeniser([Path(__file__).read_text()], SIZE, TAGS)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Model and processor: mRoPE, window attention in the tower."""
    tokenizer = tokeniser()
    return tiny_model(tokenizer, SIZE, seed=0), tiny_processor(tokenizer, SIZE)


def qwen3_vl() -> tuple[Any, Any]:
    """Model and processor: interleaved mRoPE, the tower feeds several layers (deepstack)."""
    allow_missing_torchvision()
    torch.manual_seed(0)
    tokenizer = tokeniser()
    pictures = Qwen2VLImageProcessorPil(
        min_pixels=64 * 64, max_pixels=160 * 160, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    template = tiny_processor(tokenizer, SIZE).chat_template
    processor = Qwen3VLProcessor(pictures, tokenizer, NoVideoProcessor(), chat_template=template)
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "initializer_range": 0.08,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True
            },
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 16,
            "out_hidden_size": 64, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.08,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    return Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def internvl() -> tuple[Any, Any]:
    """Model and processor: one position a token, every picture cut into as many pieces as suit its shape."""
    allow_missing_torchvision()
    torch.manual_seed(0)
    names = {"start_image_token": "<img_start>", "end_image_token": "<img_end>", "video_token": "<video>"}
    with TemporaryDirectory() as folder:
        tokeniser().save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, extra_special_tokens={**names, "context_image_token": "<|image_pad|>"}
        )
    pictures = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4)
    template = tiny_processor(tokenizer, SIZE).chat_template.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"
    )
    processor = InternVLProcessor(pictures, tokenizer, NoVideoProcessor(), image_seq_length=4, chat_template=template)
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "initializer_range": 0.08,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [56, 56], "patch_size": [14, 14],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )  # fmt: skip
    return InternVLForConditionalGeneration._from_config(config, dtype=torch.float32), processor


def noise(seed: int, width: int = 168, height: int = 112) -> Image:
    """A picture of random pixels."""
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(processor: Any, pictures: Sequence[Image]) -> dict[str, Any]:
    """What transformers' own processor makes of pictures that follow one another."""
    text = processor.image_token * len(pictures)
    made = processor(text=[text], images=[[picture.to_pil() for picture in pictures]], return_tensors="pt")
    return {name: made[name] for name in ("pixel_values", "image_grid_thw") if name in made}


FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "internvl": internvl}


def adapted_policy(family: str, **settings: Any) -> LMMPolicy:
    """A policy of this family whose adapter already changes what the model says."""
    model, processor = FAMILIES[family]()
    torch.manual_seed(1)
    adapted = with_adapter(model, LoRASettings(rank=4))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return LMMPolicy(adapted, processor, **settings)
