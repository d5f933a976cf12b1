"""Every number a run logs: its name, what it means, and how episodes become numbers.

``docs/metrics.md`` holds the same table for readers; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agents.evaluate import FIXED_PLAN_CALLS
from agents.trajectory import Group, Trajectory
from mmsearch_env.actions import ActionKind
from training.advantages import has_signal


@dataclass(frozen=True, slots=True)
class Metric:
    """One logged number.

    Attributes:
        name: key in ``metrics.jsonl`` and tag in TensorBoard.
        unit: what one of it is; "" for a pure number.
        meaning: one sentence.
    """

    name: str
    unit: str
    meaning: str


METRICS: tuple[Metric, ...] = (
    Metric("reward/mean", "", "Mean return of the iteration's episodes."),
    Metric("reward/std", "", "Standard deviation of the returns over all episodes."),
    Metric("reward/search_penalty", "", "Price of a search in this iteration's episodes."),
    Metric("reward/signal", "share", "Groups whose episodes did not all get the same return; only they teach."),
    Metric("episode/accuracy", "share", "Mean answer metric of the final answers."),
    Metric("episode/search_ratio", "share", "Episodes that searched at least once (the paper's text)."),
    Metric("episode/search_calls_ratio", "share", "Searches over the two of the fixed plan (the paper's Table 1)."),
    Metric("episode/image_search", "calls", "Image searches per episode."),
    Metric("episode/text_search", "calls", "Text searches per episode."),
    Metric("episode/tool_errors", "calls", "Searches per episode whose tool failed; they cost nothing."),
    Metric("episode/judge_errors", "share", "Episodes whose answer the judge was asked about in vain."),
    Metric("episode/service_calls", "calls", "Calls to services per episode; none for what was kept or is embedded."),
    Metric("episode/cost_usd", "US dollars", "List price of these calls per episode."),
    Metric("episode/valid_actions", "share", "Completions that the environment accepted as an action."),
    Metric("episode/answered", "share", "Episodes that ended with an answer."),
    Metric("episode/unplayed", "episodes", "Episodes that could not begin (unreadable picture); they are in no mean."),
    Metric("episode/truncated", "share", "Episodes cut off from outside (context full)."),
    Metric("episode/turns", "turns", "Completions per episode."),
    Metric("episode/sampled_tokens", "tokens", "Tokens the policy sampled per episode."),
    Metric("episode/tokens", "tokens", "Tokens per episode, prompt and tool results included."),
    Metric("loss/total", "", "Loss per sampled token: policy loss plus weighted KL."),
    Metric(
        "loss/policy",
        "",
        "Surrogate loss per sampled token; near 0 where episodes are about equally long, its gradient is not.",
    ),
    Metric(
        "policy/kl", "nats", "Divergence from the reference policy per token (k3 estimate); absent without a KL term."
    ),
    Metric(
        "policy/entropy", "nats", "Entropy of the distributions the tokens were drawn from; 0 means no exploration."
    ),
    Metric("policy/clip_fraction", "share", "Tokens whose probability ratio was clipped."),
    Metric("policy/importance_weight", "", "Mean importance weight of a token; absent without a correction."),
    Metric("policy/importance_capped", "share", "Tokens whose weight was cut at the cap; absent without a correction."),
    Metric("policy/logprob_gap", "nats", "Mean |trainer - sampler| log-probability before the first update; about 0."),
    Metric("policy/logprob_gap_max", "nats", "Largest such gap at one token."),
    Metric("policy/staleness", "iterations", "How far the weights that played were behind those that learnt."),
    Metric("loss/value", "", "The critic's loss per sampled token; absent without a critic, as all of these."),
    Metric("critic/value", "", "Mean value that the critic gives to the states in which tokens were sampled."),
    Metric("critic/return", "", "Mean of what these values should have been."),
    Metric("critic/error_square", "", "Mean squared difference of the two."),
    Metric("optimiser/learning_rate", "", "Learning rate of the iteration's last update."),
    Metric("optimiser/grad_norm", "", "Largest global gradient norm of the iteration's updates, before clipping."),
    Metric("optimiser/updates", "updates", "Optimiser steps taken in this iteration."),
    Metric(
        "optimiser/tokens",
        "tokens",
        "Tokens of the episodes that went through these updates, each as often as it did; a prompt counts for each.",
    ),
    Metric("optimiser/skipped", "updates", "Updates skipped in this iteration because the gradient was not finite."),
    Metric("speed/iteration_s", "seconds", "Wall time of the iteration."),
    Metric("speed/rollout_share", "share", "Of it, spent playing."),
    Metric("speed/learn_share", "share", "Of it, spent learning."),
    Metric("speed/other_share", "share", "Of it, everything else (measuring, evaluation during training)."),
    Metric("speed/sampled_tokens_per_s", "tokens/s", "Tokens sampled per second of playing, over all ranks."),
    Metric(
        "speed/learnt_tokens_per_s",
        "tokens/s",
        "Tokens of the episodes learnt from, counted as optimiser/tokens, per second of it, over all ranks.",
    ),
    Metric("evaluation/reward", "", "Mean return on questions that are not trained on."),
    Metric("evaluation/accuracy", "share", "Their mean answer metric."),
    Metric("evaluation/search_ratio", "share", "Share of them that searched."),
)
"""Every metric, in the order in which people read them. ``evaluation/…`` appears only in iterations that evaluate."""

NAMES = frozenset(metric.name for metric in METRICS)


def episode_sums(groups: Sequence[Group]) -> dict[str, float]:
    """What of this rank's episodes is added up over ranks before :func:`episode_metrics`."""
    played = [group for group in groups if is_played(group)]
    trajectories = [trajectory for group in played for trajectory in group.trajectories]
    unplayed = sum(len(group.trajectories) for group in groups) - len(trajectories)
    returns = [trajectory.episode_return for trajectory in trajectories]
    per_episode = {
        "reward/mean": returns,
        "square": [value * value for value in returns],
        "episode/accuracy": [item.success for item in trajectories],
        "episode/search_ratio": [float(item.n_searches > 0) for item in trajectories],
        "episode/search_calls_ratio": [item.n_searches / FIXED_PLAN_CALLS for item in trajectories],
        "episode/image_search": [item.counts["n_image_search"] for item in trajectories],
        "episode/text_search": [item.counts["n_text_search"] for item in trajectories],
        "episode/tool_errors": [item.counts["n_tool_errors"] for item in trajectories],
        "episode/judge_errors": [item.counts["n_judge_errors"] for item in trajectories],
        "episode/service_calls": [item.counts["n_service_calls"] for item in trajectories],
        "episode/cost_usd": [item.counts["cost_usd"] for item in trajectories],
        "episode/answered": [float(_answered(item)) for item in trajectories],
        "episode/truncated": [float(item.truncated) for item in trajectories],
        "episode/turns": [float(len(item.turns)) for item in trajectories],
        "episode/sampled_tokens": [float(sum(item.loss_mask)) for item in trajectories],
        "episode/tokens": [float(len(item.loss_mask)) for item in trajectories],
        "valid": [float(turn.valid) for item in trajectories for turn in item.turns],
    }
    signals = [float(has_signal([item.episode_return for item in group.trajectories])) for group in played]
    return {
        **{name: float(sum(values)) for name, values in per_episode.items()},
        "episode/unplayed": float(unplayed),
        "signals": sum(signals),
        "groups": float(len(played)),
        "episodes": float(len(trajectories)),
    }


def is_played(group: Group) -> bool:
    """Whether every episode of the group has a turn; otherwise it holds nothing to learn from or to count."""
    return all(trajectory.turns for trajectory in group.trajectories)


def episode_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """The ``reward/`` and ``episode/`` metrics from :func:`episode_sums` added up over ranks."""
    episodes = max(1.0, sums["episodes"])
    means = {name: value / episodes for name, value in sums.items() if name in NAMES}
    variance = max(0.0, sums["square"] / episodes - means["reward/mean"] ** 2)
    return {
        **means,
        "reward/std": variance**0.5,
        "episode/unplayed": sums["episode/unplayed"],
        "reward/signal": sums["signals"] / max(1.0, sums["groups"]),
        "episode/valid_actions": sums["valid"] / max(1.0, sums["episode/turns"]),
    }


def check_names(values: Iterable[str]) -> None:
    """Refuse to log what the table does not explain. Raises ValueError with the names."""
    unknown = sorted(set(values) - NAMES)
    if unknown:
        raise ValueError(f"expected metrics of training.metrics.METRICS, got {unknown}; add a row with their meaning")


def _answered(trajectory: Trajectory) -> bool:
    last = trajectory.turns[-1]
    return last.kind == ActionKind.ANSWER and last.valid
