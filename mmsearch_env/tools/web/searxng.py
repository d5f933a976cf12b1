"""SearXNG, a metasearch server one runs oneself: words, and pictures by public URL through its TinEye engine.

``GET /search?format=json``. JSON has to be switched on in the server's settings (``search.formats``), else it answers
403. No result while ``unresponsive_engines`` names some is a failure, not an empty result.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Reply, ServiceLimits
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import Dialogue, Row, endpoint, lines, link, status_error, text, title
from mmsearch_env.tools.web.query_parts import PublicPicture, words


@dataclass(frozen=True, slots=True)
class SearxngSearch:
    """The results for words of the engines a server asks.

    Attributes:
        base_url: where the server is.
        language: as the server names it, e.g. ``"en"``.
        engines: which of its engines to ask, comma separated; "" for its usual ones.
        limits: how it may be used.
    """

    base_url: str
    language: str = "en"
    engines: str = ""
    limits: ServiceLimits = ServiceLimits()
    name: str = "searxng"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        parameters = {"q": words(query), "format": "json", "categories": "general", "language": self.language}
        if self.engines:
            parameters["engines"] = self.engines
        reply = yield Call("GET", endpoint(self.base_url, "/search", with_key=False), parameters=parameters)
        rows = [
            Row(title(line, "title"), url, text(line, "content"))
            for line in lines(reply.data, "results")
            if (url := link(line, "url"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


@dataclass(frozen=True, slots=True)
class SearxngImages:
    """Pages that show a picture, by the server's reverse image search.

    Attributes:
        base_url: where the server is.
        picture: gives a picture a public URL.
        engines: which of its engines search by a picture's URL.
        limits: how it may be used.
    """

    base_url: str
    picture: PublicPicture
    engines: str = "tineye"
    limits: ServiceLimits = ServiceLimits()
    name: str = "searxng_images"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        parameters = {"q": self.picture(query), "format": "json", "engines": self.engines}
        reply = yield Call("GET", endpoint(self.base_url, "/search", with_key=False), parameters=parameters)
        rows = [
            Row(title(line, "title"), url, thumbnail_url=link(line, "thumbnail_src", "thumbnail", "img_src"))
            for line in lines(reply.data, "results")
            if (url := link(line, "url"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


def _judge(reply: Reply) -> ServiceError | None:
    if reply.status == 403:
        return ServiceError("expected JSON to be switched on (search.formats), got 403", code=ServiceCode.AUTH)
    if (error := status_error(reply)) is not None:
        return error
    found = reply.data
    if not lines(found, "results") and found.get("unresponsive_engines"):
        return ServiceError("expected engines that answer, got none", code=ServiceCode.PROVIDER_FAILED)
    return None
