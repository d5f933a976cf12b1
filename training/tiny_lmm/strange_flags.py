"""Known flags in other colours: strange ones that only an attentive look tells from those that are known.

Invented flags alone teach to tell real flags from invented ones, and not what is known from what is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmsearch_env.worlds import Entity
from mmsearch_env.worlds.atlas.flags import FlagSpec
from mmsearch_env.worlds.drawings import FlagDrawing
from mmsearch_env.worlds.invented_flags import COLOURS
from mmsearch_env.worlds.synthetic import looks_real

_TRIES = 60
FIRST = "/recoloured-0"
"""How the id of an entity's first recoloured flag ends."""


def recoloured(entities: Sequence[Entity], rng: random.Random, *, each: int) -> list[Entity]:
    """Up to ``each`` recoloured flags of every entity, none like a real one, under ids of their own."""
    found = []
    for entity in entities:
        drawing = entity.drawing
        if not isinstance(drawing, FlagDrawing):
            continue
        for number, spec in zip(range(each), _other_colours(drawing.spec, rng), strict=False):
            found.append(replace(entity, id=entity.id + FIRST[:-1] + str(number), drawing=FlagDrawing(spec)))
    return found


def _other_colours(spec: FlagSpec, rng: random.Random) -> Iterator[FlagSpec]:
    """The flag with its colours in other places, or with one or two new ones; each time differently."""
    old = sorted({patch.color for patch in spec.patches})
    seen = {tuple(old)}
    for _ in range(_TRIES):
        new = rng.sample(old, len(old))
        if rng.random() < 0.5:
            new = list(old)
            for place in rng.sample(range(len(old)), min(len(old), rng.randint(1, 2))):
                new[place] = rng.choice(COLOURS)
        if tuple(new) in seen or len(set(new)) < len(old):
            continue
        seen.add(tuple(new))
        paint = dict(zip(old, new, strict=True))
        changed = replace(spec, patches=tuple(patch._replace(color=paint[patch.color]) for patch in spec.patches))
        if not looks_real(changed):
            yield changed
