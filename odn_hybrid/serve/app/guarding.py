"""What every request passes first: limits, the token, its id, and one way for all that goes wrong.

Plain ASGI: an answer's path through it costs microseconds.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from odn_hybrid.serve.app.replying import dumps
from odn_hybrid.serve.app.statuses import ClientGone, HeadersTooLong, TooSlow, Unauthorised, refusal_headers
from odn_hybrid.serve.identifying import HEADER, request_id
from odn_hybrid.serve.refusals import Overloaded, Refusal, TooLarge
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["Guard"]

log = logging.getLogger("odn_hybrid.serve")

#: No token needed. The status page and its script hold no data: it asks for the token and sends it itself.
OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/", "/status.js"})
LINE = 24  # bytes of a request line beside its target, about
BODIES = 16  # bodies of the largest size that may be in memory at once, those of all requests together
LINGER = 1.0  # seconds for what a refused client still sends: it reads the answer only then


class Guard:
    """Middleware around the whole app.

    Args:
        app: what it guards.
        settings: limits and token.

    Attributes:
        held: bytes of bodies that requests under way have sent.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings = app, settings
        self.token = None if settings.token is None else settings.token.encode()
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection event of ASGI; nothing that a request causes leaves as an exception."""
        if scope["type"] == "http":
            await _Call(self, scope, receive, send).run()
        elif scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1003})


class _Call:
    """One request on its way through the guard."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.size, self.started = 0, False
        headers: dict[bytes, bytes] = {}
        self.header_bytes = LINE + len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        for name, value in scope["headers"]:
            self.header_bytes += len(name) + len(value) + 4
            headers[name] = value
        self.headers = headers
        # What has no body is complete from the start.
        self.complete = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self.id = request_id(scope["headers"])
        state = scope.setdefault("state", {})
        state["arrived"], state["request_id"] = time.monotonic(), self.id

    async def run(self) -> None:
        try:
            self._check()
            self.until = asyncio.get_running_loop().time() + self.guard.settings.body_seconds
            await self.guard.app(self.scope, self.receive, self.send)
        except Refusal as refusal:
            await self._refuse(refusal.status, str(refusal), refusal_headers(refusal))
        except (ClientGone, ClientDisconnect):
            log.debug("request %s: the client has gone", self.id)
        except Exception:
            log.exception("request %s failed", self.id)
            await self._refuse(500, "internal error", [])
        finally:
            self.guard.held -= self.size

    def _check(self) -> None:
        """What can be said before the body; raises a refusal."""
        settings = self.guard.settings
        if self.header_bytes > settings.max_header_bytes:
            raise HeadersTooLong(f"the headers are above the limit of {settings.max_header_bytes} bytes")
        path = self.scope["path"].removeprefix(self.scope.get("root_path", "").rstrip("/"))
        if self.guard.token is not None and path not in OPEN:
            scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self.guard.token):
                raise Unauthorised("send the server's token as 'Authorization: Bearer TOKEN'")
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > settings.max_body_bytes):
            raise TooLarge(f"the body is above the limit of {settings.max_body_bytes} bytes")

    async def receive(self) -> Message:
        """The next piece of the body, counted and in time; after the last: when the client goes."""
        if self.complete:
            return await self._receive()
        settings, guard = self.guard.settings, self.guard
        try:
            async with asyncio.timeout_at(self.until):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"the body took longer than {settings.body_seconds:g} seconds") from None
        if message["type"] != "http.request":
            return message
        size = len(message.get("body", b""))
        self.size += size
        guard.held += size
        self.complete = not message.get("more_body", False)
        if self.size > settings.max_body_bytes:
            raise TooLarge(f"the body is above the limit of {settings.max_body_bytes} bytes")
        if guard.held > BODIES * settings.max_body_bytes:
            raise Overloaded("too many large bodies at once", retry_after=1)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            if message["status"] != 408:
                await self._linger()
            headers = [*message.get("headers", ()), (HEADER, self.id.encode())]
            headers.append((b"x-content-type-options", b"nosniff"))
            if not self.complete:  # the rest of a body that nobody reads would be taken for a request
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def _refuse(self, status: int, why: str, headers: list[tuple[bytes, bytes]]) -> None:
        if self.started:
            return  # the connection is cut by the server: half an answer must not look whole
        said: dict[str, Any] = {"error": why}
        if status == 500:
            said["request_id"] = self.id
        body = dumps(said).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def _linger(self) -> None:
        """Take what the client sends, and forget it, up to a limit and for a moment.

        A connection that is closed while bytes arrive is reset, and the answer may be lost with it.
        """
        if self.complete or (b"expect" in self.headers and not self.size):  # it waits to be asked
            return
        left = self.guard.settings.max_body_bytes
        try:
            async with asyncio.timeout(LINGER):
                while not self.complete and left > 0:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        break
                    left -= len(message.get("body", b""))
                    self.complete = not message.get("more_body", False)
        except TimeoutError:
            pass
