"""Structured logs that cannot hurt the server: written by a thread of their own, or lost and counted."""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from typing import Any

from odn_hybrid.errors import StorageError
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching.events import JsonLines

__all__ = ["Logs", "configure_logging"]

LOGGERS = ("odn_hybrid", "uvicorn", "fastapi", "asyncio")
WAITING = 10_000  # lines
FILE_BYTES, FILES = 32 << 20, 5  # of the log file, and how many older ones are kept
LAST = 2.0  # seconds that closing may take
AGAIN = 60.0  # seconds after which a file that could not be put aside is tried again


class Logs:
    """The logs of a server, until `close()`.

    Attributes:
        lost: lines that were not written, by why: "full" (more came than could be written), "file" or
            "stderr" (the disk or the terminal refused).
    """

    def __init__(
        self, handlers: Sequence[logging.Handler], lost: Counter[str], *, waiting: int = WAITING
    ) -> None:
        self.lost = lost
        self._handlers = handlers
        lines: queue.Queue[Any] = queue.Queue(waiting)
        self._entry = _Entry(lines, lost)
        self._listener = _Writer(lines, *handlers)
        self._before = [(log, log.propagate, log.level) for log in map(logging.getLogger, LOGGERS)]
        for log, _, level in self._before:
            log.addHandler(self._entry)
            log.propagate = False
            log.setLevel(level or logging.INFO)
        self._listener.start()

    def close(self) -> None:
        """Write what still waits, for at most two seconds; loggers are as before."""
        for log, propagate, level in self._before:
            log.removeHandler(self._entry)
            log.propagate = propagate
            log.setLevel(level)
        self._before = []
        if self._listener.finish(LAST):
            for handler in self._handlers:
                with suppress(OSError, ValueError):
                    handler.close()

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def configure_logging(settings: ServeSettings) -> Logs:
    """JSON lines on standard error and, if set, in `settings.log_file`.

    Raises:
        StorageError: the log file cannot be opened, now; what happens to it later costs lines, and no more.
    """
    lost: Counter[str] = Counter()
    handlers: list[logging.Handler] = [_ToStderr(lost)]
    if settings.log_file is not None:
        try:
            handlers.append(
                _ToFile(settings.log_file, lost, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8")
            )
        except OSError as error:
            raise StorageError(
                f"the log file {settings.log_file} cannot be written ({error.strerror}); choose another"
            ) from None
    for handler in handlers:
        handler.setFormatter(JsonLines())
    return Logs(handlers, lost)


class _Entry(QueueHandler):
    """Takes lines from any thread, and never waits."""

    def __init__(self, lines: queue.Queue[Any], lost: Counter[str]) -> None:
        super().__init__(lines)
        self._lost = lost

    def emit(self, record: logging.LogRecord) -> None:
        """Hand `record` over, or count it as lost."""
        try:
            self.enqueue(self.prepare(record))
        except Exception:  # full, or a record that cannot be put into words
            self._lost["full"] += 1


class _Writer(QueueListener):
    """The thread that writes; it may be stuck in a terminal that nobody reads, and is left there."""

    def __init__(self, lines: queue.Queue[Any], *handlers: logging.Handler) -> None:
        super().__init__(lines, *handlers, respect_handler_level=True)

    def finish(self, seconds: float) -> bool:
        """Write what waits and stop; whether that was done in time."""
        thread: Any = self._thread
        if thread is None:
            return True
        with suppress(queue.Full):
            self.queue.put(self._sentinel, timeout=seconds)  # type: ignore[attr-defined]
        thread.join(seconds)
        self._thread = None
        return not thread.is_alive()


class _ToStderr(logging.Handler):
    """Lines to the file descriptor of standard error.

    Not through `sys.stderr`: a thread that is stuck in writing there would hold a lock that the interpreter
    wants when it ends.
    """

    def __init__(self, lost: Counter[str]) -> None:
        super().__init__()
        self._lost = lost

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        try:
            say_on_stderr(self.format(record))
        except Exception:
            self._lost["stderr"] += 1


class _ToFile(RotatingFileHandler):
    """Lines to a file that is put aside when it is large. One that cannot be written loses lines, counted.

    One that cannot be put aside, in a folder that may not be changed, grows on, and is tried again later.
    """

    def __init__(self, path: Any, lost: Counter[str], **more: Any) -> None:
        super().__init__(path, **more)
        self._lost = lost
        self._said = self._grows = False
        self._again = -math.inf

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        """Whether it is time to put the file aside."""
        return time.monotonic() >= self._again and bool(super().shouldRollover(record))

    def doRollover(self) -> None:
        """Put the file aside; where that is not possible nothing is lost, and it is tried again later."""
        try:
            self._put_aside()
            self._grows = False
        except OSError as error:
            self._again = time.monotonic() + AGAIN
            if not self._grows:
                self._grows = True
                with suppress(Exception):
                    say_on_stderr(
                        f"odn: the log file cannot be put aside ({error.strerror}); it grows until it can"
                    )

    def _put_aside(self) -> None:
        first, aside = self.baseFilename, f"{self.baseFilename}.0"
        if os.path.exists(aside):  # put aside earlier, when the older ones could not move
            self._number(aside)
        self._shut()
        os.replace(first, aside)
        try:
            self.stream = self._open()
        except OSError:
            os.replace(aside, first)
            raise
        self._number(aside)

    def _number(self, aside: str) -> None:
        """`aside` becomes the first of the older files; the last is dropped where there are enough.

        Only those below a free number move, so that trying again loses nothing.
        """
        names = [f"{self.baseFilename}.{number}" for number in range(1, self.backupCount + 1)]
        free = next((place for place, name in enumerate(names) if not os.path.exists(name)), len(names) - 1)
        for place in range(free, 0, -1):
            os.replace(names[place - 1], names[place])
        os.replace(aside, names[0])

    def _shut(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Count the line as lost; the file is opened anew for the next one."""
        self._lost["file"] += 1
        with suppress(Exception):
            self._shut()  # what it still holds is lost with it, and does not come later
        if not self._said:
            self._said = True
            error = sys.exc_info()[1]
            reason = getattr(error, "strerror", None) or type(error).__name__
            with suppress(Exception):
                say_on_stderr(f"odn: the log file cannot be written ({reason}); lines are lost until it can")

    def _open(self) -> Any:
        stream = super()._open()
        with suppress(OSError):  # half a line, of a disk that was full, stays a line of its own
            if os.path.isfile(self.baseFilename) and stream.tell():
                with open(self.baseFilename, "rb") as file:
                    file.seek(-1, os.SEEK_END)
                    torn = file.read(1) != b"\n"
                if torn:
                    stream.write("\n")
        return stream


def say_on_stderr(line: str) -> None:
    """Write one line, whole; raises OSError."""
    try:
        target = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # none, closed, or something else in its place
        target = 2
    left = (line + "\n").encode("utf-8", "replace")
    while left:
        left = left[os.write(target, left) :]
