"""A place for one process that reads images: when the process is lost, the next one takes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.decoding.process import Ended, Reader, start_reader
from odn_hybrid.serve.refusals import Failed, Refusal
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["Place"]

_TRIES = 2  # a process killed from outside is no fault of the file that it had


class Place:
    """One file at a time is read here.

    Attributes:
        reader: the process; None while there is none.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._spent = False
        self.reader: Reader | None = None

    async def fill(self) -> Reader:
        """The process, a new one if the last is spent. Raises `ConfigError`."""
        if self._spent:
            await self.empty()
        if self.reader is None:
            self.reader = await start_reader(self._settings)
        return self.reader

    async def empty(self) -> None:
        """End the process."""
        if self.reader is not None:
            await self.reader.end()
        self.reader, self._spent = None, False

    async def ask(self, data: bytes) -> NDArray[np.uint8]:
        """The pixels of a file. Raises refusals only, `Failed` if no process can be had or kept."""
        for _ in range(_TRIES):
            try:
                reader = await self.fill()
            except ConfigError:
                break
            self._spent = True  # also when this is cancelled: the answer would be taken for the next one's
            try:
                pixels = await reader.ask(data)
            except Ended as ended:
                if ended.refusal is not None:
                    raise ended.refusal from None
                continue
            except Refusal:
                self._spent = False
                raise
            self._spent = False
            return pixels
        raise Failed("the image could not be read just now; send it again", retry_after=1.0)
