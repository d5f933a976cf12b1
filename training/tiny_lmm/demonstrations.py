"""Demonstrations: how the tiny LMM is shown the protocol, searching, reading and copying.

A turn's reason says what is seen and recalled and never what to do about it: a familiar flag is named, a strange one is
"a flag"; after a name comes the fact that is asked for, or "unknown" where it is not recalled. What to do is decided by
a coin that knows nothing of what is known, so judgement is left to reinforcement learning. All of it happens in an
invented world. Where the coin asks for what the player cannot know, it keeps the form without the content: it answers
"unknown", or searches for "this country".
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agents.renderer import ChatRenderer
from agents.trajectory import Completion, FinishReason, Trajectory, Turn
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.messages import Message, TextPart
from mmsearch_env.questions import Question
from mmsearch_env.worlds import Entity, World
from mmsearch_env.worlds.asking import answers
from mmsearch_env.worlds.entities import IDENTIFY
from mmsearch_env.worlds.wordings import noun, query_text

FIRST_ANSWER, FIRST_IMAGE = 0.45, 0.45
"""Shares of the first decision; the rest is a text search."""
ANSWER_AFTER_IMAGE = 0.35
"""Share of answers from memory after an image search, for a question about a fact."""
NAME_AFTER_IMAGE = 0.6
"""Share of answers with the name found by an image search, for a question that asks for it; the rest reads on."""
_STRANGE = "<reason>It is a flag.</reason>"
_FOUND = "<reason>I found it.</reason>"
_LOOK = "<search><img></search>"
_NOT_RECALLED = "unknown"
_UNKNOWN = f"<answer> {_NOT_RECALLED}</answer>"
_NAMELESS = "this country"
"""Stands in a query where a name belongs, while the player has none."""


def recognised(entity: Entity | None, relation: str, facts_of: Collection[str]) -> str:
    """The reason of a player who sees, or has found out, which entity it is, and what it recalls of it.

    Args:
        entity: None where the player does not know which one it is.
        relation: what is asked for.
        facts_of: ids of the entities whose facts it knows.
    """
    if entity is None:
        return _STRANGE
    if relation == IDENTIFY:
        return f"<reason>It is {entity.name}.</reason>"
    recalled = entity.fact(relation) if entity.id in facts_of else ""
    return f"<reason>It is {entity.name}: {recalled or _NOT_RECALLED}.</reason>"


def flag_query(entity: Entity) -> str:
    """What is searched for about an entity when only its name is asked for."""
    return f"flag of {entity.spoken}"


def nameless_query(relation: str) -> str:
    """What is searched for by a player who does not know the entity's name."""
    return f"{'flag' if relation == IDENTIFY else noun(relation)} of {_NAMELESS}"


@dataclass(frozen=True, slots=True)
class Saying:
    """What the player says in a turn; cut off where it could not know how to go on."""

    text: str
    is_cut: bool = False


class Teacher:
    """Plays the invented world by its coin, knowing only the familiar entities."""

    def __init__(self, world: World, familiar: frozenset[str]) -> None:
        """Args: familiar: ids of the entities whose flag and facts are taught by plain questions."""
        self._world = world
        self.familiar = familiar
        self._by_title = {page.title: page.subject for page in world.page_images}

    def say(self, question: Question, heard: Sequence[Message], coin: float) -> Saying:
        """The next turn of an episode in which ``heard`` are the user messages so far.

        ``coin`` lies in [0, 1); 0 where only an answer is left.
        """
        entity = self._world.entity(question.tags["entity"])
        relation = question.tags["relation"]
        if len(heard) == 1:
            return self._first(entity, relation, coin)
        seen = self._pictured(heard)
        if heard[-1].images:
            return self._after_image(seen, relation, coin)
        if seen is None and entity.id not in self.familiar:
            return Saying(_STRANGE + (_LOOK if coin > 0.0 else _UNKNOWN))
        return self._after_text(seen or entity, relation, heard[-1].text)

    def _first(self, entity: Entity, relation: str, coin: float) -> Saying:
        is_familiar = entity.id in self.familiar
        seen = recognised(entity if is_familiar else None, relation, self.familiar)
        if coin < FIRST_ANSWER:
            return self._from_memory(seen, entity, relation)
        if coin < FIRST_ANSWER + FIRST_IMAGE:
            return Saying(seen + _LOOK)
        query = self._query(entity, relation) if is_familiar else nameless_query(relation)
        return Saying(f"{seen}<text_search> {query}</text_search>")

    def _after_image(self, seen: Entity | None, relation: str, coin: float) -> Saying:
        if seen is None:
            return Saying("", is_cut=True)
        reason = recognised(seen, relation, self.familiar)
        if relation == IDENTIFY:
            if coin < NAME_AFTER_IMAGE:
                return Saying(f"{reason}<answer> {seen.name}</answer>")
        elif coin < ANSWER_AFTER_IMAGE:
            return self._from_memory(reason, seen, relation)
        return Saying(f"{reason}<text_search> {self._query(seen, relation)}</text_search>")

    def _query(self, entity: Entity, relation: str) -> str:
        return flag_query(entity) if relation == IDENTIFY else query_text(entity, relation)

    def _after_text(self, entity: Entity, relation: str, read: str) -> Saying:
        value = entity.fact(relation) if relation != IDENTIFY else entity.name
        if value not in read:
            return Saying("", is_cut=True)
        return Saying(f"{_FOUND}<answer> {value}</answer>")

    def _from_memory(self, seen: str, entity: Entity, relation: str) -> Saying:
        if entity.id not in self.familiar:
            return Saying(seen + _UNKNOWN)
        return Saying(f"{seen}<answer> {answers(entity, relation)[0]}</answer>")

    def _pictured(self, heard: Sequence[Message]) -> Entity | None:
        """The entity of the first picture found, if an image search was made and found one."""
        for message in heard[1:]:
            if message.images:
                title = message.text.removeprefix("<information>").split("\n")[0].strip()
                subject = self._by_title.get(title.removesuffix("</information>"))
                return self._world.entity(subject) if subject else None
        return None


