"""Metrics and rewards, against numbers worked out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch_env.episode import EpisodeState, StopReason
from mmsearch_env.errors import ConfigError
from mmsearch_env.rewards import METRICS, RewardRules, best_match, exact_match, normalised, sub_match, token_f1

ANSWERED = StopReason.ANSWERED


def total(answer: str, *, images: int = 0, texts: int = 0, kept: bool = True, **rules: Any) -> float:
    state = EpisodeState(3, images, texts, well_formed=kept, answer=answer, stop_reason=ANSWERED)
    return RewardRules(**rules).terms(state, ("Paris", "City of Light")).total


@pytest.mark.parametrize(
    ("answer", "accepted", "same"),
    [
        ("The  Beatles!", "beatles", 1.0),
        ("ＣＡＦÉ", "café", 1.0),
        ("N’Djamena", "N'Djamena", 1.0),
        ("Paris, France", "Paris", 0.0),
        ("", "", 0.0),
        ("  ", "Paris", 0.0),
        ("🇹🇩", "🇹🇩", 1.0),
        ("🇹🇩", "🇫🇷", 0.0),
    ],
)
def test_exact_match(answer: str, accepted: str, same: float) -> None:
    assert exact_match(answer, accepted) == same


@pytest.mark.parametrize(("answer", "accepted"), [("the", "A"), ("?!", "an"), ("...", "the"), ("", "A")])
def test_answers_that_normalise_to_nothing_do_not_match_each_other(answer: str, accepted: str) -> None:
    """In the reference implementation both become the empty string and count as right."""
    assert exact_match(answer, accepted) == sub_match(answer, accepted) == token_f1(answer, accepted) == 0.0
    assert exact_match(accepted, accepted) == 1.0


def test_sub_match_keeps_to_whole_words() -> None:
    """In the reference implementation the alias "ES" is found inside "yes"."""
    assert sub_match("yes", "ES") == 0.0
    assert sub_match("I think it is ES.", "ES") == 1.0
    assert sub_match("the city of New York, USA", "New York") == 1.0
    assert sub_match("New Yorker", "New York") == 0.0


def test_f1_is_the_harmonic_mean_of_word_precision_and_recall() -> None:
    assert token_f1("red blue", "red green white") == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert token_f1("a red flag", "the red flag") == 1.0
    assert token_f1("red red", "red") == pytest.approx(2 / 3)


def test_any_accepted_answer_counts() -> None:
    assert best_match(exact_match, "city of light", ("Paris", "City of Light")) == 1.0
    assert best_match(exact_match, "Paris", ()) == 0.0


@given(st.text(max_size=40), st.sampled_from(sorted(METRICS)))
def test_a_metric_is_a_share_and_full_for_the_same_text(text: str, name: str) -> None:
    same = METRICS[name](text, text)
    assert same == (1.0 if normalised(text) else 0.0)
    assert 0.0 <= METRICS[name](text, "the Paris of Chad") <= 1.0


@pytest.mark.parametrize(
    ("images", "texts", "kept", "once", "per_call"),
    [
        (0, 0, True, 1.0, 1.0),
        (1, 0, True, 0.91, 0.91),
        (0, 1, True, 0.91, 0.91),
        (1, 1, True, 0.91, 0.829),
        (0, 2, True, 0.91, 0.829),
        (1, 3, True, 0.91, 0.1 + 0.9 * 0.9**4),
        (1, 1, False, 0.81, 0.729),
    ],
)
def test_multiplicative_right_answer(images: int, texts: int, kept: bool, once: float, per_call: float) -> None:
    """The table of the paper's reward; every legal order of searches has the format point, as many as there are."""
    assert total("paris", images=images, texts=texts, kept=kept) == pytest.approx(once)
    assert total("paris", images=images, texts=texts, kept=kept, penalty_mode="per_call") == pytest.approx(per_call)
    free = 0.9 + 0.1 * kept
    assert total("paris", images=images, texts=texts, kept=kept, penalty_mode="none") == pytest.approx(free)


