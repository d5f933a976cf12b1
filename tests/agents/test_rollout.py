"""The interaction loop with the real environment and its embedded engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import pytest
from families import adapted_policy, noise

from agents.engines.contract import STOP_TAGS, SamplingLimits
from agents.evaluate import difference, evaluate
from agents.policy import CONTEXT_FULL, CannotReply, Reply, Request
from agents.rollout import UNUSABLE, RolloutLimits, rollout
from agents.scripted import ScriptedPolicy, random_policy
from agents.trajectory import Trajectory, Turn
from agents.workflows import DIRECT, FIXED_RAG, Script, Workflow
from mmsearch_env import Answer, ImageSearch, TextSearch, VisitPage
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.errors import BudgetError, ConfigError, ImageError, PolicyError, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.protocols import PROTOCOLS, load_protocol
from mmsearch_env.questions import Question, QuestionSet
from mmsearch_env.tools import Query, SearchResult
from mmsearch_env.worlds import load_world

WORLD = "synthetic:seed=1,entities=40"


@pytest.fixture(scope="module")
def questions() -> QuestionSet:
    found = load_world(WORLD).questions("train")
    return QuestionSet("twelve", list(found)[:12])


def make_env(**settings: object) -> MMSearchEnv:
    return MMSearchEnv(world=WORLD, prompts="brief", **settings)  # type: ignore[arg-type]


def reader(request: Request) -> str:
    """Looks the picture up, reads about the first hit, and answers with the first capitalised word it read."""
    if len(request.conversation) == 1:
        return "<reason>r</reason><search><img></search>"
    read = request.new_messages[-1].text
    found = re.findall(r"\b[A-Z][a-z]+\b", read) or ["nothing"]
    if request.new_messages[-1].images:
        return f"<reason>r</reason><text_search>capital of {found[-1]}</text_search>"
    return f"<reason>r</reason><answer>{found[0]}</answer>"


def test_every_question_is_played_by_the_whole_group(questions: QuestionSet) -> None:
    groups = rollout(ScriptedPolicy(reader), make_env, questions, group_size=3, seed=0)
    assert [group.question_id for group in groups] == list(questions.ids)
    assert all(len(group.trajectories) == 3 for group in groups)
    for played in (t for group in groups for t in group.trajectories):
        assert [turn.kind for turn in played.turns] == ["image_search", "text_search", "answer"]
        assert played.terminated and not played.truncated
        assert played.stop_reason == "answered"
        assert played.counts["n_image_search"] == played.counts["n_text_search"] == 1
        assert played.episode_return == pytest.approx(played.reward_terms["total"])
        assert played.answer


def test_seeds_decide_everything(questions: QuestionSet) -> None:
    policy = random_policy(["x"], ["capital"])

    def kinds(seed: int, **limits: int) -> list[list[str]]:
        groups = rollout(
            policy, make_env, questions, group_size=2, seed=seed, limits=RolloutLimits(**limits) if limits else None
        )
        return [[turn.kind for turn in t.turns] for group in groups for t in group.trajectories]

    assert kinds(1) == kinds(1)
    assert kinds(1) == kinds(1, live_episodes=5, batch_rows=2)
    assert kinds(1) != kinds(2)
    members = kinds(1)
    assert any(members[2 * row] != members[2 * row + 1] for row in range(len(questions)))


def test_a_models_tokens_are_recorded_turn_by_turn(questions: QuestionSet) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=6))
    groups = rollout(policy, make_env, questions[:3], group_size=2, seed=3)  # type: ignore[arg-type]
    for played in (t for group in groups for t in group.trajectories):
        assert sum(played.loss_mask) == sum(len(turn.completion.token_ids) for turn in played.turns)
        assert len(played.images) == sum(len(turn.images) for turn in played.turns) >= 1
        text = policy.renderer.tokenizer.decode(played.token_ids)
        assert text.count("<|im_start|>assistant") == len(played.turns)


class Broken:
    """A picture that cannot be read."""

    def load(self) -> Image:
        raise ImageError("broken.png: expected a readable picture, got nothing")


def test_a_broken_picture_costs_one_episode_only(questions: QuestionSet, caplog: pytest.LogCaptureFixture) -> None:
    bad = Question("bad", "What is it?", Broken(), ("x",))
    groups = rollout(ScriptedPolicy(reader), make_env, [bad, questions[0]], group_size=1, seed=0)
    assert groups[0].trajectories[0].stop_reason == UNUSABLE
    assert groups[0].trajectories[0].turns == ()
    assert groups[1].trajectories[0].stop_reason == "answered"
    assert "broken.png" in caplog.text


class Overflowing(ScriptedPolicy):
    """Its context is full from the second turn on."""

    def generate(self, requests: Sequence[Request]) -> list[Reply | CannotReply]:  # type: ignore[override]
        replies = super().generate(requests)
        return [
            CannotReply(CONTEXT_FULL, "full") if request.turns else reply
            for request, reply in zip(requests, replies, strict=True)
        ]


def test_a_full_context_truncates(questions: QuestionSet) -> None:
    (group,) = rollout(Overflowing(reader), make_env, questions[:1], group_size=1, seed=0)  # type: ignore[arg-type]
    (played,) = group.trajectories
    assert played.truncated and not played.terminated
    assert played.stop_reason == CONTEXT_FULL
    assert len(played.turns) == 1


def test_what_goes_wrong_arrives_as_itself(questions: QuestionSet) -> None:
    """One error, not a group of as many as there are episodes."""

    class Dying(ScriptedPolicy):
        def generate(self, requests: Sequence[Request]) -> list[Reply]:
            raise PolicyError("expected weights, got none")

    with pytest.raises(PolicyError, match="expected weights"):
        rollout(Dying(reader), make_env, questions, group_size=2, seed=0)
    with pytest.raises(ConfigError, match="nowhere"):
        rollout(ScriptedPolicy(reader), lambda: make_env(split="nowhere"), questions, group_size=2, seed=0)


def test_a_question_that_comes_twice_is_played_afresh(questions: QuestionSet) -> None:
    policy = random_policy([str(n) for n in range(1000)], ["capital"])
    groups = rollout(policy, make_env, [questions[0]] * 4, group_size=2, seed=0)
    said = {"".join(turn.completion.text for turn in t.turns) for group in groups for t in group.trajectories}
    assert len(said) > 5


class Cancelling:
    """A tool whose search is cancelled by somebody else, as a shared request is when its first asker gives up."""

    name = "cancelling"

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        raise asyncio.CancelledError

    async def aclose(self) -> None:
        """Nothing to free."""


class Failing:
    """A tool that never delivers."""

    name = "failing"

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        await asyncio.sleep(0)
        raise ToolUnavailable("failing: expected an answer, got none; wait")

    async def aclose(self) -> None:
        """Nothing to free."""


def test_the_fixed_plan_is_played_in_json_calls_too(questions: QuestionSet) -> None:
    def say(request: Request) -> str:
        return '<think>hm</think>word"}}</tool_call>'

    def make() -> MMSearchEnv:
        return MMSearchEnv(world=WORLD, protocol="tool_call", **FIXED_RAG.rules)

    groups = rollout(ScriptedPolicy(say), make, questions[:3], group_size=1, seed=0, workflow=FIXED_RAG)
    for group in groups:
        (played,) = group.trajectories
        assert [turn.kind for turn in played.turns] == ["image_search", "text_search", "answer"]
        assert all(turn.valid for turn in played.turns)
        begun = '<think>hm</think><tool_call>{"name": "text_search", "arguments": {"query": "word"}}</tool_call>'
        assert played.turns[1].completion.text == begun


@pytest.mark.parametrize("name", PROTOCOLS)
def test_sampling_ends_where_an_action_does(name: str) -> None:
    actions = (Answer("x"), TextSearch("x"), ImageSearch(), VisitPage("https://a.example/"))
    for action in actions:
        assert load_protocol(name, "standard").format(action, reason="r").endswith(STOP_TAGS)


class Spent:
    """A tool whose budget is used up."""

    name = "spent"

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        await asyncio.sleep(0)
        raise BudgetError("budget: expected at most 9 calls, got one more; raise the limit")

    async def aclose(self) -> None:
        """Nothing to free."""


def test_a_spent_budget_ends_the_rollout_under_its_own_name(questions: QuestionSet) -> None:
    with pytest.raises(BudgetError, match="at most 9 calls"):
        rollout(ScriptedPolicy(reader), lambda: make_env(tools=Spent()), questions[:4], group_size=3, seed=0)


@pytest.mark.parametrize("tool", ["failing", "cancelling"])
def test_a_failed_tool_is_counted_and_free(questions: QuestionSet, tool: str) -> None:
    (group,) = rollout(
        ScriptedPolicy(
            lambda request: reader(request) if len(request.turns) == 0 else "<reason>r</reason><answer>x</answer>"
        ),
        lambda: make_env(tools=Failing() if tool == "failing" else Cancelling()),
        questions[:1],  # type: ignore[arg-type]
        group_size=1,
        seed=0,
    )
    (played,) = group.trajectories
    assert played.counts["n_tool_errors"] == 1
    assert played.counts["n_image_search"] == 0
    assert played.reward_terms["search_penalty"] == 0


class SilentJudge:
    """Never reached."""

    name = "silent"
    settings: Mapping[str, object] = MappingProxyType({})

    async def verdict(self, question: str, accepted: Sequence[str], answer: str) -> float:
        raise ToolUnavailable("no answer")

    async def aclose(self) -> None:
        """Nothing to free."""


def test_an_answer_that_nobody_could_judge_is_counted(questions: QuestionSet) -> None:
    wrong = ScriptedPolicy(lambda request: "<reason>r</reason><answer>no such thing</answer>")
    for judge, errors in ((SilentJudge(), 1.0), (None, 0.0)):
        groups = rollout(wrong, partial(make_env, judge=judge), questions[:1], group_size=1, seed=0)
        (played,) = groups[0].trajectories
        assert (played.counts["n_judge_errors"], played.success) == (errors, 0.0)


class Slow:
    """A tool that takes its time for one question only."""

    name = "slow"

    def __init__(self, slow_id: str) -> None:
        self.slow_id = slow_id

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        await asyncio.sleep(0.5 if query.question_id == self.slow_id else 0.0)
        return SearchResult(())

    async def aclose(self) -> None:
        """Nothing to free."""


def test_a_slow_tool_does_not_hold_up_the_others(questions: QuestionSet) -> None:
    """With little patience the other episodes end while one still waits for its tool."""
    ended: list[str] = []

    def say(request: Request) -> str:
        return "<reason>r</reason><answer>x</answer>" if request.turns else "<reason>r</reason><search><img></search>"

    rollout(
        ScriptedPolicy(say),
        lambda: make_env(tools=Slow(questions[0].id)),
        questions[:4],  # type: ignore[arg-type]
        group_size=1,
        seed=0,
        limits=RolloutLimits(patience_s=0.05),
        on_episode=lambda trajectory: ended.append(trajectory.question_id),
    )
    assert ended[-1] == questions[0].id
    assert len(ended) == 4


def under(workflow: Workflow) -> MMSearchEnv:
    return make_env(**workflow.rules)


def test_the_fixed_plan_always_searches_twice_and_the_direct_one_never(questions: QuestionSet) -> None:
    """Whatever the policy would rather do, the scripts decide; it only fills in query and answer."""
    policy = ScriptedPolicy(
        lambda request: "word</text_search>" if "<text_search>" in request.script.action else "word</answer>"
    )
    rag = evaluate(policy, lambda: under(FIXED_RAG), questions, seed=0, workflow=FIXED_RAG)
    direct = evaluate(policy, lambda: under(DIRECT), questions, seed=0, workflow=DIRECT)
    assert rag.overall.calls.mean == 2.0
    assert rag.overall.call_ratio.mean == rag.overall.search_ratio.mean == 1.0
    assert rag.overall.image_searches.mean == rag.overall.text_searches.mean == 1.0
    assert direct.overall.calls.mean == 0.0
    assert rag.overall.valid.mean == direct.overall.valid.mean == 1.0


def test_a_script_follows_the_reason_of_a_scripted_policy() -> None:
    policy = ScriptedPolicy(lambda request: "<reason>r</reason><answer>x</answer>")
    scripts = (
        Script(),
        Script("<answer>", reason_end="</reason>"),
        Script("<search><img></search>", True, "</reason>"),
    )
    requests = [Request((), (), (), seed=0, script=script) for script in scripts]
    said = [reply.completion.text for reply in policy.generate(requests)]
    answered = "<reason>r</reason><answer>x</answer>"
    assert said == [answered, answered, "<reason>r</reason><search><img></search>"]


def test_scores_by_category_and_the_search_gap(questions: QuestionSet) -> None:
    """A policy that searches exactly the required ones has a gap of 1."""
    marked = QuestionSet(
        "marked",
        [replace(q, category="search_free" if n % 3 == 0 else "image_required") for n, q in enumerate(questions)],
    )
    free = {q.text for q in marked if q.category == "search_free"}

    def say(request: Request) -> str:
        asked = request.conversation[0].text.removesuffix(" Search or answer.")
        search = asked not in free and not request.turns
        return "<reason>r</reason>" + ("<search><img></search>" if search else "<answer>x</answer>")

    alone = QuestionSet("alone", [q for q in marked if (q.text in free) == (q.category == "search_free")])
    played = evaluate(ScriptedPolicy(say), make_env, alone, seed=0)
    assert played.search_gap is not None
    assert played.search_gap.mean == 1.0
    assert played.by_category["search_free"].calls.mean == 0.0
    assert played.by_category["image_required"].search_ratio.mean == 1.0
    assert played.unplayed == 0


def test_a_difference_is_paired_by_question(questions: QuestionSet) -> None:
    nothing = evaluate(ScriptedPolicy(lambda r: "<reason>r</reason><answer>x</answer>"), make_env, questions, seed=0)
    right = {q.text: q.answers[0] for q in questions}
    knowing = evaluate(
        ScriptedPolicy(lambda r: f"<reason>r</reason><answer>{_gold(r, questions)}</answer>"),
        make_env,
        questions,
        seed=0,
    )
    assert right
    gain = difference(nothing.outcomes, knowing.outcomes, lambda outcome: outcome.accuracy)
    assert gain.mean == gain.low == gain.high == 1.0


def _gold(request: Request, questions: QuestionSet) -> str:
    """The answer to the question whose picture is shown."""
    shown = request.conversation[0].images[0]
    return next(q.answers[0] for q in questions if q.load_image() == shown)


def test_a_picture_at_hand_is_a_picture() -> None:
    assert noise(1) == noise(1)
    assert noise(1) != noise(2)


def test_trajectories_hold_their_sums() -> None:
    played = Trajectory("q", (), False, True, "x", 0.0, {}, {"n_image_search": 1.0, "n_text_search": 2.0}, "")
    assert played.n_searches == 3.0
    assert played.token_ids == played.loss_mask == played.old_logprobs == ()


CONTINUOUS = RolloutLimits(batching="continuous")


def test_whoever_waits_for_a_search_holds_up_nobody(questions: QuestionSet) -> None:
    """The first question's searches come back only when all other episodes are over."""
    finished: list[str] = []
    others = 2 * (len(questions) - 1)

    class Held:
        name = "held"

        async def search(self, query: Query, *, top_k: int) -> SearchResult:
            while query.question_id == questions[0].id and len(finished) < others:
                await asyncio.sleep(0.01)
            return SearchResult(())

        async def aclose(self) -> None:
            """Nothing to free."""

    def say(request: Request) -> str:
        return "<reason>r</reason><answer>x</answer>" if request.turns else "<reason>r</reason><search><img></search>"

    groups = rollout(
        ScriptedPolicy(say),
        lambda: make_env(tools=Held()),
        questions,
        group_size=2,
        seed=0,
        limits=CONTINUOUS,
        on_episode=lambda played: finished.append(played.question_id),
    )
    assert finished[-2:] == [questions[0].id] * 2
    assert [group.question_id for group in groups] == list(questions.ids)


