"""Writing pages from entities: one article each, and further pages that make finding the right one a task.

Every sentence is a line of the page's text and states one fact, in a wording that a seed chooses. All sentences are
true of the world; what misleads is that another sentence fits a query as well: the capital of a neighbour, a former
currency, a city that is the largest but not the capital.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mmsearch_env.worlds.entities import ASKED_RELATIONS, TOLD_RELATIONS, Drawing, Entity
from mmsearch_env.worlds.slugs import slug
from mmsearch_env.worlds.wordings import capitalised, fill, noun, seeded, told, wordings
from mmsearch_env.worlds.world import Page

LONGEST_LINE = 110
"""Characters of a line; a line that no wording makes as short as this is left out."""
_LIST_LENGTH = 8
_GROUPED_BY = ("currency", "language")
_LISTED = ("capital", "calling_code", "internet_domain", "demonym", "largest_city")


def write_pages(world: str, entities: Sequence[Entity], *, seed: int) -> list[Page]:
    """All pages of a world: articles first, in the order of the entities.

    Args:
        world: short name, part of every address.
        entities: what to write about.
        seed: of the wordings.
    """
    writer = _Writer(world, seed, {entity.name: entity for entity in entities})
    pages = [writer.article(entity) for entity in entities]
    for entity in entities:
        pages.extend(writer.cities(entity))
        pages.extend(writer.neighbours(entity))
        pages.extend(writer.history(entity))
        pages.append(writer.visit(entity))
    pages.extend(writer.groups(entities))
    pages.extend(writer.lists(entities))
    return pages


def sentence(rng: random.Random, relation: str, entity: Entity) -> str:
    """One fact of an entity in a random wording. The relation must be known."""
    return _said(rng, told(relation), entity, value=entity.fact(relation))


def _said(rng: random.Random, templates: Sequence[str], entity: Entity, **values: str) -> str:
    """One of the templates, filled; the shortest if that one becomes too long a line."""
    line = fill(rng.choice(templates), entity, **values)
    if len(line) > LONGEST_LINE:
        line = min((fill(template, entity, **values) for template in templates), key=len)
    # An abbreviation brings its own full stop.
    return line[:-1] if line.endswith("..") else line


class _Writer:
    """Writes the pages of one world."""

    def __init__(self, world: str, seed: int, by_name: Mapping[str, Entity]) -> None:
        self._world = world
        self._seed = seed
        self._by_name = by_name
        self._further = wordings()["further"]

    def article(self, entity: Entity) -> Page:
        """The page about an entity, with its picture: where it lies, then its facts in random order."""
        rng = self._rng("article", entity.id)
        place = rng.choice(("continent", "subregion"))
        relations = [relation for relation in TOLD_RELATIONS if entity.fact(relation) and relation != place]
        relations = [r for r in relations if r in ASKED_RELATIONS or rng.random() < 0.5]
        rng.shuffle(relations)
        opening = [place] if entity.fact(place) else []
        lines = [sentence(rng, relation, entity) for relation in opening + relations]
        title = fill(rng.choice(wordings()["titles"]), entity)
        return self._page(f"article/{entity.id}", title, lines, entity.drawing, entity.id)

    def cities(self, entity: Entity) -> Iterator[Page]:
        """A page for the capital and, if it is another, one for the largest city."""
        capital, largest = entity.fact("capital"), entity.fact("largest_city")
        texts = self._further["city"]
        if capital:
            rng = self._rng("capital", entity.id)
            lines = [_said(rng, texts["told"], entity, value=capital), sentence(rng, "capital", entity)]
            lines += self._some(rng, entity, ("largest_city", "currency", "language"), 2)
            title = rng.choice(texts["titles"]).format(value=capital)
            yield self._page(f"capital/{entity.id}", title, lines, None, entity.id)
        if largest and largest != capital:
            rng = self._rng("largest_city", entity.id)
            lines = [_said(rng, texts["told"], entity, value=largest), sentence(rng, "largest_city", entity)]
            lines.append(_said(rng, texts["largest_only"], entity, value=largest))
            title = rng.choice(texts["titles"]).format(value=largest)
            yield self._page(f"largest-city/{entity.id}", title, lines, None, entity.id)

    def neighbours(self, entity: Entity) -> Iterator[Page]:
        """A page that names an entity in every line and tells facts of others."""
        others = [self._by_name[name] for name in entity.facts.get("neighbour", ()) if name in self._by_name]
        if not others:
            return
        rng = self._rng("neighbours", entity.id)
        lines = []
        for other in others[:_LIST_LENGTH]:
            known = [relation for relation in ASKED_RELATIONS if other.fact(relation)]
            for relation in rng.sample(known, min(2, len(known))):
                words = {"other": other.spoken, "Other": capitalised(other.spoken), "noun": noun(relation)}
                templates = self._further["neighbours"]["told"]
                lines.append(_said(rng, templates, entity, value=other.fact(relation), **words))
        title = fill(rng.choice(self._further["neighbours"]["titles"]), entity)
        yield self._page(f"neighbours/{entity.id}", title, lines[:_LIST_LENGTH])

    def history(self, entity: Entity) -> Iterator[Page]:
        """Pages about what was true once."""
        for relation, values in (entity.former or {}).items():
            rng = self._rng("former", entity.id, relation)
            templates = wordings()["former"][relation]
            lines = [_said(rng, templates, entity, value=value) for value in values]
            title = fill(rng.choice(self._further["former"]["titles"]), entity, noun=noun(relation))
            yield self._page(f"former-{relation}/{entity.id}", title, lines, None, entity.id)

    def visit(self, entity: Entity) -> Page:
        """A page that tells some facts once more, in other words."""
        rng = self._rng("visit", entity.id)
        title = fill(rng.choice(self._further["visit"]["titles"]), entity)
        lines = self._some(rng, entity, ("currency", "language", "calling_code", "largest_city", "subregion"), 3)
        return self._page(f"visit/{entity.id}", title, lines, None, entity.id)

    def groups(self, entities: Sequence[Entity]) -> Iterator[Page]:
        """For each currency and language, a page about where it is used."""
        for relation in _GROUPED_BY:
            users: dict[str, list[Entity]] = defaultdict(list)
            for entity in entities:
                if entity.fact(relation):
                    users[entity.fact(relation)].append(entity)
            for value in sorted(users):
                rng = self._rng("group", relation, value)
                chosen = users[value] if len(users[value]) <= _LIST_LENGTH else rng.sample(users[value], _LIST_LENGTH)
                title = rng.choice(self._further["group"]["titles"]).format(value=value, noun=noun(relation))
                lines = [sentence(rng, relation, entity) for entity in chosen]
                yield self._page(f"{relation}/{slug(value)}", capitalised(title), lines)

    def lists(self, entities: Sequence[Entity]) -> Iterator[Page]:
        """For each region, tables of one relation."""
        regions: dict[str, list[Entity]] = defaultdict(list)
        for entity in entities:
            if entity.fact("subregion"):
                regions[entity.fact("subregion")].append(entity)
        for region in sorted(regions):
            for relation in _LISTED:
                rng = self._rng("list", region, relation)
                members = [entity for entity in regions[region] if entity.fact(relation)]
                title = rng.choice(self._further["list"]["titles"]).format(region=region, noun=noun(relation))
                for start in range(0, len(members), _LIST_LENGTH):
                    part = members[start : start + _LIST_LENGTH]
                    row = self._further["list"]["told"]
                    lines = [row.format(other=entity.name, value=entity.fact(relation)) + "." for entity in part]
                    yield self._page(f"list-{relation}/{slug(region)}-{start}", capitalised(title), lines)

    def _some(self, rng: random.Random, entity: Entity, relations: Sequence[str], count: int) -> list[str]:
        known = [relation for relation in relations if entity.fact(relation)]
        return [sentence(rng, relation, entity) for relation in rng.sample(known, min(count, len(known)))]

    def _rng(self, *parts: str) -> random.Random:
        return seeded(self._seed, *parts)

    def _page(
        self, page_id: str, title: str, lines: Sequence[str], picture: Drawing | None = None, subject: str = ""
    ) -> Page:
        url = f"https://{self._world}.example/{page_id}"
        text = "\n".join(line for line in lines if len(line) <= LONGEST_LINE)
        return Page(page_id, url, title, text, picture, subject)
