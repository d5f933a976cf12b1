"""A kept answer of 1 KB against plain diskcache, which unpickles what it finds; and one flight for many who ask.

Both caches hold the same keys and bodies in folders of their own and are asked in turn: ours once from disk, with
nothing in memory, and once from the hot set.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import diskcache
from measuring import figures, in_turns, report

from mmsearch_env.actions import ActionKind
from mmsearch_env.cache.tool_cache import ToolCache
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.search_tool import TextQuery

BODY_BYTES = 1024
HOUR_S = 3600.0


def hits(answers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Reading and writing."""
    bodies = {f"{number:064x}": os.urandom(BODY_BYTES // 2).hex().encode() for number in range(answers)}
    cold, hot = ToolCache(folder / "cold", hot_bytes=0), ToolCache(folder / "hot")
    plain = diskcache.Cache(folder / "plain")
    request = {"q": "capital of Peru"}

    def put(cache: ToolCache, key: str, body: bytes) -> None:
        cache.put(key, body, kind="rows", request=request, expire_s=HOUR_S)

    writing = in_turns(
        {
            "ours": [lambda k=k, b=b: put(cold, k, b) for k, b in bodies.items()],
            "diskcache": [lambda k=k, b=b: plain.set(k, b, expire=HOUR_S) for k, b in bodies.items()],
        },
        1,
    )
    for key, body in bodies.items():
        put(hot, key, body)
    assert all(cold.get(key) == hot.get(key) == plain.get(key) == body for key, body in bodies.items())
    reading = in_turns(
        {
            "disk": [lambda k=k: cold.get(k) for k in bodies],
            "diskcache": [lambda k=k: plain.get(k) for k in bodies],
            "hot": [lambda k=k: hot.get(k) for k in bodies],
        },
        rounds,
    )
    cold.close(), hot.close(), plain.close()
    median = {name: figures(taken)["p50_ms"] for name, taken in reading.items()}
    return {
        "reading": {name: figures(taken) for name, taken in reading.items()},
        "writing": {name: figures(taken) for name, taken in writing.items()},
        "ratio_from_disk": round(median["disk"] / median["diskcache"], 3),
        "ratio_hot": round(median["hot"] / median["diskcache"], 3),
    }


async def one_flight(asking: int) -> int:
    """Calls that reach a service when so many ask it the same at once."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "mmsearch_env"))
    from fake_services import SERVICES

    async with SERVICES["searxng"]().running() as service:
        tool = build_tool(ActionKind.TEXT_SEARCH, {"name": "searxng", "base_url": service.url})
        found = await asyncio.gather(*(tool.search(TextQuery("currency of Peru"), top_k=2) for _ in range(asking)))
        await tool.aclose()
        assert all(result.hits for result in found)
        return len(service.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="50 answers, 1 round")
    given = parser.parse_args()
    answers, rounds = (50, 1) if given.quick else (given.answers, given.rounds)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        found = hits(answers, rounds, Path(folder))
    calls = asyncio.run(one_flight(64))
    settings = {"answers": answers, "rounds": rounds, "body_bytes": BODY_BYTES}
    report("cache", settings, ["diskcache"], **found, calls_for_64_who_ask_the_same=calls)


if __name__ == "__main__":
    main()
