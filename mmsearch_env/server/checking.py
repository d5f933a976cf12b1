"""Checking requests against the document: the only file that knows jsonschema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import jsonschema

from mmsearch_env.server.openapi import BODIES, SCHEMAS

_MOST_FAULTS = 20
"""Looked at before the one that is told is chosen: a small body may have a million."""


class BadRequest(ValueError):
    """A body is none that the document describes."""


class BodyChecker:
    """Checks what is posted to a path."""

    def __init__(self) -> None:
        # Following a reference takes as long as checking what it refers to.
        self._validators = {path: jsonschema.Draft202012Validator(_whole(schema)) for path, schema in BODIES.items()}

    def checked(self, path: str, raw: bytes) -> Mapping[str, Any]:
        """The body as JSON. Raises BadRequest, saying where it differs from the document."""
        try:
            body = json.loads(raw, parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            raise BadRequest("expected JSON, got something else") from error
        faults = islice(self._validators[path].iter_errors(body), _MOST_FAULTS)
        fault = jsonschema.exceptions.best_match(faults)
        if fault is not None:
            where = ".".join(map(str, fault.absolute_path)) or "body"
            raise BadRequest(f"{where}: {_shortened(fault.message)}; see /openapi.json")
        found: Mapping[str, Any] = body
        return found


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _shortened(text: str) -> str:
    """Messages quote the value, which may be large."""
    return text if len(text) <= 300 else f"{text[:140]} ... {text[-140:]}"


def _whole(schema: Any) -> Any:
    """A schema with what it refers to in the references' places."""
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            return _whole(SCHEMAS[schema["$ref"].rpartition("/")[2]])
        return {name: _whole(part) for name, part in schema.items()}
    return [_whole(part) for part in schema] if isinstance(schema, list) else schema
