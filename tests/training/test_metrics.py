from __future__ import annotations

from pathlib import Path

import pytest

from agents.trajectory import Completion, FinishReason, Group, Trajectory, Turn
from training.metrics import METRICS, check_names, episode_metrics, episode_sums

ROOT = Path(__file__).parents[2]
SAID = Completion("x", (3, 4), (-0.1, -0.1), FinishReason.STOP)


def episode(reward: float, *, searches: int = 0, kind: str = "answer", valid: bool = True) -> Trajectory:
    turns = (
        *(Turn((1,), (), SAID, 0.0, "text_search", True) for _ in range(searches)),
        Turn((1, 2), (), SAID, reward, kind, valid),
    )
    counts = {"n_image_search": 0.0, "n_text_search": float(searches), "n_tool_errors": 1.0, "n_malformed": 0.0}
    counts |= {"n_judge_errors": 0.0}
    counts |= {"n_service_calls": 2.0 * searches, "cost_usd": 0.01 * searches}
    return Trajectory("q", turns, True, False, "answered", float(reward > 0.5), {}, counts, "x")


UNPLAYED = Trajectory("z", (), False, True, "unusable_question", 0.0, {}, {}, "")


def test_episodes_by_hand() -> None:
    groups = [
        Group("a", (episode(1.0), episode(0.0, searches=2))),
        Group("b", (episode(0.5, kind="malformed", valid=False), episode(0.5))),
    ]
    values = episode_metrics(episode_sums(groups))
    assert values == pytest.approx(
        {
            "reward/mean": 0.5,
            "reward/std": 0.125**0.5,
            "reward/signal": 0.5,
            "episode/accuracy": 0.25,
            "episode/search_ratio": 0.25,
            "episode/search_calls_ratio": 0.25,
            "episode/image_search": 0.0,
            "episode/text_search": 0.5,
            "episode/tool_errors": 1.0,
            "episode/judge_errors": 0.0,
            "episode/service_calls": 1.0,
            "episode/cost_usd": 0.005,
            "episode/valid_actions": 5 / 6,
            "episode/answered": 0.75,
            "episode/unplayed": 0.0,
            "episode/truncated": 0.0,
            "episode/turns": 1.5,
            "episode/sampled_tokens": 3.0,
            "episode/tokens": (4 + 3 + 3 + 4 + 4 + 4) / 4,
        }
    )


def test_sums_of_ranks_add_up_to_the_whole() -> None:
    groups = [Group("a", (episode(1.0), episode(0.0, searches=1))), Group("b", (episode(1.0), episode(1.0)))]
    parts = [episode_sums([group]) for group in groups]
    added = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    assert episode_metrics(added) == pytest.approx(episode_metrics(episode_sums(groups)))


def test_what_could_not_be_played_is_counted_and_kept_out_of_the_means() -> None:
    groups = [Group("a", (episode(1.0), episode(1.0))), Group("z", (UNPLAYED, UNPLAYED))]
    values = episode_metrics(episode_sums(groups))
    assert (values["reward/mean"], values["episode/unplayed"]) == (1.0, 2.0)


def test_nothing_played_gives_numbers_all_the_same() -> None:
    values = episode_metrics(episode_sums([Group("z", (UNPLAYED,))]))
    assert (values["reward/mean"], values["episode/unplayed"]) == (0.0, 1.0)


def test_a_metric_without_a_meaning_is_refused() -> None:
    check_names(["reward/mean"])
    with pytest.raises(ValueError, match="made/up"):
        check_names(["reward/mean", "made/up"])


def test_the_documentation_holds_the_same_table() -> None:
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert rows == [
        f"| `{metric.name}` | {metric.unit or '–'} | {metric.meaning.replace('|', chr(92) + '|')} |"
        for metric in METRICS
    ]
