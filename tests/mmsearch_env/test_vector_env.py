"""Episodes side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

import mmsearch_env  # noqa: F401  registers the ids
from mmsearch_env.actions import Answer, ImageSearch, TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, EpisodeError, ToolUnavailable
from mmsearch_env.questions import QuestionSet
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import Hit, Query, SearchResult, TextQuery
from mmsearch_env.vector_env import MMSearchVectorEnv

RESULT = SearchResult((Hit("Chad", "u", "snippet"),))
RIGHT = "<reason>r</reason><answer>Chad</answer>"


class TogetherTool:
    """Counts calls; fails for a query that says so, and then for the whole batch."""

    name = "together tool"

    def __init__(self) -> None:
        self.calls: list[int] = []

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        self.calls.append(1)
        if isinstance(query, TextQuery) and query.text == "fail":
            raise ToolUnavailable("down")
        return RESULT

    def search_many(self, queries: Sequence[Query], *, top_k: int) -> list[SearchResult]:
        self.calls.append(len(queries))
        if any(isinstance(query, TextQuery) and query.text == "fail" for query in queries):
            raise ToolUnavailable("down")
        return [RESULT for _ in queries]

    async def aclose(self) -> None: ...


def make(questions: QuestionSet, num_envs: int = 3, **arguments: Any) -> MMSearchVectorEnv:
    settings = {"questions": questions, "tools": FakeSearch([RESULT]), "prompts": "brief", **arguments}
    return MMSearchVectorEnv(num_envs, **settings)


def test_it_plays_what_single_environments_play(questions: QuestionSet) -> None:
    texts = ["<reason>r</reason><search><img></search>", RIGHT, "nonsense"]
    envs = make(questions)
    observations, infos = envs.reset(seed=5)
    assert observations in envs.observation_space
    stepped, rewards, terminations, truncations, step_infos = envs.step(texts)
    assert stepped in envs.observation_space
    assert truncations.tolist() == [False] * 3
    for number in range(3):
        single = MMSearchEnv(questions=questions, tools=FakeSearch([RESULT]), prompts="brief")
        seen, info = single.reset(seed=5 + number)
        assert repr(observations["content"][number]) == repr(seen["content"])
        assert infos["question_id"][number] == info["question_id"]
        seen, reward, terminated, _, info = single.step(texts[number])
        assert repr(stepped["content"][number]) == repr(seen["content"])
        assert stepped["round"][number] == seen["round"]
        assert (rewards[number], terminations[number]) == (reward, terminated)
        assert step_infos["error"][number] == info["error"]
        assert step_infos["reward_terms"]["total"][number] == info["reward_terms"]["total"]


def test_one_seed_for_all_is_a_group(questions: QuestionSet) -> None:
    envs = make(questions, 4)
    for seed in range(3):
        assert len(set(envs.reset(seed=[seed] * 4)[1]["question_id"])) == 1


def test_questions_can_be_chosen_and_some_reset_alone(questions: QuestionSet) -> None:
    envs = make(questions)
    _, infos = envs.reset(options={"question_ids": ["q3", "q1", "q2"]})
    assert infos["question_id"].tolist() == ["q3", "q1", "q2"]
    envs.step([Answer("red")] * 3)
    mask = np.array([False, True, False])
    observations, infos = envs.reset(options={"reset_mask": mask, "questions": [None, questions[2], None]})
    assert infos["_question_id"].tolist() == mask.tolist()
    assert infos["question_id"][1] == "q3"
    assert observations["round"].tolist() == [1, 0, 1]


def test_a_partial_step_leaves_the_others_as_they_were(questions: QuestionSet) -> None:
    envs = make(questions)
    envs.reset(options={"question_ids": ["q1", "q2", "q3"]})
    observations, rewards, terminations, _, infos = envs.step([RIGHT, None, None], mask=[True, False, False])
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert terminations.tolist() == [True, False, False]
    assert observations["round"].tolist() == [1, 0, 0]
    assert infos["_kind"].tolist() == [True, False, False]
    with pytest.raises(EpisodeError, match=r"\[0\] that ended"):
        envs.step([RIGHT] * 3)
    assert [env.state.round for env in envs.envs] == [1, 0, 0]
    observations, _, terminations, _, _ = envs.step([None, RIGHT, RIGHT], mask=~terminations)
    assert terminations.all()
    assert observations["round"].tolist() == [1, 1, 1]


def test_actions_may_be_a_member_of_the_batched_space(questions: QuestionSet) -> None:
    envs = make(questions)
    envs.reset(seed=1)
    envs.action_space.seed(2)
    for _ in range(3):
        running = np.array([not env.state.ended for env in envs.envs])
        if running.any():
            envs.step(envs.action_space.sample(), mask=running)
    with pytest.raises(EpisodeError, match="3 actions"):
        make_reset(questions).step([RIGHT])


def make_reset(questions: QuestionSet) -> MMSearchVectorEnv:
    envs = make(questions)
    envs.reset(seed=0)
    return envs


def test_searches_of_a_step_are_asked_in_one_call_per_kind(questions: QuestionSet) -> None:
    tool = TogetherTool()
    envs = make(questions, 5, tools=tool)
    envs.reset(seed=0)
    look, ask = ImageSearch(), TextSearch("q")
    envs.step([look, ask, look, Answer("x"), ask])
    assert tool.calls == [2, 2]


def test_one_bad_search_spoils_no_other(questions: QuestionSet) -> None:
    tool = TogetherTool()
    envs = make(questions, 3, tools=tool)
    envs.reset(seed=0)
    *_, infos = envs.step([TextSearch("q"), TextSearch("fail"), TextSearch("q")])
    assert infos["error"].tolist() == ["", "unavailable", ""]
    assert infos["n_text_search"].tolist() == [1.0, 0.0, 1.0]
    assert tool.calls == [3, 1, 1, 1]


class MeetingTool:
    """Delivers once eight searches wait at the same time."""

    name = "meeting tool"

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(8)

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        await self.barrier.wait()
        return RESULT

    async def aclose(self) -> None: ...


def test_searches_wait_side_by_side(questions: QuestionSet) -> None:
    envs = make(questions, 8, tools=MeetingTool())
    envs.reset(seed=0)
    assert envs.step([TextSearch("q")] * 8)[-1]["n_tool_errors"].tolist() == [0.0] * 8


def test_arrays_of_two_steps_are_not_shared(questions: QuestionSet) -> None:
    envs = make_reset(questions)
    first, *_ = envs.step([ImageSearch()] * 3, mask=[True, False, False])
    second, *_ = envs.step([ImageSearch()] * 3, mask=[False, True, False])
    assert not np.shares_memory(first["round"], second["round"])
    assert not np.shares_memory(first["content"][2][0][1], second["content"][2][0][1])


@pytest.mark.parametrize(
    "options",
    [{"mask": [True] * 3}, {"reset_mask": [True]}, {"reset_mask": np.ones(3)}, {"question_ids": ["q1"]}],
)
def test_bad_options_are_refused(questions: QuestionSet, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        make(questions).reset(options=options)


def test_misuse_is_refused(questions: QuestionSet) -> None:
    with pytest.raises(ConfigError, match="num_envs"):
        make(questions, 0)
    with pytest.raises(EpisodeError, match="ended; reset"):
        make(questions).step([RIGHT] * 3)
    with pytest.raises(EpisodeError, match="at least once"):
        make(questions).reset(options={"reset_mask": np.array([True, False, False])})


def test_make_vec_gives_it_by_default() -> None:
    envs = gymnasium.make_vec("MMSearch-v0", num_envs=2, render_mode="ansi")
    assert isinstance(envs, MMSearchVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    envs.reset(seed=0)
    assert len(envs.render() or ()) == 2
    envs.close()
    envs.close()


def test_gymnasiums_own_vector_environments(questions: QuestionSet) -> None:
    """Shared memory would freeze every observation, so it is refused; without it, processes play the same game."""
    one = gymnasium.make_vec("mmsearch_env:MMSearch-v0", num_envs=2, vectorization_mode="sync")
    two = gymnasium.make_vec(
        "mmsearch_env:MMSearch-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False, "context": "spawn"},
    )
    try:
        assert repr(one.reset(seed=3)) == repr(two.reset(seed=3))
        one.action_space.seed(1)
        action = one.action_space.sample()
        assert repr(one.step(action)) == repr(two.step(action))
    finally:
        two.close()
    with pytest.raises((ValueError, TypeError), match="shared"):
        AsyncVectorEnv([lambda: gymnasium.make("mmsearch_env:MMSearch-v0")] * 2)
