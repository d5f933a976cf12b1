"""SerpApi: Google search and Google Lens.

``GET https://serpapi.com/search.json`` with the key in the query string. A local picture is uploaded first
(``POST /image``), which gives an ``image_id``. Nothing found is answered with 200 and an ``error`` text while the
search's status is ``Success``; a search that failed, with 200, an ``error`` text and another status. 429 stands for
both the hourly rate and an exhausted plan, told apart by the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Key, Reply, ServiceLimits, Upload
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import Dialogue, Row, endpoint, lines, link, status_error, text, title
from mmsearch_env.tools.web.query_parts import as_jpeg, picture, words

BASE_URL = "https://serpapi.com"
MAX_UPLOAD_BYTES = 500 * 1024
"""What clients observe; there is no official number."""
_PRICE_USD = 0.015


@dataclass(frozen=True, slots=True)
class SerpApiGoogle:
    """Google's results for words.

    Attributes:
        secret: the key.
        base_url: where the service is.
        country: two letters, e.g. ``"us"``.
        language: two letters, e.g. ``"en"``.
        limits: how it may be used.
    """

    secret: Secret
    base_url: str = BASE_URL
    country: str = "us"
    language: str = "en"
    limits: ServiceLimits = ServiceLimits()
    name: str = "serpapi"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        parameters = {"engine": "google", "q": words(query), "gl": self.country, "hl": self.language}
        reply = yield _search(self, parameters)
        rows = [
            Row(title(line, "title"), url, text(line, "snippet"))
            for line in lines(reply.data, "organic_results")
            if (url := link(line, "link"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


@dataclass(frozen=True, slots=True)
class SerpApiLens:
    """Pages that show a picture, by Google Lens. Every picture is uploaded, so crops and local files can be asked for.

    Attributes:
        secret, base_url, country, language, limits: as in :class:`SerpApiGoogle`.
        max_upload_bytes: largest upload the service takes.
    """

    secret: Secret
    base_url: str = BASE_URL
    country: str = "us"
    language: str = "en"
    limits: ServiceLimits = ServiceLimits()
    max_upload_bytes: int = MAX_UPLOAD_BYTES
    name: str = "serpapi_lens"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """Two calls: the upload and the search."""
        jpeg = as_jpeg(picture(query), most_bytes=self.max_upload_bytes)
        uploaded = yield Call(
            "POST",
            endpoint(self.base_url, "/image", with_key=True),
            upload=Upload("image", jpeg, "image/jpeg"),
            key=Key(self.secret, "form", "api_key"),
        )
        image_id = uploaded.data.get("image_id")
        if not isinstance(image_id, str) or not image_id:
            raise ServiceError("expected an image_id for the upload, got none", code=ServiceCode.PROVIDER_FAILED)
        parameters = {"engine": "google_lens", "image_id": image_id, "type": "visual_matches"}
        reply = yield _search(self, parameters | {"country": self.country, "hl": self.language})
        rows = [
            Row(title(line, "title"), url, thumbnail_url=link(line, "thumbnail", "image"))
            for line in lines(reply.data, "visual_matches")
            if (url := link(line, "link"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


def _search(engine: SerpApiGoogle | SerpApiLens, parameters: Mapping[str, str]) -> Call:
    url = endpoint(engine.base_url, "/search.json", with_key=True)
    key = Key(engine.secret, "parameter", "api_key")
    return Call("GET", url, parameters=parameters, key=key, price_usd=_PRICE_USD)


def _judge(reply: Reply) -> ServiceError | None:
    error = status_error(reply)
    if error is not None:
        told = reply.body[:2000].lower()
        if reply.status == 429 and (b"run out of searches" in told or b"out of searches" in told):
            return ServiceError("expected searches left in the plan, got none", code=ServiceCode.QUOTA_EXHAUSTED)
        return error
    found = reply.data
    if "error" not in found:
        return None
    metadata = found.get("search_metadata")
    if isinstance(metadata, Mapping) and metadata.get("status") == "Success":
        return None  # nothing was found
    return ServiceError("expected a search that succeeded, got one that failed", code=ServiceCode.TARGET_FAILED)
