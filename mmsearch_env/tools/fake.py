"""Tools without an engine: scripted ones for tests, and one that is switched off."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

from mmsearch_env.errors import ConfigError, ToolError, ToolTimeout, ToolUnavailable
from mmsearch_env.tools.search_tool import Hit, Query, SearchResult

Step = SearchResult | ToolError
"""What one search ends in."""

FAULTS: Mapping[str, type[ToolTimeout] | type[ToolUnavailable]] = {
    "timeout": ToolTimeout,
    "unavailable": ToolUnavailable,
}
"""Faults that a script can name."""

_HIT_KEYS = frozenset({"title", "url", "snippet", "score"})


class FakeSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that follows a script and records its queries.

    The script is repeated when it ends.
    """

    name = "fake search"

    def __init__(self, script: Sequence[Step] = (), *, delay_s: float = 0.0) -> None:
        """
        Args:
            script: what each search in turn ends in; nothing is found when it is empty.
            delay_s: how long each search takes, in seconds.
        """
        self._script = tuple(script) or (SearchResult(()),)
        self._delay_s = delay_s
        self.queries: list[Query] = []
        """Every query so far, in order."""

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """From JSON-able settings.

        ``{"script": [[{"title": ..., "url": ..., "snippet": ...}], "timeout"], "delay_s": 0.1}``: each step is a list
        of hits or the name of a fault.

        Raises:
            ConfigError: unknown key or fault.
        """
        if unknown := settings.keys() - {"script", "delay_s"}:
            raise ConfigError(f"tool 'fake': expected the settings script and delay_s, got {sorted(unknown)} besides")
        script, delay_s = settings.get("script", ()), settings.get("delay_s", 0.0)
        if isinstance(script, str) or not isinstance(script, Sequence):
            raise ConfigError(f"tool 'fake': expected a list of steps as script, got {script!r}")
        if isinstance(delay_s, bool) or not isinstance(delay_s, (int, float)) or not delay_s >= 0:
            raise ConfigError(f"tool 'fake': expected delay_s as seconds of at least 0, got {delay_s!r}")
        return cls([_step(item) for item in script], delay_s=float(delay_s))

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """The next step of the script. Raises ToolError if the script says so."""
        step = self._script[len(self.queries) % len(self._script)]
        self.queries.append(query)
        if self._delay_s > 0.0:
            await asyncio.sleep(self._delay_s)
        if isinstance(step, ToolError):
            raise step
        return SearchResult(step.hits[:top_k])

    async def aclose(self) -> None:
        """Nothing to free."""


class NoSearch:
    """A tool that is switched off: every search fails with ``"unavailable"``."""

    name = "no search"

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """Raises ToolUnavailable."""
        raise ToolUnavailable("expected a search tool, got the tool 'none'; name another one to search")

    async def aclose(self) -> None:
        """Nothing to free."""


def _step(item: str | Sequence[Mapping[str, Any]]) -> Step:
    if isinstance(item, str) and item in FAULTS:
        return FAULTS[item]("the script says so")
    if isinstance(item, str) or not isinstance(item, Sequence):
        raise ConfigError(f"tool 'fake': expected a list of hits or a fault of {', '.join(FAULTS)}, got {item!r}")
    return SearchResult(tuple(_hit(hit) for hit in item))


def _hit(fields: object) -> Hit:
    if not isinstance(fields, Mapping) or not {"title", "url"} <= fields.keys() <= _HIT_KEYS:
        raise ConfigError(f"tool 'fake': expected hits with title, url and perhaps snippet, score, got {fields!r}")
    return Hit(**fields)
