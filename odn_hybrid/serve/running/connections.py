"""One HTTP connection with limits: how much a client may send before it is understood, and how slowly.

uvicorn limits neither with httptools. A timer is a number (`due`) that one task looks at now and then
(`sweep`), so that a request costs a few assignments.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from enum import Enum
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from odn_hybrid.serve.identifying import HEADER, request_id
from odn_hybrid.serve.running.upgrading import new_parser, without_upgrade
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching.events import say

__all__ = ["LimitedProtocol", "limited_protocol", "sweep"]

log = logging.getLogger("odn_hybrid.serve.requests")

LINGER = 1.0  # seconds that a refused client gets to read why
GRACE = 2.0  # seconds after which we do what the application should have done
FRAME = 4  # bytes of a header besides name and value: colon, space, end of line


class Phase(Enum):
    """What the client is at."""

    BETWEEN = 0  # requests
    HEADERS = 1
    BODY = 2


class LimitedProtocol(HttpToolsProtocol):
    """Closes connections that exceed the limits of `settings`, with a status where one can still be sent.

    A request's line and headers are limited in bytes (431) and time (408), its body in time (408) and in raw
    bytes (413): what an application leaves unread is read on and thrown away, but only so far; the exact
    limit of a body is the application's. A client that does not take its answer within `body_seconds` is cut
    off. Twice as many connections as `settings.connections` are open at most; from that number on the
    application refuses. What is not HTTP ends with 400, and a wish for another protocol is passed over.

    Attributes:
        due: on the loop's clock, when the client must be done with what it does; None: it waits for us.
        reading_due: the same for taking its answer.
    """

    settings: ServeSettings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.due: float | None = None
        self.reading_due: float | None = None
        self._phase = Phase.BETWEEN
        self._marks = 0  # changes of phase
        self._raw = 0  # bytes of this phase, as they came
        self._parsed = 0  # bytes of headers understood
        self._too_large = self._refused = False
        self._ends = False  # after the answers under way
        self._again = False  # the request is read again, without its wish for another protocol

    # --- a connection's life --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._within(self.settings.header_seconds)
        if len(self.connections) > 2 * self.settings.connections:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self.due = self.reading_due = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came: understand them, and see whether they are too many."""
        if self._refused:
            return
        before, marks = self._phase, self._marks
        if before is Phase.BETWEEN and self.due is None:  # even if these are no more than empty lines
            self._within(self.settings.header_seconds)
        self._feed(data)
        if self._marks == marks:
            self._raw += len(data)
        else:  # how much of this is of the new phase is known in one case; it is one reading at most
            first = before is Phase.BETWEEN and self._phase is Phase.HEADERS and self._marks == marks + 1
            self._raw = len(data) if first else 0
        self._check_size()

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        pieces: list[bytes | memoryview] = [data]
        while pieces:
            piece = pieces.pop(0)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._too_large:
                    return
                if not self._again:  # CONNECT: whoever sent it takes what follows for something else
                    self._close_after_answers()
                    return
                version = self.parser.get_http_version()
                head = without_upgrade(self.parser.get_method(), self.url, version, self.headers)
                self._again = False
                self.parser = new_parser(self)
                pieces[:0] = [head, memoryview(piece)[upgrade.args[0] :]]
            except httptools.HttpParserError as error:
                self._complain(error)
                self._refuse(HTTPStatus.BAD_REQUEST, "this is no HTTP request that can be read")
                return

    @staticmethod
    def _complain(error: httptools.HttpParserError) -> None:
        """Say so where it is not the client's mistake."""
        cause = error.__context__
        clients = (httptools.HttpParserError, UnicodeError)
        if isinstance(error, httptools.HttpParserCallbackError) and not isinstance(cause, clients):
            log.warning("a request could not be read by a mistake of the server", exc_info=cause)

    def _check_size(self) -> None:
        if self.transport.is_closing() or self._refused:
            return
        if self._too_large or (self._phase is not Phase.BODY and self._raw > self.settings.max_header_bytes):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the headers are too large")
        elif self._raw > 2 * self.settings.max_body_bytes:  # twice: chunks have frames
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too large")

    def pause_writing(self) -> None:
        """What was written piles up: the client takes it too slowly."""
        self.reading_due = self.loop.time() + self.settings.body_seconds
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        self.reading_due = None
        super().resume_writing()

    # --- what the parser finds ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._enter(Phase.HEADERS)
        self._parsed = 0
        if self.due is None:
            self._within(self.settings.header_seconds)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Of the request line."""
        self._parsed += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole; or a trailer, which nobody asks for."""
        if self._phase is Phase.BODY:
            return
        self._parsed += len(name) + len(value) + FRAME
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The application starts here."""
        self._enter(Phase.BODY)
        # The application says 408 first; this is for what it does not read.
        self._within(self.settings.body_seconds + GRACE)
        self._too_large = self._too_large or self._parsed > self.settings.max_header_bytes
        self._again = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if not self._too_large and not self._again:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if not self._too_large:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is all here."""
        if self._again:
            return
        self._enter(Phase.BETWEEN)
        self.due = None
        if not self._too_large:
            super().on_message_complete()

    # --- limits ---------------------------------------------------------------------------------------

    def expire(self, now: float) -> None:
        """Cut the client off if it is too slow; called now and then."""
        if self.reading_due is None and self.transport.is_closing():  # what was written is not taken yet
            self.reading_due = now + self.settings.body_seconds
        if self.reading_due is not None and now > self.reading_due:
            self.transport.abort()
        elif self.due is None or now <= self.due:
            return
        elif self._refused:  # an answer before it may still be on its way to a slow client
            if self.transport.get_write_buffer_size():
                self.transport.close()
            else:
                self.transport.abort()
        elif self.flow.read_paused:  # we are the slow ones
            self._within(self.settings.header_seconds)
        elif self._phase is Phase.BETWEEN and not self._raw:
            self.transport.close()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "the request came too slowly")

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._marks += 1

    def _within(self, seconds: float) -> None:
        self.due = self.loop.time() + seconds

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _own(self) -> bool:
        """Whether the application has the request that is being read, and not only one before it."""
        return self._phase is Phase.BODY and self.cycle is not None and self.cycle.scope is self.scope

    def _close_after_answers(self) -> None:
        """Nothing more is read; the requests that came before it are answered."""
        self._refused = self._ends = True
        self.due = None
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer has been given."""
        last = not self.pipeline
        super().on_response_complete()
        if last and self._ends:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Say why, if it is this request's turn, and give the client a moment to read it."""
        cycle, busy = self.cycle, self._answering()
        mine = self._own()  # else what is busy is a request before it
        if busy and (self.pipeline or not mine) and not self.transport.is_closing():
            if mine:
                self.pipeline.popleft()  # it has not begun
            say(log, "refused", id=request_id(()), status=status.value, why=text)
            self._close_after_answers()
            return
        if busy:
            cycle.disconnected = True  # for the application the client is gone
            cycle.waiting_for_100_continue = False  # nobody is asked for a body any more
            cycle.message_event.set()
        if self.transport.is_closing() or (busy and cycle.response_started):
            self.transport.abort()
            return
        if mine and not busy:  # it has its answer
            self.transport.close()
            return
        self._refused = True
        self._within(LINGER)
        self._unset_keepalive_if_required()
        # The application may have given it an id already.
        known = cycle.scope["state"].get("request_id") if busy else None
        known = known or request_id(
            () if self._phase is Phase.BETWEEN and not self._too_large else self.headers
        )
        say(log, "refused", id=known, status=status.value, why=text)
        body = json.dumps({"error": text}).encode()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\n{HEADER.decode()}: {known}\r\n"
        head += "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        # To close now would reset the connection while the client still sends, and it would not read this.
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()


def limited_protocol(settings: ServeSettings) -> type[LimitedProtocol]:
    """The class that uvicorn makes connections of."""
    return type("Connection", (LimitedProtocol,), {"settings": settings})


def sweep(connections: Iterable[Any], now: float) -> None:
    """Cut off every client that is too slow."""
    for connection in list(connections):
        if isinstance(connection, LimitedProtocol):
            connection.expire(now)
