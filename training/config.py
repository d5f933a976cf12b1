"""What a run is told, field by field.

A recipe is a YAML file with these sections (:mod:`training.config_file` reads it). The configuration stops at the
composition root, :mod:`training.compose`: everything below it takes plain arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal


@dataclass(frozen=True, slots=True)
class About:
    """What a field means and which values it takes.

    Attributes:
        meaning: one sentence.
        unit: what one of it is; "" for a word, a path or a switch.
        low: smallest value allowed.
        high: largest value allowed.
        above: the value must be greater than this.
    """

    meaning: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    above: float | None = None

    def accepts(self, value: float) -> bool:
        """Whether a number lies in the range."""
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    @property
    def range_text(self) -> str:
        """The range in words; "" when every value is allowed."""
        parts = [
            *([] if self.above is None else [f"greater than {self.above:g}"]),
            *([] if self.low is None else [f"at least {self.low:g}"]),
            *([] if self.high is None else [f"at most {self.high:g}"]),
        ]
        return " and ".join(parts)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The model that learns."""

    model: Annotated[str, About("Bundled name, folder or hub id of the multimodal model.")] = "atlas-tiny"
    dtype: Annotated[
        Literal["float32", "bfloat16"],
        About("Number format of the frozen weights; the adapter is always float32."),
    ] = "float32"
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
    search_penalty: Annotated[float, About("Price of a search.", "reward", low=0, high=1)] = 0.1
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
    extra_episodes: Annotated[
        int, About("Further episodes of questions that no episode of the group got right.", "episodes", low=0)
    ] = 0


@dataclass(frozen=True, slots=True)
class AlgorithmConfig:
    """What is made of the rewards."""

    name: Annotated[
        Literal["grpo", "dr_grpo", "dapo", "gspo", "bn_gspo", "cispo", "rloo", "reinforce_pp", "ppo"],
        About("The algorithm."),
    ] = "grpo"
    clip_low: Annotated[
        float | None,
        About("The probability ratio is clipped below 1 - clip_low; none for the algorithm's own.", low=0, high=1),
    ] = None
    clip_high: Annotated[
        float | None,
        About("The probability ratio is clipped above 1 + clip_high; none for the algorithm's own.", low=0),
    ] = None
    advantage_scale: Annotated[
        Literal["own", "std", "none"],
        About(
            "Divide a group's advantages by its standard deviation, or leave them as differences from its mean; or as "
            "the algorithm has it."
        ),
    ] = "own"
    aggregation: Annotated[
        Literal["own", "token", "episode", "constant"],
        About("Whether tokens weigh the same, or episodes, or a constant is divided by; or as the algorithm has it."),
    ] = "own"
    baseline: Annotated[
        Literal["own", "group", "batch"],
        About("What REINFORCE++ compares an episode with; or as the algorithm has it."),
    ] = "own"
    returns: Annotated[
        Literal["episode", "to_go"],
        About("Whether a turn is credited with all rewards of its episode, or with those from it on."),
    ] = "episode"
    kl_coefficient: Annotated[
        float,
        About("Weight of the KL divergence from the model without any adapter; 0 skips its pass.", low=0),
    ] = 0.0
    correction: Annotated[
        Literal["none", "token", "sequence"],
        About("Whether tokens are weighted by how much likelier the trainer says them than the sampler did."),
    ] = "none"
    correction_cap: Annotated[float, About("Largest such weight.", above=0)] = 2.0
    overlong_tokens: Annotated[
        int,
        About("Sampled tokens of an episode from which on its reward is 1 less (DAPO); 0 for none.", "tokens", low=0),
    ] = 0
    overlong_margin: Annotated[int, About("Tokens over which this punishment grows.", "tokens", low=1)] = 64
    fatal_failures: Annotated[
        int,
        About(
            "Failed searches in a row after which an episode's later turns are not learnt from, nor anything in it "
            "held against the policy; 0 for none.",
            "searches",
            low=0,
        ),
    ] = 0
    drop_groups_without_signal: Annotated[bool, About("Leave out groups whose episodes all got the same return.")] = (
        True
    )
    epochs: Annotated[int, About("Passes over the episodes of one iteration.", "epochs", low=1)] = 1
    questions_per_update: Annotated[
        int, About("Questions behind one optimiser step; 0 takes all of the iteration.", "questions", low=0)
    ] = 0


