"""JSON as answers carry it."""

from __future__ import annotations

import json
from typing import Any

from numpy.typing import NDArray
from starlette.responses import Response

__all__ = ["dumps", "json_reply", "numbers"]

ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
PIECE = 4096  # numbers written at once: the interpreter's lock is let go in between


def dumps(value: Any) -> str:
    """Compact JSON, without NaN."""
    return ENCODER.encode(value)


def numbers(array: NDArray[Any]) -> str:
    """A JSON list of an array's numbers, row by row."""
    flat = array.ravel()
    pieces = (dumps(flat[start : start + PIECE].tolist())[1:-1] for start in range(0, flat.size, PIECE))
    return f"[{','.join(pieces)}]"


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with `value` as JSON."""
    return Response(dumps(value).encode(), status, headers, "application/json")
