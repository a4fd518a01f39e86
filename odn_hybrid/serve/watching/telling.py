"""What is known of the HTTP request at hand: told where it comes to be known, read when it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.refusals import Refusal

__all__ = ["Told", "telling", "told"]

MOST = 64  # exits that are kept of one request
KEY = "odn_told"

_told: ContextVar[Told | None] = ContextVar("odn_told", default=None)


@dataclass
class Told:
    """A request and what became of it.

    Attributes:
        id: the client's own or a random one.
        model: the name of the model that took it.
        exits, units: of its images, in order: where they stopped (the first 64), and units run in all.
        images, certified: how many, and whether the certificate speaks of all of them.
        engine: seconds from the engine's taking it to its answer.
        why: how it was refused.
    """

    id: str = "-"
    model: str | None = None
    exits: list[int] = field(default_factory=list)
    units: int = 0
    images: int = 0
    certified: bool | None = None
    engine: float | None = None
    why: str | None = None

    def follow(self, model: str, future: Future[RunnerOutput]) -> None:
        """The engine took it; `future` has the answer."""
        self.model, begun = model, time.monotonic()

        def ended(done: Future[RunnerOutput]) -> None:
            self.engine = time.monotonic() - begun
            if done.cancelled():
                self.why = "cancelled"
                return
            error = done.exception()
            if error is not None:
                self.why = type(error).__name__ if isinstance(error, Refusal) else "Failed"
                return
            output = done.result()
            self.exits += output.exit[: MOST - len(self.exits)].tolist()
            self.units += int(output.units_run.sum())
            self.images += len(output.exit)
            self.certified = output.certified and self.certified is not False

        future.add_done_callback(ended)


def told() -> Told | None:
    """Of the request at hand; None outside of any."""
    return _told.get()


@contextmanager
def telling(scope: MutableMapping[str, Any]) -> Iterator[Told]:
    """Inside, `told()` is this; in a request (an ASGI `scope`) that is told of already, what it is.

    The scope knows, not the context: the next request on a connection may be begun in that of the last one.
    """
    known: Told | None = scope.get(KEY)
    if known is not None:
        yield known
        return
    mine = scope[KEY] = Told()
    token = _told.set(mine)
    try:
        yield mine
    finally:
        _told.reset(token)
