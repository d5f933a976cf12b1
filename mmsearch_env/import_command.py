"""Turn FVQA's published image-search results (a pickle) into a record to replay; nothing in it is run."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from mmsearch_env.rendering import plain
from mmsearch_env.tools.replay.fvqa_cache import import_fvqa_cache


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``import-fvqa-cache``."""
    parser.add_argument("pickle", type=Path, help="fvqa_train_image_search_results_cache.pkl or the one for test")
    parser.add_argument("folder", type=Path, help="the record is written here")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Import and say what came of it. Raises DataError, ConfigError."""
    with console.status("reading") as status:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            status.update(f"{done} questions")

        found = import_fvqa_cache(arguments.pickle, arguments.folder, on_question=count)
    console.print(
        f"{found.questions} questions, {found.pictures} thumbnails stored, {found.urls} known by address only, "
        f"{len(found.skipped)} skipped"
    )
    for reason in found.skipped[:5]:
        console.print(plain(f"  {reason}"), markup=False, soft_wrap=True)
    console.print(
        plain(f'replay it: tools={{"image_search": {{"name": "replay", "path": "{arguments.folder}"}}}}'), markup=False
    )
    return 0
