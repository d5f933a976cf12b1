"""Prompt sets: the environment's wording, as a folder of plain text files.

A file is a template: ``$name`` stands for a value, ``$$`` for a dollar sign, ``$image`` for the pictures. Which names a
file may use is listed in ``PROMPT_FILES``; the numbers of ``COUNTERS`` may stand in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from mmsearch_env.errors import ConfigError
from mmsearch_env.images import Image
from mmsearch_env.messages import ImagePart, Part, TextPart

BUNDLED = ("standard", "brief", "tool_call")
"""Prompt sets that come with the package."""

COUNTERS = (
    "max_rounds",
    "max_image_searches",
    "max_text_searches",
    "rounds_left",
    "image_searches_left",
    "text_searches_left",
    "max_page_visits",
    "page_visits_left",
    "images",
)
"""Numbers any prompt may show."""

PROMPT_FILES: Mapping[str, tuple[str, ...]] = {
    "first": ("question", "image", "crop", "visit"),
    "crop": (),
    "several": (),
    "visit": (),
    "crop_ignored": (),
    "image_hit": ("image", "title", "url", "rank"),
    "text_hit": ("title", "snippet", "url", "rank"),
    "page": ("title", "snippet", "url", "rank"),
    "no_hits": ("kind",),
    "after_image_search": (),
    "after_text_search": (),
    "answer_now": (),
    "malformed": ("code", "detail"),
    "limit": ("code", "kind"),
    "unknown_image": ("code", "kind"),
    "tool_failed": ("kind",),
}
"""Every file of a prompt set (without ``.txt``) and the names it may use."""
OPTIONAL_FILES = ("visit", "page", "several", "unknown_image")
"""Files that a set may lack; it then has the standard set's."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One template."""

    text: str

    def parts(self, values: Mapping[str, object], images: Sequence[Image] = ()) -> tuple[Part, ...]:
        """The template with its values; ``$image`` becomes the pictures, or nothing where there is none."""
        found: list[Part] = []
        for position, piece in enumerate(_around_pictures(self.text)):
            if position:
                found += map(ImagePart, images)
            found.append(TextPart(Template(piece).substitute(values)))
        return joined(found)

    def fill(self, values: Mapping[str, object]) -> str:
        """The template with its values, for templates without a picture."""
        return "".join(part.text for part in self.parts(values) if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The templates of one set; see ``PROMPT_FILES`` for what each is.

    Attributes:
        first: the question, at reset.
        crop: how to search for a part of the picture; stands where ``first`` says ``$crop`` when the rules allow it.
        several: how to search with another picture than the first; stands before ``crop`` when there are several.
        visit: how to read a page; stands where ``first`` says ``$visit`` when the rules allow it.
        crop_ignored: said when a part was asked for and the whole was searched.
        image_hit: one hit of an image search.
        text_hit: one hit of a text search.
        page: a page that was read.
        no_hits: said in place of hits.
        after_image_search: what to do next, after an image search.
        after_text_search: what to do next, after a text search.
        answer_now: what to do next when only an answer is left.
        malformed: said after a completion that meant no action.
        limit: said after a search that is not allowed any more.
        unknown_image: said after a search with a picture that the question does not have.
        tool_failed: said after a search whose tool failed.
    """

    first: Prompt
    crop: Prompt
    several: Prompt
    visit: Prompt
    crop_ignored: Prompt
    image_hit: Prompt
    text_hit: Prompt
    page: Prompt
    no_hits: Prompt
    after_image_search: Prompt
    after_text_search: Prompt
    answer_now: Prompt
    malformed: Prompt
    limit: Prompt
    unknown_image: Prompt
    tool_failed: Prompt


@lru_cache(maxsize=32)
def load_prompts(spec: str) -> PromptSet:
    """The prompt set of this name (``BUNDLED``) or in this folder.

    Raises:
        ConfigError: no such set, a file missing or unreadable, or a name used that the file may not use.
    """
    folder: Traversable = resources.files("mmsearch_env") / "prompts" / spec if spec in BUNDLED else Path(spec)
    if not folder.is_dir():
        raise ConfigError(f"prompts: expected one of {', '.join(BUNDLED)} or a folder of .txt files, got {spec!r}")
    standard = resources.files("mmsearch_env") / "prompts" / "standard"
    return PromptSet(
        **{
            field.name: _read_prompt(
                standard if field.name in OPTIONAL_FILES and not (folder / f"{field.name}.txt").is_file() else folder,
                field.name,
            )
            for field in fields(PromptSet)
        }
    )


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring texts made one, empty ones left out."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart) and not part.text:
            continue
        if isinstance(part, TextPart) and merged and isinstance(merged[-1], TextPart):
            part = TextPart(merged.pop().text + part.text)  # type: ignore[union-attr]
        merged.append(part)
    return tuple(merged)


def _around_pictures(text: str) -> Iterator[str]:
    """The pieces of a template before, between and after its pictures, found as Template finds names: ``$$`` first."""
    start = 0
    for match in Template.pattern.finditer(text):
        if "image" in (match["named"], match["braced"]):
            yield text[start : match.start()]
            start = match.end()
    yield text[start:]


def _read_prompt(folder: Traversable, name: str) -> Prompt:
    where = f"{folder}/{name}.txt"
    try:
        text = (folder / f"{name}.txt").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: expected a readable UTF-8 text file, got {error}; add the file") from error
    template = Template(text)
    if not template.is_valid():
        raise ConfigError(f"{where}: expected $name or $$, got a lone $; write $$ for a dollar sign")
    used, known = template.get_identifiers(), (*PROMPT_FILES[name], *COUNTERS)
    for unknown in (word for word in used if word not in known):
        raise ConfigError(f"{where}: expected only ${', $'.join(known)}, got ${unknown}; mend the file")
    if name == "first" and not {"question", "image"} <= set(used):
        raise ConfigError(f"{where}: expected both $question and $image, got {used}; mend the file")
    return Prompt(text)
