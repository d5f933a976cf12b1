"""A corpus as its readers see it, and the three tools over it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from mmsearch_env.errors import ConfigError, DataError, ToolUnavailable
from mmsearch_env.images import FULL_FRAME, BBox, Image
from mmsearch_env.tools.corpus.catalogue import Catalogue
from mmsearch_env.tools.corpus.encoders import ImageEncoder, open_encoder
from mmsearch_env.tools.corpus.fusion import fused
from mmsearch_env.tools.corpus.manifest import FILE, Manifest, read_manifest
from mmsearch_env.tools.corpus.milvus import MilvusEngine, MilvusPlace
from mmsearch_env.tools.corpus.text_store import TextStore
from mmsearch_env.tools.corpus.vectors import Vectors
from mmsearch_env.tools.search_tool import Hit, ImageQuery, PageQuery, Query, SearchResult, TextQuery

T = TypeVar("T")
MAX_PAGE_CHARACTERS = 30_000
"""Characters of a page that are shown, as of a page of the web."""
_INLINE_DOCUMENTS = 50_000
"""In a larger corpus a search takes longer than handing it to a thread, where it does not hold up the event loop."""
RANKINGS = ("picture", "picture_and_words")
"""What an image search ranks pages by."""
_FUSED = 4
"""Hits of each ranking that are fused, as a multiple of those wanted."""
_LOOK_AGAIN_S = 2.0
_THUMBNAILS_KEPT = 8192
_VECTORS_KEPT = 4096


class Engine(Protocol):
    """Where a corpus is searched."""

    async def by_words(self, text: str, top_k: int, snippet_characters: int) -> list[Hit]:
        """The documents that fit words best."""
        ...

    async def by_vector(self, vector: np.ndarray, top_k: int) -> list[Hit]:
        """The documents whose picture's vector is nearest; (size,) float32."""
        ...

    async def page(self, url: str) -> Hit | None:
        """The document at an address, whole."""
        ...

    async def aclose(self) -> None:
        """Free what it holds; may be called twice."""
        ...


class FilesEngine:
    """Searches the files of a corpus, as they were when it was opened; each part is opened when first needed."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Args: the corpus's folder, and what is known of it."""
        self._folder, self._manifest = folder, manifest

    async def by_words(self, text: str, top_k: int, snippet_characters: int) -> list[Hit]:
        """BM25. Raises DataError when the index is damaged."""
        return await self._done(lambda: self._text.search(text, top_k, snippet_characters))

    async def by_vector(self, vector: np.ndarray, top_k: int) -> list[Hit]:
        """Exactly, or through an inverted file. Raises DataError when the files are damaged."""
        if not self._manifest.vectors:
            return []
        return await self._done(lambda: self._nearest(vector, top_k))

    async def page(self, url: str) -> Hit | None:
        """Its text, up to a limit."""
        found = self._text.page(url)
        return None if found is None else Hit(found.title, found.url, found.text[:MAX_PAGE_CHARACTERS])

    async def aclose(self) -> None:
        """Nothing to free: files are mapped, and freed with this object."""

    async def _done(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work) if self._manifest.documents > _INLINE_DOCUMENTS else work()

    def _nearest(self, vector: np.ndarray, top_k: int) -> list[Hit]:
        found = self._vectors.nearest(vector, top_k)
        shown = self._catalogue.shown([number for number, _ in found])
        return [
            Hit(shown[number][0], shown[number][1], "", 1.0 / (1.0 + gap), _decoded(shown[number][2]))
            for number, gap in found
            if number in shown
        ]

    @cached_property
    def _text(self) -> TextStore:
        return TextStore(self._folder, self._manifest.stemmer)

    @cached_property
    def _vectors(self) -> Vectors:
        return Vectors(self._folder / self._manifest.vectors)

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self._folder, mode="read")


@lru_cache(maxsize=_THUMBNAILS_KEPT)
def _decoded(thumbnail: bytes) -> Image:
    return Image.from_bytes(thumbnail, name="stored thumbnail")


class Corpus:
    """A corpus, opened for reading. When a build has brought it up to date, the next search sees it."""

    def __init__(self, folder: Path) -> None:
        """Open it. Raises DataError when there is none."""
        self.folder = folder
        self._looked = time.monotonic()
        self._changed_ns = _changed_ns(folder)
        self.manifest = read_manifest(folder)
        self.engine = _engine_of(folder, self.manifest)

    def refresh(self) -> bool:
        """Open what a build has published meanwhile; whether there was anything. Looks every few seconds only."""
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN_S:
            return False
        return self.refresh_now()

    def refresh_now(self) -> bool:
        """The same at once: files that were to be opened only now may be gone."""
        self._looked = time.monotonic()
        changed_ns = _changed_ns(self.folder)
        if changed_ns == self._changed_ns:
            return False
        self.manifest, self._changed_ns = read_manifest(self.folder), changed_ns
        self.engine = _engine_of(self.folder, self.manifest)
        return True


def _engine_of(folder: Path, manifest: Manifest) -> Engine:
    if manifest.milvus is None:
        return FilesEngine(folder, manifest)
    try:
        place = MilvusPlace(**manifest.milvus)
    except TypeError as error:
        raise DataError(f"{folder}: expected uri and collection of a Milvus server, got {manifest.milvus}") from error
    return MilvusEngine(place, manifest.stemmer)


