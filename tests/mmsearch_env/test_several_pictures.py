"""Questions about several pictures: how they are read, shown, and searched with one by one."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

import mmsearch_env
from mmsearch_env import Answer, ImageSearch, MMSearchEnv, to_messages
from mmsearch_env.actions import Malformed
from mmsearch_env.datasets import load_questions
from mmsearch_env.errors import ConfigError, DataError, EpisodeError, QuestionError
from mmsearch_env.images import Image
from mmsearch_env.play import _meaning, add_arguments, run
from mmsearch_env.protocols import PROTOCOLS, load_protocol
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.searching import query_of
from mmsearch_env.tools.replay.record import Recorder
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult
from mmsearch_env.vector_env import MMSearchVectorEnv
from mmsearch_env.wrappers import ArrayObservations, CandidateActions, FlatObservations

HALF = (0.0, 0.0, 0.5, 1.0)
PERSON = Path(mmsearch_env.__file__).parent / "prompts" / "person"


def shot(seed: int) -> Image:
    return Image(np.random.default_rng(seed).integers(0, 255, (20, 30, 3)).astype(np.uint8))


PAIR = Question("pair", "Which of the two is older?", shot(1), ("x",), more_images=(shot(2),))
LONE = Question("lone", "What is this?", shot(3), ("x",))


class Noting:
    """A tool that notes what it is asked."""

    name = "noting"

    def __init__(self) -> None:
        self.asked: list[Query] = []

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        self.asked.append(query)
        return SearchResult((Hit("A page", "https://a.example/"),))

    async def aclose(self) -> None:
        """Nothing to free."""


def made(tool: Any = None, **settings: Any) -> MMSearchEnv:
    keywords = {"max_images": 2, "max_image_searches": 9, "max_rounds": 9, "crop": True, **settings}
    return MMSearchEnv(questions=QuestionSet("two", [PAIR, LONE]), tools=tool or Noting(), **keywords)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_all_pictures_are_shown_in_order_and_how_to_name_them(protocol: str) -> None:
    env = made(protocol=protocol)
    observation, _ = env.reset(options={"question_id": "pair"})
    assert env.conversation[0].images == (shot(1), shot(2))
    assert to_messages(observation)[0].images == (shot(1), shot(2))
    assert "several pictures" in env.conversation[0].text
    env.reset(options={"question_id": "lone"})
    assert env.conversation[0].images == (shot(3),)
    assert "several pictures" not in env.conversation[0].text


@pytest.mark.parametrize("prompts", ["standard", "brief"])
def test_a_question_with_one_picture_is_told_as_ever(prompts: str) -> None:
    one, several = made(prompts=prompts, max_images=1), made(prompts=prompts)
    for env in (one, several):
        env.reset(options={"question_id": "lone"})
    assert one.conversation == several.conversation


WRITTEN = {
    "mmsearch_r1": {
        ImageSearch(): "<search><img></search>",
        ImageSearch(index=1): "<search><img>2</search>",
        ImageSearch(HALF): "<search><img>0,0,0.5,1</search>",
        ImageSearch(HALF, 2): "<search><img>3:0,0,0.5,1</search>",
    },
    "tool_call": {
        ImageSearch(): '<tool_call>{"name": "image_search", "arguments": {}}</tool_call>',
        ImageSearch(index=1): '<tool_call>{"name": "image_search", "arguments": {"image": 2}}</tool_call>',
    },
}


@pytest.mark.parametrize(
    ("protocol", "action", "text"), [(name, *pair) for name, pairs in WRITTEN.items() for pair in pairs.items()]
)
def test_a_picture_is_named_by_its_number(protocol: str, action: ImageSearch, text: str) -> None:
    grammar = load_protocol(protocol, "standard")
    written = grammar.format(action, reason="r")
    assert written.endswith(text)
    assert grammar.parse(written) == action and grammar.well_formed(written)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<search><img> 2 </search>", ImageSearch(index=1)),
        ("<search><img>2: 0, 0, 0.5, 1</search>", ImageSearch(HALF, 1)),
        ("<search><img>[0,0,0.5,1]</search>", ImageSearch(HALF)),
        ("<search><img></img></search>", ImageSearch()),
    ],
)
def test_reading_is_lenient(text: str, action: ImageSearch) -> None:
    assert load_protocol("mmsearch_r1", "standard").parse(text) == action


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        ("mmsearch_r1", "<search><img>0</search>"),
        ("mmsearch_r1", "<search><img>-1</search>"),
        ("mmsearch_r1", "<search><img>1.5</search>"),
        ("mmsearch_r1", "<search><img>2:</search>0"),
        ("mmsearch_r1", "<search><img>2:1,2</search>"),
        ("mmsearch_r1", "<search><img>99999999999999999999</search>"),
        ("tool_call", '<tool_call>{"name": "image_search", "arguments": {"image": 0}}</tool_call>'),
        ("tool_call", '<tool_call>{"name": "image_search", "arguments": {"image": true}}</tool_call>'),
        ("tool_call", '<tool_call>{"name": "image_search", "arguments": {"image": "2"}}</tool_call>'),
        ("tool_call", '<tool_call>{"name": "image_search", "arguments": {"image": 1e99}}</tool_call>'),
    ],
)
def test_what_is_no_number_of_a_picture_means_nothing(protocol: str, text: str) -> None:
    assert isinstance(load_protocol(protocol, "standard").parse(text), Malformed)


@pytest.mark.parametrize("way", ["action", "member", "text"])
def test_the_search_is_made_with_the_picture_named(way: str) -> None:
    tool = Noting()
    env = made(tool)
    env.reset(options={"question_id": "pair"})
    action: Any = ImageSearch(HALF, 1)
    if way == "member":
        action = {"kind": 1, "bbox": HALF, "index": np.int64(1)}
    if way == "text":
        action = "<reason>r</reason><search><img>2:0,0,0.5,1</search>"
    _, _, _, _, info = env.step(action)
    assert info["valid"] == 1.0
    (query,) = tool.asked
    assert isinstance(query, ImageQuery) and (query.image, query.bbox) == (shot(2), HALF)


def test_a_picture_that_is_not_there_is_refused_and_costs_a_round_only() -> None:
    tool = Noting()
    env = made(tool)
    env.reset(options={"question_id": "lone"})
    _, _, terminated, _, info = env.step(ImageSearch(index=1))
    assert (info["error"], info["n_image_search"], terminated) == ("unknown_image", 0.0, False)
    assert not tool.asked
    _, reward, *_ = env.step(Answer("x"))
    assert reward == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("protocol", "prompts", "said"),
    [
        ("mmsearch_r1", "standard", "there is no such picture. Pictures are counted from 1, and the question has 2."),
        ("mmsearch_r1", "brief", "Refused: unknown_image. Pictures: 2."),
        ("tool_call", "standard", "there is no such picture. Pictures are counted from 1, and the question has 2."),
        ("mmsearch_r1", str(PERSON), "There is no such picture (unknown_image)."),
    ],
)
def test_the_player_is_told_which_pictures_there_are(protocol: str, prompts: str, said: str) -> None:
    env = made(protocol=protocol, prompts=prompts, max_images=3)
    env.reset(options={"question_id": "pair"})
    env.step(ImageSearch(index=2))
    assert said in env.conversation[-1].text


@pytest.mark.parametrize("index", ["1", 1.0, True, None])
def test_an_index_that_is_no_whole_number_is_the_callers_mistake(index: Any) -> None:
    env = made()
    env.reset(options={"question_id": "pair"})
    with pytest.raises(EpisodeError, match="whole number as index"):
        env.step(ImageSearch(index=index))
    with pytest.raises(EpisodeError, match="'index'"):
        env.step({"kind": 1, "index": "one"})


def test_the_spaces_are_as_ever_unless_several_pictures_are_allowed() -> None:
    assert set(made(max_images=1).action_space.spaces) == {"kind", "text", "bbox"}  # type: ignore[attr-defined]
    env = made()
    assert env.action_space["index"] == gymnasium.spaces.Discrete(2)  # type: ignore[index]
    env.action_space.seed(0)
    for _ in range(20):
        env.reset(seed=1)
        observation, *_ = env.step(env.action_space.sample())
        assert observation in env.observation_space


def test_a_question_with_too_many_pictures_is_passed_over_and_says_why() -> None:
    env = made(max_images=1)
    for seed in range(6):
        _, info = env.reset(seed=seed)
        assert info["question_id"] == "lone"
    assert env.unusable_questions["pair"].endswith("expected at most 1 pictures, got 2; set max_images to 2")
    with pytest.raises(QuestionError, match="set max_images to 2"):
        env.reset(options={"question_id": "pair"})


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_limit_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match="max_images: expected a whole number"):
        made(max_images=count)


def test_a_set_without_a_usable_question_says_why() -> None:
    env = MMSearchEnv(questions=QuestionSet("pairs", [PAIR]), tools=Noting())
    with pytest.raises(DataError, match=r"pairs: expected a usable question, got none; .* set max_images to 2"):
        env.reset(seed=0)


def test_an_episode_survives_a_pickle_and_a_snapshot() -> None:
    env = made("none")
    env.reset(options={"question_id": "pair"})
    again = pickle.loads(pickle.dumps(env))
    assert again.episode.images == (shot(1), shot(2))
    other = made()
    other.set_state(env.get_state())
    assert other.episode.image == shot(1)


def test_many_episodes_search_with_the_pictures_named() -> None:
    tool = Noting()
    envs = MMSearchVectorEnv(
        3, questions=QuestionSet("one", [PAIR]), tools=tool, max_images=2, max_image_searches=9, max_rounds=9
    )
    envs.reset(seed=0)
    envs.step([ImageSearch(index=n % 2) for n in range(3)])
    assert [query.image for query in tool.asked if isinstance(query, ImageQuery)] == [shot(1), shot(2), shot(1)]
    envs.close()


def test_members_of_the_batched_space_name_pictures_too() -> None:
    tool = Noting()
    envs = MMSearchVectorEnv(2, questions=QuestionSet("one", [PAIR]), tools=tool, max_images=2)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    envs.step({**envs.action_space.sample(), "kind": np.array([1, 1]), "index": np.array([1, 0])})
    assert [query.image for query in tool.asked if isinstance(query, ImageQuery)] == [shot(2), shot(1)]
    envs.close()


def test_a_record_takes_no_other_picture_for_the_first(tmp_path: Path) -> None:
    """A record may know a search by its question alone; what was found for one picture is not said of another."""
    tools = {"name": "replay", "path": str(tmp_path), "miss": "error"}
    recorder = Recorder(tmp_path)
    for index, title in ((1, "Second"), (0, "First"), (1, "Second")):
        query = query_of(ImageSearch(index=index), PAIR, PAIR.load_images())
        recorder.write(query, SearchResult((Hit(title, "https://a.example/"),)), top_k=5)
    strangers = replace(PAIR, image=shot(8), more_images=(shot(9),))
    env = MMSearchEnv(questions=QuestionSet("s", [strangers]), tools=tools, max_images=2, max_rounds=9)
    env.reset(seed=0)
    assert env.step(ImageSearch(index=1))[4]["error"] == "unavailable"
    env.step(ImageSearch())
    assert env.episode.results[0].hits[0].title == "First"


def test_coroutines_too() -> None:
    tool = Noting()
    env = made(tool)
    env.reset(options={"question_id": "pair"})
    asyncio.run(env.astep(ImageSearch(index=1)))
    assert isinstance(tool.asked[0], ImageQuery) and tool.asked[0].image == shot(2)


# --- algorithms that cannot write ------------------------------------------------------------------------------------


def test_searches_with_further_pictures_are_the_last_candidates() -> None:
    tool = Noting()
    choice = CandidateActions(made(tool), n_titles=1, n_snippets=1, vocabulary=("x",))
    assert choice.action_space == gymnasium.spaces.Discrete(8)
    _, info = choice.reset(options={"question_id": "lone"})
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 0, 0, 1, 0]
    _, info = choice.reset(options={"question_id": "pair"})
    assert info["action_mask"].tolist() == [1, 1, 1, 0, 0, 0, 1, 1]
    choice.step(7)
    assert isinstance(tool.asked[0], ImageQuery) and tool.asked[0].image == shot(2)


def test_arrays_hold_further_pictures_and_black_where_there_are_none() -> None:
    arrays = ArrayObservations(made(), side_pixels=8, n_features=4)
    seen, _ = arrays.reset(options={"question_id": "pair"})
    assert seen in arrays.observation_space
    assert (seen["picture"] == shot(1).resized(8, 8).pixels).all()
    assert (seen["picture_2"] == shot(2).resized(8, 8).pixels).all()
    seen, _ = arrays.reset(options={"question_id": "lone"})
    assert seen in arrays.observation_space and not seen["picture_2"].any()
    flat = FlatObservations(arrays)
    assert flat.reset(seed=0)[0] in flat.observation_space


# --- files -----------------------------------------------------------------------------------------------------------


def test_json_lines_may_name_several_pictures(tmp_path: Path) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}.png").write_bytes(shot(seed).to_png())
    rows = [
        {"question": "Older?", "answers": ["x"], "image": ["1.png", "2.png"]},
        {"question": "One?", "answers": ["x"], "image": "1.png"},
        {"question": "None?", "answers": ["x"], "image": []},
        {"question": "Gone?", "answers": ["x"], "image": ["1.png", "gone.png"]},
        {"question": "Number?", "answers": ["x"], "image": ["1.png", 2]},
        {"question": "Null?", "answers": ["x"], "image": [None]},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions = load_questions(tmp_path / "q.jsonl")
    assert [len(question.load_images()) for question in questions] == [question.n_images for question in questions]
    assert [question.n_images for question in questions] == [2, 1]
    assert questions[0].load_images(9)[1] == shot(2)
    assert [skipped.row for skipped in questions.skipped] == [3, 4, 5, 6]
    assert "gone.png" in questions.skipped[1].reason
    for number, got in ((0, "[]"), (2, "['1.png', 2]"), (3, "[None]")):
        assert f"expected 'image' to be a path or a list of paths, got {got}" in questions.skipped[number].reason


def test_parquet_may_hold_several_pictures(tmp_path: Path) -> None:
    def cell(*seeds: int) -> list[dict[str, Any]]:
        return [{"bytes": shot(seed).to_png(), "path": None} for seed in seeds]

    broken = [{"bytes": shot(1).to_png(), "path": None}, {"bytes": b"no picture", "path": None}]
    cells = [cell(1, 2, 3), broken, cell(4), [], cell(5, 6)]
    prompts = [[{"role": "user", "content": f"Question {number}?"}] for number in range(5)]
    answers = [{"ground_truth": "x", "candidate_answers": "[]"}] * 5
    table = pyarrow.table({"prompt": prompts, "images": cells, "reward_model": answers})
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    questions = load_questions(tmp_path / "q.parquet")
    found = [question.load_images(9) for question in questions]
    assert found == [(shot(1), shot(2), shot(3)), (shot(4),), (shot(5), shot(6))]
    assert [skipped.row for skipped in questions.skipped] == [2, 4]
    assert "its picture 2: expected a readable picture" in questions.skipped[0].reason
    with pytest.raises(DataError):
        questions[0].load_images(2)


# --- play ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("/image", ImageSearch()),
        ("/image 2", ImageSearch(index=1)),
        ("/i 2 0 0 .5 1", ImageSearch(HALF, 1)),
        ("/image 0 0 .5 1", ImageSearch(HALF)),
        ("/image 0", "help"),
        ("/image two", "help"),
        ("/image 1 2 3", "help"),
        ("/image \u0662", "help"),
    ],
)
def test_a_person_names_a_picture_by_its_number(line: str, meaning: object) -> None:
    assert _meaning(line) == meaning


@pytest.mark.parametrize("several", [False, True])
def test_help_speaks_of_several_pictures_only_where_there_are_some(tmp_path: Path, several: bool) -> None:
    for seed in (1, 2):
        (tmp_path / f"{seed}.png").write_bytes(shot(seed).to_png())
    row = {"question": "Which?", "answers": ["x"], "image": ["1.png", "2.png"] if several else "1.png"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["--questions", str(tmp_path / "q.jsonl"), "--picture", "none"])
    console = Console(file=io.StringIO(), width=120)
    lines = iter(["/help", "/quit"])
    run(arguments, console, lambda: next(lines))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count("/image 2  ") == (2 if several else 0)
    assert shown.count("[picture, 30 x 20 pixels]") == (2 if several else 1)


def test_a_broken_second_picture_makes_a_question_unusable(tmp_path: Path) -> None:
    class Broken:
        def load(self) -> Image:
            return Image.from_bytes(io.BytesIO(b"no").read(), name="second")

    question = Question("b", "Which?", shot(1), ("x",), more_images=(Broken(),))
    env = MMSearchEnv(questions=QuestionSet("s", [question, LONE]), tools="none", max_images=2)
    for seed in range(6):
        assert env.reset(seed=seed)[1]["question_id"] == "lone"
    assert "second" in env.unusable_questions["b"]
