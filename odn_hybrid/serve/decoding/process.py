"""One process that reads images, seen from the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.decoding.reading import MAX_PIXELS
from odn_hybrid.serve.decoding.wire import ANSWER, LONGEST_TEXT, REQUEST, Status
from odn_hybrid.serve.refusals import BadRequest, TooLarge
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["Ended", "Reader", "start_reader"]

_PROGRAM = (
    "import json, sys; told = json.loads(sys.argv[1]); sys.path[:] = told.pop('path');"
    " from odn_hybrid.serve.decoding.child import main; main(**told)"
)
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # without them Python itself may not start
_START_SECONDS = 60.0  # a busy machine takes long to import
_END_SECONDS = 5.0


class Ended(Exception):
    """The process is of no more use; `refusal` is for the client, None where the file is not the cause."""

    def __init__(self, refusal: BadRequest | None) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


async def start_reader(settings: ServeSettings) -> Reader:
    """A process that is ready. Raises `ConfigError` if there cannot be one."""
    home = str(Path(__file__).resolve().parents[3])
    told = {
        # As this process imports, so does that one, and neither from the working directory.
        "path": [os.path.abspath(entry) for entry in sys.path if entry] + [home],
        "max_pixels": settings.max_pixels,
        "seconds": settings.decode_seconds,
        "memory": settings.decode_bytes,
    }
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-B", "-c", _PROGRAM, json.dumps(told),
            stdin=PIPE, stdout=PIPE, env=environment, limit=1 << 20,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"no process to read image files can be started ({error.strerror})") from None
    reader = Reader(process, settings)
    try:
        await reader.ready()
    except BaseException:
        await reader.end()
        raise
    return reader


class Reader:
    """Asks a process to read one file at a time.

    Args:
        process: with pipes, running `child.main`.
        settings: its limits.
    """

    def __init__(self, process: Process, settings: ServeSettings) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process, self._source, self._sink = process, process.stdout, process.stdin
        self._limit = min(settings.max_pixels, MAX_PIXELS)
        self._seconds, self._memory = settings.decode_seconds, settings.decode_bytes

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def ready(self) -> None:
        """Wait until it can be asked. Raises `ConfigError`."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                status, *_ = ANSWER.unpack(await self._source.readexactly(ANSWER.size))
            fine = status == Status.READY
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            fine = False
        if not fine:
            raise ConfigError(
                "a process to read image files does not start; see what it printed, else raise decode_bytes"
            )

    async def ask(self, data: bytes) -> NDArray[np.uint8]:
        """The pixels (height, width) or (height, width, 3) of a file, read-only.

        Raises `BadRequest`, `TooLarge`; or `Ended`, after which the process must be ended and replaced. When
        cancelled, too: its answer would be taken for the next one's.
        """
        try:
            async with asyncio.timeout(self._seconds):
                await self._tell(data)
                status, *numbers = ANSWER.unpack(await self._source.readexactly(ANSWER.size))
                if status == Status.PIXELS:
                    return await self._pixels(*numbers)
                if status == Status.MEMORY:
                    most = self._memory
                    raise Ended(BadRequest(f"reading the image takes more than {most} bytes; scale it down"))
                if status not in (Status.BAD, Status.LARGE):
                    raise Ended(_broken())
                text = await self._text(numbers[0])
        except TimeoutError:
            raise Ended(
                BadRequest(f"reading the image took more than {self._seconds:g} s; send a simpler file")
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Ended(await self._cause()) from None
        raise TooLarge(text) if status == Status.LARGE else BadRequest(text)

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._sink.close()
        # A process of its own making may hold the pipe, so not for ever.
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_END_SECONDS):
                while await self._source.read(1 << 20):
                    pass
                await self._process.wait()

    async def _tell(self, data: bytes) -> None:
        try:
            self._sink.write(REQUEST.pack(len(data)))
            self._sink.write(data)
        except RuntimeError as error:  # what uvloop says of a pipe that is closed
            raise ConnectionResetError(str(error)) from None
        await self._sink.drain()

    async def _pixels(self, height: int, width: int, channels: int) -> NDArray[np.uint8]:
        # The process may be in a client's hands: what it says is as good as what a client says.
        if not (channels in (1, 3) and 0 < height * width <= self._limit):
            raise Ended(_broken())
        raw = np.frombuffer(await self._source.readexactly(height * width * channels), np.uint8)
        return raw.reshape((height, width) if channels == 1 else (height, width, channels))

    async def _text(self, length: int) -> str:
        if length > LONGEST_TEXT:
            raise Ended(_broken())
        text = (await self._source.readexactly(length)).decode("ascii", "replace")
        return "".join(letter if letter.isprintable() else "?" for letter in text)

    async def _cause(self) -> BadRequest | None:
        """Why it is gone: by its own fault, then the file's, or because someone else killed it."""
        try:
            async with asyncio.timeout(_END_SECONDS):
                status = await self._process.wait()
        except TimeoutError:  # closed its pipe and lives on
            return _broken()
        return None if hasattr(signal, "SIGKILL") and status == -signal.SIGKILL else _broken()


def _broken() -> BadRequest:
    return BadRequest("the image file breaks the program that reads it; mend it")
