"""Look into a folder of kept answers: ``stats``, ``verify``, ``export``, ``prune``."""

from __future__ import annotations

import argparse
import base64
import json
import math
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmsearch_env.cache.tool_cache import FOLDER, ToolCache
from mmsearch_env.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``cache``."""
    parser.add_argument("what", choices=("stats", "verify", "export", "prune"), help="what to do")
    parser.add_argument("folder", type=Path, help="the tool's cache_dir")
    parser.add_argument("--out", type=Path, metavar="FILE", help="export: JSON lines go here, else to the terminal")
    old = "prune: answers older than this; without it, those that have expired"
    parser.add_argument("--older-than-days", type=float, metavar="DAYS", help=old)
    parser.add_argument(
        "--kind", help="prune: only answers of this kind (see stats); without --older-than-days all of them"
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Do it and say what came of it. Raises ConfigError."""
    if not (arguments.folder / FOLDER).is_dir():
        raise ConfigError(f"cache: expected the folder of a cache, got {arguments.folder}; see cache_dir of your tool")
    cache = ToolCache(arguments.folder)
    try:
        return {"stats": _stats, "verify": _verify, "export": _export, "prune": _prune}[arguments.what](
            cache, arguments, console
        )
    finally:
        cache.close()


def _stats(cache: ToolCache, arguments: argparse.Namespace, console: Console) -> int:
    found = cache.stats()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("folder", str(found.folder))
    table.add_row("answers", str(found.answers))
    for kind, count in found.by_kind.items():
        table.add_row(f"  {kind}", str(count))
    table.add_row("on disk", f"{found.bytes_on_disk / 1e6:.1f} MB")
    if found.answers:
        table.add_row("oldest", f"{found.oldest_s / 86400:.1f} days")
    console.print(table)
    return 0


def _verify(cache: ToolCache, arguments: argparse.Namespace, console: Console) -> int:
    sound, removed = cache.verify()
    console.print(f"{sound} answers are sound, {removed} were damaged and are removed")
    return 0 if not removed else 1


def _export(cache: ToolCache, arguments: argparse.Namespace, console: Console) -> int:
    lines = (
        {
            "kind": answer.kind,
            "request": answer.request,
            "stored": answer.stored,
            "body": base64.b64encode(answer.body).decode(),
        }
        for answer in cache.answers()
    )
    count = 0
    try:
        with arguments.out.open("w", encoding="utf-8") if arguments.out else _Terminal() as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise ConfigError(
            f"--out: expected a file that can be written, got {arguments.out}: {error.strerror}"
        ) from error
    if arguments.out:
        console.print(f"{count} answers written to {arguments.out}")
    return 0


def _prune(cache: ToolCache, arguments: argparse.Namespace, console: Console) -> int:
    days = arguments.older_than_days
    if days is not None and not days >= 0:
        raise ConfigError(f"--older-than-days: expected 0 or more, got {days}")
    older_than_s = math.inf if days is None else days * 86400.0
    if days is None and arguments.kind is not None:
        older_than_s = 0.0
    removed = cache.prune(older_than_s=older_than_s, kind=arguments.kind)
    console.print(f"{removed} answers removed")
    return 0


class _Terminal:
    """Standard output, which is not closed."""

    def __enter__(self) -> _Terminal:
        return self

    def write(self, text: str) -> None:
        sys.stdout.write(text)

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
