"""The rows of all sources in batches, from where the last build left each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from mmsearch_env.errors import DataError
from mmsearch_env.tools.corpus.catalogue import SourceState
from mmsearch_env.tools.corpus.sources import Row, Source

BATCH_ROWS = 50_000
"""Rows that are committed together."""
BATCH_BYTES = 200_000_000
"""Text and pictures that are held in memory for it, unless one row alone is larger."""


class Watcher(Protocol):
    """Watches a build and may stop it."""

    def reading(self, done_bytes: float, total_bytes: float) -> None:
        """How much of the sources lies behind."""
        ...

    def pictures(self, done: int, total: int) -> None:
        """How many pictures of a batch are encoded."""
        ...

    def is_stopping(self) -> bool:
        """Whether to commit what was read and end."""
        ...


class Reading:
    """How far one source is read in this run."""

    def __init__(self, source: Source, before: SourceState | None) -> None:
        self.name, self.source = source.name, source
        self.state = source.state
        goes_on = before is not None and before.state == self.state != ""
        self.is_new_pass = not goes_on
        self.rows = before.rows if before is not None and goes_on else 0
        self.skipped = before.skipped if before is not None and goes_on else 0
        self.number = (before.number if before is not None else 0) + (0 if goes_on else 1)
        self.whole = False

    def fail(self) -> None:
        """It cannot be read to its end: the next run reads it anew."""
        self.state = ""

    def as_state(self) -> SourceState:
        """As the catalogue keeps it."""
        return SourceState(self.state, self.number, self.rows, self.whole, self.skipped)


class Batches:
    """Iterated over once; a batch may span many sources, and a source many batches.

    Attributes:
        unchanged: sources passed over so far.
        failures: why others could not be read, or not to their end. They stay unfinished, so that the next run reads
            them anew; what was read of them is kept.
    """

    def __init__(self, sources: Sequence[Source], before: Mapping[str, SourceState], watcher: Watcher) -> None:
        """
        Args:
            sources: what is to be read.
            before: how far each was read before.
            watcher: is told how it goes; may end it.
        """
        self._sources, self._before, self._watcher = sources, before, watcher
        self.unchanged = 0
        self.failures: list[DataError] = []

    def __iter__(self) -> Iterator[tuple[list[tuple[Reading, Row]], list[Reading]]]:
        """Rows, each with the source it is of, and all sources of which something was done."""
        sizes = [source.size_bytes for source in self._sources]
        behind, total = 0.0, float(sum(sizes))
        batch: list[tuple[Reading, Row]] = []
        touched: list[Reading] = []
        weight = 0
        for source, size in zip(self._sources, sizes, strict=True):
            reading = Reading(source, self._before.get(source.name))
            known = self._before.get(source.name)
            if known is not None and known.whole and not reading.is_new_pass:
                self.unchanged += 1
                behind += size
                self._watcher.reading(behind, total)
                continue
            touched.append(reading)
            for row in self._rows(reading):
                batch.append((reading, row))
                weight += _weight(row)
                if len(batch) % 256 == 0:
                    self._watcher.reading(behind + row.position * size, total)
                if len(batch) >= BATCH_ROWS or weight >= BATCH_BYTES or self._watcher.is_stopping():
                    yield batch, touched
                    batch, touched, weight = [], [reading], 0
                    if self._watcher.is_stopping():
                        return
            reading.whole = reading.state != ""
            behind += size
            self._watcher.reading(behind, total)
        if batch or touched:
            yield batch, touched

    def _rows(self, reading: Reading) -> Iterator[Row]:
        """The rows that are left; where the source cannot be read on, a last one says why."""
        number = reading.rows
        try:
            for row in reading.source.rows(number):
                number = row.number
                yield row
        except DataError as error:
            self.failures.append(error)
            reading.fail()
            yield Row(number + 1, None, str(error), 1.0)


def _weight(row: Row) -> int:
    """About how many bytes a row holds in memory."""
    if row.document is None:
        return 0
    return len(row.document.text) + len(row.document.picture or b"")
