"""Reading a page that a search found: off by default, with a limit and a price of its own."""

from __future__ import annotations

import asyncio
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

import mmsearch_env
from mmsearch_env import VisitPage
from mmsearch_env.actions import ActionKind, Malformed
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import ConfigError, ToolUnavailable
from mmsearch_env.protocols import load_protocol
from mmsearch_env.rewards import RewardRules
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.local.page_reader import LocalPages
from mmsearch_env.tools.search_tool import PageQuery, TextQuery
from mmsearch_env.vector_env import MMSearchVectorEnv
from mmsearch_env.worlds import load_world

ASK = "<reason>I look it up.</reason><text_search>currency of Peru</text_search>"
TOLD = "<reason>r</reason><answer>sol</answer>"


def visit(url: str) -> str:
    return f"<reason>I read it.</reason><visit>{url}</visit>"


def played(*texts: str, **settings: Any) -> list[dict[str, Any]]:
    """The infos of an episode about one question; ``{0}`` in a text is the address found first."""
    env = MMSearchEnv(**{"max_rounds": 6, "max_page_visits": 2, **settings})
    env.reset(seed=0)
    infos = []
    for text in texts:
        found = [hit.url for result in env.episode.results for hit in result.hits]
        _, reward, ended, _, info = env.step(text.format(*found[:1]) if "{0}" in text else text)
        infos.append(info | {"reward": reward, "said": env.conversation[-1].text})
        if ended:
            break
    return infos


def test_a_page_that_was_found_is_read_whole() -> None:
    asked, read = played(ASK, visit("{0}"))
    assert (read["kind"], read["valid"], read["n_page_visit"], read["n_text_search"]) == ("visit_page", 1.0, 1.0, 1.0)
    world = load_world("atlas")
    page = next(page for page in world.pages if page.url in read["said"])
    assert page.text.splitlines()[-1] in read["said"]
    assert page.text.splitlines()[-1] not in asked["said"]


@pytest.mark.parametrize(
    ("tools", "has_pages"),
    [
        ({"name": "replay", "path": "{}", "miss": "empty"}, True),
        ({"name": "replay", "path": "{}", "miss": "live", "live": "local"}, True),
        ({"name": "replay", "path": "{}", "miss": "live", "live": "fake"}, False),
        ({"name": "server", "base_url": "http://127.0.0.1:1"}, True),
        ({"name": "fake"}, False),
        ("local", False),
    ],
)
def test_a_tool_with_pages_that_is_named_for_searches_reads_them_too(
    tools: Any, has_pages: bool, tmp_path: Path
) -> None:
    (tmp_path / "calls.jsonl").touch()
    if isinstance(tools, dict) and "path" in tools:
        tools = tools | {"path": str(tmp_path)}
    made = MMSearchEnv(tools=tools).tools
    is_embedded = isinstance(made[ActionKind.VISIT_PAGE], LocalPages)
    assert is_embedded != has_pages
    assert has_pages == (type(made[ActionKind.VISIT_PAGE]) is type(made[ActionKind.TEXT_SEARCH]))


@pytest.mark.parametrize(
    "url", ["http://169.254.169.254/", "https://atlas.example/article/albania", "file:///etc/passwd", "x"]
)
def test_an_address_that_no_search_found_is_not_visited(url: str) -> None:
    (refused,) = played(visit(url))
    assert (refused["valid"], refused["error"], refused["n_page_visit"]) == (0.0, "unknown_page", 0.0)


def test_limits_hold_and_by_default_nothing_is_visited() -> None:
    infos = played(ASK, visit("{0}"), visit("{0}"), visit("{0}"))
    assert [info["error"] for info in infos] == ["", "", "", "page_visit_limit"]
    assert played(ASK, visit("{0}"), max_page_visits=0)[1]["error"] == "page_visit_limit"


