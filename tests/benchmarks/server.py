"""The search server against a server of Search-R1's shape: FastAPI, a synchronous handler, bare tantivy behind it.

Both are processes on loopback over the same pages, and answer the same queries in turns. The load comes from this
process over raw sockets with requests written beforehand, so that it costs little beside the server. The server is
asked the same few questions again and again (as groups of rollouts do) and questions that are all different, one at a
time and in batches; and a second server of ours answers a search of the web from its cache, the service being gone.
Beside searches a second stands the processor time that a search costs the server: on few cores, the load takes its
share of the former.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from measuring import figures, memory_mb, note, report
from text_search import TOP_K, bare, built, written

from mmsearch_env.server.app import ServerSettings

BATCH, FEW = 16, 8
_LONGEST_S = 300.0
RATIOS = ("queries_per_s", "server_cpu_ms", "p50_ms", "p99_ms")
PEER = Path(__file__).with_name("search_r1_peer.py")


class Connection:
    """One kept-alive connection that sends requests written beforehand and reads replies by their length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self, request: bytes) -> bytes:
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert head.startswith(b"HTTP/1.1 200") and found, head
        return await self._reader.readexactly(int(found[1]))

    def close(self) -> None:
        self._writer.close()


async def loaded(port: int, requests: Sequence[bytes], concurrency: int) -> tuple[float, list[float]]:
    """Send all requests over so many connections. Returns seconds for all, and for each."""
    waiting = iter(requests)
    taken: list[float] = []

    async def client() -> None:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        for request in waiting:
            begin = time.perf_counter()
            await connection.ask(request)
            taken.append(time.perf_counter() - begin)
        connection.close()

    begin = time.perf_counter()
    async with asyncio.timeout(_LONGEST_S):
        await asyncio.gather(*(client() for _ in range(concurrency)))
    return time.perf_counter() - begin, taken


def request_of(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + data


def single(text: str) -> bytes:
    return request_of("/v1/text_search", {"query": {"text": text}, "top_k": TOP_K})


def batch(texts: Sequence[str]) -> bytes:
    return request_of("/v1/text_searches", {"queries": [{"text": text} for text in texts], "top_k": TOP_K})


def retrieve(texts: Sequence[str]) -> bytes:
    return request_of("/retrieve", {"queries": list(texts), "topk": TOP_K, "return_scores": True})


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A process that serves, and what it used."""

    process: subprocess.Popen[bytes]
    port: int

    @classmethod
    def started(cls, command: Sequence[str], port: int) -> Server:
        """Wait until it answers."""
        server = cls(subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL), port)
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline and server.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return server
            time.sleep(0.1)
        server.stop()
        raise SystemExit("a server did not start")

    @property
    def cpu_s(self) -> float:
        """Of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@dataclass(frozen=True)
class Load:
    """Requests for one server."""

    server: str
    requests: Sequence[bytes]
    queries: int
    """In all requests together."""
    connections: int


def ours(text_tool: Mapping[str, Any]) -> Server:
    port = free_port()
    command = ["-m", "mmsearch_env", "serve", "--port", str(port), "--text", json.dumps(text_tool)]
    return Server.started([*command, "--image", "none", "--pages", "none"], port)


def kept(few: Sequence[str], folder: Path) -> Server:
    """Ours over the web, with the answers to a few queries in its cache and no service behind it any more."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "mmsearch_env"))
    from fake_services import SERVICES

    async def fill() -> Server:
        async with SERVICES["searxng"]().running() as service:
            settings = {"name": "searxng", "base_url": service.url, "cache_dir": str(folder)}
            server = await asyncio.to_thread(ours, settings)
            await loaded(server.port, [single(text) for text in few], 1)
            return server

    return asyncio.run(fill())


def has_peer() -> bool:
    return all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn"))


def loads_of(queries: Sequence[str], count: int, concurrency: int) -> dict[str, Load]:
    """What every server is asked; batches over so few connections that ours, as it is set up usually, lets them in."""
    joint = max(1, min(concurrency, ServerSettings().max_searches // BATCH))
    few, many = [queries[n % FEW] for n in range(count)], [queries[n % len(queries)] for n in range(count)]
    batches = [many[n : n + BATCH] for n in range(0, count, BATCH)]
    found = {
        "ours, same few": Load("ours", [single(text) for text in few], count, concurrency),
        "ours, all different": Load("ours", [single(text) for text in many], count, concurrency),
        "ours, batches": Load("ours", [batch(texts) for texts in batches], count, joint),
        "ours, /retrieve": Load("ours", [retrieve([text]) for text in many], count, concurrency),
        "ours, /retrieve batches": Load("ours", [retrieve(texts) for texts in batches], count, joint),
        "ours, kept": Load("kept", [single(text) for text in few], count, concurrency),
    }
    if has_peer():
        found["peer"] = Load("peer", [retrieve([text]) for text in many], count, concurrency)
        found["peer, batches"] = Load("peer", [retrieve(texts) for texts in batches], count, joint)
    return found


def measured(documents: int, requests: int, concurrency: int, rounds: int, folder: Path) -> dict[str, Any]:
    """All servers, in turns."""
    table, queries = written(documents, folder, requests)
    note("building")
    built(table, folder / "corpus")
    bare(table, folder / "bare")
    servers: dict[str, Server] = {}
    try:
        servers["ours"] = ours({"name": "corpus", "path": str(folder / "corpus")})
        servers["kept"] = kept(queries[:FEW], folder / "answers")
        if has_peer():
            port = free_port()
            servers["peer"] = Server.started([str(PEER), str(folder / "bare"), str(port)], port)
        found = in_rounds(loads_of(queries, requests, concurrency), servers, rounds)
        memory = {name: memory_mb(server.process.pid) for name, server in servers.items()}
        different = len(set(queries))
        return {
            "different_queries": different,
            "loads": found,
            **against_peer(found, servers, queries),
            "memory": memory,
        }
    finally:
        for server in servers.values():
            server.stop()


def in_rounds(loads: Mapping[str, Load], servers: Mapping[str, Server], rounds: int) -> dict[str, dict[str, float]]:
    """Each load once a round, after a round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in loads}
    cpu_ms: dict[str, list[float]] = {name: [] for name in loads}
    taken: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(rounds + 1):
        for name, load in loads.items() if number % 2 else reversed(loads.items()):
            note(f"round {number}: {name}")
            server = servers[load.server]
            before = server.cpu_s
            seconds, each = asyncio.run(loaded(server.port, load.requests, load.connections))
            if number:
                rates[name].append(load.queries / seconds)
                cpu_ms[name].append((server.cpu_s - before) / load.queries * 1e3)
                taken[name] += each
    return {
        name: {
            "connections": load.connections,
            "queries_per_s": round(median(rates[name])),
            "server_cpu_ms": round(median(cpu_ms[name]), 3),
            **figures(taken[name]),
        }
        for name, load in loads.items()
    }


