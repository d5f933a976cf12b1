"""Checking requests against the document: the only file that knows jsonschema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jsonschema

from mmsearch_env.server.openapi import BODIES, SCHEMAS


class BadRequest(ValueError):
    """A body is none that the document describes."""


class BodyChecker:
    """Checks what is posted to a path."""

    def __init__(self) -> None:
        components = {"components": {"schemas": SCHEMAS}}
        self._validators = {
            path: jsonschema.Draft202012Validator({**schema, **components}) for path, schema in BODIES.items()
        }

    def checked(self, path: str, raw: bytes) -> Mapping[str, Any]:
        """The body as JSON. Raises BadRequest, saying where it differs from the document."""
        try:
            body = json.loads(raw, parse_constant=_refused)
        except (ValueError, RecursionError) as error:
            raise BadRequest("expected JSON, got something else") from error
        fault = jsonschema.exceptions.best_match(self._validators[path].iter_errors(body))
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