@dataclass(frozen=True, slots=True)
class CriticConfig:
    """How states are valued, for ``algorithm.name: ppo``."""

    trunk: Annotated[
        Literal["shared", "detached"],
        About("Whether the critic's gradient trains the adapter too, or only the critic's own head."),
    ] = "shared"
    learning_rate_factor: Annotated[
        float, About("The head's learning rate, as a multiple of the adapter's.", above=0)
    ] = 1.0
    value_coefficient: Annotated[float, About("Weight of the critic's loss.", above=0)] = 0.5
    value_clip: Annotated[
        float, About("Values that moved further than this since the rollout learn nothing more.", above=0)
    ] = 0.2
    token_discount: Annotated[float, About("Discount from a token to the next one of a turn.", low=0, high=1)] = 1.0
    token_decay: Annotated[float, About("GAE's lambda within a turn.", low=0, high=1)] = 1.0
    turn_discount: Annotated[float, About("Discount from a turn to the next one.", low=0, high=1)] = 1.0
    turn_decay: Annotated[float, About("GAE's lambda from a turn to the next one.", low=0, high=1)] = 0.95


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """How weights move (AdamW)."""

    learning_rate: Annotated[float, About("Peak learning rate.", above=0)] = 1e-5
    schedule: Annotated[
        Literal["constant", "linear", "cosine", "sigmoid"], About("Shape of the decay after the warm-up.")
    ] = "constant"
    warmup_steps: Annotated[int, About("Linear warm-up from 0.", "optimiser steps", low=0)] = 0
    final_fraction: Annotated[
        float, About("Where the decay ends, as a fraction of the peak.", "fraction of the peak", low=0, high=1)
    ] = 0.0
    decay_centre: Annotated[
        int, About("Step at which a sigmoid decay is half done; 0 means half of the run.", "optimiser steps", low=0)
    ] = 0
    weight_decay: Annotated[float, About("Decoupled weight decay.", low=0)] = 0.0
    beta1: Annotated[float, About("Decay of the mean of gradients.", low=0, high=0.99999)] = 0.9
    beta2: Annotated[float, About("Decay of the mean of squared gradients.", low=0, high=0.999999)] = 0.99
    epsilon: Annotated[float, About("Added to the denominator of Adam.", above=0)] = 1e-8
    max_grad_norm: Annotated[float, About("Gradients are scaled down to this global 2-norm.", above=0)] = 1.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the work is spread."""

    zero_stage: Annotated[
        int,
        About("DeepSpeed ZeRO stage: 1 shards the optimiser's state over ranks, 2 the gradients too.", low=1, high=2),
    ] = 1
    micro_batch_tokens: Annotated[
        int,
        About(
            "Padded tokens in one forward pass, a group's common prompt counted once; an episode longer than this goes "
            "alone.",
            "tokens",
            low=1,
        ),
    ] = 8192
    gradient_checkpointing: Annotated[
        bool, About("Make activations anew for the gradient in place of keeping them: less memory, more time.")
    ] = False
    timeout_s: Annotated[
        float, About("How long a rank waits for the others before the run fails.", "seconds", low=1)
    ] = 1800.0


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How progress is judged: one episode of each of some questions that are not trained on."""

    split: Annotated[str, About("Questions of the table before and after training: a split of the world.")] = "test"
    file: Annotated[str, About('Question file for all evaluations instead of the splits; "" for none.')] = ""
    questions: Annotated[int, About("At most this many of them, spread evenly.", "questions", low=1)] = 200
    during_split: Annotated[str, About("Questions of the evaluations during training.")] = "validation"
    during_questions: Annotated[int, About("At most this many of them.", "questions", low=1)] = 64
    temperature: Annotated[
        float, About("Softmax temperature of these episodes; 0 takes the likeliest token.", low=0)
    ] = 0.0
    every: Annotated[int, About("Evaluate during training every n iterations; 0 never.", "iterations", low=0)] = 0


@dataclass(frozen=True, slots=True)
class OutputConfig:
    """What is written, and where."""

    folder: Annotated[str, About("Folder of the run.")] = "runs/run"
    tracker: Annotated[
        Literal["none", "wandb", "mlflow", "trackio"],
        About("Experiment tracker that gets every number as well, beside TensorBoard."),
    ] = "none"
    project: Annotated[str, About("Where the tracker files the run.")] = "mmsearch"
    save_every: Annotated[int, About("Write a checkpoint every n iterations, and at the end.", "iterations", low=1)] = (
        10
    )
    keep: Annotated[int, About("Checkpoints kept; older ones are deleted.", "checkpoints", low=1)] = 2
    transcripts_every: Annotated[
        int, About("Write one group's transcripts every n iterations; 0 never.", "iterations", low=0)
    ] = 10


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One training run."""

    policy: PolicyConfig = PolicyConfig()
    env: EnvConfig = EnvConfig()
    rollout: RolloutConfig = RolloutConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    critic: CriticConfig = CriticConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    engine: EngineConfig = EngineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: OutputConfig = OutputConfig()
    iterations: Annotated[int, About("How often the run acts and learns.", "iterations", low=1)] = 100
    seed: Annotated[int, About("Every random number of the run follows from it.", low=0)] = 0

    @property
    def updates_per_epoch(self) -> int:
        """Optimiser steps of one pass over an iteration's episodes."""
        per_update = self.algorithm.questions_per_update or self.rollout.questions_per_iteration
        return -(-self.rollout.questions_per_iteration // per_update)

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps of the whole run (fewer when updates are skipped)."""
        return self.iterations * self.algorithm.epochs * self.updates_per_epoch
