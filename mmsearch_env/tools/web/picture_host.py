"""Pictures at public addresses, for services that take nothing else.

A picture is written into a folder and gets a signed address that expires. The search server shows the folder at
``/pictures/`` (``serve --pictures FOLDER``); a proxy in front of it, reachable from outside, need pass on nothing but
that path. Nobody can list the folder, guess an address, or keep one alive.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from mmsearch_env.errors import ConfigError, ToolUnavailable
from mmsearch_env.net.secret import Secret
from mmsearch_env.tools.search_tool import Query
from mmsearch_env.tools.web.query_parts import as_jpeg, picture

PATH = "/pictures"
MOST_BYTES = 500_000
"""Largest picture that is shown, in bytes."""
_SHORTEST_SECRET = 16
_NAME = re.compile(r"[0-9a-f]{32}\.jpg")


@dataclass(frozen=True, slots=True)
class PictureHost:
    """Gives pictures addresses, and looks behind those it gave.

    Attributes:
        folder: where the pictures are; shared by whoever publishes and whoever serves.
        secret: signs addresses; the same on both sides.
        public_url: where the world reaches the server, such as ``https://pictures.example``; for who publishes.
        lives_s: seconds for which an address works.
    """

    folder: Path
    secret: Secret
    public_url: str = ""
    lives_s: float = 900.0

    def __post_init__(self) -> None:
        """Raises ConfigError: the secret is so short that it could be guessed from the signatures."""
        if (length := len(self.secret.reveal())) < _SHORTEST_SECRET:
            wanted = f"at least {_SHORTEST_SECRET} characters, so that nobody guesses it, got {length}"
            raise ConfigError(f"picture_host, {self.secret.name}: expected {wanted}; take a long random text")

    def __call__(self, query: Query) -> str:
        """The address of a query's picture, cut to its box. Raises ToolUnavailable when it cannot be written."""
        body = as_jpeg(picture(query), most_bytes=MOST_BYTES)
        name = f"{hashlib.sha256(body).hexdigest()[:32]}.jpg"
        try:
            self._write(name, body)
            self._sweep()
        except OSError as error:
            raise ToolUnavailable(f"picture host: expected room in {self.folder}, got {error.strerror}") from error
        # In steps of half a life, so that the same picture keeps its address for a while.
        step = self.lives_s / 2.0
        until = int((time.time() // step + 2) * step)
        return str(
            URL(self.public_url.rstrip("/") + f"{PATH}/{name}").with_query(
                until=str(until), signature=self._signature(name, until)
            )
        )

    def opened(self, name: str, until: str, signature: str) -> bytes | None:
        """The picture at an address; None if the address is not one of ours, or not any more."""
        if not _NAME.fullmatch(name) or not until.isascii() or not until.isdigit() or len(until) > 12:
            return None
        genuine = hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(name, int(until)).encode())
        if not genuine or int(until) < time.time():
            return None
        with contextlib.suppress(OSError):
            return (self.folder / name).read_bytes()
        return None

    def _signature(self, name: str, until: int) -> str:
        return hmac.new(self.secret.reveal().encode(), f"{name}:{until}".encode(), "sha256").hexdigest()

    def _write(self, name: str, body: bytes) -> None:
        place = self.folder / name
        if place.exists():
            os.utime(place)
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        number, half = tempfile.mkstemp(dir=self.folder, prefix=".")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(body)
            Path(half).replace(place)
        except OSError:
            Path(half).unlink(missing_ok=True)
            raise

    def _sweep(self) -> None:
        """Remove pictures whose addresses have all expired."""
        oldest = time.time() - 2.0 * self.lives_s
        for place in self.folder.glob("*.jpg"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if place.stat().st_mtime < oldest:
                    place.unlink()


def checked_public_url(text: str) -> str:
    """The address itself. Raises ConfigError for one that no service could reach."""
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.user:
        raise ConfigError(
            f"picture_host, public_url: expected http(s)://host, got {text!r}; name where the world sees it"
        )
    return text
