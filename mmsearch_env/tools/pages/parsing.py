"""From an HTML page to what a person can read of it, in processes of their own: a hostile page can take for ever."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from typing import Any

from mmsearch_env.errors import DataError

MAX_PAGE_CHARACTERS = 30_000
"""Characters of a page that are kept (arXiv 2506.20670, appendix on the text search tool)."""


@dataclass(frozen=True, slots=True)
class PageText:
    """What a page says.

    Attributes:
        title: of the page; "" if it has none.
        text: without navigation, scripts and what a person would not see; at most :data:`MAX_PAGE_CHARACTERS`.
    """

    title: str
    text: str


class ParsersGoneError(Exception):
    """The processes were ended, by this page or by another one."""


class PageParsers:
    """Processes that parse pages, until they are ended."""

    def __init__(self, processes: int) -> None:
        """Raises ImportError without the extra ``web``."""
        import loky
        import lxml  # noqa: F401  told here and not for every page
        import trafilatura  # noqa: F401

        # loky and not multiprocessing: the processes do not run the caller's script again.
        self._pool = loky.ProcessPoolExecutor(processes)

    def submit(self, markup: str) -> Future[PageText]:
        """Have a page parsed. In the end the future raises DataError for a page that cannot be, or ParsersGoneError."""
        told: Future[PageText] = Future()
        told.set_running_or_notify_cancel()
        try:
            self._pool.submit(text_of_page, markup).add_done_callback(lambda done: _tell(done, told))
        except RuntimeError as error:  # ended a moment ago
            told.set_exception(ParsersGoneError(str(error)))
        return told

    def end(self) -> None:
        """End the processes, also one that is stuck in a page; may be called twice."""
        self._pool.shutdown(wait=False, kill_workers=True)


def _tell(done: Future[PageText], told: Future[PageText]) -> None:
    from loky.process_executor import ShutdownExecutorError

    error = None if done.cancelled() else done.exception()
    if done.cancelled() or isinstance(error, (BrokenExecutor, ShutdownExecutorError)):
        told.set_exception(ParsersGoneError("the processes that parse pages were ended"))
    elif error is not None:  # a page can make the parser raise anything
        told.set_exception(DataError(f"expected a page that can be parsed, got {type(error).__name__}"))
    else:
        told.set_result(done.result())


def text_of_page(markup: str) -> PageText:
    """The title and the readable text of an HTML page. What a person would not see is left out."""
    import lxml.html
    import trafilatura

    from mmsearch_env.tools.pages.visibility import drop_hidden

    try:
        parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, no_network=True)
        tree: Any = lxml.html.document_fromstring(markup.encode("utf-8", "replace"), parser=parser)
    except lxml.etree.ParserError:  # nothing in it
        return PageText("", "")
    drop_hidden(tree)
    text = trafilatura.extract(tree, include_comments=False, include_tables=True, favor_recall=True) or ""
    heading = " ".join((tree.findtext(".//title") or "").split())
    return PageText(heading[:300], text.strip()[:MAX_PAGE_CHARACTERS])
