"""Watch one scripted episode: messages, tool results, reward terms."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.text import Text

from mmsearch_env.actions import Action, Answer, ImageSearch, TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.messages import ImagePart, Message, TextPart
from mmsearch_env.questions import Question
from mmsearch_env.rendering import plain
from mmsearch_env.showing import page_path, show_messages, show_outcome, write_page


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``demo``."""
    parser.add_argument("--world", default="atlas", help="embedded world (atlas)")
    parser.add_argument("--question-id", metavar="ID", help="which question; the first about a fact otherwise")
    parser.add_argument("--prompts", default="brief", help="wording: brief, standard or a folder (brief)")
    parser.add_argument("--html", type=page_path, metavar="FILE", help="also write the conversation as a web page")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Play one episode: look the picture up, look the fact up, answer."""
    env = MMSearchEnv(world=arguments.world, split="test", prompts=arguments.prompts)
    question_id = arguments.question_id or _about_a_fact(env).id
    env.reset(seed=0, options={"question_id": question_id})
    console.print(Text(f"Question {plain(question_id)}: the player is scripted and knows the answer.\n", style="dim"))
    show_messages(console, env.conversation)
    ended = False
    while not ended:
        action, thought = _next_move(env)
        seen = len(env.conversation)
        _, reward, terminated, truncated, info = env.step(env.protocol.format(action, reason=thought))
        ended = terminated or truncated
        show_messages(console, env.conversation[seen:])
        console.print(Text(f"understood: {info['kind']} · reward of this turn: {reward:.3f}\n", style="dim"))
    show_outcome(console, env.question, info)
    if arguments.html is not None:
        write_page(arguments.html, env.conversation, title=env.question.text)
        console.print(plain(f"written: {arguments.html}"), markup=False)
    return 0


def _about_a_fact(env: MMSearchEnv) -> Question:
    """The first question that asks for more than a name, so that both searches have work to do."""
    return next((question for question in env.questions if question.tags.get("kind") == "fact"), env.questions[0])


def _next_move(env: MMSearchEnv) -> tuple[Action, str]:
    """What the script does in this round, and the reason it gives."""
    asked = [message for message in env.conversation if message.role == "assistant"]
    if not asked:
        return ImageSearch(), "I do not know what this shows."
    if len(asked) == 1:
        title = _first_title(env.new_messages)
        about = env.question.tags.get("relation", env.question.text).replace("_", " ")
        return TextSearch(f"{title} {about}"), f"It looks like {title}. I do not know the rest."
    return Answer(env.question.answers[0]), "The pages say so."


def _first_title(messages: tuple[Message, ...]) -> str:
    """The words right after the first picture of a result."""
    parts = [part for message in messages for part in message.parts]
    after = next((position + 1 for position, part in enumerate(parts) if isinstance(part, ImagePart)), 0)
    part = parts[after] if after < len(parts) else TextPart("")
    lines = part.text.strip().split("\n") if isinstance(part, TextPart) else [""]
    return lines[0].removesuffix("</information>").strip()