@pytest.mark.parametrize(
    ("settings", "searches", "visits", "price"),
    [
        ({"form": "subtractive", "penalty_mode": "per_call", "visit_penalty": 0.05}, 1, 2, 0.1 + 0.1),
        ({"form": "subtractive", "visit_penalty": 0.05}, 2, 2, 0.1 + 0.05),
        ({"visit_penalty": 0.2}, 1, 2, 0.9 * (1 - 0.9 * 0.8)),
        ({"visit_penalty": 0.2, "penalty_mode": "per_call"}, 2, 2, 0.9 * (1 - 0.9**2 * 0.8**2)),
        ({"visit_penalty": 0.2, "penalty_mode": "none"}, 2, 2, 0.0),
        ({}, 1, 1, 0.9 * 0.1),
    ],
)
def test_prices_by_hand(settings: dict[str, Any], searches: int, visits: int, price: float) -> None:
    from mmsearch_env.episode import EpisodeState, StopReason

    state = EpisodeState(n_text_search=searches, n_page_visit=visits, answer="x", stop_reason=StopReason.ANSWERED)
    terms = RewardRules(**settings).terms(state, ["x"])
    assert terms.search_penalty == pytest.approx(price)


def test_the_grammar_reads_and_writes_it() -> None:
    protocol = load_protocol("mmsearch_r1", "standard")
    action = VisitPage("https://a.example/1?b=2")
    text = protocol.format(action, reason="r")
    assert protocol.parse(text) == action
    assert protocol.well_formed(text)
    assert isinstance(protocol.parse("<reason>r</reason><visit></visit>"), Malformed)
    assert isinstance(protocol.parse("<visit>a</visit><answer>b</answer>"), Malformed)
    assert protocol.neutralise("a <visit>x</ Visit > b") == "a ‹visit>x‹/ Visit > b"


@pytest.mark.parametrize("prompts", ["standard", "brief"])
def test_it_is_announced_only_where_it_is_allowed(prompts: str) -> None:
    told = {}
    for visits in (0, 2):
        env = MMSearchEnv(prompts=prompts, max_page_visits=visits)
        env.reset(seed=0)
        told[visits] = env.conversation[0].text
    assert "<visit>" in told[2] and "<visit>" not in told[0]


def test_picture_hits_name_their_address_where_it_can_be_visited() -> None:
    look = "<reason>r</reason><search><img></search>"
    (allowed,) = played(look)
    (forbidden,) = played(look, max_page_visits=0)
    assert "https://atlas.example/" in allowed["said"]
    assert "https://atlas.example/" not in forbidden["said"]


def test_the_spaces_grow_by_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make("MMSearch-v0", max_page_visits=1, disable_env_checker=True)
        check_env(env.unwrapped, skip_render_check=True)
    assert env.action_space["kind"].n == 4  # type: ignore[index]
    seen, _ = env.reset(seed=0)
    assert seen["page_visits_left"] == 1
    assert gymnasium.make("MMSearch-v0").action_space["kind"].n == 3  # type: ignore[index]
    assert mmsearch_env.ActionKind.VISIT_PAGE == "visit_page"


def test_many_environments_visit_together() -> None:
    envs = MMSearchVectorEnv(num_envs=3, max_page_visits=1)
    envs.reset(seed=0)
    envs.step([ASK] * 3)
    *_, infos = envs.step([visit(env.episode.results[0].hits[0].url) for env in envs.envs])
    assert infos["n_page_visit"].tolist() == [1.0, 1.0, 1.0]


def test_the_tool_reads_addresses_only() -> None:
    tool = build_tool(ActionKind.VISIT_PAGE, "local", load_world("atlas"))
    with pytest.raises(ToolUnavailable, match="expected an address, got TextQuery"):
        asyncio.run(tool.search(TextQuery("x"), top_k=1))
    assert asyncio.run(tool.search(PageQuery("https://nowhere.example/"), top_k=1)).hits == ()
    with pytest.raises(ConfigError, match="expected visit_page"):
        build_tool(ActionKind.TEXT_SEARCH, "reader")
