"""Play episodes yourself in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from mmsearch_env.actions import Action, Answer, ImageSearch, TextSearch, VisitPage
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.episode import Rules
from mmsearch_env.errors import DataError
from mmsearch_env.images import clean_bbox
from mmsearch_env.messages import Message, Part, TextPart
from mmsearch_env.rendering import plain
from mmsearch_env.resources import resolve_questions
from mmsearch_env.showing import page_path, show_messages, show_outcome, write_page

PictureForm = Literal["blocks", "path", "none"]

HELP = """\
Type an answer, or search first (searching costs a little):
  /image                        which pages show this picture?
  /image LEFT TOP RIGHT BOTTOM  ... or this part of it, in fractions of width and height (with --crop)
  /text WORDS                   what do pages say about this?
  /visit ADDRESS                what does this page say? (with --visits)
  /help  /quit
"""

HELP_ON_SEVERAL = """\
Where a question has several pictures, say which, counted from 1:
  /image 2                      which pages show the second picture?
  /image 2 LEFT TOP RIGHT BOTTOM
"""
"""Said too where a question has several pictures."""

_FOR_PEOPLE = Path(__file__).parent / "prompts" / "person"
_FORGOTTEN_SLASH = ("image", "text", "help", "quit")
_TAGS = ("<information>", "</information>")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``play``."""
    parser.add_argument("--questions", metavar="FILE", help="questions to play: FVQA .parquet, or .jsonl")
    parser.add_argument("--question-id", metavar="ID", help="begin with this question")
    parser.add_argument("--world", default="atlas", help="embedded world: its pages, and its questions (atlas)")
    parser.add_argument("--split", default="test", help="which of the world's questions (test)")
    parser.add_argument("--seed", type=int, default=None, help="ask in the same order again")
    parser.add_argument("--episodes", type=_count, default=None, metavar="N", help="stop after N questions")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="messages you have per question (3)")
    parser.add_argument("--crop", action="store_true", help="let /image search for a part of the picture")
    parser.add_argument("--visits", type=int, default=0, metavar="N", help="pages you may read per question (0)")
    parser.add_argument("--picture", choices=("blocks", "path", "none"), default="blocks", help="how to show pictures")
    parser.add_argument("--prompts", default=str(_FOR_PEOPLE), help="'standard' shows what a model is shown")
    parser.add_argument("--html", type=page_path, metavar="FILE", help="also write the conversation as a web page")


