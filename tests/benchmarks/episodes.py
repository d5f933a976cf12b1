"""64 episodes at once against a slow and faulty service on loopback: 300 ms a call, one call in twenty fails.

Every episode searches with its picture, searches with words and answers. No episode may be lost. The shortest time
possible is that of the searches one episode makes one after the other; a call that failed has to be made again, so
beside it stands the longest chain of calls that an episode needed. The service is a process of its own, whose work is
not measured, and connections to it are open from episodes before, as they are while one trains. The same is played
without these episodes, without faults, with the usual limit of calls at once, and without any retry, so that searches
do fail: those may cost nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web
from measuring import note, report

from mmsearch_env.actions import Action, ActionKind, Answer, ImageSearch, TextSearch
from mmsearch_env.env import MMSearchEnv
from mmsearch_env.questions import Question
from mmsearch_env.tools import build_tool

SEARCHES: tuple[Action, ...] = (ImageSearch(), TextSearch("currency"))


class SlowService:
    """Speaks the search server's protocol, so that pictures can be searched with too."""

    def __init__(self, latency_s: float, fault_share: float, seed: int) -> None:
        self._latency_s, self._fault_share = latency_s, fault_share
        self._random = random.Random(seed)
        self._calls: Counter[str] = Counter()
        self._faults = 0

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._calls[body["query"]["question_id"]] += 1
        await asyncio.sleep(self._latency_s)
        if self._random.random() < self._fault_share:
            self._faults += 1
            return web.json_response({"error": {"code": "provider_failed", "message": "try again"}}, status=503)
        hit = {"title": "Peru", "url": "https://peru.example/", "snippet": "The sol.", "score": 1.0, "thumbnail": None}
        return web.json_response({"hits": [hit]})

    async def counts(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": self._calls, "faults": self._faults})

    async def serve(self) -> None:
        """On any port, which is printed, until the input ends."""
        app = web.Application(client_max_size=20_000_000)
        app.router.add_post("/v1/{kind}", self.handle)
        app.router.add_get("/counts", self.counts)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


@asynccontextmanager
async def service(latency_s: float, fault_share: float, seed: int) -> AsyncIterator[str]:
    """The address of a service in a process of its own."""
    command = [sys.executable, __file__, "--service", str(latency_s), str(fault_share), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        port = await asyncio.to_thread(process.stdout.readline)
        try:
            yield f"http://127.0.0.1:{int(port)}"
        finally:
            process.stdin.close()


@dataclass(frozen=True, slots=True)
class Way:
    """How episodes are played.

    Attributes:
        fault_share: calls that fail.
        limits: of the client.
        before: rounds of episodes that are played before those that count.
    """

    fault_share: float
    limits: Mapping[str, Any]
    before: int = 1


async def played(episodes: int, latency_s: float, seed: int, way: Way) -> dict[str, Any]:
    """All episodes at once."""
    async with service(latency_s, way.fault_share, seed) as url:
        spec = {"name": "server", "base_url": url, "limits": way.limits}
        tools = {str(kind): build_tool(kind, spec) for kind in (ActionKind.IMAGE_SEARCH, ActionKind.TEXT_SEARCH)}
        envs = [MMSearchEnv(split="test", tools=tools) for _ in range(episodes)]
        questions = envs[0].questions.spread(episodes)
        for _ in range(way.before):
            await _round(envs, questions)
        earlier = await _counts(url)
        found = await _round(envs, questions)
        counts = await _counts(url)
        for tool in tools.values():
            await tool.aclose()
    calls = Counter(counts["calls"]) - Counter(earlier["calls"])
    faults = counts["faults"] - earlier["faults"]
    return {
        **_times(found["seconds"], calls, latency_s),
        "cpu_s": round(found["cpu_s"], 3),
        **_outcomes(found["infos"], calls.total(), faults),
    }


async def _round(envs: Sequence[MMSearchEnv], questions: Sequence[Question]) -> dict[str, Any]:
    """One episode in each environment: infos, seconds, seconds of work."""
    for env, question in zip(envs, questions, strict=True):
        env.reset(options={"question": question})
    begin, cpu_begin = time.perf_counter(), time.process_time()
    infos = await asyncio.gather(*(_episode(*pair) for pair in zip(envs, questions, strict=True)))
    return {"infos": infos, "seconds": time.perf_counter() - begin, "cpu_s": time.process_time() - cpu_begin}


async def _counts(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/counts") as reply:
        counts: dict[str, Any] = await reply.json()
        return counts


async def _episode(env: MMSearchEnv, question: Question) -> dict[str, Any]:
    """It answers rightly, so that a price on its searches shows."""
    for search in SEARCHES:
        await env.astep(search)
    *_, info = await env.astep(Answer(question.answers[0]))
    return info


def _times(seconds: float, calls: Mapping[str, int], latency_s: float) -> dict[str, float]:
    shortest, longest = len(SEARCHES) * latency_s, max(calls.values()) * latency_s
    return {
        "seconds": round(seconds, 3),
        "shortest_s": round(shortest, 3),
        "ratio": round(seconds / shortest, 3),
        "longest_chain_s": round(longest, 3),
        "ratio_to_longest_chain": round(seconds / longest, 3),
    }


def _outcomes(infos: Sequence[Mapping[str, Any]], calls: int, faults: int) -> dict[str, Any]:
    penalties: dict[int, set[float]] = {}
    for info in infos:
        penalties.setdefault(_searches(info), set()).add(round(info["reward_terms"]["search_penalty"], 6))
    return {
        "lost_episodes": sum(info["stop_reason"] != "answered" for info in infos),
        "calls": calls,
        "faults": faults,
        "retries": calls - len(SEARCHES) * len(infos),
        "failed_searches": sum(int(info["n_tool_errors"]) for info in infos),
        # Every search either delivered a result or failed; a failed one is charged if it is counted as both.
        "failed_searches_charged": sum(int(_searches(info) + info["n_tool_errors"]) - len(SEARCHES) for info in infos),
        "penalties_by_delivered_searches": {str(number): sorted(found) for number, found in sorted(penalties.items())},
    }


def _searches(info: Mapping[str, Any]) -> int:
    return int(info["n_image_search"] + info["n_text_search"])


def measured(episodes: int, latency_s: float, fault_share: float, rounds: int) -> dict[str, Any]:
    """Every way to play, in turns; of each the round in the middle."""
    enough = {"concurrency": episodes}
    ways = {
        "faults": Way(fault_share, enough),
        "faults, nothing played before": Way(fault_share, enough, before=0),
        "no faults": Way(0.0, enough),
        "faults, usual concurrency": Way(fault_share, {}),
        "many faults, no retries": Way(max(fault_share, 0.2), {**enough, "max_tries": 1}),
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            note(f"round {number + 1}: {name}")
            found[name].append(asyncio.run(played(episodes, latency_s, number, way)))
    return {
        name: {
            **sorted(each, key=lambda one: one["seconds"])[len(each) // 2],
            "median_ratio": statistics.median(one["ratio"] for one in each),
            "median_ratio_to_longest_chain": statistics.median(one["ratio_to_longest_chain"] for one in each),
            "lost_in_all_rounds": sum(one["lost_episodes"] for one in each),
            "charged_in_all_rounds": sum(one["failed_searches_charged"] for one in each),
        }
        for name, each in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--latency-s", type=float, default=0.3)
    parser.add_argument("--fault-share", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="8 episodes, 20 ms, 1 round")
    parser.add_argument("--service", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.service:
        latency_s, share, seed = given.service
        asyncio.run(SlowService(float(latency_s), float(share), int(seed)).serve())
        return
    episodes, latency_s, rounds = (8, 0.02, 1) if given.quick else (given.episodes, given.latency_s, given.rounds)
    settings = {"episodes": episodes, "latency_s": latency_s, "fault_share": given.fault_share, "rounds": rounds}
    found = measured(episodes, latency_s, given.fault_share, rounds)
    report("episodes", settings, ["aiohttp", "tenacity"], ways=found)


if __name__ == "__main__":
    main()
