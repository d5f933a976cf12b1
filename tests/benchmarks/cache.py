"""A kept answer of 1 KB against plain diskcache, which unpickles what it finds; and one flight for many who ask.

All caches hold the same keys and bodies in folders of their own and are asked in turn: ours once from disk, with
nothing in memory, and once from the hot set. Writing is of new keys, and of keys that are there. Keys that are in none
are looked for as well: every new question begins so.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diskcache
from measuring import Work, figures, in_turns, note, ratio, report

from mmsearch_env.actions import ActionKind
from mmsearch_env.cache.keys import canonical_key
from mmsearch_env.cache.tool_cache import ToolCache
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.search_tool import TextQuery

BODY_BYTES, ASKING = 1024, 64
HOUR_S = 3600.0


def measured(answers: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Reading and writing."""
    caches = {"ours": ToolCache(folder / "cold", hot_bytes=0), "hot": ToolCache(folder / "hot")}
    plain = diskcache.Cache(folder / "plain")

    def put(name: str, key: str, body: bytes) -> None:
        caches[name].put(key, body, kind="rows", request={"q": "capital of Peru"}, expire_s=HOUR_S)

    def writing(bodies: Mapping[str, bytes]) -> dict[str, list[Work]]:
        return {
            "ours": [lambda k=k, b=b: put("ours", k, b) for k, b in bodies.items()],
            "diskcache": [lambda k=k, b=b: plain.set(k, b, expire=HOUR_S) for k, b in bodies.items()],
        }

    note("writing")
    bodies = {_key(number): os.urandom(BODY_BYTES // 2).hex().encode() for number in range(answers)}
    inserted = in_turns(writing(bodies), 1, warm_up=False)
    replaced = in_turns(writing(bodies), rounds)
    for key, body in bodies.items():
        put("hot", key, body)
    ours, hot = caches["ours"], caches["hot"]
    assert all(ours.get(key) == hot.get(key) == plain.get(key) == body for key, body in bodies.items())
    note("reading")
    reading = in_turns(
        {
            "from disk": [lambda k=k: ours.get(k) for k in bodies],
            "hot": [lambda k=k: hot.get(k) for k in bodies],
            "diskcache": [lambda k=k: plain.get(k) for k in bodies],
        },  # type: ignore[arg-type]
        rounds,
    )
    strange = [_key(answers + number) for number in range(answers)]
    missing = in_turns(
        {
            "ours": [lambda k=k: ours.get(k) for k in strange],
            "diskcache": [lambda k=k: plain.get(k) for k in strange],
        },  # type: ignore[arg-type]
        rounds,
    )
    ours.close(), hot.close(), plain.close()
    parts = {"reading": reading, "missing": missing, "writing_new": inserted, "writing_again": replaced}
    return {
        **{name: {who: figures(seconds) for who, seconds in taken.items()} for name, taken in parts.items()},
        "ratio": {
            name: {who: ratio(taken[who], taken["diskcache"]) for who in taken if who != "diskcache"}
            for name, taken in parts.items()
        },
    }


def _key(number: int) -> str:
    return canonical_key("rows", number)


async def calls(asking: int, cache: Path | None) -> int:
    """Calls that reach a service when so many ask it the same at once."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "mmsearch_env"))
    from fake_services import SERVICES

    async with SERVICES["searxng"]().running() as service:
        settings = {"name": "searxng", "base_url": service.url, "cache_dir": None if cache is None else str(cache)}
        tool = build_tool(ActionKind.TEXT_SEARCH, settings)
        found = await asyncio.gather(*(tool.search(TextQuery("currency of Peru"), top_k=2) for _ in range(asking)))
        await tool.aclose()
        assert found[0].hits and all(result == found[0] for result in found)
        return len(service.seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="50 answers, 1 round")
    given = parser.parse_args()
    answers, rounds = (50, 1) if given.quick else (given.answers, given.rounds)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        found = measured(answers, rounds, Path(folder))
        flights = {
            "asking": ASKING,
            "calls_with_cache": asyncio.run(calls(ASKING, Path(folder) / "answers")),
            "calls_without": asyncio.run(calls(ASKING, None)),
        }
    settings = {"answers": answers, "rounds": rounds, "body_bytes": BODY_BYTES}
    report("cache", settings, ["diskcache", "aiohttp"], **found, one_flight=flights)


if __name__ == "__main__":
    main()
