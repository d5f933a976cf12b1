"""What the environment is told by a program must be right; what a player says may be anything."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import mmsearch_env
from mmsearch_env.actions import Answer, ImageSearch, TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, EpisodeError
from mmsearch_env.questions import QuestionSet
from mmsearch_env.spaces import to_messages
from mmsearch_env.tools.fake import FakeSearch
from mmsearch_env.tools.search_tool import Hit, SearchResult


def make(questions: QuestionSet, **settings: Any) -> MMSearchEnv:
    tool = FakeSearch([SearchResult((Hit("Chad", "u", "snippet"),))])
    env = MMSearchEnv(**{"questions": questions, "tools": tool, "prompts": "brief", **settings})
    env.reset(seed=0)
    return env


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("worlds", "atlas"),
        ("world", "moon"),
        ("split", "exam"),
        ("protocol", "smoke"),
        ("prompts", "long"),
        ("max_rounds", 0),
        ("reward", "additive"),
        ("metric", "bleu"),
        ("penalty_mode", "twice"),
        ("format_weight", 2),
        ("image_top_k", 0),
        ("text_top_k", 1.5),
        ("tool_timeout_s", 0),
        ("history", "all"),
        ("render_mode", "hologram"),
        ("tools", {"video_search": "local"}),
        ("tools", "crystal ball"),
        ("tools", {"text_search": object()}),
        ("tools", 5),
        ("tools", {"text_search": {"name": "fake", "script": [["hit"]]}}),
        ("tools", {"text_search": {"name": "fake", "delay_s": "long"}}),
        ("world", 5),
        ("prompts", ["brief"]),
        ("max_rounds", 10**30),
    ],
)
def test_a_bad_argument_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}|tool|{re.escape(repr(value))}"):
        MMSearchEnv(**{name: value})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (Answer(None), "expected a text in Answer, got NoneType"),  # type: ignore[arg-type]
        (TextSearch(5), "expected a text in TextSearch, got int"),  # type: ignore[arg-type]
        ({"kind": 1, "bbox": "abc"}, "expected numbers under 'bbox'"),
    ],
)
def test_an_action_of_another_form_is_an_error_of_the_caller(questions: QuestionSet, action: Any, message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        make(questions).step(action)


def test_a_question_id_is_a_text(questions: QuestionSet) -> None:
    with pytest.raises(ConfigError, match="expected a text under 'question_id'"):
        make(questions).reset(options={"question_id": ["q1"]})


def test_nobody_is_invited_to_a_search_that_is_not_allowed(questions: QuestionSet) -> None:
    env = make(questions, prompts="standard", max_image_searches=2, max_text_searches=0)
    env.step(ImageSearch())
    assert "Chad" in env.new_messages[0].text
    assert "<text_search>" not in env.new_messages[0].text


def test_turns_stay_apart_where_a_prompt_is_empty(questions: QuestionSet, tmp_path: Path) -> None:
    folder = tmp_path / "silent"
    shutil.copytree(Path(mmsearch_env.__file__).parent / "prompts" / "brief", folder)
    (folder / "malformed.txt").write_text("")
    env = make(questions, prompts=str(folder), history="episode")
    observation, *_ = env.step("nonsense")
    assert [message.role for message in to_messages(observation)] == ["user", "assistant", "user"]
    assert to_messages(observation) == env.conversation
