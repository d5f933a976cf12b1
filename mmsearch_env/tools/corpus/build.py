"""Building a corpus and keeping it up to date.

Rows of all sources are taken batch by batch. A batch is committed as a whole: first the documents, then the catalogue
with how far each source is read. Whatever ends the process, the next run takes back what the catalogue does not know
and goes on from the row it had reached. A source that has not changed is passed over; of one that has, only documents
that differ are written again, and those that are gone are removed.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmsearch_env.errors import ConfigError, DataError, ImageError
from mmsearch_env.images import Image
from mmsearch_env.tools.corpus.batches import Batches, Reading, Watcher
from mmsearch_env.tools.corpus.catalogue import Catalogue, DocumentRow, Known, damage_told
from mmsearch_env.tools.corpus.documents import Document
from mmsearch_env.tools.corpus.encoders import SAMPLE_PICTURES, open_encoder
from mmsearch_env.tools.corpus.manifest import Manifest
from mmsearch_env.tools.corpus.milvus import MilvusPlace, MilvusWriter
from mmsearch_env.tools.corpus.pictures import PictureReader, Seen
from mmsearch_env.tools.corpus.sources import Row, Source
from mmsearch_env.tools.corpus.writer import Entry, FilesWriter, Writer

_PROBLEMS_KEPT = 1000
_SAMPLE_ROWS = 100_000
"""Rows looked through for the pictures that an encoder is fitted to."""


@dataclass(frozen=True, slots=True)
class CorpusSettings:
    """What is decided when a corpus is made, and holds for as long as it exists.

    Attributes:
        encoder: of pictures; see :mod:`~mmsearch_env.tools.corpus.encoders`.
        stemmer: language by whose rules words lose their endings, such as ``"english"``; "" for none.
        milvus: the server that holds the documents; None for files in the corpus's folder.
    """

    encoder: str = "sift"
    stemmer: str = "english"
    milvus: MilvusPlace | None = None


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        documents: in the corpus now.
        pictures: among them.
        read: rows read now.
        written: documents that were new or had changed.
        removed: documents that were gone.
        skipped: rows of all sources that could not be used, or not wholly.
        problems: source, row and reason of the first of these.
        unchanged: sources that were passed over.
        seconds: taken.
        is_whole: False when it was stopped; another run goes on.
    """

    documents: int
    pictures: int
    read: int
    written: int
    removed: int
    skipped: int
    problems: tuple[tuple[str, int, str], ...]
    unchanged: int
    seconds: float
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A row that may become a document."""

    reading: Reading
    row: int
    document: Document
    digest: bytes
    known_id: int | None


def build_corpus(
    folder: Path, sources: Sequence[Source], folders: Sequence[str], settings: CorpusSettings, watcher: Watcher
) -> BuildReport:
    """Build a corpus in a folder, or bring it up to date.

    Args:
        folder: made if need be; one build at a time may write it.
        sources: what it is to hold; those it had from other places stay.
        folders: names of whole folders among the sources: what is no longer in them is removed from the corpus.
        settings: must be those it was made with.
        watcher: is told how it goes.

    Raises:
        ConfigError: another build is under way, or the settings differ from those it was made with.
        DataError: a source cannot be read, the folder cannot be written, or what it holds is damaged.
    """
    with _only_writer(folder), damage_told(folder):
        builder = _Builder(folder, settings, sources, watcher)
        try:
            return builder.build(folders)
        finally:
            builder.close()


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise DataError(
            f"{folder}: expected a folder that can be written, got {error.strerror}; name another"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"{folder}: expected no other build of it, got one under way; wait for it") from error
        yield


class _Builder:
    """One build."""

    def __init__(self, folder: Path, settings: CorpusSettings, sources: Sequence[Source], watcher: Watcher) -> None:
        self._folder, self._settings, self._sources, self._watcher = folder, settings, sources, watcher
        self._catalogue = Catalogue(folder, mode="write")
        self._agree()
        self._writer = self._opened_writer()
        self._pictures = PictureReader(settings.encoder, folder, self._sampled_pictures)
        self._live = {source.name for source in sources}
        self._read = self._written = self._removed = self._unchanged = 0
        self._has_removed = False

    def _agree(self) -> None:
        """Remember the settings. Raises ConfigError when the corpus was made with others."""
        open_encoder(self._settings.encoder, self._folder)  # before a name is kept that cannot be used
        milvus = None if self._settings.milvus is None else dict(self._settings.milvus.as_json())
        given = {"encoder": self._settings.encoder, "stemmer": self._settings.stemmer, "milvus": milvus}
        is_new = not self._catalogue.sources()  # until something is read, nothing hangs on them
        with self._catalogue.transaction():
            for name, value in given.items():
                made_with = self._catalogue.setting(name)
                if is_new:
                    self._catalogue.set(name, value)
                elif made_with != value:
                    raise ConfigError(
                        f"{self._folder}, {name}: expected {made_with!r}, which it was made with, got {value!r}; "
                        "keep it or build another corpus"
                    )

    def _opened_writer(self) -> Writer:
        if self._settings.milvus is not None:
            return MilvusWriter(self._settings.milvus, self._settings.stemmer)
        return FilesWriter(self._folder, self._catalogue, self._settings.stemmer)

    def close(self) -> None:
        """Free everything."""
        self._pictures.close()
        self._writer.close()
        self._catalogue.close()

    def build(self, folders: Sequence[str]) -> BuildReport:
        """Read what is to be read."""
        started = time.monotonic()
        if self._writer.take_back(self._catalogue.last_id()) != self._catalogue.counts()[0]:
            with self._catalogue.transaction():
                self._catalogue.distrust()
        before = self._catalogue.sources()
        self._forget(name for name in before if name not in self._live and name.partition("/")[0] in folders)
        self._live |= before.keys()
        self._unchanged = self._read_all()
        if self._removed and not self._watcher.is_stopping():
            with self._catalogue.transaction():
                self._catalogue.doubt_skipped()
            self._read_all()
        is_whole = not self._watcher.is_stopping()
        if is_whole:
            self._publish()
        return self._report(time.monotonic() - started, is_whole)

    def _read_all(self) -> int:
        """Read the sources that changed or are doubted; how many were passed over. Raises DataError if all fail."""
        batches = Batches(self._sources, self._catalogue.sources(), self._watcher)
        for batch, touched in batches:
            self._commit(batch, touched)
        if len(batches.failures) == len(self._sources):
            raise batches.failures[0]
        return batches.unchanged

    def _report(self, seconds: float, is_whole: bool) -> BuildReport:
        documents, pictures = self._catalogue.counts()
        skipped = sum(state.skipped for state in self._catalogue.sources().values())
        problems = tuple(self._catalogue.problems(_PROBLEMS_KEPT))
        counts = (self._read, self._written, self._removed, skipped)
        return BuildReport(documents, pictures, *counts, problems, self._unchanged, seconds, is_whole)

    def _forget(self, names: Iterator[str]) -> None:
        """Remove sources that are gone, with their documents."""
        for name in list(names):
            with self._catalogue.transaction():
                self._remove(self._catalogue.stale(name, 1 << 62))
                self._catalogue.forget_source(name)
                self._doubt_skipped()
                self._writer.commit()

    def _remove(self, ids: list[int]) -> None:
        self._writer.remove(ids)
        self._catalogue.remove(ids)
        self._removed += len(ids)
        self._has_removed = self._has_removed or bool(ids)

    def _doubt_skipped(self) -> None:
        """Where documents went, rows that were skipped for having their addresses may take their place."""
        if self._has_removed:
            self._catalogue.doubt_skipped()
            self._has_removed = False

    def _commit(self, batch: list[tuple[Reading, Row]], touched: list[Reading]) -> None:
        """Write a batch: all of it or nothing."""
        with self._catalogue.transaction():
            for reading in touched:
                if reading.is_new_pass:
                    self._catalogue.forget_problems(reading.name)
                    reading.is_new_pass = False
            self._write(self._candidates(batch))
            for reading in touched:
                if reading.whole:
                    self._remove(self._catalogue.stale(reading.name, reading.number))
                self._catalogue.set_source(reading.name, reading.as_state())
            self._doubt_skipped()
            self._writer.commit()
        self._read += len(batch)

    def _candidates(self, batch: list[tuple[Reading, Row]]) -> list[_Candidate]:
        """The rows that may become documents; why others may not is noted."""
        known = self._catalogue.known([row.document.url for _, row in batch if row.document is not None])
        found: list[_Candidate] = []
        owners: dict[str, str] = {}
        for reading, row in batch:
            reading.rows = row.number
            if row.problem:
                self._note(reading, row.number, row.problem)
            if row.document is None:
                continue
            url, was = row.document.url, known.get(row.document.url)
            if (owner := owners.get(url) or self._owner(was, reading)) is not None:
                problem = f"expected an address of its own, got {url}, which {owner} has; drop one"
                self._note(reading, row.number, problem)
                continue
            owners[url] = reading.name
            digest = row.document.digest
            if was is not None and was.digest == digest:
                self._catalogue.see_again(reading.name, reading.number, [was.id])
                continue
            found.append(_Candidate(reading, row.number, row.document, digest, None if was is None else was.id))
        return found

    def _owner(self, was: Known | None, reading: Reading) -> str | None:
        """The source that has a document already: another one, or this one earlier in the same pass over it."""
        if was is None or was.source not in self._live:
            return None
        is_earlier = was.source != reading.name or was.number == reading.number
        return was.source if is_earlier else None

    def _write(self, candidates: list[_Candidate]) -> None:
        pictures = [one.document.picture for one in candidates if one.document.picture is not None]
        seen = iter(self._pictures.read(pictures, lambda done: self._watcher.pictures(done, len(pictures))))
        entries, rows = [], []
        next_id = self._catalogue.last_id() + 1
        for one in candidates:
            found = next(seen) if one.document.picture is not None else Seen()
            if found.problem:
                self._note(one.reading, one.row, found.problem)
                if not one.document.text.strip():
                    continue
            number = one.known_id
            if number is None:
                number, next_id = next_id, next_id + 1
            source, url = one.reading, one.document.url
            rows.append(DocumentRow(number, url, one.digest, source.name, source.number, bool(found.vector)))
            entries.append(Entry(number, one.document, found.thumbnail, found.vector))
        self._catalogue.put(rows)
        self._writer.remove([one.known_id for one in candidates if one.known_id is not None])
        self._writer.add(entries)
        self._written += len(entries)

    def _note(self, reading: Reading, row: int, reason: str) -> None:
        if reading.skipped < _PROBLEMS_KEPT:
            # A value that is shown may hold half a surrogate pair, which no database can.
            told = reason[:1000].encode("utf-8", "replace").decode()
            self._catalogue.note_problems(reading.name, [(row, told)])
        reading.skipped += 1

    def _publish(self) -> None:
        """Make the corpus searchable and tell its readers."""
        vectors = self._writer.finish()
        documents, pictures = self._catalogue.counts()
        encoder = open_encoder(self._settings.encoder, self._folder) if pictures else None
        identity = "" if encoder is None else encoder.identity
        milvus = None if self._settings.milvus is None else self._settings.milvus.as_json()
        made = (self._settings.encoder, identity, self._settings.stemmer, vectors, milvus)
        Manifest(documents, pictures, *made).write(self._folder)
        _remove_old_vectors(self._folder, vectors)

    def _sampled_pictures(self) -> list[Image]:
        """Pictures to fit an encoder to: the first of all sources."""
        found: list[Image] = []
        rows = (row for source in self._sources for row in _readable_rows(source))
        for _, row in zip(range(_SAMPLE_ROWS), rows, strict=False):
            if row.document is not None and row.document.picture is not None:
                try:
                    found.append(Image.from_bytes(row.document.picture))
                except ImageError:  # noted when its row is read
                    continue
            if len(found) == SAMPLE_PICTURES:
                break
        return found


def _readable_rows(source: Source) -> Iterator[Row]:
    """Up to where the source can be read; what is wrong with it is told when it is its turn."""
    with suppress(DataError):
        yield from source.rows()


def _remove_old_vectors(folder: Path, current: str) -> None:
    for place in folder.glob("vectors-*"):
        if place.name != current:
            shutil.rmtree(place, ignore_errors=True)