def _changed_ns(folder: Path) -> int:
    try:
        return (folder / FILE).stat().st_mtime_ns
    except OSError:
        return 0


class CorpusTextSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` by words."""

    name = "corpus text search"

    def __init__(self, corpus: Corpus, snippet_characters: int = 300) -> None:
        """
        Args:
            corpus: what is searched.
            snippet_characters: longest passage of a page that is shown.
        """
        self._corpus = corpus
        self._snippet_characters = snippet_characters

    async def search(self, query: Query, *, top_k: int = 3) -> SearchResult:
        """Pages about the words. Raises ToolUnavailable for a picture, or when the corpus's files are damaged."""
        if not isinstance(query, TextQuery):
            raise ToolUnavailable(f"{self.name}: expected words, got {type(query).__name__}; use image search")
        with _as_tool_error(self.name):
            self._corpus.refresh()
            return SearchResult(tuple(await self._corpus.engine.by_words(query.text, top_k, self._snippet_characters)))

    async def aclose(self) -> None:
        """Free the engine's connections; may be called twice."""
        await self._corpus.engine.aclose()


class CorpusImageSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` by pictures."""

    name = "corpus image search"

    def __init__(self, corpus: Corpus, ranking: str = "picture", snippet_characters: int = 300) -> None:
        """
        Args:
            corpus: what is searched.
            ranking: ``"picture"``, or ``"picture_and_words"`` to rank pages that the question's words find as well.
            snippet_characters: longest passage of a page that such words find.

        Raises:
            ConfigError: its encoder is not installed, or the ranking is unknown.
            DataError: the encoder here makes other vectors than those of the corpus.
        """
        if ranking not in RANKINGS:
            raise ConfigError(f"tool 'corpus', ranking: expected one of {', '.join(RANKINGS)}, got {ranking!r}")
        self._corpus = corpus
        self._ranking, self._snippet_characters = ranking, snippet_characters
        self._open_encoder()

    async def search(self, query: Query, *, top_k: int = 3) -> SearchResult:
        """Pages whose picture looks like the query's, or the part of it inside its box.

        Raises:
            ToolUnavailable: the query is no picture, or the corpus's files are damaged.
        """
        if not isinstance(query, ImageQuery):
            raise ToolUnavailable(f"{self.name}: expected a picture, got {type(query).__name__}; use text search")
        with _as_tool_error(self.name):
            if self._corpus.refresh():
                self._open_encoder()
            try:
                return await self._found(query, top_k)
            except DataError:
                if not self._corpus.refresh_now():
                    raise
                self._open_encoder()
                return await self._found(query, top_k)

    async def aclose(self) -> None:
        """Free the engine's connections; may be called twice."""
        await self._corpus.engine.aclose()

    async def _found(self, query: ImageQuery, top_k: int) -> SearchResult:
        if self._vector_of is None or top_k < 1:
            return SearchResult(())
        vector = await asyncio.to_thread(self._vector_of, query.image, query.bbox)
        return SearchResult(tuple(await self._ranked(vector, query.question_text, top_k)))

    async def _ranked(self, vector: np.ndarray, words: str, top_k: int) -> list[Hit]:
        engine = self._corpus.engine
        if self._ranking == "picture":
            return await engine.by_vector(vector, top_k)
        rankings = await asyncio.gather(
            engine.by_vector(vector, _FUSED * top_k), engine.by_words(words, _FUSED * top_k, self._snippet_characters)
        )
        return fused(rankings, top_k)

    def _open_encoder(self) -> None:
        manifest = self._corpus.manifest
        encoder = open_encoder(manifest.encoder, self._corpus.folder) if manifest.pictures else None
        if encoder is not None and encoder.identity != manifest.encoder_identity:
            raise DataError(
                f"{self._corpus.folder}: expected the encoder {manifest.encoder_identity}, got {encoder.identity}; "
                "install the version it was built with, or build it anew"
            )
        self._vector_of = None if encoder is None else lru_cache(_VECTORS_KEPT)(partial(_encoded, encoder))


def _encoded(encoder: ImageEncoder, image: Image, bbox: BBox) -> np.ndarray:
    shown = image if bbox == FULL_FRAME else image.crop(bbox)
    vector: np.ndarray = encoder.encode([shown])[0]
    return vector


class CorpusPages:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` that gives a page's whole text."""

    name = "corpus page reader"

    def __init__(self, corpus: Corpus) -> None:
        """Args: corpus: whose pages can be read."""
        self._corpus = corpus

    async def search(self, query: Query, *, top_k: int = 1) -> SearchResult:
        """The page; nothing where there is none. Raises ToolUnavailable for words and pictures."""
        if not isinstance(query, PageQuery):
            raise ToolUnavailable(f"{self.name}: expected an address, got {type(query).__name__}; use a search")
        with _as_tool_error(self.name):
            self._corpus.refresh()
            found = await self._corpus.engine.page(query.url)
        return SearchResult(() if found is None else (found,)[:top_k])

    async def aclose(self) -> None:
        """Free the engine's connections; may be called twice."""
        await self._corpus.engine.aclose()


@contextmanager
def _as_tool_error(name: str) -> Iterator[None]:
    """What is wrong with a corpus's files must not end an episode."""
    try:
        yield
    except (DataError, sqlite3.Error, ValueError) as error:
        raise ToolUnavailable(f"{name}: {error}") from error
