"""Which settings make a run this run."""

from __future__ import annotations

import pytest

from training.config.file import config_from_mapping
from training.folder import identity


def of(**sections: object) -> object:
    return identity(config_from_mapping(dict(sections)))


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"env": {"search_penalty": 0.2}},
        {"optimiser": {"learning_rate": 0.5}},
        {"evaluation": {"questions": 7}},
        {"evaluation": {"temperature": 0.5}},
    ],
)
def test_what_would_make_before_and_after_unlike_makes_another_run(changed: dict[str, object]) -> None:
    assert of() != of(**changed)


@pytest.mark.parametrize(
    "changed", [{"iterations": 7}, {"engine": {"micro_batch_tokens": 512}}, {"evaluation": {"every": 3}}]
)
def test_what_only_changes_how_far_and_how_it_is_watched_does_not(changed: dict[str, object]) -> None:
    assert of() == of(**changed)
