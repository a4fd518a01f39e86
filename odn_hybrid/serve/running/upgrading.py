"""Requests that would like another protocol (`Upgrade: h2c`, `websocket`) are answered in HTTP/1.1.

Any server may do so. The parser takes what follows the headers of such a request for the other protocol, and
a body would be lost: it reads the request again, without the wish.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import httptools

__all__ = ["new_parser", "without_upgrade"]

WISHES = frozenset({b"upgrade", b"http2-settings"})


def new_parser(protocol: Any) -> Any:
    """A parser for `protocol`, as uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    with suppress(AttributeError):  # older than 0.6.3
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Request line and headers as they came, but for what asks for another protocol."""
    lines = [b"%b %b HTTP/%b" % (method, url, version.encode())]
    for name, value in headers:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token and token.lower() not in WISHES)
            if not value:
                continue
        if name not in WISHES:
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
