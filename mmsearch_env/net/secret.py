"""Keys: read from the environment or a file, shown to nobody."""

from __future__ import annotations

import os
from pathlib import Path

from yarl import URL

from mmsearch_env.errors import ConfigError


def may_travel_to(address: URL) -> bool:
    """Whether a key may be sent there: encrypted, or within this machine."""
    return address.scheme == "https" or address.host in ("localhost", "127.0.0.1", "::1")


class Secret:
    """A text that appears neither in ``repr`` nor in ``str``, nor in a pickle, nor in JSON."""

    __slots__ = ("_value", "name")

    def __init__(self, value: str, *, name: str) -> None:
        """
        Args:
            value: the key itself.
            name: where it comes from; this is what is shown.

        Raises:
            ConfigError: it is empty or holds what cannot stand in an HTTP header.
        """
        if not value or not value.isascii() or not value.isprintable() or " " in value:
            raise ConfigError(f"{name}: expected a key of printable ASCII without blanks, got something else; mend it")
        self._value = value
        self.name = name

    def reveal(self) -> str:
        """The key itself, for the moment of sending."""
        return self._value

    def masked(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self._value, "***")

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError(f"{self!r} is never pickled; let the other process read it itself")


def read_secret(*, variable: str, file: str | None = None) -> Secret:
    """A key from ``file`` if one is named, else from the environment.

    Raises:
        ConfigError: there is none; the message says where it was looked for.
    """
    if file is not None:
        try:
            text = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text"
            raise ConfigError(f"key_file: expected a readable file with a key, got {file} ({reason})") from error
        return Secret(text, name=f"key in {file}")
    if not (value := os.environ.get(variable, "").strip()):
        raise ConfigError(f"expected a key in the environment variable {variable}, got none; export it or set key_file")
    return Secret(value, name=f"key in ${variable}")
