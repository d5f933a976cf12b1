"""Options that have no effect beside others, and combinations that cannot work, are refused."""

from __future__ import annotations

from pathlib import Path

from mmsearch_env.errors import ConfigError
from training.config import AlgorithmConfig, CriticConfig, EvaluationConfig, OutputConfig, RolloutConfig, RunConfig


def check_together(config: RunConfig) -> None:
    """Raises ConfigError with the option, its value and what was expected."""
    optimiser, algorithm = config.optimiser, config.algorithm
    if config.rollout.max_context_tokens <= config.rollout.max_new_tokens:
        raise ConfigError(
            f"rollout.max_context_tokens: expected more than rollout.max_new_tokens ({config.rollout.max_new_tokens}), "
            f"got {config.rollout.max_context_tokens}; no prompt would fit"
        )
    if config.policy.adapter and not Path(config.policy.adapter).is_dir():
        raise ConfigError(f"policy.adapter: expected the folder of an adapter, got {config.policy.adapter!r}")
    if optimiser.decay_centre and optimiser.schedule != "sigmoid":
        raise ConfigError(
            f"optimiser.decay_centre: expected 0 with schedule {optimiser.schedule!r}, got {optimiser.decay_centre}; "
            "it belongs to schedule 'sigmoid'"
        )
    if optimiser.final_fraction and optimiser.schedule == "constant":
        raise ConfigError(
            f"optimiser.final_fraction: expected 0 with schedule 'constant', got {optimiser.final_fraction}; "
            "choose a schedule that decays"
        )
    if algorithm.correction == "none" and algorithm.correction_cap != AlgorithmConfig().correction_cap:
        raise ConfigError(
            f"algorithm.correction_cap: expected {AlgorithmConfig().correction_cap:g} with correction 'none', got "
            f"{algorithm.correction_cap:g}; choose a correction"
        )
    if not algorithm.overlong_tokens and algorithm.overlong_margin != AlgorithmConfig().overlong_margin:
        raise ConfigError(
            f"algorithm.overlong_margin: expected {AlgorithmConfig().overlong_margin} with overlong_tokens 0, got "
            f"{algorithm.overlong_margin}; set algorithm.overlong_tokens"
        )
    if algorithm.overlong_tokens and algorithm.overlong_margin > algorithm.overlong_tokens:
        raise ConfigError(
            f"algorithm.overlong_margin: expected at most overlong_tokens ({algorithm.overlong_tokens}), got "
            f"{algorithm.overlong_margin}; an episode that says nothing would be punished"
        )
    if config.output.tracker == "none" and config.output.project != OutputConfig().project:
        raise ConfigError(
            f"output.project: expected {OutputConfig().project!r} with tracker 'none', got {config.output.project!r}; "
            "choose a tracker"
        )
    if algorithm.questions_per_update > config.rollout.questions_per_iteration:
        raise ConfigError(
            f"algorithm.questions_per_update: expected at most rollout.questions_per_iteration "
            f"({config.rollout.questions_per_iteration}), got {algorithm.questions_per_update}"
        )
    _check_acting(config)
    _check_engine(config.rollout)
    _check_attention(config)
    _check_env(config)


def _check_acting(config: RunConfig) -> None:
    """How episodes are played, beside what is made of them."""
    rollout, algorithm = config.rollout, config.algorithm
    if algorithm.name != "ppo" and config.critic != CriticConfig():
        raise ConfigError(
            f"critic: expected nothing with algorithm {algorithm.name!r}, which has no critic, got other values than "
            "the defaults; choose algorithm.name=ppo"
        )
    if (rollout.first_penalty is None) is not (rollout.penalty_iterations == 0):
        raise ConfigError(
            "rollout.first_penalty: expected it together with rollout.penalty_iterations, got "
            f"{rollout.first_penalty!r} and {rollout.penalty_iterations}"
        )
    if rollout.first_penalty is not None and config.env.penalty_mode == "none":
        raise ConfigError(
            f"rollout.first_penalty: expected null with env.penalty_mode 'none', got {rollout.first_penalty}; it has "
            "no effect there"
        )
    if config.engine.offload != "none" and config.engine.zero_stage < 3:
        raise ConfigError(
            f"engine.offload: expected 'none' at ZeRO stage {config.engine.zero_stage}, got {config.engine.offload!r}; "
            "choose engine.zero_stage=3"
        )
    if rollout.staleness and config.engine.zero_stage == 3:
        raise ConfigError(
            "rollout.staleness: expected 0 at ZeRO stage 3, where who learns cannot play at the same time, got 1"
        )
    if rollout.staleness and config.output.save_every == 1:
        raise ConfigError(
            "rollout.staleness: expected 0 with output.save_every 1, got 1; the iteration after a checkpoint is never "
            "played ahead"
        )
    if not rollout.refills:
        return
    if rollout.staleness:
        raise ConfigError("rollout.refills: expected 0 with rollout.staleness 1, got more; choose one of them")
    learns_from_all = algorithm.name == "ppo" or algorithm.baseline == "batch"
    if learns_from_all or not algorithm.drop_groups_without_signal:
        raise ConfigError(
            f"rollout.refills: expected 0 where groups without signal are learnt from, got {rollout.refills}; choose a "
            "group-relative algorithm with algorithm.drop_groups_without_signal"
        )


def _check_env(config: RunConfig) -> None:
    """Prices of what cannot be done, and settings of what never happens."""
    env, judging, usual = config.env, config.evaluation, EvaluationConfig()
    if not env.max_page_visits:
        _expect_unset("env.visit_penalty", env.visit_penalty, 0.0, "env.max_page_visits=1 or more")
    if not env.crop:
        _expect_unset("env.crop_penalty", env.crop_penalty, None, "env.crop=true")
    if not judging.every:
        for name in ("during_questions", "during_split"):
            _expect_unset(f"evaluation.{name}", getattr(judging, name), getattr(usual, name), "evaluation.every")
    if env.reward == "multiplicative":  # which pays everything at the end
        _expect_unset("algorithm.returns", config.algorithm.returns, "episode", "env.reward=subtractive")


def _expect_unset(name: str, value: object, usual: object, remedy: str) -> None:
    if value != usual:
        raise ConfigError(f"{name}: expected {usual!r}, as it has no effect here, got {value!r}; set {remedy}")


def _check_attention(config: RunConfig) -> None:
    """Where the package flash-attn can be used."""
    if config.policy.attention == "sdpa":
        return
    if config.policy.dtype != "bfloat16":
        raise ConfigError(
            f"policy.attention: expected 'sdpa' with policy.dtype {config.policy.dtype!r}, got "
            f"{config.policy.attention!r}; flash-attn takes bfloat16"
        )


def _check_engine(rollout: RolloutConfig) -> None:
    """What only one of the engines can do, or knows."""
    if rollout.engine != "vllm" and rollout.engine_memory != RolloutConfig().engine_memory:
        raise ConfigError(
            f"rollout.engine_memory: expected {RolloutConfig().engine_memory:g} with engine {rollout.engine!r}, got "
            f"{rollout.engine_memory:g}; it belongs to rollout.engine=vllm"
        )
    if rollout.engine == "vllm" and rollout.staleness:
        raise ConfigError(
            f"rollout.staleness: expected 0 with engine 'vllm', got {rollout.staleness}; what plays ahead samples with "
            "rollout.engine=hf"
        )
