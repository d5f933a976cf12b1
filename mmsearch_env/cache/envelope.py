"""How one cached answer is written: checked when it is read, never unpickled, never inflated beyond a limit.

    SHA-256 32 | magic 4 | codec 1 | length of the header 4 | header (JSON) | body

The hash is over the key and everything that follows it, so that a row which was damaged, cut off or moved to another
key counts as missing. It is no signature: whoever may write to the folder may write answers,
but only answers.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

MAX_BODY_BYTES = 16_000_000
"""Largest body after decompression."""
_MAGIC = b"MMS1"
_HASH_BYTES = 32
_FIXED = struct.Struct(">4sBI")
_HEADER_AT = _HASH_BYTES + _FIXED.size
_PLAIN, _DEFLATED = 0, 1
_WORTH_DEFLATING = 4096
"""Bodies below this many bytes are kept as they are: reading them fast counts for more."""


class EnvelopeError(ValueError):
    """Some bytes are not an envelope made for this key."""


def pack(key: str, body: bytes, about: Mapping[str, Any]) -> bytes:
    """An envelope.

    Args:
        key: where it will lie.
        body: the answer.
        about: what was asked, JSON-able; kept for people and for exports.

    Raises:
        EnvelopeError: the body is too large to be read again.
    """
    if len(body) > MAX_BODY_BYTES:
        raise EnvelopeError(f"expected at most {MAX_BODY_BYTES} bytes, got {len(body)}; do not cache it")
    header = json.dumps(about, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    codec = _PLAIN
    if len(body) >= _WORTH_DEFLATING and len(deflated := zlib.compress(body, 6)) < 0.9 * len(body):
        codec, body = _DEFLATED, deflated
    content = _FIXED.pack(_MAGIC, codec, len(header)) + header + body
    return hashlib.sha256(key.encode() + content).digest() + content


def unpack(key: str, envelope: bytes) -> bytes:
    """The body. Raises EnvelopeError."""
    codec, body_at = _checked(key, envelope)
    body = envelope[body_at:]
    return body if codec == _PLAIN else _inflated(body)


def unpack_about(key: str, envelope: bytes) -> tuple[dict[str, Any], bytes]:
    """What was asked, and the body. Raises EnvelopeError."""
    _, body_at = _checked(key, envelope)
    try:
        about = json.loads(envelope[_HEADER_AT:body_at])
    except ValueError as error:
        raise EnvelopeError("expected JSON as header, got something else") from error
    if not isinstance(about, dict):
        raise EnvelopeError(f"expected a JSON object as header, got {type(about).__name__}")
    return about, unpack(key, envelope)


def _checked(key: str, envelope: bytes) -> tuple[int, int]:
    """The codec, and where the body begins."""
    if hashlib.sha256(key.encode() + envelope[_HASH_BYTES:]).digest() != envelope[:_HASH_BYTES]:
        raise EnvelopeError("expected the content that was written, got another")
    if len(envelope) < _HEADER_AT:
        raise EnvelopeError("expected an envelope, got fewer bytes than its beginning has")
    magic, codec, header_bytes = _FIXED.unpack_from(envelope, _HASH_BYTES)
    if magic != _MAGIC or codec not in (_PLAIN, _DEFLATED) or _HEADER_AT + header_bytes > len(envelope):
        raise EnvelopeError("expected an envelope of this version, got something else")
    return codec, _HEADER_AT + header_bytes


def _inflated(body: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise EnvelopeError("expected a compressed body, got something else") from error
    if stream.unconsumed_tail or not stream.eof:
        raise EnvelopeError(f"expected a body of at most {MAX_BODY_BYTES} bytes, got more, or one cut off")
    return inflated
