"""A corpus beyond one machine, on a Milvus server: the only file that imports pymilvus.

Two collections: the documents, found by BM25 over title and text, and the pictures, found by their vectors. The server
does the analysing, so scores differ from those of the files on one machine while the calls are the same.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from yarl import URL

from mmsearch_env.errors import ConfigError, DataError, ImageError, ToolTimeout, ToolUnavailable
from mmsearch_env.images import Image
from mmsearch_env.net.per_loop import PerLoop
from mmsearch_env.net.secret import Secret, may_travel_to, read_secret
from mmsearch_env.tools.corpus.documents import MAX_ADDRESS_CHARACTERS
from mmsearch_env.tools.corpus.writer import Entry
from mmsearch_env.tools.local.bm25 import MAX_QUERY_CHARACTERS, query_words
from mmsearch_env.tools.local.passages import best_sentences
from mmsearch_env.tools.search_tool import Hit

TOKEN_VARIABLE = "MILVUS_TOKEN"
"""Environment variable that holds the server's token, where it wants one."""
SERVER_VARIABLE = "MILVUS_URI"
"""Environment variable that names the server whose token this is: a corpus from elsewhere may name any server."""
MAX_STORED_BYTES = 65_535
"""Longest text that a Milvus field holds, in UTF-8; longer ones are cut."""
_CHUNK_ROWS = 500
_SENTENCES = 3
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")


@dataclass(frozen=True, slots=True)
class MilvusPlace:
    """Where a corpus is on a Milvus server.

    Attributes:
        uri: of the server, such as ``http://127.0.0.1:19530``.
        collection: of the documents; that of the pictures is ``<collection>_pictures``.
    """

    uri: str
    collection: str

    def __post_init__(self) -> None:
        if not self.uri.startswith(("http://", "https://")):
            raise ConfigError(f"milvus: expected the address of a server, http://HOST:PORT, got {self.uri!r}")
        if not _NAME.fullmatch(self.collection):
            wanted = "letters, digits and underscores, with a letter first"
            raise ConfigError(f"milvus: expected a collection's name of {wanted}, got {self.collection!r}")

    @property
    def pictures(self) -> str:
        """The collection of the pictures."""
        return f"{self.collection}_pictures"

    def as_json(self) -> Mapping[str, str]:
        """For a manifest; without the token, which is never written down."""
        return {"uri": self.uri, "collection": self.collection}


