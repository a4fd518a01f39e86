"""Refusals that only HTTP knows, and the end of a request whose client has gone."""

from __future__ import annotations

import math

from odn_hybrid.serve.refusals import Refusal

__all__ = ["ClientGone", "HeadersTooLong", "TooSlow", "Unauthorised", "Unsupported", "refusal_headers"]

LONGEST_WAIT = 3600  # seconds


class Unauthorised(Refusal):
    """The token is missing or wrong."""

    status = 401


class TooSlow(Refusal):
    """The body did not arrive in time."""

    status = 408


class Unsupported(Refusal):
    """A content type or encoding that is not read here."""

    status = 415


class HeadersTooLong(Refusal):
    """Request line and headers are above the limit."""

    status = 431


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


def refusal_headers(refusal: Refusal) -> list[tuple[bytes, bytes]]:
    """Headers that go with a refusal: when to try again, and how to identify oneself."""
    headers: list[tuple[bytes, bytes]] = []
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.status == 503:
        wait = refusal.retry_after
        wait = 1.0 if wait is None or math.isnan(wait) else wait
        headers.append((b"retry-after", str(math.ceil(min(max(wait, 1.0), LONGEST_WAIT))).encode()))
    return headers