def _count(text: str) -> int:
    """The value of ``--episodes``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}; leave it out to play them all")
    return int(text)


def run(arguments: argparse.Namespace, console: Console, read_line: Callable[[], str] = input) -> int:
    """Play until the person leaves, the input ends or ``--episodes`` are played."""
    questions = resolve_questions(arguments.questions, arguments.world, arguments.split)
    env = MMSearchEnv(
        world=arguments.world,
        split=arguments.split,
        questions=questions,
        prompts=arguments.prompts,
        max_rounds=arguments.rounds,
        crop=arguments.crop,
        max_page_visits=arguments.visits,
        max_images=max(question.n_images for question in questions),
    )
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and cursor keys
    console.print(_help(env.rules), markup=False, soft_wrap=True)
    return _Sitting(env, console, read_line, arguments).play()


class _Sitting:
    """One person in front of one environment."""

    def __init__(
        self, env: MMSearchEnv, console: Console, read_line: Callable[[], str], arguments: argparse.Namespace
    ) -> None:
        self._env = env
        self._console = console
        self._read_line = read_line
        self._arguments = arguments
        self._said: list[Message] = []
        self._rewards: list[float] = []

    def play(self) -> int:
        try:
            self._ask_all()
        except KeyboardInterrupt:  # what was played is kept, and the caller told
            self._console.print()
            self._say_goodbye()
            raise
        self._say_goodbye()
        return 0

    def _ask_all(self) -> None:
        with _picture_shower(self._arguments.picture) as shown:
            for question_id in self._order():
                if len(self._rewards) == self._arguments.episodes or not self._goes_on(question_id, shown):
                    break

    def _order(self) -> list[str]:
        """Every question once, shuffled; the one asked for goes first. Raises DataError if that does not exist."""
        ids = list(self._env.questions.ids)
        random.Random(self._arguments.seed).shuffle(ids)
        wanted = self._arguments.question_id
        return ids if wanted is None else [self._env.questions.by_id(wanted).id, *(id for id in ids if id != wanted)]

    def _goes_on(self, question_id: str, shown: Callable[[Message], Message]) -> bool:
        """Play a question, or pass over it when its picture is broken; False when the person left."""
        try:
            observation, info = self._env.reset(options={"question_id": question_id})
        except DataError as error:
            skipped = plain(f"skipped {question_id}: {error}")
            self._console.print(skipped, style="yellow", markup=False, soft_wrap=True)
            return True
        ended, total = False, 0.0
        self._tell(shown)
        while not ended:
            action = self._ask(observation)
            if action is None:
                return False
            observation, reward, terminated, truncated, info = self._env.step(action)
            total, ended = total + reward, terminated or truncated
            self._tell(shown)
        self._rewards.append(total)
        self._said.extend(self._env.conversation)
        show_outcome(self._console, self._env.question, info)
        return True

    def _tell(self, shown: Callable[[Message], Message]) -> None:
        self._console.print()
        show_messages(self._console, [shown(message) for message in self._env.new_messages])

    def _ask(self, observation: dict[str, Any]) -> Action | None:
        """The next action; None when the person leaves or the input ends."""
        left = ", ".join(f"{int(observation[f'{kind}_searches_left'])} {kind}" for kind in ("image", "text"))
        prompt = f"round {int(observation['round']) + 1} of {self._env.rules.max_rounds} · searches left: {left} › "
        while True:
            self._console.print(Text(prompt), end="", style="bold")
            try:
                meaning = _meaning(self._read_line().strip())
            except EOFError:
                return None
            finally:
                if not self._console.is_terminal:
                    self._console.print()
            if meaning != "help":
                return None if meaning == "quit" else meaning
            self._console.print(_help(self._env.rules), markup=False, soft_wrap=True)

    def _say_goodbye(self) -> None:
        if self._arguments.html is not None:
            write_page(self._arguments.html, self._said, title="Episodes played by hand")
            self._console.print(plain(f"written: {self._arguments.html}"), markup=False)
        if self._rewards:
            mean = sum(self._rewards) / len(self._rewards)
            self._console.print(f"{len(self._rewards)} played, mean reward {mean:.3f}")


def _help(rules: Rules) -> str:
    """What can be typed."""
    return HELP if rules.max_images == 1 else HELP + HELP_ON_SEVERAL


def _meaning(line: str) -> Action | Literal["quit", "help"]:
    """What a typed line means; a command that is not complete asks for help."""
    command, _, rest = line.partition(" ")
    if command in ("/quit", "/q"):
        return "quit"
    if command in ("/text", "/t") and rest.strip():
        return TextSearch(rest.strip())
    if command in ("/visit", "/v") and rest.strip():
        return VisitPage(rest.strip())
    if command in ("/image", "/i"):
        return _image_search(rest)
    if not line or line.startswith("/") or line.casefold() in _FORGOTTEN_SLASH:
        return "help"
    return Answer(line)


def _image_search(rest: str) -> ImageSearch | Literal["help"]:
    words = rest.replace(",", " ").split()
    index = 0
    if len(words) in (1, 5):
        if not words[0].isascii() or not words[0].isdecimal() or words[0].strip("0") == "":
            return "help"
        index = int(words.pop(0)) - 1
    if not words:
        return ImageSearch(index=index)
    try:
        numbers = [float(number) for number in words]
    except ValueError:
        return "help"
    return ImageSearch(clean_bbox(numbers), index) if len(numbers) == 4 else "help"


@contextlib.contextmanager
def _picture_shower(form: PictureForm) -> Iterator[Callable[[Message], Message]]:
    """A function that makes a message ready for a person: no tags meant for models, pictures in the form wanted."""
    with tempfile.TemporaryDirectory(prefix="mmsearch-") as folder:

        def shown(message: Message) -> Message:
            return Message(message.role, tuple(_shown_part(part, form, Path(folder)) for part in message.parts))

        yield shown


def _shown_part(part: Part, form: PictureForm, folder: Path) -> Part:
    if isinstance(part, TextPart):
        text = part.text
        for tag in _TAGS:
            text = text.replace(tag, "")
        return TextPart(text)
    if form == "blocks":
        return part
    size = f"{part.image.width} x {part.image.height} pixels"
    if form == "none":
        return TextPart(f"[picture, {size}]")
    path = folder / f"{part.image.digest[:12]}.png"
    path.write_bytes(part.image.to_png())
    return TextPart(f"[picture, {size}: {path}]")
