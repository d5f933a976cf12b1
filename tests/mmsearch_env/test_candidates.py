"""The fixed list of actions for algorithms that cannot write."""

from __future__ import annotations

import pytest

from mmsearch_env.actions import Answer, ImageSearch, TextSearch
from mmsearch_env.candidates import CandidateLayout, names, news
from mmsearch_env.episode import EpisodeState, EpisodeView, Rules, StopReason
from mmsearch_env.questions import Question
from mmsearch_env.tools.search_tool import Hit, SearchResult

LAYOUT = CandidateLayout(n_titles=2, n_snippets=2, vocabulary=("red",))
ASKED = TextSearch("Which country has this flag?")


@pytest.mark.parametrize(
    ("title", "found"),
    [
        ("Chad: flag and facts", ["Chad"]),
        ("The flag of Bosnia and Herzegovina", ["Bosnia and Herzegovina"]),
        ("National flag of Norway", ["Norway"]),
        ("São Tomé (island) and Østfold", ["São Tomé", "Østfold"]),
        ("Isle of Man", ["Isle of Man"]),
        ("Chad national flag", ["Chad"]),
        ("no names here", []),
        ("", []),
    ],
)
def test_names_are_runs_of_capitalised_words(title: str, found: list[str]) -> None:
    assert names([title]) == found


def test_news_are_what_the_question_did_not_say_last_run_first() -> None:
    known = "What is its capital? Chad"
    assert news(["The capital of Chad is N'Djamena."], known) == ["N'Djamena"]
    assert news(["Prices are in the local currency, the CFA franc. Chad uses +235."], known) == [
        "CFA franc",
        "local currency",
        "Prices",
        "uses +235",
    ]


def test_the_layout_keeps_its_places(question: Question) -> None:
    rules = Rules()
    fresh = LAYOUT.actions(EpisodeView(question, rules, EpisodeState()), ())
    assert fresh == (Answer("unknown"), ImageSearch(), ASKED, None, None, None, None, None, Answer("red"))
    results = (
        SearchResult((Hit("The flag of Chad", "u"), Hit("Mali", "u"), Hit("Niger", "u"))),
        SearchResult((Hit("Chad", "u", "It lies in Africa."),)),
    )
    later = LAYOUT.actions(EpisodeView(question, rules, EpisodeState(1, n_image_search=1)), results)
    assert later == (
        Answer("unknown"),
        None,
        ASKED,
        TextSearch("Chad Which country has this flag?"),
        Answer("Chad"),
        Answer("Mali"),
        Answer("Africa"),
        None,
        Answer("red"),
    )
    assert len(later) == LAYOUT.size


def test_the_last_round_offers_answers_only_and_the_end_nothing(question: Question) -> None:
    last = LAYOUT.actions(EpisodeView(question, Rules(), EpisodeState(2)), ())
    assert [place for place in last if place is not None] == [Answer("unknown"), Answer("red")]
    over = EpisodeState(1, answer="red", stop_reason=StopReason.ANSWERED)
    assert set(LAYOUT.actions(EpisodeView(question, Rules(), over), ())) == {None}
