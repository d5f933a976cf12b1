"""The sentences of pages and questions, as data, and the one way to fill them in."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from mmsearch_env.worlds.entities import Entity


@cache
def wordings() -> Mapping[str, Any]:
    """The content of ``wordings.json``: templates by use; ``{Name}`` is the name at the start of a sentence."""
    text = resources.files("mmsearch_env.worlds").joinpath("wordings.json").read_text(encoding="utf-8")
    data: Mapping[str, Any] = json.loads(text)
    return data


def told(relation: str) -> Sequence[str]:
    """Sentences that state a fact."""
    templates: Sequence[str] = wordings()["relations"][relation]["told"]
    return templates


def asked(relation: str) -> Sequence[str]:
    """Questions about a picture: for ``identify`` or an asked relation. They never name the entity."""
    data = wordings()
    templates: Sequence[str] = data[relation]["asked"] if relation in data else data["relations"][relation]["asked"]
    return templates


def queries(relation: str) -> Sequence[str]:
    """Search queries for a fact of a named entity, as templates of ``{name}`` and ``{bare}``."""
    templates: Sequence[str] = wordings()["relations"][relation]["queries"]
    return templates


def noun(relation: str) -> str:
    """The relation in words, e.g. ``"calling code"``."""
    word: str = wordings()["relations"][relation]["noun"]
    return word


def query_text(entity: Entity, relation: str, wording: int = 0) -> str:
    """A query that asks for a fact of an entity by name."""
    templates = queries(relation)
    return fill(templates[wording % len(templates)], entity)


def fill(template: str, entity: Entity, **values: str) -> str:
    """Put an entity and further values into a template; the first letter becomes a capital one."""
    spoken = entity.spoken
    text = template.format(name=spoken, Name=capitalised(spoken), bare=entity.name, **values)
    return capitalised(text) if template.startswith("{") else text


def capitalised(text: str) -> str:
    """With a capital first letter."""
    return text[:1].upper() + text[1:]


def seeded(*parts: object) -> random.Random:
    """A generator that depends on these words only (stable across processes and platforms)."""
    return random.Random("/".join(str(part) for part in parts))
