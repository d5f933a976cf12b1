"""Search tools that replay a record, and that make one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.tools.replay.record import Record, Recorder, keys_of
from mmsearch_env.tools.search_tool import Query, SearchResult, SearchTool

MissPolicy = Literal["error", "empty", "live"]
MISS_POLICIES: tuple[MissPolicy, ...] = ("error", "empty", "live")


class ReplaySearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that finds what a record holds.

    What it does not hold is a failed search (``error``), an empty result (``empty``), or asked of a live tool and
    written down (``live``).
    """

    name = "replay"

    def __init__(self, folder: Path, *, miss: MissPolicy = "error", live: SearchTool | None = None) -> None:
        """
        Args:
            folder: the record's.
            miss: what to do about a search that it does not hold.
            live: the tool asked then.

        Raises:
            DataError: the folder holds no record.
        """
        self._recorder = Recorder(folder) if live is not None else None
        if self._recorder is not None:
            (folder / "calls.jsonl").touch()
        self._record, self._miss, self._live = Record(folder), miss, live

    async def search(self, query: Query, *, top_k: int) -> SearchResult:
        """What the record holds. Raises ToolError where it holds nothing and the policy says so."""
        found = await asyncio.to_thread(self._found, query, top_k)
        if found is not None:
            return found
        if self._live is None or self._recorder is None:
            if self._miss == "empty":
                return SearchResult(())
            place = self._record.folder
            if (recorded := self._record.recorded_top_k(query)) is not None:
                wanted = f"expected at most the {recorded} hits that were recorded in {place}, got {top_k}"
                raise ToolUnavailable(f"{self.name}: {wanted}; ask for fewer or record it anew")
            raise ToolUnavailable(
                f"{self.name}: expected a recorded search, got one that is not in {place}; record it (miss: live)"
            )
        result = await self._live.search(query, top_k=top_k)
        call = await asyncio.to_thread(self._recorder.write, query, result, top_k=top_k)
        self._record.add(keys_of(query)[0], call)
        return result

    def _found(self, query: Query, top_k: int) -> SearchResult | None:
        found = self._record.find(query, top_k=top_k)
        if found is None and self._live is None and self._record.has_grown:
            self._record = Record(self._record.folder)
            found = self._record.find(query, top_k=top_k)
        return found

    async def aclose(self) -> None:
        """Close the live tool; may be called twice."""
        if self._live is not None:
            await self._live.aclose()
