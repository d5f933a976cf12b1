"""What the server understands, as an OpenAPI document. Requests are checked against it, so it cannot be wrong."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mmsearch_env.tools.web.wire import MAX_ID, MAX_TEXT

MAX_TOP_K = 50
MAX_BATCH = 64
MAX_PICTURE = 16_000_000

_ABOUT = {
    "question_id": {"type": "string", "maxLength": MAX_ID, "description": "for tools that know questions"},
    "question_text": {"type": "string", "maxLength": MAX_TEXT, "description": "for tools that summarise"},
}
_TOP_K = {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5}
_BOX = {
    "type": "array",
    "items": {"type": "number", "minimum": 0, "maximum": 1},
    "minItems": 4,
    "maxItems": 4,
    "description": "left, top, right, bottom of the part to search for, as fractions",
}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT_QUERY = _object({"text": {"type": "string", "maxLength": MAX_TEXT}, **_ABOUT}, "text")
IMAGE_QUERY = _object(
    {
        "image": {"type": "string", "maxLength": MAX_PICTURE, "contentEncoding": "base64"},
        "bbox": _BOX,
        **_ABOUT,
    },
    "image",
)
PAGE_QUERY = _object({"url": {"type": "string", "maxLength": MAX_TEXT}, **_ABOUT}, "url")
HIT = _object(
    {
        "title": {"type": "string"},
        "url": {"type": "string"},
        "snippet": {"type": "string"},
        "score": {"type": "number"},
        "thumbnail": {"type": ["string", "null"], "contentEncoding": "base64"},
    },
    *("title", "url", "snippet", "score", "thumbnail"),
)
RESULT = _object({"hits": {"type": "array", "items": HIT}}, "hits")
ERROR = _object(
    {
        "error": _object(
            {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "retry_after_s": {"type": ["number", "null"]},
            },
            *("code", "message", "retry_after_s"),
        )
    },
    "error",
)
RETRIEVE = _object(
    {
        "queries": {
            "type": "array",
            "items": {"type": "string", "maxLength": MAX_TEXT},
            "minItems": 1,
            "maxItems": MAX_BATCH,
        },
        "topk": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_TOP_K},
        "return_scores": {"type": "boolean", "default": False},
    },
    "queries",
)


def _single(query: str) -> dict[str, Any]:
    return _object({"query": {"$ref": f"#/components/schemas/{query}"}, "top_k": _TOP_K}, "query")


def _many(query: str) -> dict[str, Any]:
    queries = {
        "type": "array",
        "items": {"$ref": f"#/components/schemas/{query}"},
        "minItems": 1,
        "maxItems": MAX_BATCH,
    }
    return _object({"queries": queries, "top_k": _TOP_K}, "queries")


BODIES: dict[str, dict[str, Any]] = {
    "/v1/text_search": _single("TextQuery"),
    "/v1/text_searches": _many("TextQuery"),
    "/v1/image_search": _single("ImageQuery"),
    "/v1/image_searches": _many("ImageQuery"),
    "/v1/visit_page": _object({"query": {"$ref": "#/components/schemas/PageQuery"}, "top_k": _TOP_K}, "query"),
    "/retrieve": RETRIEVE,
}
"""Path -> schema of the body that is posted there."""
SCHEMAS = {
    "TextQuery": TEXT_QUERY,
    "ImageQuery": IMAGE_QUERY,
    "PageQuery": PAGE_QUERY,
    "Hit": HIT,
    "Result": RESULT,
    "Error": ERROR,
}

_SUMMARIES = {
    "/v1/text_search": "Pages about some words",
    "/v1/text_searches": "The same for several queries",
    "/v1/image_search": "Pages that show a picture",
    "/v1/image_searches": "The same for several pictures",
    "/v1/visit_page": "What one page says",
    "/retrieve": "The protocol of Search-R1's retrieval server",
}
_PASSAGES = {"type": "array", "items": {"type": "array", "items": {"type": "object"}}}
_REPLIES = {
    "/v1/text_search": RESULT,
    "/v1/image_search": RESULT,
    "/v1/visit_page": RESULT,
    "/v1/text_searches": _object({"results": {"type": "array", "items": {"anyOf": [RESULT, ERROR]}}}, "results"),
    "/v1/image_searches": _object({"results": {"type": "array", "items": {"anyOf": [RESULT, ERROR]}}}, "results"),
    "/retrieve": _object({"result": _PASSAGES}, "result"),
}
_ERRORS = {
    "400": "the request is none of this document's",
    "401": "no token, or a wrong one",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "too many searches at once",
    "502": "the search tool failed",
    "503": "the server is about to stop, or its budget is spent",
    "504": "the search tool took too long",
}


def document() -> dict[str, Any]:
    """The whole document (OpenAPI 3.1)."""
    told = {status: _response(text, {"$ref": "#/components/schemas/Error"}) for status, text in _ERRORS.items()}
    paths: dict[str, Any] = {
        path: {
            "post": {
                "operationId": path.strip("/").replace("/", "_"),
                "summary": _SUMMARIES[path],
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {"200": _response("what was found", _REPLIES[path]), **told},
            }
        }
        for path, body in BODIES.items()
    }
    paths["/healthz"] = {"get": {"operationId": "healthz", "responses": {"200": {"description": "it serves"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mmsearch-env search server", "version": version("mmsearch-env")},
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
