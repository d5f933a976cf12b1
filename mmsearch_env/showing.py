"""What the two commands of this package print: messages, reward terms, whole pages."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmsearch_env.errors import ConfigError
from mmsearch_env.messages import Message, Part
from mmsearch_env.questions import Question
from mmsearch_env.rendering import Colour, parts_to_ansi, plain, to_ansi, to_html

MAX_WIDTH = 100
"""Lines longer than this are hard to read, in columns."""

MEANING = {
    "metric": "how right the answer was, 0 to 1",
    "format": "1 if every message kept the form",
    "metric_points": "earned by the answer",
    "format_points": "earned by the form",
    "search_penalty": "taken away for searching",
    "total": "reward of the episode",
}
"""What the terms of the reward mean, in the order in which they are shown."""


def show_messages(console: Console, messages: Sequence[Message]) -> None:
    """Print messages; with pictures in colour where the terminal has colours."""
    colour: Colour = "true" if console.is_terminal and not console.no_color else "none"
    shown = to_ansi(messages, width=min(console.width, MAX_WIDTH), colour=colour)
    console.print(Text.from_ansi(shown), soft_wrap=True)


def show_parts(console: Console, parts: Sequence[Part]) -> None:
    """Print text and pictures that nobody says, likewise."""
    colour: Colour = "true" if console.is_terminal and not console.no_color else "none"
    shown = parts_to_ansi(parts, width=min(console.width, MAX_WIDTH), colour=colour)
    console.print(Text.from_ansi(shown), soft_wrap=True)


def show_outcome(console: Console, question: Question, info: Mapping[str, Any]) -> None:
    """Print how an episode ended, what would have been right, and what it earned."""
    verdict = "right" if info["success"] >= 1.0 else "wrong" if info["stop_reason"] == "answered" else "no answer"
    style = "bold green" if verdict == "right" else "bold red"
    console.print(Text(verdict.capitalize(), style=style), Text(f"· accepted: {plain(', '.join(question.answers))}"))
    console.print(reward_table(info["reward_terms"]))


def reward_table(terms: Mapping[str, float]) -> Table:
    """The terms of the reward with their meaning."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, meaning in MEANING.items():
        value = -terms[name] if name == "search_penalty" and terms[name] else terms[name]
        table.add_row(name, f"{value:.3f}", meaning, style="bold" if name == "total" else "")
    return table


def page_path(text: str) -> Path:
    """The value of ``--html``: a path in a folder that exists, so that nobody plays for nothing."""
    path = Path(text)
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"expected a file, got {text}: {error.strerror}; name another") from error
    if not has_folder:
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text}; make the folder first")
    if is_folder:
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text}; name a file in it")
    return path


def write_page(path: Path, messages: Sequence[Message], *, title: str) -> None:
    """Write messages as a web page. Raises ConfigError when the file cannot be written."""
    try:
        path.write_text(to_html(messages, title=title), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html: expected a file that can be written, got {path}: {error.strerror}") from error
