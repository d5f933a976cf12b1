"""Sections about acting: who plays what, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from training.config.about import About


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The model that learns."""

    model: Annotated[str, About("Bundled name, folder or hub id of the multimodal model.")] = "atlas-tiny"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        About("Number format of the frozen weights; the adapter is always float32."),
    ] = "float32"
    attention: Annotated[
        Literal["sdpa", "flash_attention_2"],
        About("Attention kernels: torch's own, or those of the package flash-attn (a GPU, bfloat16)."),
    ] = "sdpa"
    lora_rank: Annotated[int, About("Rank of the LoRA adapter on the language model.", "dimensions", low=1)] = 16
    lora_alpha: Annotated[float, About("LoRA scale; the adapter's output is multiplied by alpha / rank.", above=0)] = (
        32.0
    )
    adapter: Annotated[str, About('Folder of an adapter to start from; "" starts from a fresh one.')] = ""
    system: Annotated[str, About("System message put before every conversation.")] = ""


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """The task that is played: the keywords of ``MMSearchEnv``, with its defaults."""

    world: Annotated[str, About("World that pages, pictures and questions come from.")] = "atlas"
    split: Annotated[str, About("Questions trained on: a split of the world.")] = "train"
    questions: Annotated[str, About('Question file to train on instead of the world\'s; "" for none.')] = ""
    tools: Annotated[
        Mapping[str, Any],
        About("Search tool of each kind (image_search, text_search); one left out is the embedded engine."),
    ] = field(default_factory=dict, hash=False)
    judge: Annotated[
        Mapping[str, Any],
        About("Who is asked about an answer that the metric does not give full marks (name: chat, base_url, model)."),
    ] = field(default_factory=dict, hash=False)
    protocol: Annotated[str, About("How a text means an action.")] = "mmsearch_r1"
    prompts: Annotated[str, About("Prompt set: standard, brief, or a folder.")] = "standard"
    max_rounds: Annotated[int, About("Completions the policy has, the answer included.", "rounds", low=1)] = 3
    max_image_searches: Annotated[int, About("Image searches allowed.", "searches", low=0)] = 1
    max_text_searches: Annotated[int, About("Text searches allowed.", "searches", low=0)] = 2
    crop: Annotated[bool, About("Whether an image search may look for a part of the picture.")] = False
    max_images: Annotated[int, About("Pictures that a question may have.", "pictures", low=1)] = 1
    max_page_visits: Annotated[int, About("Pages found by a search that may be read; 0 for none.", "pages", low=0)] = 0
    reward: Annotated[
        Literal["multiplicative", "subtractive"], About("How the answer and the price of searching are combined.")
    ] = "multiplicative"
    metric: Annotated[
        Literal["exact_match", "sub_match", "f1"], About("How an answer is compared with the accepted ones.")
    ] = "exact_match"
    format_weight: Annotated[float, About("Share of the reward that is paid for the form.", "share", low=0, high=1)] = (
        0.1
    )
    search_penalty: Annotated[float, About("Price of a search; below 0 a bonus.", "reward", low=-1, high=1)] = 0.1
    penalty_mode: Annotated[Literal["once", "per_call", "none"], About("Which successful searches are charged.")] = (
        "once"
    )
    visit_penalty: Annotated[float, About("Price of reading a page.", "reward", low=0, high=1)] = 0.0
    image_penalty: Annotated[
        float | None, About("Price of an image search; none for search_penalty.", "reward", low=0, high=1)
    ] = None
    crop_penalty: Annotated[
        float | None, About("Price of an image search with a part of the picture.", "reward", low=0, high=1)
    ] = None
    image_top_k: Annotated[int, About("Hits shown per image search.", "hits", low=1)] = 5
    text_top_k: Annotated[int, About("Hits shown per text search.", "hits", low=1)] = 5
    tool_timeout_s: Annotated[float, About("A search that takes longer counts as failed.", "seconds", above=0)] = 30.0


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How episodes are sampled."""

    questions_per_iteration: Annotated[
        int, About("Questions played per iteration, over all ranks.", "questions", low=1)
    ] = 16
    group_size: Annotated[int, About("Episodes of each question, compared with each other.", "episodes", low=2)] = 8
    temperature: Annotated[float, About("Softmax temperature of sampling, and of training.", above=0)] = 1.0
    max_new_tokens: Annotated[int, About("Longest completion of one turn.", "tokens", low=1)] = 256
    max_context_tokens: Annotated[
        int, About("Longest episode; one that would grow longer is cut off (truncated).", "tokens", low=16)
    ] = 8192
    skip_unsolved: Annotated[
        bool, About("Leave out questions labelled for this model as right under no plan, as the paper does.")
    ] = True
    repeats: Annotated[
        Mapping[str, int],
        About(
            "How often a pass plays each question of a category; once where a category is not named.", "times", low=1
        ),
    ] = field(default_factory=dict, hash=False)
    live_episodes: Annotated[int, About("Episodes in play at once on one rank.", "episodes", low=1)] = 256
    engine: Annotated[
        Literal["hf", "vllm"],
        About("What samples: transformers in this process, or vLLM in it (the package vllm, made for GPUs)."),
    ] = "hf"
    engine_memory: Annotated[
        float,
        About("Share of the memory where the model is that engine vllm takes for itself.", "share", above=0, high=0.95),
    ] = 0.4
    batching: Annotated[
        Literal["together", "continuous"],
        About(
            "Whether completions begin and end together, which repeats bit by bit, or each as soon as it can, which is "
            "faster where searches are slow."
        ),
    ] = "together"
    staleness: Annotated[
        int,
        About(
            "Iterations that the weights which play may be behind those that learn; with 1 an iteration is played "
            "while the one before it is learnt from.",
            "iterations",
            low=0,
            high=1,
        ),
    ] = 0
    refills: Annotated[
        int,
        About(
            "How often at most other questions are played in place of groups without signal (DAPO's dynamic sampling).",
            "times",
            low=0,
        ),
    ] = 0
    first_penalty: Annotated[
        float | None,
        About(
            "Price of a search in the first iteration, below 0 a bonus, from which it changes evenly to "
            "env.search_penalty; none for that from the beginning.",
            "reward",
            low=-1,
            high=1,
        ),
    ] = None
    penalty_iterations: Annotated[
        int, About("Iterations until the price of a search is env.search_penalty.", "iterations", low=0)
    ] = 0
    extra_episodes: Annotated[
        int, About("Further episodes of questions that no episode of the group got right.", "episodes", low=0)
    ] = 0