def test_a_right_answer_after_a_search_costs_exactly_nine_hundredths() -> None:
    assert total("Paris") - total("Paris", images=1) == pytest.approx(0.09, abs=1e-12)


def test_a_wrong_answer_keeps_the_format_point_and_pays_nothing() -> None:
    assert total("London", images=1, texts=1) == pytest.approx(0.1)
    assert total("London", images=1, kept=False) == 0.0


@pytest.mark.parametrize(("mode", "right", "wrong"), [("once", 0.9, 0.0), ("per_call", 0.8, -0.1), ("none", 1.0, 0.1)])
def test_subtractive(mode: str, right: float, wrong: float) -> None:
    rules = RewardRules("subtractive", penalty_mode=mode)
    for answer, wanted in (("Paris", right), ("London", wrong)):
        state = EpisodeState(3, 1, 1, answer=answer, stop_reason=ANSWERED)
        assert rules.terms(state, ("Paris",)).total == pytest.approx(wanted)


def test_subtractive_is_due_while_the_episode_goes_on_and_without_an_answer() -> None:
    rules = RewardRules("subtractive", penalty_mode="per_call", search_penalty=0.2)
    assert rules.terms(EpisodeState(2, 1, 1), ("Paris",)).total == pytest.approx(-0.4)
    gone = EpisodeState(3, 1, 1, stop_reason=StopReason.OUT_OF_ROUNDS)
    assert rules.terms(gone, ("Paris",)).total == pytest.approx(-0.4)
    assert RewardRules().terms(gone, ("Paris",)).total == 0.0


def test_a_failed_tool_is_free() -> None:
    """The reference implementation charges for the tag, whether or not the tool delivered."""
    failed = EpisodeState(2, n_tool_errors=1, answer="Paris", stop_reason=ANSWERED)
    for form in ("multiplicative", "subtractive"):
        assert RewardRules(form).terms(failed, ("Paris",)).total == pytest.approx(1.0)


@given(
    st.sampled_from(["multiplicative", "subtractive"]),
    st.sampled_from(["once", "per_call", "none"]),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 5),
    st.sampled_from(["Paris", "Paris or London", "London"]),
    st.booleans(),
)
def test_the_terms_compose_to_the_total(
    form: str, mode: str, weight: float, penalty: float, searches: int, answer: str, kept: bool
) -> None:
    state = EpisodeState(6, 0, searches, well_formed=kept, answer=answer, stop_reason=ANSWERED)
    terms = RewardRules(form, "f1", weight, penalty, mode).terms(state, ("Paris",)).as_dict()
    assert all(isinstance(value, float) for value in terms.values())
    assert terms["total"] == terms["metric_points"] + terms["format_points"] - terms["search_penalty"]
    assert terms["metric_points"] == pytest.approx((1 - weight) * terms["metric"])
    assert terms["format_points"] == pytest.approx(weight * terms["format"])
    charged = {"once": min(searches, 1), "per_call": searches, "none": 0}[mode]
    if form == "multiplicative":
        wanted = (1 - weight) * terms["metric"] * (1 - penalty) ** charged + weight * kept
    else:
        wanted = (1 - weight) * terms["metric"] + weight * kept - penalty * charged
    assert terms["total"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("form", "additive"),
        ("metric", "bleu"),
        ("penalty_mode", "twice"),
        ("format_weight", 1.5),
        ("search_penalty", -1.1),
        ("visit_penalty", -0.1),
        ("search_penalty", float("nan")),
        ("format_weight", "0.1"),
        ("format_weight", True),
    ],
)
def test_a_bad_setting_is_refused_by_name(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=repr(value) if isinstance(value, str) else str(value)):
        RewardRules(**{setting: value})


PRICED = {"search_penalty": 0.1, "image_penalty": 0.2, "crop_penalty": 0.4, "format_weight": 0.0}


