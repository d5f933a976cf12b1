"""Serper.dev: Google search and Google Lens.

``POST https://google.serper.dev/search`` and ``/lens`` with the key in the header ``X-API-KEY``. Lens takes only a
picture's public URL. A missing or wrong key is answered with 403; an empty account with 429 or 400, told apart from
other such answers by the message. There is no ``Retry-After``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmsearch_env.errors import ServiceCode, ServiceError
from mmsearch_env.net.client import Call, Key, Reply, ServiceLimits
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.engine import Dialogue, Row, endpoint, lines, link, status_error, text, title
from mmsearch_env.tools.web.query_parts import PublicPicture, words

BASE_URL = "https://google.serper.dev"
_CREDIT_USD = 0.001
_LENS_CREDITS = 3


@dataclass(frozen=True, slots=True)
class SerperSearch:
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
    name: str = "serper"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        body = {"q": words(query), "gl": self.country, "hl": self.language}
        reply = yield _call(self, "/search", body, credits=1)
        rows = [
            Row(title(line, "title"), url, text(line, "snippet"))
            for line in lines(reply.data, "organic")
            if (url := link(line, "link"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


@dataclass(frozen=True, slots=True)
class SerperLens:
    """Pages that show a picture, by Google Lens.

    Attributes:
        secret: the key.
        picture: gives a picture a public URL.
        base_url, country, language, limits: as in :class:`SerperSearch`.
    """

    secret: Secret
    picture: PublicPicture
    base_url: str = BASE_URL
    country: str = "us"
    language: str = "en"
    limits: ServiceLimits = ServiceLimits()
    name: str = "serper_lens"

    def ask(self, query: Query, top_k: int) -> Dialogue:
        """One call."""
        body = {"url": self.picture(query), "gl": self.country, "hl": self.language}
        reply = yield _call(self, "/lens", body, credits=_LENS_CREDITS)
        rows = [
            Row(title(line, "title"), url, thumbnail_url=link(line, "thumbnailUrl", "thumbnail", "imageUrl"))
            for line in lines(reply.data, "organic", "visual_matches", "visualMatches")
            if (url := link(line, "link"))
        ]
        return rows[:top_k]

    def judge(self, reply: Reply) -> ServiceError | None:
        """See the module."""
        return _judge(reply)


def _call(engine: SerperSearch | SerperLens, path: str, body: dict[str, str], *, credits: int) -> Call:
    key = Key(engine.secret, "header", "X-API-KEY")
    url = endpoint(engine.base_url, path, with_key=True)
    return Call("POST", url, body=body, key=key, price_usd=credits * _CREDIT_USD)


def _judge(reply: Reply) -> ServiceError | None:
    error = status_error(reply)
    if error is not None and reply.status in (400, 429) and b"credit" in reply.body[:2000].lower():
        return ServiceError(f"expected credits, got status {reply.status}: none left", code=ServiceCode.QUOTA_EXHAUSTED)
    return error
