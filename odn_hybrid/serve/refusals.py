"""Why a request gets no answer: each refusal knows its HTTP status, and says nothing about the machine."""

from __future__ import annotations

from typing import ClassVar

from odn_hybrid.errors import OdnError

__all__ = [
    "BadRequest",
    "DeadlinePassed",
    "Failed",
    "Overloaded",
    "Refusal",
    "Stopping",
    "TooLarge",
    "Unknown",
]


class Refusal(OdnError):
    """A request that is not answered. The message is for the client.

    Attributes:
        status: of the HTTP response.
        retry_after: seconds after which trying again makes sense, or None.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadRequest(Refusal):
    """The client's mistake: shape, type, options, an image that cannot be read."""

    status = 400


class Unknown(Refusal):
    """No such model or version."""

    status = 404


class TooLarge(Refusal):
    """A body, image or batch above the limit."""

    status = 413


class Overloaded(Refusal):
    """The queue is full, or the deadline could not be kept; comes with `retry_after`."""

    status = 503


class Stopping(Refusal):
    """The server drains and takes no new requests, or the model is not ready."""

    status = 503


class DeadlinePassed(Refusal):
    """The deadline passed before any exit was reached."""

    status = 504


class Failed(Refusal):
    """The device or the decoder failed on this request; the server goes on."""

    status = 500
