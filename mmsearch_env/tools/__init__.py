"""Search tools, by name.

A tool is named in JSON: ``"local"``, or a mapping with that name and the tool's settings, e.g.
``{"name": "local", "cache_dir": "/data/cache"}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmsearch_env.actions import ActionKind
from mmsearch_env.errors import ConfigError
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult, SearchTool, TextQuery
from mmsearch_env.worlds.world import World

__all__ = ["Hit", "ImageQuery", "Query", "SearchResult", "SearchTool", "TextQuery", "build_tool", "tool_names"]

_SEARCHES = (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH, ActionKind.VISIT_PAGE)


def build_tool(kind: ActionKind, spec: str | Mapping[str, Any], world: World | None = None) -> SearchTool:
    """The tool that a spec names.

    Args:
        kind: what it is to search by.
        spec: a name of :func:`tool_names`, or ``{"name": ..., **settings}``.
        world: what the embedded engine searches.

    Raises:
        ConfigError: unknown name or setting, or the embedded engine without a world.
    """
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = str(settings.pop("name", ""))
    if kind not in _SEARCHES:  # before ActionKind(kind), which would accept "answer"
        raise ConfigError(f"tool: expected the kind {' or '.join(_SEARCHES)}, got {kind!r}")
    if name not in _BUILDERS:
        raise ConfigError(f"tool for {kind}: expected a name of {', '.join(tool_names())}, got {name!r}")
    _check_settings(name, settings)
    return _BUILDERS[name](ActionKind(kind), world, **settings)


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings that a tool does not know or lacks, where its signature tells them."""
    parameters = inspect.signature(_BUILDERS[name]).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return  # it looks at them itself
    known = {one.name: one.default is one.empty for one in parameters if one.kind is one.KEYWORD_ONLY}
    if unknown := sorted(settings.keys() - known):
        wanted = f"one of {', '.join(known)}" if known else "no settings"
        raise ConfigError(f"tool {name!r}: expected {wanted}, got {unknown[0]!r}")
    if missing := [setting for setting, is_needed in known.items() if is_needed and setting not in settings]:
        raise ConfigError(
            f"tool {name!r}: expected the setting {missing[0]!r}, got none; name it: "
            f'{{"name": "{name}", "{missing[0]}": ...}}'
        )


def tool_names() -> tuple[str, ...]:
    """Every name that :func:`build_tool` knows."""
    return tuple(_BUILDERS)


def _local(kind: ActionKind, world: World | None, *, cache_dir: str | None = None) -> SearchTool:
    """The embedded engine over a world's pages."""
    if world is None:
        raise ConfigError(f"tool 'local' for {kind}: expected a world to search, got none; name one or another tool")
    folder = None if cache_dir is None else Path(cache_dir)
    if kind is ActionKind.VISIT_PAGE:
        from mmsearch_env.tools.local.page_reader import LocalPages

        return LocalPages(world.pages)
    if kind is ActionKind.IMAGE_SEARCH:
        from mmsearch_env.tools.local.image_index import LocalImageSearch

        return LocalImageSearch(world.pages, folder)
    from mmsearch_env.tools.local.text_index import LocalTextSearch

    return LocalTextSearch(world.pages, folder)


def _corpus(
    kind: ActionKind, world: World | None, *, path: str, snippet_characters: int = 300, ranking: str = "picture"
) -> SearchTool:
    """A corpus of one's own, built by ``python -m mmsearch_env index``."""
    from mmsearch_env.tools.corpus.corpus import RANKINGS, Corpus, CorpusImageSearch, CorpusPages, CorpusTextSearch

    if not isinstance(snippet_characters, int) or snippet_characters < 1:
        raise ConfigError(f"tool 'corpus', snippet_characters: expected 1 or more, got {snippet_characters!r}")
    if ranking not in RANKINGS:
        raise ConfigError(f"tool 'corpus', ranking: expected one of {', '.join(RANKINGS)}, got {ranking!r}")
    corpus = Corpus(Path(path).expanduser())
    if kind is ActionKind.VISIT_PAGE:
        return CorpusPages(corpus)
    if kind is ActionKind.IMAGE_SEARCH:
        return CorpusImageSearch(corpus, ranking, snippet_characters)
    return CorpusTextSearch(corpus, snippet_characters)


def _fake(kind: ActionKind, world: World | None, **settings: Any) -> SearchTool:
    """Scripted results and faults."""
    from mmsearch_env.tools.fake import FakeSearch

    return FakeSearch.from_json(settings)


def _none(kind: ActionKind, world: World | None) -> SearchTool:
    """A tool that is switched off."""
    from mmsearch_env.tools.fake import NoSearch

    return NoSearch()


def _replay(
    kind: ActionKind,
    world: World | None,
    *,
    path: str,
    miss: str = "error",
    live: str | Mapping[str, Any] | None = None,
) -> SearchTool:
    """A record of searches; one that it lacks may be asked of a live tool and written down."""
    from mmsearch_env.tools.replay.replay import MISS_POLICIES, ReplaySearch

    policy = next((known for known in MISS_POLICIES if known == miss), None)
    if policy is None:
        raise ConfigError(f"tool 'replay', miss: expected one of {', '.join(MISS_POLICIES)}, got {miss!r}")
    if (policy == "live") != (live is not None):
        raise ConfigError("tool 'replay': expected a tool as live where miss is live, and nowhere else")
    asked = None if live is None else build_tool(kind, live, world)
    return ReplaySearch(Path(path).expanduser(), miss=policy, live=asked)


def _reader(kind: ActionKind, world: World | None, **settings: Any) -> SearchTool:
    """A reader of the web's pages."""
    from mmsearch_env.tools.web.build import build_page_tool

    if kind is not ActionKind.VISIT_PAGE:
        raise ConfigError(f"tool 'reader': expected {ActionKind.VISIT_PAGE}, got {kind}; name a tool that searches")
    return build_page_tool(settings)


def _server(kind: ActionKind, world: World | None, **settings: Any) -> SearchTool:
    """A search server, which has tools of its own."""
    from mmsearch_env.tools.web.build import build_server_tool

    return build_server_tool(kind, settings)


def _web(name: str) -> Callable[..., SearchTool]:
    """A service on the web."""

    def build(kind: ActionKind, world: World | None, **settings: Any) -> SearchTool:
        from mmsearch_env.tools.web.build import build_web_tool

        return build_web_tool(kind, name, settings)

    return build


WEB_TOOLS = ("serpapi", "serper", "brave", "tavily", "searxng", "search_r1")
"""Names of services on the web; a test compares them with those :mod:`mmsearch_env.tools.web.build` knows."""

_BUILDERS: Mapping[str, Callable[..., SearchTool]] = {
    "local": _local,
    "corpus": _corpus,
    "fake": _fake,
    "none": _none,
    "replay": _replay,
    "reader": _reader,
    "server": _server,
    **{name: _web(name) for name in WEB_TOOLS},
}