@pytest.mark.parametrize(
    ("mode", "state", "multiplicative", "subtractive"),
    [
        ("once", {"n_text_search": 2}, 0.9, 0.9),
        ("once", {"n_image_search": 1, "n_text_search": 1}, 0.8, 0.8),
        ("once", {"n_image_search": 2, "n_crop_search": 1, "n_text_search": 1}, 0.6, 0.6),
        ("per_call", {"n_text_search": 2}, 0.81, 0.8),
        ("per_call", {"n_image_search": 3, "n_crop_search": 1, "n_text_search": 1}, 0.9 * 0.64 * 0.6, 0.1),
        ("none", {"n_image_search": 3, "n_crop_search": 1}, 1.0, 1.0),
    ],
)
def test_image_searches_and_crops_have_prices_of_their_own(
    mode: str, state: dict[str, int], multiplicative: float, subtractive: float
) -> None:
    answered = EpisodeState(**state, answer="x", stop_reason=StopReason.ANSWERED)  # type: ignore[arg-type]
    for form, total in (("multiplicative", multiplicative), ("subtractive", subtractive)):
        rules = RewardRules(form=form, penalty_mode=mode, **PRICED)  # type: ignore[arg-type]
        assert rules.terms(answered, ["x"]).total == pytest.approx(total)


@pytest.mark.parametrize("form", ["multiplicative", "subtractive"])
@pytest.mark.parametrize("penalty", [0.1, 0.3, 0.7])
def test_kinds_at_one_price_are_charged_to_the_last_bit_as_one_kind(form: str, penalty: float) -> None:
    rules = RewardRules(form=form, penalty_mode="per_call", search_penalty=penalty, visit_penalty=0.2)
    same = RewardRules(form, "exact_match", 0.1, penalty, "per_call", 0.2, penalty, penalty)
    for text, image, crop, visits in itertools.product(range(4), range(4), range(4), range(3)):
        state = EpisodeState(
            n_text_search=text,
            n_image_search=image + crop,
            n_crop_search=crop,
            n_page_visit=visits,
            answer="x",
            stop_reason=StopReason.ANSWERED,
        )
        n, points = text + image + crop, 0.9
        left = (1.0 - penalty) ** n * (1.0 - 0.2) ** visits
        price = points * (1.0 - left) if form == "multiplicative" else penalty * float(n) + 0.2 * float(visits)
        assert rules.terms(state, ["x"]).search_penalty == same.terms(state, ["x"]).search_penalty == price


def test_a_price_left_out_is_that_of_the_kind_above() -> None:
    crop = EpisodeState(n_image_search=1, n_crop_search=1, answer="x", stop_reason=StopReason.ANSWERED)
    assert RewardRules().terms(crop, ["x"]).total == pytest.approx(0.91)
    assert RewardRules(image_penalty=0.5).terms(crop, ["x"]).total == pytest.approx(0.55)
    assert RewardRules(image_penalty=0.5, crop_penalty=0.0).terms(crop, ["x"]).total == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="crop_penalty: expected a number in"):
        RewardRules(crop_penalty=1.5)


def test_a_dearer_search_after_a_cheaper_one_charges_the_difference() -> None:
    rules = RewardRules(form="subtractive", penalty_mode="once", **PRICED)  # type: ignore[arg-type]
    states = [EpisodeState(n_text_search=1), EpisodeState(n_text_search=1, n_image_search=1, n_crop_search=1)]
    totals = [rules.terms(state, ["x"]).total for state in states]
    assert totals == pytest.approx([-0.1, -0.4])


def test_a_search_may_be_rewarded() -> None:
    bonus = {"form": "subtractive", "search_penalty": -0.05}
    assert total("Paris", texts=2, **bonus) == pytest.approx(1.05)
    assert total("Paris", texts=2, **bonus, penalty_mode="per_call") == pytest.approx(1.1)
    assert total("Paris", texts=1, search_penalty=-0.05) == pytest.approx(0.9 * 1.05 + 0.1)
