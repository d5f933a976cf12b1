"""What every text index shares: its words, its queries, and tantivy itself, which only this file imports.

BM25: Robertson & Zaragoza, *The Probabilistic Relevance Framework*, 2009, equation 3.15, with k1 = 1.2 and b = 0.75.
Queries are never parsed: a model may write anything, so each word becomes one term of an OR query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmsearch_env.tools.local.store import copied_aside

MAX_QUERY_WORDS = 32
"""Further words of a query are ignored."""
MAX_QUERY_CHARACTERS = 2000
"""Further characters of a query are ignored."""
ANALYZER = "mmsearch_words"
"""The name under which an index knows its analyzer."""
STOP_WORDS = frozenset(
    ("a", "an", "and", "are", "at", "by", "called", "do", "does", "for", "from", "has", "have", "how", "in", "is", "it")
    + ("its", "name", "named", "of", "on", "or", "that", "the", "there", "this", "to", "use", "used", "was", "what")
    + ("when", "where", "which", "who", "whose", "with")
)
"""English words that say nothing about what is wanted."""
_LONGEST_WORD = 40
STEMMERS = (
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian",
    "norwegian", "portuguese", "romanian", "russian", "spanish", "swedish", "tamil", "turkish",
)  # fmt: skip
"""Languages whose words may lose their endings."""


@lru_cache(maxsize=1)
def tantivy() -> Any:
    """The engine; imported late, since it costs more than the rest of the environment."""
    import tantivy

    return tantivy


@lru_cache(maxsize=8)
def analyzer(stemmer: str = "") -> Any:
    """Words in lower case, without accents.

    Args:
        stemmer: language by whose rules words lose their endings, as tantivy names it; "" for none.

    Raises:
        ValueError: unknown language.
    """
    engine = tantivy()
    builder = engine.TextAnalyzerBuilder(engine.Tokenizer.simple())
    steps = [engine.Filter.remove_long(_LONGEST_WORD), engine.Filter.lowercase(), engine.Filter.ascii_fold()]
    for step in [*steps, *([engine.Filter.stemmer(stemmer)] if stemmer else [])]:
        builder = builder.filter(step)
    return builder.build()


def query_words(text: str, stemmer: str = "") -> list[str]:
    """Words of a query without stop words (unless there are no others), each once."""
    valid = text[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode()
    every = list(dict.fromkeys(analyzer().analyze(valid)))
    telling = [word for word in every if word not in STOP_WORDS] or every
    if stemmer:
        telling = list(dict.fromkeys(stem for word in telling for stem in analyzer(stemmer).analyze(word)))
    return telling[:MAX_QUERY_WORDS]


@contextmanager
def damage_told() -> Iterator[None]:
    """Whatever the engine says of damaged files, as a ValueError: it may panic, and a panic is no Exception."""
    try:
        yield
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as panic:
        raise ValueError(f"the files of the index are damaged ({str(panic)[:200]})") from panic


def union(schema: Any, clauses: Iterable[tuple[str, Sequence[str], float]]) -> Any:
    """A query that adds up what its clauses score.

    Args:
        schema: of the index.
        clauses: a field, the forms of a word of which the best counts, and a factor.
    """
    engine = tantivy()
    parts = []
    for field, forms, boost in clauses:
        terms = [engine.Query.term_query(schema, field, form) for form in forms]
        part = terms[0] if len(terms) == 1 else engine.Query.disjunction_max_query(terms)
        parts.append((engine.Occur.Should, part if boost == 1.0 else engine.Query.boost_query(part, boost)))
    return engine.Query.boolean_query(parts)


def opened(place: Path, stemmer: str = "") -> Any:
    """The index in a folder. Raises ValueError when there is none or it is damaged."""
    engine = tantivy()
    try:
        index = engine.Index.open(str(place))
    except ValueError:  # tantivy locks an index even to read it; where it may not write, it gets a copy
        if not (place / "meta.json").is_file():
            raise
        index = engine.Index.open(str(copied_aside(place)))
    index.register_tokenizer(ANALYZER, analyzer(stemmer))
    return index
