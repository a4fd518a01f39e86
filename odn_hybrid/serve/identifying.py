"""The id of a request, by which a client and the log speak of the same one."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

__all__ = ["HEADER", "request_id"]

HEADER = b"x-request-id"
FINE = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own, where it sent one that can stand in a log, else a random one; names in lower case."""
    given = b""
    for name, value in headers:
        if name == HEADER:
            given = value
    return given.decode() if FINE.fullmatch(given) else uuid.uuid4().hex
