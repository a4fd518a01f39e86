"""Middleware that counts and logs every HTTP request, once it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from odn_hybrid.serve.watching.events import say
from odn_hybrid.serve.watching.telling import Told, telling
from odn_hybrid.serve.watching.watch import Watch

__all__ = ["GONE", "Following", "quiet", "request_id", "route_of"]

log = logging.getLogger("odn_hybrid.serve.requests")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

GONE, BROKEN = (
    499,
    500,
)  # statuses of requests that got no response: the client had gone, or a mistake of ours
QUIET = frozenset({"/", "/status", "/status.js", "/metrics"})


class Following:
    """Around the whole application, so that what it refuses at the door is seen too.

    The line of a request has id, method, route, status, milliseconds and bytes of the body; of answers the
    model, exits, units, whether they are certified, and milliseconds in the engine; of refusals, why. What
    machines ask for all the time (health, metrics, status) is only logged where it fails.
    """

    def __init__(self, app: App, watch: Watch) -> None:
        self.app, self.watch = app, watch

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the application's life (`lifespan`)."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        status, size, gone = 0, 0, False

        async def receiving() -> Message:
            nonlocal size, gone
            message = await receive()
            size += len(message.get("body", b""))
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with telling(scope) as told:
            try:
                await self.app(scope, receiving, sending)
            finally:
                status = status or (GONE if gone else BROKEN)
                self.watch.responded(status)
                _log(scope, told, status, time.monotonic() - begun, size)


def _log(scope: Message, told: Told, status: int, seconds: float, size: int) -> None:
    level = logging.DEBUG if status < 400 and quiet(scope["path"]) else logging.INFO
    if not log.isEnabledFor(level):
        return
    known = {
        "model": told.model,
        "exits": told.exits or None,
        "units": told.units or None,
        "certified": told.certified,
        "engine_ms": None if told.engine is None else round(1e3 * told.engine, 3),
        "why": told.why,
    }
    say(
        log,
        "request",
        level=level,
        id=request_id(scope),
        method=scope["method"],
        route=route_of(scope),
        status=status,
        ms=round(1e3 * seconds, 3),
        bytes=size,
        **{name: value for name, value in known.items() if value is not None},
    )


def request_id(scope: Message) -> str:
    """As the response names it; "-" for what was refused before it got one."""
    return str(scope.get("state", {}).get("request_id", "-"))


def route_of(scope: Message) -> str:
    """The path as the application declares it: what clients make up stays out of logs. "-" for no route."""
    return str(getattr(scope.get("route"), "path", "-"))


def quiet(path: str) -> bool:
    """Whether it is asked for all the time by machines that watch."""
    return path in QUIET or path.startswith("/v2/health/")
