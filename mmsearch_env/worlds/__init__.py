"""Embedded worlds: pages to search and questions to ask, available offline.

``atlas`` holds real countries with their flags and facts; ``synthetic`` holds any number of invented ones.
"""

from __future__ import annotations

from mmsearch_env.errors import ConfigError
from mmsearch_env.worlds.entities import Drawing, Entity
from mmsearch_env.worlds.world import Page, World

__all__ = ["Drawing", "Entity", "Page", "World", "load_world"]


def load_world(spec: str) -> World:
    """The world of this spec, e.g. ``"atlas"`` or ``"synthetic:seed=3,entities=200"``; one object per process.

    Raises:
        ConfigError: unknown world or option.
    """
    name, _, options = spec.partition(":")
    settings: dict[str, str] = {}
    for item in filter(None, options.split(",")):
        key, equals, value = item.partition("=")
        if not equals or key.strip() in settings:
            raise ConfigError(f"world {spec!r}: expected options like key=value, each once, got {item!r}")
        settings[key.strip()] = value.strip()
    if name.strip() == "atlas":
        from mmsearch_env.worlds.atlas.world import atlas_world

        if settings:
            raise ConfigError(f"world 'atlas': expected no options, got {sorted(settings)}; write 'atlas'")
        return atlas_world()
    if name.strip() == "synthetic":
        from mmsearch_env.worlds.synthetic import synthetic_world

        return synthetic_world(settings)
    raise ConfigError(f"world: expected 'atlas' or 'synthetic[:seed=0,entities=200]', got {spec!r}")
