"""Writes the atlas's pages and questions: ``python -m mmsearch_env.worlds.atlas.build``.

Deterministic: the same countries and wordings give the same bytes. Prints how well the embedded engines find what the
test questions ask for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmsearch_env.worlds.asking import write_questions
from mmsearch_env.worlds.atlas.world import (
    NAME,
    PAGES_FILE,
    QUESTIONS_FILE,
    atlas_entities,
    atlas_world,
    page_to_record,
    question_to_record,
)
from mmsearch_env.worlds.pages import write_pages

SEED = 2506


def shipped_files() -> dict[str, bytes]:
    """File name -> content of everything this script writes."""
    entities = atlas_entities()
    pages = write_pages(NAME, entities, seed=SEED)
    questions = write_questions(NAME, entities, seed=SEED)
    return {
        PAGES_FILE: _json_lines(page_to_record(page) for page in pages),
        QUESTIONS_FILE: _json_lines(question_to_record(question) for question in questions),
    }


def main() -> None:
    """Write the files beside this one and print the recall of the engines."""
    from mmsearch_env.tools.local.recall import image_recall, text_recall

    for name, content in shipped_files().items():
        Path(__file__).with_name(name).write_bytes(content)
        sys.stdout.write(f"{name}: {len(content)} bytes\n")
    world = atlas_world()
    sys.stdout.write(
        f"{len(world.entities)} countries, {len(world.pages)} pages, {len(world.questions('all'))} questions\n"
    )
    sys.stdout.write(f"image search, test questions: {image_recall(world, 'test')}\n")
    sys.stdout.write(f"text search, test questions:  {text_recall(world, 'test')}\n")


def _json_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


if __name__ == "__main__":
    main()
