"""Text search in a corpus against bare tantivy, over the pages of an invented world.

Bare tantivy is what one writes first: the same documents with English stems in the fields title and text, the query
parsed by its own parser, the five best documents fetched. It is asked twice, with all words of a query and with those
that our tool keeps of it, so that what leaving out stop words saves can be told from everything else. All answer every
query in turn, ours awaited in one event loop; ours also chooses a passage of each long page, which bare tantivy is
spared. Also measured: searches a second (side by side, and from two threads), how fast a corpus is built, and what
memory a new process that opens it and searches has.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import tantivy
from measuring import awaited_in_turns, figures, in_own_process, memory_mb, note, rates_in_turns, ratio, report

from mmsearch_env.actions import ActionKind
from mmsearch_env.tools import build_tool
from mmsearch_env.tools.corpus.build import CorpusSettings, build_corpus
from mmsearch_env.tools.corpus.sources import find_sources
from mmsearch_env.tools.local.bm25 import query_words
from mmsearch_env.tools.search_tool import SearchTool, TextQuery
from mmsearch_env.worlds import load_world

TOP_K, QUERIES = 5, 400
GROWTH = (10_000, 100_000, 1_000_000)
PAGES_AN_ENTITY = 7
KINDS = ("capital of {}", "currency used in {}", "what is the official language of {}?", "which country borders {}")


class Quiet:
    """Watches a build."""

    def reading(self, done_bytes: float, total_bytes: float) -> None: ...
    def pictures(self, done: int, total: int) -> None: ...
    def is_stopping(self) -> bool:
        return False


def written(documents: int, folder: Path, count: int = QUERIES) -> tuple[Path, list[str]]:
    """A table of so many pages, and queries about them: all different as long as there are names enough."""
    world = load_world(f"synthetic:seed=5,entities={documents // PAGES_AN_ENTITY + 1},per_pair=1")
    table = folder / f"pages-{documents}.jsonl"
    with table.open("w", encoding="utf-8") as file:
        for page in world.pages[:documents]:
            file.write(json.dumps({"url": page.url, "title": page.title, "text": page.text}) + "\n")
    names = [entity.name for entity in world.entities]
    random.Random(0).shuffle(names)
    # The kinds take turns, and each goes through the names from another one on: neighbours are about different names.
    numbers = ((n // len(KINDS), n % len(KINDS)) for n in range(count))
    return table, [KINDS[kind].format(names[(n + kind * len(names) // len(KINDS)) % len(names)]) for n, kind in numbers]


def built(table: Path, into: Path) -> dict[str, Any]:
    """Build a corpus and say how fast."""
    settings = CorpusSettings("layout")
    done = build_corpus(into, find_sources([table]), [], settings, Quiet())
    size = sum(file.stat().st_size for file in into.rglob("*") if file.is_file())
    return {
        "documents": done.documents,
        "build_s": round(done.seconds, 2),
        "documents_per_s": round(done.read / done.seconds),
        "disk_mb": round(size / 1e6, 1),
    }


def bare(table: Path, into: Path) -> tuple[Any, float]:
    """The plain index and the seconds it took."""
    begin = time.perf_counter()
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("url", stored=True, tokenizer_name="raw")
    builder.add_text_field("title", stored=True, tokenizer_name="en_stem")
    builder.add_text_field("text", stored=True, tokenizer_name="en_stem")
    into.mkdir()
    index = tantivy.Index(builder.build(), path=str(into))
    writer = index.writer(heap_size=192_000_000)
    with table.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            writer.add_document(tantivy.Document(**row))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    return index, time.perf_counter() - begin


PlainSearch = Callable[[str], list[tuple[str, str, str]]]
"""From words to title, text and address of the best documents."""


def bare_search(index: Any) -> PlainSearch:
    searcher = index.searcher()

    def search(text: str) -> list[tuple[str, str, str]]:
        query = index.parse_query(" ".join(re.findall(r"\w+", text)), ["title", "text"])
        documents = [searcher.doc(address) for _, address in searcher.search(query, TOP_K).hits]
        return [(one.get_first("title"), one.get_first("text"), one.get_first("url")) for one in documents]

    return search


def measured(documents: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Everything at one size."""
    note(f"writing {documents:,} pages")
    table, queries = written(documents, folder)
    place, plain_place = folder / f"corpus-{documents}", folder / f"bare-{documents}"
    note("building the corpus")
    size = built(table, place)
    note("building the bare index")
    index, bare_s = bare(table, plain_place)
    note("searching")
    asking = ["--query", *queries[:200]]
    return {
        **size,
        "tantivy_documents_per_s": round(size["documents"] / bare_s),
        **compared(opened(place), bare_search(index), queries, rounds),
        "process": {
            "ours": in_own_process(__file__, "--memory-of", str(place), *asking),
            "tantivy": in_own_process(__file__, "--bare-memory-of", str(plain_place), *asking),
            "nothing opened": in_own_process(__file__, "--memory-of", ""),
        },
    }


def opened(place: Path) -> SearchTool:
    return build_tool(ActionKind.TEXT_SEARCH, {"name": "corpus", "path": str(place)})


