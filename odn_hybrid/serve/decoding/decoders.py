"""The processes that read clients' image files, and the requests that wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.decoding.places import Place
from odn_hybrid.serve.refusals import (
    BadRequest,
    DeadlinePassed,
    Failed,
    Overloaded,
    Refusal,
    Stopping,
    TooLarge,
)
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["Decoders"]

Pixels = NDArray[np.uint8]

_BODIES = 16  # files that wait or are read take at most so many times `max_body_bytes`, all together
_STOPPING = "the server is stopping; ask another"
_FAILED = "the image could not be read; the server is to blame"


class Decoders:
    """Reads image files in `settings.decoders` processes, each one file at a time, first come, first served.

    A file that takes too long, too much memory, or breaks its process is refused and the process replaced;
    other requests notice nothing but the wait. As many files as `settings.lane.queue` may wait. All methods
    belong to one event loop.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._places = [Place(settings) for _ in range(settings.decoders)]
        self._idle: list[Place] = []
        self._free = asyncio.Semaphore(0)  # how many are in `_idle`
        self._tasks: set[asyncio.Task[None]] = set()
        self._count = self._bytes = 0  # of files that wait or are read
        self._seconds = 0.0  # that a file has taken lately
        self._closed = True

    async def start(self) -> None:
        """Start the processes. Raises `ConfigError` if they do not start."""
        started = await asyncio.gather(*(place.fill() for place in self._places), return_exceptions=True)
        errors = [error for error in started if isinstance(error, BaseException)]
        if errors:
            await self.close()
            raise errors[0]
        self._closed = False
        for place in self._places:
            self._give_back(place)

    async def close(self) -> None:
        """End the processes; who is still unanswered gets `Stopping`. Twice does no harm."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for _ in range(self._count):  # who waits for a place finds out that there will be none
            self._free.release()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(place.empty() for place in self._places))

    @property
    def pids(self) -> list[int]:
        """Numbers of the processes there are."""
        return [place.reader.pid for place in self._places if place.reader is not None]

    async def decode(self, data: bytes, *, seconds: float | None = None) -> Pixels:
        """The pixels of an image file: (height, width), grey, or (height, width, 3), read-only.

        `seconds` is what the request has left, to wait and to be read; None: `settings.request_seconds`.
        Cancelled, it gives its place in the queue to others.

        Raises `BadRequest` (not an image, damaged, too slow or too much memory to read), `TooLarge` (pixels),
        `Overloaded`, `DeadlinePassed`, `Stopping`, `Failed` (process killed from outside, and the next, too).
        """
        self._admit(len(data))
        self._count += 1
        self._bytes += len(data)
        try:
            async with asyncio.timeout(self._settings.request_seconds if seconds is None else seconds):
                await self._free.acquire()
                if self._closed:
                    raise Stopping(_STOPPING)
                return await self._ask(data)
        except TimeoutError:
            raise DeadlinePassed("the image was not read in time; try later or allow more time") from None
        finally:
            self._count -= 1
            self._bytes -= len(data)

    def _ask(self, data: bytes) -> asyncio.Future[Pixels]:
        answer: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()
        place = self._idle.pop()
        # A task of its own: when the request is cancelled, the process still finishes what it was asked.
        task = asyncio.create_task(self._read(place, data, answer))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, place, answer))
        return answer

    def _admit(self, size: int) -> None:
        settings = self._settings
        if self._closed:
            raise Stopping(_STOPPING)
        if not size:
            raise BadRequest("the image file is empty; send its bytes as the body")
        if size > settings.max_body_bytes:
            raise TooLarge(f"the image file has {size} bytes, above the limit of {settings.max_body_bytes}")
        full = self._count >= settings.lane.queue + settings.decoders
        if full or self._bytes + size > _BODIES * settings.max_body_bytes:
            wait = self._count * self._seconds / settings.decoders
            raise Overloaded("too many image files wait to be read; try later", retry_after=max(1.0, wait))

    async def _read(self, place: Place, data: bytes, answer: asyncio.Future[Pixels]) -> None:
        """Have the file read there and answer; replace a process that was lost before anybody asks it."""
        begun = time.monotonic()
        try:
            pixels = await place.ask(data)
            if not answer.done():
                answer.set_result(pixels)
        except Refusal as refusal:
            if not answer.done():
                answer.set_exception(refusal)
        self._seconds += 0.1 * (time.monotonic() - begun - self._seconds)
        with contextlib.suppress(ConfigError):  # the next request tries again
            await place.fill()

    def _done(self, place: Place, answer: asyncio.Future[Pixels], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not answer.done():  # cancelled by `close`, perhaps before it began; or a mistake of ours, logged
            answer.set_exception(Stopping(_STOPPING) if task.cancelled() else Failed(_FAILED))
        self._give_back(place)

    def _give_back(self, place: Place) -> None:
        self._idle.append(place)
        self._free.release()
