"""Build a corpus to search in: from folders of pages and pictures, JSON lines, parquet."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mmsearch_env.errors import ConfigError
from mmsearch_env.rendering import plain
from mmsearch_env.tools.corpus.build import BuildReport, CorpusSettings, build_corpus
from mmsearch_env.tools.corpus.milvus import MilvusPlace
from mmsearch_env.tools.corpus.sources import find_sources

_SHOWN_PROBLEMS = 5
_COLLECTION = "mmsearch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``index``."""
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE", help="folder, .jsonl, .parquet, page, picture"
    )
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="the corpus, made if need be")
    encoders = "sift, layout, or neural:MODEL for a vision model of transformers"
    parser.add_argument("--encoder", default="sift", help=f"what pictures are compared by: {encoders} (%(default)s)")
    parser.add_argument(
        "--stemmer", default="english", help="language whose endings are dropped, or none (%(default)s)"
    )
    parser.add_argument(
        "--problems",
        type=int,
        default=_SHOWN_PROBLEMS,
        metavar="N",
        help="rows shown that cannot be used (%(default)s)",
    )
    parser.add_argument("--milvus", metavar="URI", help="keep documents on this Milvus server, not in the folder")
    parser.add_argument("--collection", default=_COLLECTION, help="their collection there (%(default)s)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Build, or bring up to date; 0 when it is whole, 130 when it was stopped. Raises ConfigError, DataError."""
    folders = [path.expanduser().resolve().name for path in arguments.sources if path.is_dir()]
    into = arguments.into.expanduser().resolve()
    for path in arguments.sources:
        if into.is_relative_to(path.expanduser().resolve()):
            raise ConfigError(
                f"--into: expected a folder outside of what is indexed, got {arguments.into}; name another"
            )
    if arguments.milvus is None and arguments.collection != _COLLECTION:
        raise ConfigError("--collection: expected --milvus beside it, got none")
    sources = find_sources(arguments.sources)
    stemmer = "" if arguments.stemmer == "none" else arguments.stemmer
    milvus = None if arguments.milvus is None else MilvusPlace(arguments.milvus, arguments.collection)
    settings = CorpusSettings(arguments.encoder, stemmer, milvus)
    with _Watch(console) as watch:
        report = build_corpus(arguments.into.expanduser(), sources, folders, settings, watch)
    _show(report, arguments.into, arguments.problems, console)
    return 0 if report.is_whole else 130


class _Watch:
    """Progress bars; Ctrl-C and SIGTERM stop the build at the next row, a second one at once."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<9}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._progress = Progress(*columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=console)
        self._reading = self._progress.add_task("reading", total=None, note="")
        self._pictures = self._progress.add_task("pictures", total=None, note="", visible=False)
        self._stopping = False

    def reading(self, done_bytes: float, total_bytes: float) -> None:
        note = f"{decimal(int(done_bytes))} of {decimal(int(total_bytes))}"
        self._progress.update(self._reading, completed=done_bytes, total=total_bytes, note=note)

    def pictures(self, done: int, total: int) -> None:
        self._progress.update(
            self._pictures, completed=done, total=total, note=f"{done:,} of {total:,}", visible=done < total
        )

    def is_stopping(self) -> bool:
        return self._stopping

    def __enter__(self) -> _Watch:
        self._former = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        for number, former in self._former.items():
            signal.signal(number, former)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        self._progress.console.print("stopping: what was read is being written (once more to stop at once)")


def _show(report: BuildReport, into: Path, most: int, console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    pace = report.read / report.seconds if report.seconds > 0 else 0.0
    table.add_row("corpus", plain(str(into)))
    table.add_row("documents", f"{report.documents:,}, {report.pictures:,} of them with a picture")
    table.add_row("read", f"{report.read:,} rows in {report.seconds:.1f} s ({pace:,.0f} a second)")
    table.add_row("written", f"{report.written:,} new or changed, {report.removed:,} removed")
    table.add_row("unchanged", f"{report.unchanged:,} sources")
    table.add_row("skipped", f"{report.skipped:,} rows, or their pictures")
    console.print(table)
    for source, row, reason in report.problems[:most]:
        console.print(plain(f"  {source}, row {row}: {reason}"), markup=False, soft_wrap=True)
    if (more := len(report.problems) - most) > 0:
        console.print(f"  and {more:,} more (--problems {len(report.problems)} shows them)")
    if not report.documents:
        console.print("nothing is in it yet")
        return
    if not report.is_whole:
        console.print("stopped; run the same command again to go on")
        return
    spec = f'{{"name": "corpus", "path": "{into}"}}'
    console.print(
        f"search it:  python -m mmsearch_env search WORDS --backend '{plain(spec)}'", markup=False, soft_wrap=True
    )
