from __future__ import annotations

import pickle

import pytest

from mmsearch_env.errors import DataError, QuestionError
from mmsearch_env.images import Image
from mmsearch_env.questions import Question, QuestionSet, SkippedRow


@pytest.mark.parametrize("answers", [(), ("",), (" ", "\t")])
def test_a_question_needs_an_answer(answers: tuple[str, ...], picture: Image) -> None:
    with pytest.raises(QuestionError, match="question 'q': expected an answer, got none"):
        Question("q", "What?", picture, answers)


def test_a_question_needs_a_text(picture: Image) -> None:
    with pytest.raises(QuestionError, match="question 'q': expected a text, got an empty one"):
        Question("q", " \n", picture, ("yes",))


def test_a_set_is_a_sequence_and_finds_by_id(questions: QuestionSet) -> None:
    assert len(questions) == 3
    assert questions.ids == ("q1", "q2", "q3")
    assert questions[1] is questions.by_id("q2")
    assert [question.id for question in questions] == ["q1", "q2", "q3"]
    assert questions[-1].id == "q3"


def test_a_slice_is_a_set(questions: QuestionSet) -> None:
    assert questions[:2].ids == ("q1", "q2")


def test_some_are_spread_evenly_and_many_are_all(picture: Image) -> None:
    ten = QuestionSet("ten", [Question(str(number), "What?", picture, ("yes",)) for number in range(10)])
    assert ten.spread(5).ids == ("0", "2", "4", "6", "8")
    assert ten.spread(99) is ten


def test_an_unknown_id_is_named(questions: QuestionSet) -> None:
    with pytest.raises(DataError, match="three: expected a known question id, got 'q9'"):
        questions.by_id("q9")


def test_an_empty_set_says_why() -> None:
    with pytest.raises(
        DataError, match=r"f: expected at least one usable question, got none \(1 rows skipped, .*bad\)"
    ):
        QuestionSet("f", [], [SkippedRow(1, "bad")])


def test_ids_are_unique(question: Question) -> None:
    with pytest.raises(DataError, match="f: expected unique question ids, got 'q1' twice"):
        QuestionSet("f", [question, question])


def test_a_part_of_a_set_keeps_order_and_skipped_rows(questions: QuestionSet) -> None:
    whole = QuestionSet("f", list(questions), [SkippedRow(4, "bad")])
    part = whole.where(lambda question: question.category == "search_required")
    assert part.ids == ("q1", "q2")
    assert part.skipped == (SkippedRow(4, "bad"),)


def test_questions_survive_a_pickle_and_can_be_keys(questions: QuestionSet) -> None:
    again = pickle.loads(pickle.dumps(questions))
    assert list(again) == list(questions)
    assert again.by_id("q2") == questions.by_id("q2")
    assert len({*again, *questions}) == 3