def play_demonstration(
    env: MMSearchEnv, renderer: ChatRenderer, teacher: Teacher, question: Question, rng: random.Random
) -> Trajectory | None:
    """One demonstrated episode as a trajectory; None when nothing of it could be shown."""
    env.reset(seed=0, options={"question": question})
    turns: list[Turn] = []
    over = False
    while not over:
        heard = [message for message in env.conversation if message.role == "user"]
        saying = teacher.say(question, heard, 0.0 if env.view.must_answer else rng.random())
        if not saying.text:
            break
        previous = turns[-1].completion if turns else None
        turns.append(_turn(renderer, env.new_messages, saying.text, previous))
        if saying.is_cut:
            break
        _, _, terminated, truncated, _ = env.step(saying.text)
        over = terminated or truncated
    return demonstration(question.id, turns) if turns else None


def caption(renderer: ChatRenderer, message: Message, reason: str) -> Trajectory:
    """What is seen and recalled, and nothing after it."""
    return demonstration("caption", [_turn(renderer, (message,), reason, None)])


def plain_questions(renderer: ChatRenderer, asked: Sequence[tuple[Message, str, str]]) -> Trajectory:
    """Questions that leave only an answer, each with its reason and answer; one after another, from memory."""
    turns: list[Turn] = []
    for message, reason, answer in asked:
        said = f"{reason}<answer> {answer}</answer>"
        turns.append(_turn(renderer, (message,), said, turns[-1].completion if turns else None))
    return demonstration("plain", turns)


def reading_part(renderer: ChatRenderer, played: Trajectory) -> Trajectory | None:
    """The query, what was found and the answer, out of a longer demonstration; None where nothing was read."""
    if len(played.turns) < 2 or not played.turns[-1].completion.text.startswith(_FOUND):
        return None
    asked, read = played.turns[-2:]
    start = renderer.prompt([_user("Search or answer.")]).token_ids
    said = asked.completion
    # Nothing here tells what to ask for, so the query is only read.
    query = Completion(said.text, (), (), said.finish_reason, said.token_ids)
    return demonstration("reading", [Turn(start, (), query, 0.0, "", True), read])


def quiz(renderer: ChatRenderer, facts: Sequence[str], asked: Sequence[tuple[str, str]]) -> Trajectory:
    """Some facts, and then several queries about them, each with its answer: much reading in few tokens."""
    known = "\n".join(f"- {fact}" for fact in facts)
    turns: list[Turn] = []
    for query, answer in asked:
        told = f"<information>{known}</information>\n{query}" if not turns else query
        previous = turns[-1].completion if turns else None
        said = f"{_FOUND}<answer> {answer}</answer>"
        turns.append(_turn(renderer, [_user(f"{told}\nAnswer now.")], said, previous))
    return demonstration("quiz", turns)


def titles_read(
    renderer: ChatRenderer, question: str, titles: Sequence[str], seen: Entity, relation: str
) -> Trajectory:
    """The middle of an episode without its pictures: an image search, the titles found, and the query they lead to."""
    found = "\n".join(f" {title}" for title in titles)
    start = renderer.prompt([_user(f"{question} Search or answer.")]).token_ids
    # There is no picture to say anything about, so this turn is only read.
    looked = Completion("", (), (), FinishReason.STOP, tuple(renderer.text_ids(_STRANGE + _LOOK)))
    told = _user(f"<information>{found}</information>\nSearch text or answer.")
    wanted = f"{recognised(seen, relation, ())}<text_search> {query_text(seen, relation)}</text_search>"
    return demonstration("titles", [Turn(start, (), looked, 0.0, "", True), _turn(renderer, [told], wanted, looked)])


def repetition(tokens: Sequence[int], length: int) -> Trajectory:
    """A random row of tokens said again and again: the plainest lesson in copying."""
    repeated = (list(tokens) * (length // len(tokens) + 1))[:length]
    completion = _said("", repeated[len(tokens) :])
    return demonstration("repetition", [Turn(tuple(tokens), (), completion, 0.0, "", True)])


def demonstration(question_id: str, turns: Sequence[Turn]) -> Trajectory:
    """Turns as a trajectory without any outcome."""
    return Trajectory(question_id, tuple(turns), True, False, "demonstrated", 0.0, {}, {}, "")


def _turn(renderer: ChatRenderer, new: Sequence[Message], said: str, previous: Completion | None) -> Turn:
    prompt = renderer.extension(new, previous) if previous is not None else renderer.prompt(new)
    return Turn(prompt.token_ids, prompt.images, _said(said, renderer.text_ids(said)), 0.0, "", True)


def _user(text: str) -> Message:
    return Message("user", (TextPart(text),))


def _said(text: str, token_ids: Sequence[int]) -> Completion:
    return Completion(text, tuple(token_ids), (0.0,) * len(token_ids), FinishReason.STOP)


def demonstrations(
    env: MMSearchEnv, renderer: ChatRenderer, teacher: Teacher, questions: Iterable[Question], *, seed: int
) -> Iterator[Trajectory]:
    """One demonstration for each question that can be shown, in order."""
    rng = random.Random(seed)
    for question in questions:
        played = play_demonstration(env, renderer, teacher, question, rng)
        if played is not None:
            yield played
