"""The outermost part of the application: whether a request may come in at all."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from odn_hybrid.serve.identifying import HEADER, request_id
from odn_hybrid.serve.refusals import Overloaded, Refusal, Stopping

__all__ = ["Gate"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: Answered whatever the state, for those who watch a server: also while it loads and stops.
ALWAYS = frozenset({"/v2/health/live", "/metrics", "/status", "/status.js", "/"})
#: Seconds after which to try again.
SOON, LATER = 1.0, 5.0


class Gate:
    """Lets requests in once the models are loaded, until the server stops, and counts those inside.

    Args:
        app: answers what comes in.
        connections: those open now; None: somebody else limits them.
        limit: of them; a request on one too many is refused.

    Attributes:
        ready: models are loaded and warm. stopping: no more requests are let in. Set from the event loop.
        inside: requests that were let in and are not answered yet.
    """

    def __init__(self, app: App, *, connections: Collection[Any] | None = None, limit: int = 0) -> None:
        self.app, self.connections, self.limit = app, connections, limit
        self.ready = self.stopping = False
        self.inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the application's life (`lifespan`)."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
            return
        refusal = self._refusal()
        if refusal is not None:
            await _refuse(refusal, scope, receive, send)
            return
        self.inside += 1
        self._empty.clear()
        try:
            await self.app(scope, receive, send)
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    async def emptied(self, seconds: float) -> bool:
        """Wait until everybody inside has an answer; False if that took longer."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _refusal(self) -> Refusal | None:
        if self.stopping:
            return Stopping("the server is stopping", retry_after=SOON)
        if not self.ready:
            return Stopping("the server is loading its models", retry_after=LATER)
        if self.connections is not None and len(self.connections) > self.limit:
            return Overloaded("too many connections", retry_after=SOON)
        return None


async def _refuse(refusal: Refusal, scope: Message, receive: Receive, send: Send) -> None:
    """As the application does it, and the connection ends."""
    known = scope.setdefault("state", {})["request_id"] = request_id(scope["headers"])
    # The body is read first: who is cut off while sending it sees a broken connection instead of an answer.
    message = await receive()
    while message.get("more_body"):
        message = await receive()
    body = json.dumps({"error": str(refusal)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(math.ceil(refusal.retry_after or SOON)).encode()),
        (HEADER, known.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
