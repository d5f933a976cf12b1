"""The search server against a server of Search-R1's shape: FastAPI, a synchronous handler, bare tantivy behind it.

Both are processes on loopback over the same pages, and answer the same queries in turns. The load comes from this
process over raw sockets with requests written beforehand, so that it costs little beside the server. The server is
asked the same few questions again and again (as groups of rollouts do) and questions that are all different, one at a
time and in batches.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import figures, note, report
from text_search import TOP_K, bare, built, written

BATCH = 16
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

    begin = time.perf_counter()
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


def started(command: Sequence[str], port: int) -> subprocess.Popen[bytes]:
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.1)
    raise SystemExit("a server did not start")


def measured(documents: int, requests: int, concurrency: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Both servers, in turns."""
    table, queries = written(documents, folder)
    note("building")
    built(table, folder / "corpus")
    bare(table, folder / "bare")
    few, many = [queries[n % 8] for n in range(requests)], [queries[n % len(queries)] for n in range(requests)]
    batches = [many[n : n + BATCH] for n in range(0, requests, BATCH)]
    ports = {"ours": free_port()}
    spec = json.dumps({"name": "corpus", "path": str(folder / "corpus")})
    command = ["-m", "mmsearch_env", "serve", "--port", str(ports["ours"]), "--text", spec]
    servers = [started([*command, "--image", "none", "--pages", "none"], ports["ours"])]
    loads = {
        "ours, same few": ("ours", [single(text) for text in few], 1),
        "ours, all different": ("ours", [single(text) for text in many], 1),
        "ours, batches": ("ours", [batch(texts) for texts in batches], BATCH),
        "ours, /retrieve": ("ours", [retrieve([text]) for text in many], 1),
    }
    if importlib.util.find_spec("fastapi") and importlib.util.find_spec("uvicorn"):
        ports["peer"] = free_port()
        servers.append(started([str(PEER), str(folder / "bare"), str(ports["peer"])], ports["peer"]))
        loads["peer, all different"] = ("peer", [retrieve([text]) for text in many], 1)
        loads["peer, batches"] = ("peer", [retrieve(texts) for texts in batches], BATCH)
    try:
        return _in_turns(loads, ports, concurrency, rounds)
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)


def _in_turns(
    loads: dict[str, tuple[str, list[bytes], int]], ports: dict[str, int], concurrency: int, rounds: int
) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in loads}
    taken: dict[str, list[float]] = {name: [] for name in loads}
    for number in range(rounds + 1):
        for name, (server, requests, queries) in loads.items():
            note(f"round {number}: {name}")
            seconds, each = asyncio.run(loaded(ports[server], requests, concurrency))
            if number:
                rates[name].append(len(requests) * queries / seconds)
                taken[name] += each
    found = {
        name: {"queries_per_s": round(sorted(rates[name])[len(rates[name]) // 2]), **figures(taken[name])}
        for name in loads
    }
    if "peer, all different" in found:
        peer = found["peer, all different"]["queries_per_s"]
        found["ratio_to_peer"] = round(found["ours, /retrieve"]["queries_per_s"] / peer, 2)  # type: ignore[assignment]
    else:
        note("fastapi and uvicorn are not installed: no peer")
    return found


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
    report("server", dict(zip(names, sizes, strict=True)), ["aiohttp", "tantivy"], loads=found)


if __name__ == "__main__":
    main()
