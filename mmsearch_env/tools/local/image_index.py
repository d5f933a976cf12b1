"""Image search over a world's pictures: exact nearest neighbours among memory-mapped descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mmsearch_env.errors import ToolUnavailable
from mmsearch_env.images import FULL_FRAME, Image
from mmsearch_env.tools.local.descriptors import Vector, descriptor, metric_digest
from mmsearch_env.tools.local.store import built_once
from mmsearch_env.tools.search_tool import Hit, ImageQuery, Query, SearchResult
from mmsearch_env.worlds.entities import Drawing
from mmsearch_env.worlds.pictures import DRAWN_HEIGHT_PX, disturbed
from mmsearch_env.worlds.world import Page, pages_digest

THUMBNAIL_PX = (84, 56)
"""Largest width and height of a thumbnail."""
_VERSION = 3
_DECIMALS = 5
"""Distances that differ by less are equal, and the earlier page comes first: no ranking hangs on rounding."""
_FILE = "descriptors.npy"
_VIEWS = 2
_KEPT_RESULTS = 4096


class LocalImageSearch:
    """A :class:`~mmsearch_env.tools.search_tool.SearchTool` over the pages that have a picture.

    A page is indexed by the mean descriptor of its clean picture and a few disturbed views of it.
    """

    name = "local image search"

    def __init__(self, pages: Sequence[Page], cache_dir: Path | None = None) -> None:
        """Open the index of the pictures on ``pages``, building it first if the cache has none.

        Args:
            pages: what can be found; those without a picture are passed over.
            cache_dir: the cache folder; the user's by default.
        """
        self._pages = [page for page in pages if page.picture is not None]
        name = f"image-v{_VERSION}-{metric_digest()[:8]}-{pages_digest(self._pages)[:24]}"
        place = built_once(name, self._build, cache_dir)
        self._vectors: Vector = np.load(place / _FILE, mmap_mode="r", allow_pickle=False)
        self._squares: Vector = np.square(self._vectors).sum(axis=1)

    async def search(self, query: Query, *, top_k: int = 3) -> SearchResult:
        """Pages whose picture looks like the query's, or like the part of it inside its box.

        Raises:
            ToolUnavailable: the query is words.
        """
        return self.search_many([query], top_k=top_k)[0]

    def search_many(self, queries: Sequence[Query], *, top_k: int = 3) -> list[SearchResult]:
        """The results of several queries, in order.

        Each has a product of its own: one matrix product for all would round otherwise than a single search does.
        """
        return [self._result(query, top_k) for query in queries]

    async def aclose(self) -> None:
        """Nothing to free: the index is shared and memory-mapped."""

    def _image(self, query: Query) -> Image:
        if not isinstance(query, ImageQuery):
            raise ToolUnavailable(f"{self.name}: expected a picture, got {type(query).__name__}; use text search")
        return query.image if query.bbox == FULL_FRAME else query.image.crop(query.bbox)

    def _result(self, query: Query, top_k: int) -> SearchResult:
        look = _look(self._image(query))
        if not self._pages or top_k < 1:
            return SearchResult(())
        gaps = (self._squares - 2.0 * (self._vectors @ look) + look @ look).round(_DECIMALS)
        nearest = np.argsort(gaps, kind="stable")[:top_k]
        return SearchResult(tuple(self._hit(int(row), float(gaps[row])) for row in nearest))

    def _hit(self, row: int, gap: float) -> Hit:
        page = self._pages[row]
        assert page.picture is not None
        return Hit(page.title, page.url, "", 1.0 / (1.0 + max(0.0, gap)), thumbnail(page.picture))

    def _build(self, folder: Path) -> None:
        vectors = [_indexed(page.picture) for page in self._pages if page.picture is not None]
        matrix = np.stack(vectors) if vectors else np.empty((0, 1))
        np.save(folder / _FILE, matrix.astype(np.float32), allow_pickle=False)


@lru_cache(maxsize=_KEPT_RESULTS)
def thumbnail(picture: Drawing) -> Image:
    """The picture inside :data:`THUMBNAIL_PX`, in its own proportions."""
    clean = picture.draw(DRAWN_HEIGHT_PX)
    scale = min(THUMBNAIL_PX[0] / clean.width, THUMBNAIL_PX[1] / clean.height)
    return clean.resized(max(1, round(clean.width * scale)), max(1, round(clean.height * scale)))


@lru_cache(maxsize=_KEPT_RESULTS)
def _look(image: Image) -> Vector:
    return descriptor(image)


def _indexed(picture: Drawing) -> Vector:
    views = [disturbed(picture, f"index/{view}") for view in range(_VIEWS)]
    mean: Vector = np.mean([descriptor(view) for view in (picture.draw(DRAWN_HEIGHT_PX), *views)], axis=0)
    return mean