def against_peer(
    found: Mapping[str, Mapping[str, float]], servers: Mapping[str, Server], queries: Sequence[str]
) -> dict[str, Any]:
    """Ours over the peer's, and how far both find the same."""
    if "peer" not in servers:
        missing = "fastapi and uvicorn are not installed: no peer was measured"
        note(missing)
        return {"peer": missing}
    pairs = {"single": ("ours, /retrieve", "peer"), "batches": ("ours, /retrieve batches", "peer, batches")}
    return {
        "ratio_to_peer": {
            pair: {key: round(found[mine][key] / found[theirs][key], 3) for key in RATIOS if found[theirs][key]}
            for pair, (mine, theirs) in pairs.items()
        },
        "common_hits": asyncio.run(_common_hits(servers["ours"].port, servers["peer"].port, queries[:BATCH])),
    }


async def _common_hits(mine: int, theirs: int, queries: Sequence[str]) -> float:
    """Share of the peer's documents that our server finds too."""
    found: list[list[set[str]]] = []
    for port in (mine, theirs):
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port))
        reply = json.loads(await connection.ask(retrieve(queries)))
        found.append([{item["document"]["id"] for item in items} for items in reply["result"]])
        connection.close()
    return round(fmean(len(a & b) / max(1, len(b)) for a, b in zip(*found, strict=True)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="2,000 documents, 64 requests, 1 round")
    given = parser.parse_args()
    sizes = (2000, 64, 16, 1) if given.quick else (given.documents, given.requests, given.concurrency, given.rounds)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        found = measured(*sizes, Path(folder))
    names = ("documents", "requests", "concurrency", "rounds")
    packages = ["aiohttp", "tantivy", "fastapi", "uvicorn", "httptools", "uvloop"]
    report("server", {**dict(zip(names, sizes, strict=True)), "batch": BATCH, "top_k": TOP_K}, packages, **found)


if __name__ == "__main__":
    main()
