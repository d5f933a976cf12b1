"""The rules, state by state."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mmsearch_env.actions import Action, ActionKind, Answer, ImageSearch, Malformed, MalformedCode, TextSearch
from mmsearch_env.episode import EpisodeState, EpisodeView, Outcome, RefusalCode, Rules, StopReason, advance, refusal
from mmsearch_env.errors import ConfigError, EpisodeError
from mmsearch_env.questions import Question

LOOK, ASK, ANSWER = ImageSearch(), TextSearch("q"), Answer("a")
BAD = Malformed(MalformedCode.NO_ACTION, "")


def play(rules: Rules, *actions: Action) -> EpisodeState:
    """Tools always deliver; refused searches are refused."""
    state = EpisodeState()
    for action in actions:
        if isinstance(action, Answer):
            outcome = Outcome.ANSWERED
        elif isinstance(action, Malformed):
            outcome = Outcome.MALFORMED
        else:
            outcome = Outcome.SEARCHED if refusal(rules, state, action) is None else Outcome.REFUSED
        state = advance(rules, state, action, outcome)
    return state


def test_a_whole_episode() -> None:
    state = play(Rules(), LOOK, ASK, ANSWER)
    assert state == EpisodeState(3, 1, 1, answer="a", stop_reason=StopReason.ANSWERED)
    assert state.ended
    assert state.n_searches == 2
    assert state.counts == {
        "n_image_search": 1.0,
        "n_text_search": 1.0,
        "n_page_visit": 0.0,
        "n_tool_errors": 0.0,
        "n_malformed": 0.0,
        "n_service_calls": 0.0,
        "cost_usd": 0.0,
        "round": 3.0,
    }


@pytest.mark.parametrize("n_searches", [0, 1, 2, 3, 6])
def test_every_legal_order_of_searches_is_well_formed(n_searches: int) -> None:
    """The reference implementation knows four orders and raises from the fourth round on."""
    rules = Rules(max_rounds=9, max_image_searches=3, max_text_searches=3)
    for order in itertools.product((LOOK, ASK), repeat=n_searches):
        if max(order.count(LOOK), order.count(ASK), 0) <= 3:
            state = play(rules, *order, ANSWER)
            assert state.well_formed
            assert state.n_searches == n_searches
            assert state.stop_reason is StopReason.ANSWERED


def test_limits_count_searches_that_delivered() -> None:
    rules = Rules(max_rounds=9)
    state = play(rules, LOOK, ASK, ASK)
    assert refusal(rules, state, LOOK) is RefusalCode.IMAGE_SEARCH_LIMIT
    assert refusal(rules, state, ASK) is RefusalCode.TEXT_SEARCH_LIMIT
    assert refusal(rules, state, ANSWER) is None
    failed = advance(rules, EpisodeState(), LOOK, Outcome.TOOL_FAILED)
    assert failed == EpisodeState(1, n_tool_errors=1)
    assert refusal(rules, failed, LOOK) is None


def test_the_last_round_takes_only_an_answer() -> None:
    rules = Rules(max_rounds=2)
    state = play(rules, BAD)
    assert refusal(rules, state, LOOK) is RefusalCode.ANSWER_REQUIRED
    assert refusal(rules, state, ANSWER) is None
    over = play(rules, BAD, LOOK)
    assert over == EpisodeState(2, n_malformed=1, well_formed=False, stop_reason=StopReason.OUT_OF_ROUNDS)


def test_refused_and_malformed_cost_a_round_and_the_form() -> None:
    rules = Rules(max_rounds=5, max_image_searches=0)
    for action in (LOOK, BAD):
        state = play(rules, action)
        assert (state.round, state.well_formed, state.ended) == (1, False, False)
        assert not play(rules, action, ANSWER).well_formed
    assert not advance(rules, EpisodeState(), ANSWER, Outcome.ANSWERED, well_formed=False).well_formed


def test_a_failed_tool_keeps_the_form() -> None:
    assert advance(Rules(), EpisodeState(), ASK, Outcome.TOOL_FAILED).well_formed


def test_nothing_follows_the_end() -> None:
    with pytest.raises(EpisodeError, match="answered"):
        advance(Rules(), play(Rules(), ANSWER), ANSWER, Outcome.ANSWERED)


def test_action_and_outcome_belong_together() -> None:
    for action, outcome in ((ANSWER, Outcome.SEARCHED), (BAD, Outcome.REFUSED), (LOOK, Outcome.ANSWERED)):
        with pytest.raises(EpisodeError, match=type(action).__name__):
            advance(Rules(), EpisodeState(), action, outcome)


def test_view_says_what_is_left(question: Question) -> None:
    fresh = EpisodeView(question, Rules(), EpisodeState())
    assert (fresh.rounds_left, fresh.image_searches_left, fresh.text_searches_left) == (3, 1, 2)
    assert [kind for kind in ActionKind if not fresh.allows(kind)] == [ActionKind.VISIT_PAGE]
    assert not fresh.must_answer
    last = EpisodeView(question, Rules(), EpisodeState(round=2))
    assert last.must_answer
    assert [kind for kind in ActionKind if last.allows(kind)] == [ActionKind.ANSWER]
    spent = EpisodeView(question, Rules(max_rounds=9), EpisodeState(3, 1, 2))
    assert spent.must_answer
    over = EpisodeView(question, Rules(), EpisodeState(1, stop_reason=StopReason.ANSWERED))
    assert not any(over.allows(kind) for kind in ActionKind)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("max_rounds", 0), ("max_rounds", 2.0), ("max_rounds", True), ("max_text_searches", -1), ("crop", 1)],
)
def test_a_bad_limit_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{setting}: .*{value!r}"):
        Rules(**{setting: value})


def test_limits_have_no_upper_bound() -> None:
    rules = Rules(max_rounds=10_000, max_image_searches=5_000, max_text_searches=5_000)
    assert play(rules, *[LOOK, ASK] * 200, ANSWER).n_searches == 400
