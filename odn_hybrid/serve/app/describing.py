"""The OpenAPI description: bodies, answers and every status, written where the code reads bodies itself."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from odn_hybrid.serve.app.schemas import INFER_BODY, OPTIONS, SCHEMAS
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["described", "infer", "plain", "predict"]

WHY = {
    400: "The request cannot be answered as it is: shape, type, lengths, options, an image that is none.",
    401: "The token is missing or wrong.",
    404: "No such model, version or path.",
    408: "The body did not arrive in time.",
    413: "Body, image or number of images above the limit.",
    415: "A content type or encoding that is not read here.",
    431: "The headers are above the limit.",
    500: "The server failed on this request.",
    503: "Not ready, stopping, or more work than can be done in time; see Retry-After.",
    504: "The deadline passed before the first exit was reached.",
}
REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:/+=@-]{1,128}$"},
    "description": "Comes back with the answer and stands in the logs; made up where it is missing.",
}
OCTETS = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FILES = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": {"type": "string", "format": "binary"}},
        }
    },
    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/jpeg", "image/png")},
    **OCTETS,
}


def plain(path: str, summary: str, schema: str, *, free: bool, extra: tuple[int, ...]) -> dict[str, Any]:
    """How a GET route without options is described; `free`: it needs no token."""
    statuses = (413, 431, 500, *extra) if free else (401, 413, 431, 500, *extra)
    described: dict[str, Any] = {"parameters": [*_in_path(path), REQUEST_ID]}
    if free:
        described["security"] = []
    return {
        "summary": summary,
        "responses": _answers(_json(schema), statuses),
        "openapi_extra": described,
        "response_model": None,
    }


def infer(path: str) -> dict[str, Any]:
    """How the infer routes are described."""
    header = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": (
            "How many bytes of the (unpacked) body are JSON; the rest is the input's binary data. "
            "Missing: all is JSON. 0: the body is nothing but a float32 tensor."
        ),
    }
    encoding = {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {"type": "string", "enum": ["identity", "gzip", "deflate"]},
        "description": "How the body is packed.",
    }
    ok = {
        "description": "Answers. Binary outputs follow the JSON, whose length is in the header.",
        "content": {**_json("InferAnswer"), **OCTETS},
        "headers": {"Inference-Header-Content-Length": {"schema": {"type": "integer"}}},
    }
    return {
        "summary": "Answers of prepared images",
        "responses": _answers(ok, (400, 401, 404, 408, 413, 415, 431, 500, 503, 504)),
        "response_model": None,
        "openapi_extra": {
            "parameters": [*_in_path(path), header, encoding, REQUEST_ID],
            "requestBody": {
                "required": True,
                "description": (
                    "JSON; or, as application/octet-stream, JSON followed by the input's numbers, little "
                    "endian, row by row, where its parameters say binary_data_size instead of data."
                ),
                "content": {"application/json": {"schema": INFER_BODY}, **OCTETS},
            },
        },
    }


def predict() -> dict[str, Any]:
    """How /predict is described."""
    query = [
        {"name": "model", "in": "query", "schema": {"type": "string"}, "description": "Which of several."},
        *(
            {"name": name, "in": "query", "schema": schema, "description": schema["description"]}
            for name, schema in OPTIONS.items()
        ),
        {
            "name": "top",
            "in": "query",
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
            "description": "How many of the best classes come with the answer.",
        },
    ]
    return {
        "summary": "Answer of one image file",
        "responses": _answers(_json("Prediction"), (400, 401, 404, 408, 413, 415, 431, 500, 503, 504)),
        "response_model": None,
        "openapi_extra": {
            "parameters": [*query, REQUEST_ID],
            "requestBody": {"required": True, "content": FILES},
        },
    }


def described(document: dict[str, Any], settings: ServeSettings) -> dict[str, Any]:
    """FastAPI's document with what it does not know: our schemas, and the token where there is one."""
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(SCHEMAS)
    if settings.token is not None:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _answers(ok: dict[str, Any], statuses: tuple[int, ...]) -> dict[int | str, dict[str, Any]]:
    if "content" not in ok:
        ok = {"description": "As asked.", "content": ok}
    found: dict[int | str, dict[str, Any]] = {200: ok}
    for status in sorted(statuses):
        found[status] = {"description": WHY[status], "content": _json("Error")}
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            found[status]["headers"] = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}}}
    return found


def _in_path(path: str) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in ("name", "version")
        if f"{{{name}}}" in path
    ]
