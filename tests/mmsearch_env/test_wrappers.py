"""The same task for text policies and for array algorithms."""

from __future__ import annotations

import pickle
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from mmsearch_env.actions import Malformed
from mmsearch_env.candidates import ASK, ASK_ABOUT, FIRST_ANSWER, GIVE_UP, LOOK
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, EpisodeError
from mmsearch_env.images import Image
from mmsearch_env.questions import QuestionSet
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import Hit, SearchResult
from mmsearch_env.wrappers import ArrayObservations, CandidateActions, FlatObservations, TextActions, hashed_words


@pytest.fixture
def env(questions: QuestionSet, picture: Image) -> MMSearchEnv:
    tool = FakeSearch([SearchResult((Hit("Chad", "u", thumbnail=picture),))])
    return MMSearchEnv(questions=questions, tools=tool, prompts="brief")


def test_text_actions_play_raw_text(env: MMSearchEnv) -> None:
    text = TextActions(env)
    text.reset(options={"question_id": "q1"})
    _, reward, terminated, *_ = text.step("<reason>r</reason><answer>Chad</answer>")
    assert (reward, terminated) == (1.0, True)
    text.reset()
    with pytest.raises(EpisodeError, match="dict"):
        text.step({"kind": 0})


def test_random_text_is_well_formed(env: MMSearchEnv) -> None:
    text = TextActions(env)
    text.action_space.seed(1)
    samples = [text.action_space.sample() for _ in range(60)]
    assert all(env.protocol.well_formed(sample) for sample in samples)
    assert len({type(env.protocol.parse(sample)) for sample in samples}) == 3
    assert not any(isinstance(env.protocol.parse(sample), Malformed) for sample in samples)
    assert "anything at all" in text.action_space
    assert pickle.loads(pickle.dumps(text.action_space)) == text.action_space


def test_candidates_and_their_mask(env: MMSearchEnv) -> None:
    choice = CandidateActions(env, n_titles=2, n_snippets=1, vocabulary=("Mali",))
    _, info = choice.reset(options={"question_id": "q1"})
    assert choice.action_space == spaces.Discrete(8)
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 0, 0, 0, 1]
    assert info["action_mask"].dtype == np.int8
    _, reward, _, _, info = choice.step(LOOK)
    assert info["action_mask"].tolist() == [1, 0, 1, 1, 1, 0, 0, 1]
    assert choice.action_masks().tolist() == [bool(flag) for flag in info["action_mask"]]
    _, reward, terminated, _, info = choice.step(np.int64(FIRST_ANSWER))
    assert (reward, terminated) == (pytest.approx(0.91), True)
    assert not info["action_mask"].any()


def test_a_candidate_that_means_nothing_costs_the_round(env: MMSearchEnv) -> None:
    choice = CandidateActions(env)
    choice.reset()
    *_, info = choice.step(ASK_ABOUT)
    assert (info["valid"], info["error"], info["round"]) == (0.0, "no_action", 1.0)
    *_, info = choice.step(ASK)
    assert info["kind"] == "text_search"
    *_, info = choice.step(GIVE_UP)
    assert info["stop_reason"] == "answered"


@pytest.mark.parametrize("number", [-1, 99])
def test_a_number_outside_the_action_space_is_refused(env: MMSearchEnv, number: int) -> None:
    chosen = CandidateActions(env)
    chosen.reset(seed=0)
    with pytest.raises(EpisodeError, match=f"expected a candidate of 0 to 11, got {number}"):
        chosen.step(number)


@pytest.mark.parametrize("vocabulary", ["abc", [""], ["x" * 3000]])
def test_words_that_could_not_be_answered_are_refused(env: MMSearchEnv, vocabulary: Any) -> None:
    with pytest.raises(ConfigError, match="vocabulary: expected a list of answers"):
        CandidateActions(env, vocabulary=vocabulary)


def test_arrays_hold_the_whole_episode(env: MMSearchEnv, picture: Image) -> None:
    arrays = ArrayObservations(CandidateActions(env, n_titles=1, n_snippets=0), side_pixels=8, n_features=16)
    seen, _ = arrays.reset(options={"question_id": "q1"})
    assert seen in arrays.observation_space
    assert {name: array.shape for name, array in seen.items()} == {
        "action_mask": (5,),
        "counters": (3,),
        "found": (16,),
        "picture": (8, 8, 3),
        "question": (16,),
        "thumbnail": (8, 8, 3),
    }
    assert not seen["thumbnail"].any()
    assert not seen["found"].any()
    assert seen["counters"].tolist() == [1.0, 1.0, 1.0]
    later, *_ = arrays.step(LOOK)
    assert (later["thumbnail"] == picture.resized(8, 8).pixels).all()
    assert later["found"].any()
    assert later["counters"].tolist() == pytest.approx([2 / 3, 0.0, 1.0])
    assert (later["question"] == seen["question"]).all()


def test_arrays_without_candidates_have_no_mask(env: MMSearchEnv) -> None:
    seen, _ = ArrayObservations(env).reset()
    assert "action_mask" not in seen
    assert seen["picture"].shape == (64, 64, 3)


def test_flat_is_one_box_between_minus_one_and_one(env: MMSearchEnv) -> None:
    flat = FlatObservations(ArrayObservations(env, side_pixels=2, n_features=4))
    seen, _ = flat.reset()
    assert seen.shape == (3 + 4 + 12 + 4 + 12,)
    assert seen.dtype == np.float32
    assert seen in flat.observation_space
    assert float(seen.max()) == 1.0
    with pytest.raises(ConfigError, match="ArrayObservations"):
        FlatObservations(env)


def test_hashed_words_are_stable_and_of_length_one() -> None:
    one = hashed_words(["The capital of Chad"], 32)
    assert np.linalg.norm(one) == pytest.approx(1.0)
    assert (one == hashed_words(["the CAPITAL, of chad!"], 32)).all()
    assert not (one == hashed_words(["Chad of capital the"], 32)).all()
    assert not hashed_words([], 32).any()
    assert np.flatnonzero(hashed_words(["flag"], 16)).tolist() == [10]


@pytest.mark.parametrize(
    ("wrap", "arguments"),
    [
        (CandidateActions, {"n_titles": -1}),
        (ArrayObservations, {"side_pixels": 0}),
        (ArrayObservations, {"n_features": 0}),
    ],
)
def test_bad_sizes_are_refused(env: MMSearchEnv, wrap: Any, arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        wrap(env, **arguments)


def test_another_environment_cannot_be_wrapped() -> None:
    with pytest.raises(ConfigError, match="CartPole"):
        TextActions(gymnasium.make("CartPole-v1"))


@pytest.mark.parametrize("name", ["MMSearchDiscrete-v0", "MMSearchBox-v0"])
def test_gymnasiums_vector_environment_stacks_the_array_ids(name: str) -> None:
    envs = gymnasium.make_vec(name, num_envs=2)
    envs.reset(seed=0)
    seen, *_, infos = envs.step(np.array([LOOK, GIVE_UP]))
    assert seen in envs.observation_space
    assert infos["action_mask"].shape == (2, envs.single_action_space.n)  # type: ignore[attr-defined]
    envs.close()
