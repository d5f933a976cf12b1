"""64 episodes at once against a slow and faulty service on loopback: 300 ms a call, one call in twenty fails.

Every episode searches with its picture, searches with words and answers. A call that failed has to be made again, so
the shortest time possible is the longest chain of calls that an episode needed; that is what the wall time is compared
with. No episode may be lost, and a search that failed may cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from measuring import report

from mmsearch_env.actions import Action, Answer, ImageSearch, TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.search_tool import SearchTool

PLAN: tuple[Action, ...] = (ImageSearch(), TextSearch("currency of {}"), Answer("x"))


class SlowService:
    """Speaks the search server's protocol, so that pictures can be searched with too."""

    def __init__(self, latency_s: float, fault_share: float) -> None:
        self._latency_s, self._fault_share = latency_s, fault_share
        self._random = random.Random(7)
        self.calls: Counter[str] = Counter()
        self.faults = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.calls[body["query"]["question_id"]] += 1
        await asyncio.sleep(self._latency_s)
        if self._random.random() < self._fault_share:
            self.faults += 1
            return web.json_response({"error": {"code": "provider_failed", "message": "try again"}}, status=503)
        hit = {"title": "Peru", "url": "https://peru.example/", "snippet": "The sol.", "score": 1.0, "thumbnail": None}
        return web.json_response({"hits": [hit]})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=20_000_000)
        app.router.add_post("/v1/{kind}", self.handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


async def played(episodes: int, latency_s: float, fault_share: float) -> dict[str, Any]:
    """All episodes at once."""
    service = SlowService(latency_s, fault_share)
    async with service.running() as url:
        spec = {"name": "server", "base_url": url, "limits": {"concurrency": episodes}}
        tools = {kind: build_tool(kind, spec) for kind in ("image_search", "text_search")}  # type: ignore[arg-type]
        envs = [MMSearchEnv(split="test", tools=tools) for _ in range(episodes)]
        for env, question in zip(envs, envs[0].questions.spread(episodes), strict=True):
            env.reset(options={"question": question})
        begin = time.perf_counter()
        infos = await asyncio.gather(*(_episode(env) for env in envs))
        seconds = time.perf_counter() - begin
        for tool in tools.values():
            await _closed(tool)
    searches = sum(not isinstance(action, Answer) for action in PLAN)
    longest = max(service.calls.values())
    return {
        "seconds": round(seconds, 3),
        "longest_chain": longest,
        "ratio": round(seconds / (longest * latency_s), 3),
        "ratio_without_faults": round(seconds / (searches * latency_s), 3),
        "lost_episodes": sum(info["stop_reason"] != "answered" for info in infos),
        "calls": service.calls.total(),
        "faults": service.faults,
        "retries": service.calls.total() - searches * episodes,
        "searches_that_failed_for_good": int(sum(info["n_tool_errors"] for info in infos)),
        "failed_searches_charged": int(sum(_searches(info) + info["n_tool_errors"] != 2 for info in infos)),
    }


async def _episode(env: MMSearchEnv) -> dict[str, Any]:
    info: dict[str, Any] = {}
    for action in PLAN:
        *_, info = await env.astep(action)
    return info


def _searches(info: dict[str, Any]) -> float:
    return float(info["n_image_search"] + info["n_text_search"])


async def _closed(tool: SearchTool) -> None:
    await tool.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.3)
    parser.add_argument("--fault-share", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="8 episodes, 20 ms, 1 round")
    given = parser.parse_args()
    episodes, latency_s, rounds = (8, 0.02, 1) if given.quick else (given.episodes, given.latency_s, given.rounds)
    found = [asyncio.run(played(episodes, latency_s, given.fault_share)) for _ in range(rounds)]
    middle = sorted(found, key=lambda one: one["ratio"])[len(found) // 2]
    settings = {"episodes": episodes, "latency_s": latency_s, "fault_share": given.fault_share, "rounds": rounds}
    report("episodes", settings, ["aiohttp"], median=middle, ratios=[one["ratio"] for one in found])


if __name__ == "__main__":
    main()