class MilvusWriter:
    """A :class:`~mmsearch_env.tools.corpus.writer.Writer` to a Milvus server."""

    def __init__(self, place: MilvusPlace, stemmer: str, timeout_s: float = 60.0) -> None:
        """Connect, and make the collection of the documents if need be.

        Raises:
            ConfigError: pymilvus is not installed, or the token at hand is for another server.
            DataError: the server cannot be reached or refuses.
        """
        self._place, self._timeout_s = place, timeout_s
        token = _token(place)
        with _as_data_error(place):
            self._client = _pymilvus().MilvusClient(uri=place.uri, token=token, timeout=timeout_s)
            if not self._client.has_collection(place.collection):
                self._make_documents(stemmer)

    def take_back(self, last: int) -> int:
        """Also from the pictures."""
        with _as_data_error(self._place):
            for name in self._collections():
                self._client.delete(name, filter=f"id > {last}")
            self.commit()
            found = self._client.query(self._place.collection, filter="", output_fields=["count(*)"])
            return int(found[0]["count(*)"])

    def remove(self, ids: Sequence[int]) -> None:
        """Also from the pictures."""
        if not ids:
            return
        with _as_data_error(self._place):
            for name in self._collections():
                for start in range(0, len(ids), _CHUNK_ROWS):
                    self._client.delete(name, ids=list(ids[start : start + _CHUNK_ROWS]))

    def add(self, entries: Sequence[Entry]) -> None:
        """In chunks that a request can hold; written over if there, since a request that timed out may have worked."""
        pictured = [entry for entry in entries if entry.vector]
        with _as_data_error(self._place):
            if pictured and not self._client.has_collection(self._place.pictures):
                self._make_pictures(len(pictured[0].vector) // 4)
            for chunk in _chunks(entries):
                self._client.upsert(self._place.collection, [_document_row(entry) for entry in chunk])
            for chunk in _chunks(pictured):
                self._client.upsert(self._place.pictures, [_picture_row(entry) for entry in chunk])

    def commit(self) -> None:
        """What was acknowledged is in the server's log already; this writes it to segments."""
        with _as_data_error(self._place):
            for name in self._collections():
                self._client.flush(name)

    def finish(self) -> str:
        """Load the collections. There are no vectors beside them."""
        with _as_data_error(self._place):
            for name in self._collections():
                self._client.load_collection(name)
        return ""

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _collections(self) -> list[str]:
        names = (self._place.collection, self._place.pictures)
        return [name for name in names if self._client.has_collection(name)]

    def _make_documents(self, stemmer: str) -> None:
        milvus = _pymilvus()
        kinds = milvus.DataType
        filters: list[Any] = ["lowercase", "asciifolding"]
        filters += [{"type": "stemmer", "language": stemmer}] if stemmer else []
        schema = milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("url", kinds.VARCHAR, max_length=4 * MAX_ADDRESS_CHARACTERS)
        analyzer = {"tokenizer": "standard", "filter": filters}
        schema.add_field(
            "said", kinds.VARCHAR, max_length=MAX_STORED_BYTES, enable_analyzer=True, analyzer_params=analyzer
        )
        schema.add_field("words", kinds.SPARSE_FLOAT_VECTOR)
        bm25 = milvus.FunctionType.BM25
        schema.add_function(
            milvus.Function(name="bm25", input_field_names=["said"], output_field_names=["words"], function_type=bm25)
        )
        indices = self._client.prepare_index_params()
        indices.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        indices.add_index("url", index_type="INVERTED")
        self._client.create_collection(self._place.collection, schema=schema, index_params=indices)

    def _make_pictures(self, size: int) -> None:
        kinds = _pymilvus().DataType
        schema = _pymilvus().MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", kinds.INT64, is_primary=True)
        schema.add_field("url", kinds.VARCHAR, max_length=4 * MAX_ADDRESS_CHARACTERS)
        schema.add_field("title", kinds.VARCHAR, max_length=MAX_ADDRESS_CHARACTERS)
        schema.add_field("thumbnail", kinds.VARCHAR, max_length=MAX_STORED_BYTES)
        schema.add_field("vector", kinds.FLOAT_VECTOR, dim=size)
        indices = self._client.prepare_index_params()
        indices.add_index("vector", index_type="AUTOINDEX", metric_type="L2")
        self._client.create_collection(self._place.pictures, schema=schema, index_params=indices)


class MilvusEngine:
    """An :class:`~mmsearch_env.tools.corpus.corpus.Engine` on a Milvus server."""

    def __init__(self, place: MilvusPlace, stemmer: str, timeout_s: float = 10.0) -> None:
        """
        Args:
            place: where the corpus is.
            stemmer: as it was built with.
            timeout_s: for one search, in seconds.

        Raises:
            ConfigError: pymilvus is not installed, or the token at hand is for another server.
        """
        self._place, self._stemmer, self._timeout_s = place, stemmer, timeout_s
        milvus, token = _pymilvus(), _token(place)  # found missing now and not in the middle of an episode
        self._clients = PerLoop(lambda: milvus.AsyncMilvusClient(uri=place.uri, token=token, timeout=timeout_s))

    async def by_words(self, text: str, top_k: int, snippet_characters: int) -> list[Hit]:
        """BM25 over title and text."""
        words = " ".join(query_words(text))[:MAX_QUERY_CHARACTERS]
        if not words or top_k < 1:
            return []
        settings = {"metric_type": "BM25"}
        rows = await self._asked(self._place.collection, words, "words", top_k, ["url", "said"], settings)
        return [_text_hit(row, text, snippet_characters) for row in rows]

    async def by_vector(self, vector: np.ndarray, top_k: int) -> list[Hit]:
        """Nearest by Euclidean distance."""
        if top_k < 1:
            return []
        fields, settings = ["url", "title", "thumbnail"], {"metric_type": "L2"}
        rows = await self._asked(self._place.pictures, vector.tolist(), "vector", top_k, fields, settings)
        return [_picture_hit(row) for row in rows]

    async def page(self, url: str) -> Hit | None:
        """The document at an address."""
        condition = f"url == {json.dumps(url, ensure_ascii=False)}"
        async with _as_tool_error(self._place, self._timeout_s):
            rows = await self._clients.get().query(self._place.collection, filter=condition, output_fields=["said"])
        if not rows:
            return None
        title, _, text = str(rows[0]["said"]).partition("\n")
        return Hit(title, url, text)

    async def aclose(self) -> None:
        """Close the running loop's connection; may be called twice."""
        if (client := self._clients.pop()) is not None:
            await client.close()

    async def _asked(
        self, collection: str, query: Any, field: str, top_k: int, fields: list[str], settings: Mapping[str, str]
    ) -> list[Any]:
        async with _as_tool_error(self._place, self._timeout_s):
            found = await self._clients.get().search(
                collection, data=[query], anns_field=field, limit=top_k, output_fields=fields, search_params=settings
            )
            return list(found[0]) if len(found) else []


def _document_row(entry: Entry) -> dict[str, Any]:
    said = f"{entry.document.title}\n{entry.document.text}".encode()[:MAX_STORED_BYTES]
    return {"id": entry.id, "url": entry.document.url, "said": said.decode(errors="ignore")}


def _picture_row(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "url": entry.document.url,
        "title": entry.document.title,
        "thumbnail": base64.b64encode(entry.thumbnail).decode(),
        "vector": np.frombuffer(entry.vector, np.float32).tolist(),
    }


def _chunks(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    return (entries[start : start + _CHUNK_ROWS] for start in range(0, len(entries), _CHUNK_ROWS))


def _text_hit(row: Any, query: str, snippet_characters: int) -> Hit:
    title, _, text = str(row["entity"]["said"]).partition("\n")
    passage = text if len(text) <= snippet_characters else best_sentences(text, query, most=_SENTENCES)
    # BM25 is a similarity; servers report it as it is or, as a distance, with the sign turned.
    return Hit(title, str(row["entity"]["url"]), " ".join(passage[:snippet_characters].split()), abs(row["distance"]))


def _picture_hit(row: Any) -> Hit:
    kept = row["entity"]
    score = 1.0 / (1.0 + max(0.0, float(row["distance"])))
    return Hit(str(kept["title"]), str(kept["url"]), "", score, _decoded(str(kept["thumbnail"])))


@functools.lru_cache(maxsize=8192)
def _decoded(thumbnail: str) -> Image | None:
    try:
        return Image.from_bytes(base64.b64decode(thumbnail), name="stored thumbnail")
    except (ImageError, ValueError):  # whoever may write to the server may write anything
        return None


def _token(place: MilvusPlace) -> str:
    """The token for a server. Raises ConfigError where there is one that was not given for this server."""
    if not os.environ.get(TOKEN_VARIABLE):
        return ""
    if os.environ.get(SERVER_VARIABLE, "") != place.uri:
        raise ConfigError(
            f"milvus: expected {SERVER_VARIABLE} to name the server that {TOKEN_VARIABLE} is for, got "
            f"{os.environ.get(SERVER_VARIABLE, '')!r}; set it to {place.uri} if that server may have it"
        )
    if not may_travel_to(URL(place.uri)):
        raise ConfigError(f"milvus: expected https, since a token is sent, got {place.uri}; use https")
    secret: Secret = read_secret(variable=TOKEN_VARIABLE)
    return secret.reveal()


@contextlib.contextmanager
def _as_data_error(place: MilvusPlace) -> Iterator[None]:
    try:
        yield
    except _pymilvus().MilvusException as error:
        reason = _without_token(str(error))
        raise DataError(
            f"{place.uri}, {place.collection}: expected a Milvus server that writes, got {reason}"
        ) from None


@contextlib.asynccontextmanager
async def _as_tool_error(place: MilvusPlace, timeout_s: float) -> Any:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise ToolTimeout(f"milvus: expected a reply within {timeout_s:g} s, got none from {place.uri}") from None
    except _pymilvus().MilvusException as error:
        raise ToolUnavailable(f"milvus: expected a reply, got {_without_token(str(error))}") from None


def _without_token(text: str) -> str:
    token = os.environ.get(TOKEN_VARIABLE, "")
    short = " ".join(text.split())[:500]
    return short.replace(token, "***") if token else short


@functools.lru_cache(maxsize=1)
def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as error:
        raise ConfigError("milvus: expected pymilvus, got none; install mmsearch-env[milvus]") from error
    return pymilvus
