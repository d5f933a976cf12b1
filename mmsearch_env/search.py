"""Search from the shell, with words or with a picture, through any back end."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError
from mmsearch_env.images import FULL_FRAME, Image, clean_bbox
from mmsearch_env.messages import ImagePart, TextPart
from mmsearch_env.showing import show_parts
from mmsearch_env.tools import build_tool, tool_names
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult, SearchTool, TextQuery
from mmsearch_env.worlds import load_world


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``search``."""
    parser.add_argument("words", nargs="?", help="what to search for")
    parser.add_argument("--image", type=Path, metavar="FILE", help="search with this picture instead")
    box = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    parser.add_argument("--crop", nargs=4, type=float, metavar=box, help="only this part of it, in fractions")
    names = ", ".join(tool_names())
    parser.add_argument("--backend", default="local", help=f"{names}, or JSON with that name and settings (local)")
    parser.add_argument("--world", default="atlas", help="what the local back end searches (atlas)")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="hits wanted (5)")
    parser.add_argument("--question", default="", help="the question behind it, for a back end that summarises")
    parser.add_argument("--json", action="store_true", help="print the hits as JSON, without pictures")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Search once and print what is found. Raises ConfigError, ToolError, ImageError."""
    kind, query = _query(arguments)
    tool = build_tool(kind, parsed_backend(arguments.backend), load_world(arguments.world))
    result = asyncio.run(_searched(tool, query, arguments.top_k))
    if arguments.json:
        console.print(
            json.dumps([_as_json(hit) for hit in result.hits], ensure_ascii=False, indent=1),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    elif result.hits:
        for number, hit in enumerate(result.hits, start=1):
            show_parts(console, _parts(number, hit))
            console.print()
    else:
        console.print("nothing found")
    return 0


def _query(arguments: argparse.Namespace) -> tuple[ActionKind, Query]:
    if (arguments.words is None) == (arguments.image is None):
        raise ConfigError("search: expected either words or --image FILE, got both or neither")
    if arguments.crop is not None and arguments.image is None:
        raise ConfigError("--crop: expected --image beside it, got words")
    if arguments.top_k < 1:
        raise ConfigError(f"--top-k: expected 1 or more, got {arguments.top_k}")
    if arguments.image is None:
        return ActionKind.TEXT_SEARCH, TextQuery(arguments.words, question_text=arguments.question)
    box = FULL_FRAME if arguments.crop is None else clean_bbox(arguments.crop)
    return ActionKind.IMAGE_SEARCH, ImageQuery(Image.from_file(arguments.image), box, question_text=arguments.question)


def parsed_backend(text: str) -> str | Mapping[str, Any]:
    """A back end's name, or its settings. Raises ConfigError for what is neither."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found: Mapping[str, Any] = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--backend: expected a name or JSON, got {text!r}: {error}") from error
    return found


async def _searched(tool: SearchTool, query: Query, top_k: int) -> SearchResult:
    try:
        return await tool.search(query, top_k=top_k)
    finally:
        await tool.aclose()


def _parts(number: int, hit: Hit) -> list[TextPart | ImagePart]:
    heading = f"{number}. {hit.title or 'without a title'}  (score {hit.score:.3f})"
    text = TextPart("\n".join((heading, hit.url, *([hit.snippet] if hit.snippet else []), "")))
    return [text] if hit.thumbnail is None else [text, ImagePart(hit.thumbnail)]


def _as_json(hit: Hit) -> dict[str, Any]:
    return {"title": hit.title, "url": hit.url, "snippet": hit.snippet, "score": hit.score}
