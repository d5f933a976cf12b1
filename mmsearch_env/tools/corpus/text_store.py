"""The words of a corpus: BM25 over stored documents, kept up to date in place.

What takes part in a query is a plain union of terms of two fields, so that the engine may pass over documents that
cannot be among the best (block-max WAND: Ding & Suel, *Faster Top-k Document Retrieval Using Block-Max Indexes*, 2011).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from mmsearch_env.errors import ConfigError, DataError
from mmsearch_env.tools.corpus.documents import Document
from mmsearch_env.tools.local import bm25
from mmsearch_env.tools.search_tool import Hit

TITLE_BOOST = 1.5
"""How much more a word counts in a title than in the text."""
_FOLDER = "text"
_HEAP_BYTES = 96_000_000
"""Memory of each indexing thread before it writes a segment."""


class TextStore:
    """The text index of a corpus as it was when it was opened."""

    def __init__(self, folder: Path, stemmer: str) -> None:
        """Open it.

        Args:
            folder: of the corpus.
            stemmer: as it was built with.

        Raises:
            DataError: there is none, or it is damaged.
        """
        try:
            with bm25.damage_told():
                self._index = bm25.opened(folder / _FOLDER, stemmer)
                self._searcher = self._index.searcher()
        except (ValueError, OSError) as error:
            raise DataError(f"{folder}: expected a text index, got {error}; build the corpus anew") from error
        self._schema = self._index.schema
        self._stemmer = stemmer

    def __len__(self) -> int:
        return int(self._searcher.num_docs)

    def search(self, text: str, top_k: int, snippet_characters: int) -> list[Hit]:
        """The documents that fit the words best, with the passage of each that does."""
        words = bm25.query_words(text, self._stemmer)
        if not words or top_k < 1:
            return []
        with bm25.damage_told():
            return self._found(words, top_k, snippet_characters)

    def _found(self, words: list[str], top_k: int, snippet_characters: int) -> list[Hit]:
        fields = (("text", 1.0), ("title", TITLE_BOOST))
        query = bm25.union(self._schema, ((field, (word,), boost) for word in words for field, boost in fields))
        found = self._searcher.search(query, top_k, count=False).hits
        documents = [(score, self._searcher.doc(address)) for score, address in found]
        passages = _Passages(self._searcher, self._schema, query, snippet_characters)
        return [
            Hit(_only(document, "title"), _only(document, "url"), passages.best(document), float(score))
            for score, document in documents
        ]

    def page(self, url: str) -> Document | None:
        """The document at an address; None if there is none."""
        query = bm25.tantivy().Query.term_query(self._schema, "url", url)
        with bm25.damage_told():
            found = self._searcher.search(query, 1, count=False).hits
            if not found:
                return None
            document = self._searcher.doc(found[0][1])
        return Document(url, _only(document, "title"), _only(document, "text"))


class _Passages:
    """The passages of documents that fit a query best."""

    def __init__(self, searcher: Any, schema: Any, query: Any, characters: int) -> None:
        self._made_of = (searcher, query, schema, "text")
        self._characters = characters

    @cached_property
    def _generator(self) -> Any:
        generator = bm25.tantivy().SnippetGenerator.create(*self._made_of)
        generator.set_max_num_chars(self._characters)
        return generator

    def best(self, document: Any) -> str:
        """A short text whole; of a longer one the passage with the query's words, or how it begins if it has none."""
        text = passage = _only(document, "text")
        if len(text) > self._characters:
            passage = self._generator.snippet_from_doc(document).fragment() or text[: self._characters]
        return " ".join(passage.split())


class TextWriter:
    """Writes the text index of a corpus; one at a time may be open."""

    def __init__(self, folder: Path, stemmer: str, threads: int) -> None:
        """Open the index, made if need be.

        Raises:
            ConfigError: unknown stemmer.
            DataError: the index is damaged, or the folder cannot be written.
        """
        if stemmer and stemmer not in bm25.STEMMERS:
            raise ConfigError(f"stemmer: expected one of {', '.join(bm25.STEMMERS)}, or none, got {stemmer!r}")
        engine, analyzer = bm25.tantivy(), bm25.analyzer(stemmer)
        place = folder / _FOLDER
        try:
            place.mkdir(parents=True, exist_ok=True)
            index = engine.Index(_schema(), path=str(place), reuse=True)
            index.register_tokenizer(bm25.ANALYZER, analyzer)
            self._writer = index.writer(heap_size=_HEAP_BYTES * threads, num_threads=threads)
        except (ValueError, OSError) as error:
            raise DataError(f"{place}: expected a text index that can be written, got {error}; mend it") from error
        self._engine, self._index, self._schema = engine, index, index.schema

    def add(self, number: int, document: Document) -> None:
        """Add a document that is not there. Raises DataError when the index cannot be written any more."""
        entry = self._engine.Document()
        entry.add_integer("row", number)
        entry.add_text("url", document.url)
        entry.add_text("title", document.title)
        entry.add_text("text", document.text)
        with _written():
            self._writer.add_document(entry)

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove documents, as far as they are there. Raises DataError as well."""
        with _written():
            for number in numbers:
                self._writer.delete_documents_by_term("row", number)

    def take_back(self, last: int) -> int:
        """Remove every document with a greater number than ``last``. Returns how many are left."""
        kind = self._engine.FieldType.Integer
        beyond = self._engine.Query.range_query(
            self._schema, "row", kind, last, 2**62, include_lower=False, include_upper=True
        )
        self._writer.delete_documents_by_query(beyond)
        self.commit()
        self._index.reload()
        return int(self._index.searcher().num_docs)

    def commit(self) -> None:
        """Make durable what was added and removed. Raises DataError when the disk is full."""
        with _written():
            self._writer.commit()

    def close(self) -> None:
        """End the writing; what was not committed is dropped."""
        with contextlib.suppress(ValueError, RuntimeError):
            self._writer.wait_merging_threads()


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise DataError(f"text index: expected room to write, got {error}; make room and run it again") from error


def _schema() -> Any:
    builder = bm25.tantivy().SchemaBuilder()
    builder.add_integer_field("row", stored=True, indexed=True)
    builder.add_text_field("url", stored=True, tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", stored=True, tokenizer_name=bm25.ANALYZER)
    builder.add_text_field("text", stored=True, tokenizer_name=bm25.ANALYZER)
    return builder.build()


def _only(document: Any, field: str) -> str:
    return str(document.get_first(field) or "")
