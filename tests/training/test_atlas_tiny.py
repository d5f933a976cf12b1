"""The bundled tiny model keeps its promises, before any reinforcement learning."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from agents.engines.contract import SamplingLimits
from agents.evaluate import evaluate
from agents.labels import PLANS, UNSOLVED, load_labels
from agents.lmm import LMMPolicy
from agents.workflows import DIRECT, FIXED_RAG, ON_DEMAND, Workflow
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.questions import Question
from mmsearch_env.worlds import World, load_world
from mmsearch_env.worlds.entities import IDENTIFY
from training.tiny_lmm.knowledge import deal_knowledge
from training.tiny_lmm.recipe import Recipe

FRESH = "synthetic:seed=4711,entities=60,per_pair=1"
"""An invented world that no lesson was taken from."""


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    path = root / "agents" / "checkpoints" / "atlas-tiny"
    if not (path / "model.safetensors").is_file():
        pytest.skip("no bundled model is at hand: `make checkpoint` makes it")
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> LMMPolicy:
    return LMMPolicy.load(folder, limits=SamplingLimits(max_new_tokens=48, temperature=0.0))


@pytest.fixture(scope="module")
def atlas() -> World:
    return load_world("atlas")


@pytest.fixture(scope="module")
def labels(folder: Path) -> dict[str, str]:
    return dict(load_labels(folder).by_id)


def accuracy(policy: LMMPolicy, world: str, questions: Sequence[Question], workflow: Workflow) -> float:
    make_env = partial(MMSearchEnv, world=world, prompts="brief", image_top_k=3, text_top_k=3, **workflow.rules)
    return evaluate(policy, make_env, questions, seed=0, workflow=workflow).overall.accuracy.mean


def some(questions: Sequence[Question], count: int) -> list[Question]:
    return random.Random(0).sample(list(questions), count)


def test_it_is_small_and_says_how_it_was_made(folder: Path, policy: LMMPolicy) -> None:
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 15_000_000
    assert sum(parameter.numel() for parameter in policy.model.parameters()) <= 6_000_000
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["seed"] == Recipe().seed
    assert recipe["invented"] == Recipe().invented


def test_it_keeps_to_the_protocol(policy: LMMPolicy, atlas: World) -> None:
    """At temperature 1, on demand."""
    policy.limits = replace(policy.limits, temperature=1.0)
    make_env = partial(MMSearchEnv, prompts="brief", image_top_k=3, text_top_k=3)
    played = evaluate(policy, make_env, some(atlas.questions("test"), 150), seed=0, workflow=ON_DEMAND)
    policy.limits = replace(policy.limits, temperature=0.0)
    assert played.overall.valid.mean >= 0.95


def test_it_knows_what_it_was_taught(policy: LMMPolicy, atlas: World) -> None:
    knowledge = deal_knowledge(atlas, seed=Recipe().seed)
    asked = [q for q in atlas.questions("all") if q.tags["entity"] in knowledge.flags]
    flags = [q for q in asked if q.tags["relation"] == IDENTIFY]
    facts = [q for q in asked if q.tags["relation"] != IDENTIFY and q.tags["entity"] in knowledge.facts]
    assert accuracy(policy, "atlas", some(flags, 120), DIRECT) >= 0.9
    assert accuracy(policy, "atlas", some(facts, 120), DIRECT) >= 0.9


def test_it_does_not_know_what_it_was_not_taught(policy: LMMPolicy, atlas: World) -> None:
    knowledge = deal_knowledge(atlas, seed=Recipe().seed)
    asked = [q for q in atlas.questions("all") if q.tags["entity"] not in knowledge.flags | knowledge.facts]
    assert accuracy(policy, "atlas", some(asked, 120), DIRECT) <= 0.1


def test_it_reads_and_copies_what_it_has_never_seen(policy: LMMPolicy) -> None:
    """Search by the fixed plan in a fresh invented world, where nothing can be known: only copying helps."""
    asked = [q for q in load_world(FRESH).questions("all") if q.tags["relation"] != IDENTIFY]
    assert accuracy(policy, FRESH, some(asked, 120), DIRECT) <= 0.05
    assert accuracy(policy, FRESH, some(asked, 120), FIXED_RAG) >= 0.9


def test_every_question_has_a_label_and_few_are_unsolved(atlas: World, labels: dict[str, str]) -> None:
    """Words alone are rarely enough: it seldom writes a query about a flag it knows without looking at pages first."""
    assert set(labels) == set(atlas.questions("all").ids)
    shares = {label: count / len(labels) for label, count in Counter(labels.values()).items()}
    assert set(shares) == {*PLANS, UNSOLVED}
    assert min(shares["search_free"], shares["both_required"]) >= 0.3
    assert shares["image_required"] >= 0.03
    assert shares[UNSOLVED] <= 0.12


def test_the_wording_does_not_give_the_label_away(atlas: World, labels: dict[str, str]) -> None:
    """Naive Bayes on the words of the question, against always guessing the commonest label."""
    train, test = (
        [(words(q.text), labels[q.id]) for q in atlas.questions(split) if labels[q.id] != UNSOLVED]
        for split in ("train", "test")
    )
    commonest = Counter(label for _, label in train).most_common(1)[0][0]
    guess = bayes(train)
    right = np.mean([guess(seen) == label for seen, label in test])
    assert right - np.mean([label == commonest for _, label in test]) <= 0.10


def words(text: str) -> frozenset[str]:
    return frozenset(text.lower().strip("?.").split())


def bayes(seen: Sequence[tuple[frozenset[str], str]]) -> Callable[[frozenset[str]], str]:
    """Bernoulli naive Bayes with one imagined sighting of each word."""
    labels = Counter(label for _, label in seen)
    counts = {label: Counter(w for found, given in seen if given == label for w in found) for label in labels}

    def guess(found: frozenset[str]) -> str:
        def score(label: str) -> float:
            shares = [(counts[label][word] + 1) / (labels[label] + 2) for word in found]
            return float(np.log(labels[label]) + np.log(shares).sum())

        return max(labels, key=score)

    return guess