@pytest.mark.parametrize("forks_from", [1, None])
@pytest.mark.parametrize("rows", [256, 3])
def test_what_is_said_does_not_depend_on_who_speaks_beside(
    questions: QuestionSet, rows: int, forks_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=10))
    monkeypatch.setattr(policy._sampler._reader, "_forks_from", forks_from)
    together, continuous = (
        rollout(policy, make_env, questions[:4], group_size=3, seed=3, limits=limits)
        for limits in (RolloutLimits(), replace(CONTINUOUS, batch_rows=rows))
    )
    for one, other in zip(together, continuous, strict=True):
        for mine, theirs in zip(one.trajectories, other.trajectories, strict=True):
            assert mine.token_ids == theirs.token_ids
            assert mine.old_logprobs == pytest.approx(theirs.old_logprobs, abs=1e-5)
    assert policy._sampler._reader._kept._kept == {}


def test_completions_end_and_begin_while_others_go_on() -> None:
    """Three rows of which one ends early; a fourth joins in the middle, and all say what they say alone."""
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=12, stop_tags=("e",)))
    requests = [
        Request((), (Message("user", (ImagePart(noise(n)), TextPart(f"{n} which? " * (n + 1)))),), (), seed=n)
        for n in range(6)
    ]
    alone = [policy.generate([request])[0] for request in requests]
    lengths = [len(reply.completion.token_ids) for reply in alone if isinstance(reply, Reply)]
    assert len(set(lengths)) > 2

    class Counter:
        """Lets two in at first, and one more each time it is asked."""

        def __init__(self) -> None:
            self.waiting = list(enumerate(requests))
            self.replies: dict[int, Reply | CannotReply] = {}
            self.asked = 0

        def take(self, most: int) -> list[tuple[int, Request]]:
            self.asked += 1
            count = 2 if self.asked == 1 else int(self.asked % 3 == 0)
            taken, self.waiting = self.waiting[:count], self.waiting[count:]
            return taken

        def answer(self, number: int, reply: Reply | CannotReply) -> None:
            self.replies[number] = reply

        def over(self) -> list[tuple[Turn, ...]]:
            return []

    desk = Counter()
    while desk.waiting:
        policy.serve(desk, most=4)
    assert list(desk.replies) != sorted(desk.replies)  # not in the order in which they came
    for number, reply in desk.replies.items():
        mine = alone[number]
        assert isinstance(reply, Reply) and isinstance(mine, Reply)
        assert reply.completion.token_ids == mine.completion.token_ids
        assert reply.completion.logprobs == pytest.approx(mine.completion.logprobs, abs=1e-5)


def test_plans_are_not_played_continuously(questions: QuestionSet) -> None:
    policy = adapted_policy("qwen2_5_vl", limits=SamplingLimits(max_new_tokens=6))
    with pytest.raises(PolicyError, match="expected free play, got a scripted turn"):
        rollout(policy, make_env, questions[:1], group_size=2, seed=0, workflow=FIXED_RAG, limits=CONTINUOUS)
