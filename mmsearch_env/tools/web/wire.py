"""How searches travel between a search server and its clients: JSON, pictures as base64."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from mmsearch_env.errors import ImageError
from mmsearch_env.images import Image, clean_bbox
from mmsearch_env.tools.search_tool import Hit, ImageQuery, PageQuery, Query, SearchResult, TextQuery
from mmsearch_env.tools.web.query_parts import as_jpeg

THUMBNAIL_BYTES = 200_000
MAX_TEXT = 2000
"""Longest text of a request, in characters; a client cuts what is longer."""
MAX_ID = 500
"""Longest id of a question in a request, in characters."""


def query_to_json(query: Query) -> dict[str, Any]:
    """A query as the body of a request."""
    about = {"question_id": query.question_id[:MAX_ID], "question_text": query.question_text[:MAX_TEXT]}
    if isinstance(query, TextQuery):
        return {"text": query.text[:MAX_TEXT], **about}
    if isinstance(query, PageQuery):
        return {"url": query.url[:MAX_TEXT], **about}
    picture = base64.b64encode(query.image.to_png()).decode()
    return {"image": picture, "bbox": list(query.bbox), **about}


def text_query(body: Mapping[str, Any]) -> TextQuery:
    """The query in the body of a request, which has been checked against the schema."""
    return TextQuery(body["text"], body.get("question_id", ""), body.get("question_text", ""))


def page_query(body: Mapping[str, Any]) -> PageQuery:
    """The query in the body of a request, which has been checked against the schema."""
    return PageQuery(body["url"], body.get("question_id", ""), body.get("question_text", ""))


def image_query(body: Mapping[str, Any]) -> ImageQuery:
    """The query in the body of a request, which has been checked against the schema. Raises ImageError."""
    try:
        data = base64.b64decode(body["image"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("expected a picture in base64, got something else; encode it") from error
    box = clean_bbox(body.get("bbox", (0.0, 0.0, 1.0, 1.0)))
    return ImageQuery(Image.from_bytes(data), box, body.get("question_id", ""), body.get("question_text", ""))


def result_to_json(result: SearchResult) -> dict[str, Any]:
    """Hits as the body of a reply."""
    return {"hits": [_hit_to_json(hit) for hit in result.hits]}


def result_from_json(body: Mapping[str, Any]) -> SearchResult:
    """Hits in the body of a reply. Raises KeyError, TypeError, ValueError, ImageError for what is none."""
    return SearchResult(tuple(_hit_from_json(item) for item in body["hits"]))


def _hit_to_json(hit: Hit) -> dict[str, Any]:
    picture = None if hit.thumbnail is None else base64.b64encode(_encoded(hit.thumbnail)).decode()
    return {"title": hit.title, "url": hit.url, "snippet": hit.snippet, "score": hit.score, "thumbnail": picture}


def _encoded(thumbnail: Image) -> bytes:
    """Pixel by pixel where that is small, so that a client sees what the tool gave."""
    exact = thumbnail.to_png()
    return exact if len(exact) <= THUMBNAIL_BYTES else as_jpeg(thumbnail, most_bytes=THUMBNAIL_BYTES)


def _hit_from_json(item: Mapping[str, Any]) -> Hit:
    picture = item.get("thumbnail")
    thumbnail = None if picture is None else Image.from_bytes(base64.b64decode(picture, validate=True))
    return Hit(str(item["title"]), str(item["url"]), str(item["snippet"]), float(item["score"]), thumbnail)
