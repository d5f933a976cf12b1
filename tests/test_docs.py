"""The documents are true: their Python runs, their links lead somewhere, their names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
MODULE = re.compile(r"`((?:mmsearch_env|agents|training|tests|docs)/[\w./-]*)`")


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The fragments a page's headings make on the usual hosts."""
    headings = re.findall(r"^#+ (.*)$", ANY_BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if CODE_BLOCK.search(page.read_text())], ids=page_name)
def test_python_blocks_run_in_order(page: Path, tmp_path: Path) -> None:
    """The blocks of a page are one programme, started as a reader would: in a folder of its own, nothing prepared."""
    programme = "\n".join(CODE_BLOCK.findall(page.read_text()))
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", programme],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr


def environment() -> dict[str, str]:
    import os

    return os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(ANY_BLOCK.sub("", page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, fragment = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page_name(page)} links to {target}"
        assert not fragment or fragment in anchors(there), f"{page_name(page)} links to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_named_in_the_text_exist(page: Path) -> None:
    for path in MODULE.findall(ANY_BLOCK.sub("", page.read_text())):
        assert (ROOT / path).exists(), f"{page_name(page)} names {path}"


def test_make_targets_named_in_the_text_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
            assert target in targets, f"{page_name(page)} says `make {target}`"


def test_every_document_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index, f"docs/index.md does not lead to {page.name}"
