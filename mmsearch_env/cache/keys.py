"""The key of an answer: the same question gives the same key, in every process and version of Python."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from typing import Any

_SCHEMA = 1
"""Raised when what a key is made of changes."""


def canonical_key(kind: str, request: Any) -> str:
    """SHA-256 of a kind of answer and what was asked, in hexadecimal.

    Args:
        kind: what kind of answer it is.
        request: JSON-able; the order of its keys does not matter. It must not hold keys of services.
    """
    text = json.dumps([_SCHEMA, kind, request], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_text(text: str) -> str:
    """Words as they are compared: one form of each character, one blank between two words."""
    return " ".join(unicodedata.normalize("NFC", text).split())
