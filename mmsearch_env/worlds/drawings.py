"""Flags as drawings: a specification, drawn when needed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from mmsearch_env.images import Image
from mmsearch_env.worlds.atlas.flags import FlagSpec, draw_flag

NATURAL_HEIGHT_PX = 120
"""Height of a flag that is drawn without a stated size."""
_KEPT_DRAWINGS = 1024


@dataclass(frozen=True, slots=True)
class FlagDrawing:
    """A flag as a :class:`~mmsearch_env.worlds.entities.Drawing`."""

    spec: FlagSpec

    @property
    def key(self) -> str:
        """SHA-256 of what is painted, in hexadecimal; rounded, so that platforms agree."""
        spec = self.spec
        parts = [f"{spec.width / spec.height:.4f}"]
        for patch in spec.patches:
            corners = " ".join(f"{x / spec.height:.4f},{y / spec.height:.4f}" for x, y in patch.outline)
            parts.append(f"{patch.color} {corners}")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def draw(self, height_px: int) -> Image:
        """The flag, ``height_px`` pixels high. Drawings that were made lately are kept."""
        return _drawn(self.spec, height_px)

    def load(self) -> Image:
        """The flag at its natural height."""
        return self.draw(NATURAL_HEIGHT_PX)


@lru_cache(maxsize=_KEPT_DRAWINGS)
def _drawn(spec: FlagSpec, height_px: int) -> Image:
    return draw_flag(spec, height_px)
