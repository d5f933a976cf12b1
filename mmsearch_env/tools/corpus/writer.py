"""Where a corpus's documents are written to: files on this machine, or a Milvus server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Protocol

from mmsearch_env.tools.corpus.catalogue import Catalogue, PictureRow
from mmsearch_env.tools.corpus.documents import Document
from mmsearch_env.tools.corpus.text_store import TextWriter
from mmsearch_env.tools.corpus.vectors import keep_coarse, write_vectors


@dataclass(frozen=True, slots=True)
class Entry:
    """A document that is to be written.

    Attributes:
        id: of the document in its corpus.
        document: what it says.
        thumbnail: JPEG of its picture, small; b"" without one.
        vector: of its picture, float32; b"" without one.
    """

    id: int
    document: Document
    thumbnail: bytes = b""
    vector: bytes = b""


class Writer(Protocol):
    """Writes documents, batch by batch, within the catalogue's transactions."""

    def take_back(self, last: int) -> int:
        """Remove every document whose id is greater. Returns how many are left."""
        ...

    def remove(self, ids: Sequence[int]) -> None:
        """Remove documents, as far as they are there."""
        ...

    def add(self, entries: Sequence[Entry]) -> None:
        """Add documents that are not there. Raises DataError."""
        ...

    def commit(self) -> None:
        """Make it durable. Raises DataError."""
        ...

    def finish(self) -> str:
        """Make everything ready to be searched. Returns the name of the folder of vectors; "" if there is none."""
        ...

    def close(self) -> None:
        """Free what it holds; what was not committed is dropped."""
        ...


class FilesWriter:
    """A :class:`Writer` into the corpus's own folder: a text index, and pictures in the catalogue."""

    def __init__(self, folder: Path, catalogue: Catalogue, stemmer: str) -> None:
        """Args: as :class:`~mmsearch_env.tools.corpus.text_store.TextWriter`, whose errors it raises."""
        self._folder = folder
        self._catalogue = catalogue
        self._text = TextWriter(folder, stemmer, threads=max(1, os.cpu_count() or 1))

    def take_back(self, last: int) -> int:
        """Pictures need no taking back: they are committed with the catalogue."""
        if self._catalogue.setting("vectors_are_new"):
            # What an earlier build detached, it has also taken out of the vectors that readers have.
            with self._catalogue.transaction():
                self._catalogue.remove_detached_pictures()
        return self._text.take_back(last)

    def remove(self, ids: Sequence[int]) -> None:
        """Also the pictures."""
        if not ids:
            return
        self._text.remove(ids)
        self._catalogue.detach_pictures(ids)
        self._catalogue.set("vectors_are_new", False)

    def add(self, entries: Sequence[Entry]) -> None:
        """Also the pictures."""
        for entry in entries:
            self._text.add(entry.id, entry.document)
        pictured = [entry for entry in entries if entry.vector]
        if pictured:
            self._catalogue.set("vectors_are_new", False)
        self._catalogue.put_pictures(
            [
                PictureRow(entry.id, entry.document.title, entry.document.url, entry.thumbnail, entry.vector)
                for entry in pictured
            ]
        )

    def commit(self) -> None:
        """Of the text; the catalogue's own follows."""
        self._text.commit()

    def finish(self) -> str:
        """Write the vectors into a folder of their own, unless the last one is up to date."""
        name = str(self._catalogue.setting("vectors") or "")
        if self._catalogue.setting("vectors_are_new") and (not name or (self._folder / name).is_dir()):
            return name
        _, pictures = self._catalogue.counts()
        new = self._write_vectors(name, pictures) if pictures else ""
        with self._catalogue.transaction():
            self._catalogue.set("vectors", new)
            self._catalogue.set("vectors_are_new", True)
        return new

    def _write_vectors(self, old: str, pictures: int) -> str:
        number = int(old.rpartition("-")[2]) + 1 if old else 1
        name, half = f"vectors-{number:06}", self._folder / ".vectors"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        if old:
            keep_coarse(self._folder / old, half)
        blocks = self._catalogue.vectors()
        first = next(blocks)
        write_vectors(half, chain([first], blocks), rows=pictures, size=first[1].shape[1])
        shutil.rmtree(self._folder / name, ignore_errors=True)
        half.rename(self._folder / name)
        return name

    def close(self) -> None:
        """End the text index's threads."""
        self._text.close()
