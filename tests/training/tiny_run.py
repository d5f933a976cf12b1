"""A recipe of two iterations and a model of a few thousand random weights, for tests of whole commands."""

from __future__ import annotations

from pathlib import Path

from training.tiny_lmm.architecture import TinySize, tiny_model, tiny_processor, trained_tokeniser

SIZE = TinySize(vocabulary=400, width=32, layers=1, heads=2, inner=32, vision_width=16, vision_layers=1, vision_heads=2)
RECIPE = """
iterations: 2
env: {world: "synthetic:seed=1,entities=12", prompts: brief, image_top_k: 2, text_top_k: 2}
rollout: {questions_per_iteration: 2, group_size: 2, max_new_tokens: 12, max_context_tokens: 2048}
algorithm: {kl_coefficient: 0.01, drop_groups_without_signal: false}
evaluation: {questions: 3, during_questions: 2, every: 1}
output: {save_every: 1, transcripts_every: 1}
"""


def saved_model(folder: Path) -> Path:
    """A Qwen2.5-VL of random weights, written to a folder."""
    tokeniser = trained_tokeniser(["which country has this flag"] * 20, SIZE, ["<answer>", "</answer>"])
    tiny_model(tokeniser, SIZE, seed=0).save_pretrained(folder)
    tiny_processor(tokeniser, SIZE).save_pretrained(folder)
    return folder