def compared(tool: SearchTool, plain: PlainSearch, queries: list[str], rounds: int) -> dict[str, Any]:
    """Times and results."""
    telling = {query: " ".join(query_words(query)) for query in queries}
    taken = asyncio.run(
        awaited_in_turns(
            {
                "ours": [lambda q=q: tool.search(TextQuery(q), top_k=TOP_K) for q in queries],
                "tantivy": [lambda q=q: plain(q) for q in queries],
                "tantivy, our words": [lambda q=q: plain(telling[q]) for q in queries],
            },  # type: ignore[misc]
            rounds,
        )
    )
    peers = [name for name in taken if name != "ours"]
    return {
        **{name: figures(taken[name]) for name in taken},
        "ratio": {name: ratio(taken["ours"], taken[name]) for name in peers},
        "by_kind": {
            kind: {name: figures(seconds[number :: len(KINDS)])["p50_ms"] for name, seconds in taken.items()}
            for number, kind in enumerate(KINDS)
        },
        "queries_per_s": rates(tool, plain, queries, rounds),
        "agreement": asyncio.run(agreement(tool, plain, telling)),
    }


def rates(tool: SearchTool, plain: PlainSearch, queries: Sequence[str], rounds: int) -> dict[str, int]:
    """One after the other, 64 side by side in one loop, and each half in a thread of its own."""
    halves = [queries[0::2], queries[1::2]]
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: asyncio.run(_searched(tool, queries, 1)),
        "tantivy": lambda: [plain(query) for query in queries],
        "ours, 64 at a time": lambda: asyncio.run(_searched(tool, queries, 64)),
        "ours, 2 threads": lambda: list(pool.map(lambda half: asyncio.run(_searched(tool, half, 1)), halves)),
        "tantivy, 2 threads": lambda: list(pool.map(lambda half: [plain(query) for query in half], halves)),
    }
    with ThreadPoolExecutor(2) as pool:
        return rates_in_turns(ways, len(queries), rounds)


async def agreement(tool: SearchTool, plain: PlainSearch, telling: Mapping[str, str]) -> dict[str, float]:
    """How far both find the same, given the same words: they weigh titles differently."""
    first, common = [], []
    for query, words in telling.items():
        ours = [hit.url for hit in (await tool.search(TextQuery(query), top_k=TOP_K)).hits]
        theirs = [url for _, _, url in plain(words)]
        first.append(ours[:1] == theirs[:1])
        common.append(len(set(ours) & set(theirs)) / max(1, len(theirs)))
    return {"same_first_hit": round(fmean(first), 3), "common_hits": round(fmean(common), 3)}


async def _searched(tool: SearchTool, queries: Sequence[str], together: int) -> None:
    """So many at a time."""
    for start in range(0, len(queries), together):
        some = queries[start : start + together]
        if together == 1:
            await tool.search(TextQuery(some[0]), top_k=TOP_K)
        else:
            await asyncio.gather(*(tool.search(TextQuery(text), top_k=TOP_K) for text in some))


def show_memory(place: str, queries: Sequence[str]) -> None:
    """In a process of its own: open, search, and say what memory that took."""
    found: dict[str, float] = {}
    if place:
        tool = opened(Path(place))

        async def search() -> None:
            begin = time.perf_counter()
            await tool.search(TextQuery(queries[0]), top_k=TOP_K)
            found["first_search_ms"] = round((time.perf_counter() - begin) * 1e3, 2)
            await _searched(tool, queries, 1)

        asyncio.run(search())
    print(json.dumps({**memory_mb(), **found}))


def show_bare_memory(place: str, queries: Sequence[str]) -> None:
    """The same for the bare index."""
    search = bare_search(tantivy.Index.open(place))
    for query in queries:
        search(query)
    print(json.dumps(memory_mb()))


def table(by_documents: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The few figures that show how all grows."""
    return [
        {
            "documents": one["documents"],
            "documents_per_s": one["documents_per_s"],
            **{f"{name}_{key}": one[name][key] for name in ("ours", "tantivy") for key in ("p50_ms", "p99_ms")},
            "ratio": one["ratio"]["tantivy"]["of_medians"],
            "queries_per_s": one["queries_per_s"]["ours"],
            "rss_mb": one["process"]["ours"]["rss_mb"],
            "private_mb": one["process"]["ours"]["private_mb"],
        }
        for one in by_documents.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000])
    parser.add_argument("--growth", action="store_true", help="10,000, 100,000 and 1,000,000 documents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="2,000 documents, 1 round")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--bare-memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--query", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of is not None:
        show_memory(given.memory_of, given.query)
    elif given.bare_memory_of:
        show_bare_memory(given.bare_memory_of, given.query)
    else:
        show(given)


def show(given: argparse.Namespace) -> None:
    """The benchmark itself."""
    sizes = [2000] if given.quick else GROWTH if given.growth else given.documents
    rounds = 1 if given.quick else given.rounds
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir="/var/tmp") as folder:
        found = {str(size): measured(size, rounds, Path(folder)) for size in sizes}
    settings = {"rounds": rounds, "top_k": TOP_K, "queries": QUERIES}
    report("text_search", settings, ["tantivy"], table=table(found), by_documents=found)


if __name__ == "__main__":
    main()
