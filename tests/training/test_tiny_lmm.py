"""The tiny LMM's lessons: nothing of the atlas that it must not know, and a coin instead of judgement."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from agents.lmm import LMMPolicy
from agents.trajectory import Trajectory
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.messages import Message, TextPart
from mmsearch_env.worlds import Entity, World, load_world
from mmsearch_env.worlds.drawings import FlagDrawing
from mmsearch_env.worlds.entities import ASKED_RELATIONS
from mmsearch_env.worlds.synthetic import looks_real
from training.tiny_lmm.architecture import TinySize, tiny_model, tiny_processor
from training.tiny_lmm.demonstrations import (
    Teacher,
    demonstrations,
    plain_questions,
    play_demonstration,
    reading_part,
    repetition,
)
from training.tiny_lmm.knowledge import Knowledge, deal_knowledge, families, known
from training.tiny_lmm.lessons import (
    PictureAlbum,
    Pupil,
    caption_lesson,
    document_lesson,
    fact_lesson,
    mixed,
    picture_lesson,
    pupil,
    quiz_lesson,
    renamed,
    repetition_lesson,
    some_of,
    title_lesson,
)
from training.tiny_lmm.mixtures import HELD_OUT, Mixtures, probes
from training.tiny_lmm.recipe import Recipe
from training.tiny_lmm.recording import record
from training.tiny_lmm.strange_flags import recoloured
from training.tiny_lmm.strange_names import StrangeNames
from training.tiny_lmm.vocabulary import texts_of_tokeniser, tokeniser_of

INVENTED = "synthetic:seed=7,entities=120,per_pair=1"
SIZE = TinySize(vocabulary=600, width=32, layers=1, heads=1, inner=32, vision_width=32, vision_layers=1, vision_heads=1)


@pytest.fixture(scope="module")
def atlas() -> World:
    return load_world("atlas")


@pytest.fixture(scope="module")
def invented() -> World:
    return load_world(INVENTED)


@pytest.fixture(scope="module")
def friends(invented: World) -> list[Entity]:
    return [entity for entity in invented.entities if entity.asked_about][:20]


@pytest.fixture(scope="module")
def knowledge(atlas: World) -> Knowledge:
    return deal_knowledge(atlas, seed=Recipe().seed)


@pytest.fixture(scope="module")
def taught(atlas: World, knowledge: Knowledge, friends: list[Entity]) -> Pupil:
    return pupil(atlas, knowledge, friends)


@pytest.fixture(scope="module")
def policy(taught: Pupil, invented: World) -> LMMPolicy:
    tokenizer = tokeniser_of(taught, invented, SIZE)
    return LMMPolicy(tiny_model(tokenizer, SIZE, seed=0), tiny_processor(tokenizer, SIZE))


@pytest.fixture(scope="module")
def env() -> MMSearchEnv:
    return MMSearchEnv(world=INVENTED, split="all", prompts="brief", image_top_k=3, text_top_k=3)


def said(policy: LMMPolicy, played: Trajectory) -> str:
    return "".join(turn.completion.text for turn in played.turns)


def test_flags_that_look_alike_are_known_together_or_not_at_all(atlas: World, knowledge: Knowledge) -> None:
    asked = [entity for entity in atlas.entities if entity.drawing is not None and entity.asked_about]
    found = families(asked)
    assert sorted(entity_id for family in found for entity_id in family) == sorted(entity.id for entity in asked)
    assert all(family <= knowledge.flags or not family & knowledge.flags for family in found)
    (together,) = (family for family in found if "slovenia" in family)
    assert "russia" in together
    assert sum(len(family) > 1 for family in found) > 20


def test_knowledge_is_dealt_alike_to_countries_that_occur_in_test_only(atlas: World, knowledge: Knowledge) -> None:
    test_only = {q.tags["entity"] for q in atlas.questions("test") if q.tags["entity_split"] == "test_only"}
    asked = {entity.id for entity in atlas.entities if entity.asked_about}
    for part in (test_only, asked - test_only):
        assert 0.45 < len(knowledge.flags & part) / len(part) < 0.65
        assert 0.45 < len(knowledge.facts & part) / len(part) < 0.65
        assert len(part - knowledge.flags - knowledge.facts) > 0.2 * len(part)


def test_lessons_hold_nothing_of_the_unknown_side(
    atlas: World, knowledge: Knowledge, taught: Pupil, policy: LMMPolicy, friends: list[Entity]
) -> None:
    """No unknown flag is drawn and no unknown fact is said, whatever lesson is drawn."""
    own = {entity.id for entity in friends}
    assert {entity.id for entity in taught.flags} - own == knowledge.flags
    assert {entity.id for entity in taught.facts} - own == knowledge.facts
    album = PictureAlbum(taught.flags, seed=0, each=1)
    names = {entity.name for entity in taught.flags}
    facts = {value for entity in taught.facts for values in entity.facts.values() for value in values}
    rng = random.Random(0)
    for lesson, allowed in ((picture_lesson(policy.renderer, taught, album), names | facts),
                            (fact_lesson(policy.renderer, taught), facts)):  # fmt: skip
        for _ in range(300):
            answer = re.search(r"<answer> (.*)</answer>", said(policy, lesson(rng)))
            assert answer and answer[1] in allowed
    with pytest.raises(KeyError):
        album.draw(known(atlas.entities, frozenset(e.id for e in atlas.entities) - knowledge.flags)[0], rng)


def test_the_tokeniser_sees_nothing_of_the_unknown_side(
    atlas: World, knowledge: Knowledge, taught: Pupil, invented: World
) -> None:
    text = "\n".join(texts_of_tokeniser(taught, invented))
    hidden = known(atlas.entities, frozenset(e.id for e in atlas.entities) - knowledge.facts - knowledge.flags)
    told = {value for entity in taught.facts for r in ASKED_RELATIONS for value in entity.facts.get(r, ())}
    told |= {entity.name for entity in (*taught.flags, *taught.facts)}
    for entity in hidden:
        for value in (entity.name, entity.fact("capital"), entity.fact("largest_city")):
            elsewhere = any(value in other for other in told)
            assert elsewhere or not re.search(rf"\b{re.escape(value)}\b", text), (entity.id, value)


def test_demonstrations_never_leave_the_invented_world(
    atlas: World, invented: World, policy: LMMPolicy, env: MMSearchEnv, friends: list[Entity]
) -> None:
    teacher = Teacher(invented, frozenset(entity.id for entity in friends))
    names = {entity.name for entity in atlas.entities}
    for played in islice(demonstrations(env, policy.renderer, teacher, tuple(env.questions), seed=0), 60):
        answer = re.search(r"<answer> (.*)</answer>", said(policy, played))
        assert answer is None or answer[1] not in names


def test_the_coin_does_not_know_what_is_known(
    invented: World, policy: LMMPolicy, env: MMSearchEnv, friends: list[Entity]
) -> None:
    """First decisions on familiar and on strange entities have the same distribution."""
    teacher = Teacher(invented, frozenset(entity.id for entity in friends))
    shares = []
    for familiar in (True, False):
        asked = [q for q in env.questions if (q.tags["entity"] in {f.id for f in friends}) == familiar][:160]
        rng, first = random.Random(5), Counter[str]()
        for question in asked:
            played = play_demonstration(env, policy.renderer, teacher, question, rng)
            text = played.turns[0].completion.text if played else ""
            first[re.sub(r".*</reason>(<\w+>).*", r"\1", text)] += 1
        shares.append({tag: first[tag] / len(asked) for tag in ("<answer>", "<search>", "<text_search>")})
    for tag, share in shares[0].items():
        assert abs(share - shares[1][tag]) < 0.16
        assert share > 0.03


def test_what_could_not_be_known_is_not_shown(
    invented: World, policy: LMMPolicy, env: MMSearchEnv, friends: list[Entity]
) -> None:
    """A strange entity is answered after a search or with "unknown"; every other answer from memory is familiar."""
    own = {entity.id for entity in friends}
    teacher = Teacher(invented, frozenset(own))
    answers, unknown = 0, 0
    for question in env.questions.spread(120):
        played = play_demonstration(env, policy.renderer, teacher, question, random.Random(question.id))
        if played is None or not played.turns[-1].completion.text.endswith("</answer>"):
            continue
        answers += 1
        is_unknown = played.turns[-1].completion.text.endswith("<answer> unknown</answer>")
        if len(played.turns) == 1:
            assert (question.tags["entity"] in own) != is_unknown
        unknown += is_unknown
    assert 5 < unknown < answers


def test_a_query_without_a_name_is_followed_by_a_look(
    invented: World, policy: LMMPolicy, env: MMSearchEnv, friends: list[Entity]
) -> None:
    teacher = Teacher(invented, frozenset(entity.id for entity in friends))
    shown = [
        [turn.completion.text for turn in played.turns]
        for played in islice(demonstrations(env, policy.renderer, teacher, tuple(env.questions), seed=3), 300)
    ]
    nameless = [turns for turns in shown if "of this country</text_search>" in turns[0]]
    assert len(nameless) > 2
    assert all(turns[1].endswith("<search><img></search>") and "<answer>" in turns[2] for turns in nameless)


def test_reading_is_a_query_and_its_answer(
    invented: World, policy: LMMPolicy, env: MMSearchEnv, friends: list[Entity]
) -> None:
    teacher = Teacher(invented, frozenset(entity.id for entity in friends))
    shown = list(islice(demonstrations(env, policy.renderer, teacher, tuple(env.questions), seed=1), 120))
    parts = [part for played in shown if (part := reading_part(policy.renderer, played))]
    assert parts
    for part in parts:
        query, answer = (turn.completion.text for turn in part.turns)
        assert "<text_search>" in query and "<answer>" in answer
        assert not part.images


def test_a_quiz_can_be_answered_from_its_sentences(policy: LMMPolicy, invented: World) -> None:
    """Every answer stands in the sentences, and there are as many queries as sentences."""
    for number in range(40):
        drawn = quiz_lesson(policy.renderer, some_of(invented.entities), facts=(1, 4))(random.Random(number))
        told = policy.renderer.tokenizer.decode(drawn.turns[0].prompt_ids)
        sentences = told[told.index("<information>") : told.index("</information>")]
        assert sentences.count("\n- ") + 1 == len(drawn.turns)
        for turn in drawn.turns:
            answer = re.search(r"<answer> (.*)</answer>", turn.completion.text)
            assert answer and answer[1] in sentences


def test_titles_lead_to_a_query_about_the_first(policy: LMMPolicy, invented: World) -> None:
    names = {entity.name for entity in invented.entities}
    for number in range(40):
        drawn = title_lesson(policy.renderer, some_of(invented.entities))(random.Random(number))
        told = policy.renderer.tokenizer.decode(drawn.turns[1].prompt_ids)
        first = told[told.index("<information>") : told.index("</information>")].split("\n")[0]
        (named,) = {max((n for n in names if n in first), key=len)}
        assert "<text_search> " in drawn.turns[1].completion.text
        assert named in drawn.turns[1].completion.text
        assert not drawn.images


def test_strange_names_are_new_each_time_and_never_real(invented: World) -> None:
    names = StrangeNames(["ch", "ad", " Ba", "r", "12", "<x>"], avoided=["Chad"])
    rng = random.Random(0)
    renamed_once, *others = (names.rename(invented.entities[0], rng) for _ in range(400))
    assert renamed_once.facts.keys() == invented.entities[0].facts.keys()
    words = {word for entity in (renamed_once, *others) for word in re.findall(r"\w+", entity.name)}
    assert "Chad" not in words and "Chba" in words
    assert re.fullmatch(r"\+(1-)?\d{1,3}", renamed_once.fact("calling_code"))
    assert len({entity.name for entity in others}) > 100


def test_what_is_renamed_is_copied_from_what_is_shown(policy: LMMPolicy, invented: World) -> None:
    names = StrangeNames(["ka", "lo", "mi", "ru", "te"])
    draw = quiz_lesson(policy.renderer, renamed(invented.entities, names, share=1.0), facts=(3, 3))
    known = {value for entity in invented.entities for values in entity.facts.values() for value in values}
    for number in range(10):
        drawn = draw(random.Random(number))
        told = policy.renderer.tokenizer.decode(drawn.turns[0].prompt_ids)
        for turn in drawn.turns:
            answer = re.search(r"<answer> (.*)</answer>", turn.completion.text)
            assert answer and answer[1] in told
            assert answer[1] not in known or answer[1][0] in "+."


def test_recoloured_flags_are_new_and_like_no_real_one(atlas: World, taught: Pupil) -> None:
    made = recoloured(taught.flags, random.Random(0), each=2)
    assert len(made) > 1.5 * len(taught.flags)
    assert len({entity.id for entity in made}) == len(made)
    drawn = [drawing.key for entity in (*made, *atlas.entities) if (drawing := entity.drawing)]
    assert len(set(drawn)) == len(drawn)
    assert not any(looks_real(entity.drawing.spec) for entity in made if isinstance(entity.drawing, FlagDrawing))


def test_a_caption_names_what_is_known_and_decides_nothing(policy: LMMPolicy, taught: Pupil, invented: World) -> None:
    album = PictureAlbum(taught.flags, seed=0, each=1)
    strange = PictureAlbum(invented.entities[20:], seed=0, each=1)
    lesson = caption_lesson(policy.renderer, taught, album, strange)
    known, unknown, recalled, not_recalled = 0, 0, 0, 0
    facts = {entity.id for entity in taught.facts}
    for number in range(80):
        drawn = lesson(random.Random(number))
        reason = re.fullmatch(r"<reason>(.*)</reason>", said(policy, drawn))
        assert reason
        named = [e for e in taught.flags if re.match(rf"It is {re.escape(e.name)}[.:]", reason[1])]
        known += bool(named)
        if ": " in reason[1]:
            fact = reason[1].split(": ")[1][:-1]
            recalled += fact != "unknown"
            not_recalled += fact == "unknown"
            assert all((e.id in facts) == (fact != "unknown") for e in named)
            assert fact == "unknown" or any(fact in {*map(e.fact, ASKED_RELATIONS)} for e in named)
        unknown += reason[1] == "It is a flag."
        shown = drawn.images[0].digest
        own = {image.digest for entity in strange.entities for image in [strange.draw(entity, random.Random(0))]}
        assert (shown in own) == (reason[1] == "It is a flag.")
    assert known + unknown == 80 and min(known, unknown) > 20
    assert recalled > 10 and not_recalled > 3 and recalled + not_recalled < known


def test_probes_are_about_nothing_that_is_a_lesson(policy: LMMPolicy, taught: Pupil, invented: World) -> None:
    """Every process holds out the same episodes, and learns from others."""
    teacher = Teacher(invented, frozenset(entity.id for entity in invented.entities[:20]))
    ours, theirs = (
        record(INVENTED, policy.renderer, teacher, count=150, seed=1, stream=stream, on_recorded=lambda n: None)
        for stream in (1, 2)
    )
    assert [t.token_ids for t in ours.reserved] == [t.token_ids for t in theirs.reserved]
    assert [t.token_ids for t in ours.lessons] != [t.token_ids for t in theirs.lessons]
    assert not {t.question_id for t in ours.reserved} & {t.question_id for t in (*ours.lessons, *theirs.lessons)}
    album = PictureAlbum(taught.flags, seed=0, each=1)
    strange = PictureAlbum(invented.entities[20:], seed=0, each=1)
    names = StrangeNames(["ka", "lo", "mi", "ru", "te"])
    held = probes(Mixtures(policy.renderer, taught, album, strange, invented, ours.lessons, names), ours.reserved)
    assert all(held.values()) and len(held["caption"]) == len(held["episode"]) == HELD_OUT
    rng = random.Random(0)
    own = {one.draw(entity, rng).digest for one in (album, strange) for entity in one.entities}
    assert not own & {image.digest for name in ("caption", "picture") for t in held[name] for image in t.images}


def test_a_repetition_is_learnt_from_its_second_round_on() -> None:
    played = repetition([5, 6, 7], 8)
    assert played.token_ids == (5, 6, 7, 5, 6, 7, 5, 6)
    assert played.loss_mask == (False, False, False, True, True, True, True, True)


def test_lessons_are_drawn_alike_from_the_same_seed(policy: LMMPolicy, invented: World) -> None:
    lessons = [(document_lesson(policy.renderer, invented.pages), 1.0), (repetition_lesson(policy.renderer), 1.0)]
    first, again = (mixed(lessons, seed="3", rows=6)(4) for _ in range(2))
    assert [t.token_ids for t in first] == [t.token_ids for t in again]
    assert [t.token_ids for t in first] != [t.token_ids for t in mixed(lessons, seed="3", rows=6)(5)]


def test_a_plain_question_trains_the_answer_only(policy: LMMPolicy, taught: Pupil) -> None:
    lesson = fact_lesson(policy.renderer, taught)(random.Random(0))
    trained = [token for token, flag in zip(lesson.token_ids, lesson.loss_mask, strict=True) if flag]
    assert re.fullmatch(r"<reason>It is [^<]+\.</reason><answer> [^<]+</answer>", policy.renderer.decode(trained))
    question = Message("user", (TextPart("q"),))
    assert plain_questions(policy.renderer, [(question, "<reason>r</reason>", "a")]).turns[0].valid


def test_several_facts_in_a_row_are_about_different_countries(policy: LMMPolicy, taught: Pupil) -> None:
    lesson = fact_lesson(policy.renderer, taught, questions=6)(random.Random(1))
    asked = [policy.renderer.decode(turn.prompt_ids) for turn in lesson.turns]
    assert (
        len(asked) == 6 == len({re.search(r" of (.*)\?", text)[1] for text in asked if re.search(r" of (.*)\?", text)})
    )
    assert all(turn.completion.text.startswith("<reason>It is ") for turn in lesson.turns)


def test_a_stage_depends_on_what_comes_before_it() -> None:
    recipe = Recipe()
    longer = replace(recipe, knowing=replace(recipe.knowing, updates=9))
    assert longer.made_of("learning", 2, "a") == recipe.made_of("learning", 2, "a")
    assert longer.made_of("knowing", 2, "a") != recipe.made_of("knowing", 2, "a")
    assert longer.made_of("settling", 2, "a") != recipe.made_of("settling", 2, "a")
    assert len({recipe.made_of("learning", n, lessons) for n in (1, 2) for lessons in "ab"}) == 4


def test_every_relation_is_taught(taught: Pupil) -> None:
    assert all(any(entity.fact(relation) for entity in taught.facts) for relation in ASKED_RELATIONS)


def test_the_real_size_is_small(taught: Pupil, invented: World) -> None:
    model = tiny_model(tokeniser_of(taught, invented, Recipe().size), Recipe().size, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 6_000_000
    assert all(parameter.dtype is torch.float32 for parameter in model.parameters())
