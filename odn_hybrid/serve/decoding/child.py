"""The program of a process that reads images: files in on standard input, pixels out. Imports no torch."""

from __future__ import annotations

import os
import sys
from typing import BinaryIO

from odn_hybrid.serve.decoding.limits import close_inherited, die_with_parent, grant_seconds, limit_process
from odn_hybrid.serve.decoding.reading import prepare, read_image
from odn_hybrid.serve.decoding.wire import ANSWER, LONGEST_TEXT, REQUEST, Status
from odn_hybrid.serve.refusals import BadRequest, TooLarge

__all__ = ["main"]


def main(max_pixels: int, seconds: float, memory: int) -> None:
    """Answer until standard input ends, each time within `seconds` of computing and `memory` bytes."""
    close_inherited()
    die_with_parent()
    prepare(max_pixels)
    sink = os.fdopen(os.dup(1), "wb", buffering=0)
    # What a library prints must not come between answers, nor fill the server's log.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    limit_process(memory)
    _say(sink, Status.READY, "")
    _answer_all(sys.stdin.buffer, sink, max_pixels, seconds)


def _answer_all(source: BinaryIO, sink: BinaryIO, max_pixels: int, seconds: float) -> None:
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        (length,) = REQUEST.unpack(head)
        grant_seconds(seconds)
        try:
            data = source.read(length)
            if len(data) < length:
                return
            pixels = read_image(data, max_pixels)
            height, width, *rest = pixels.shape
            _write(sink, ANSWER.pack(Status.PIXELS, height, width, rest[0] if rest else 1))
            _write(sink, pixels.data.cast("B"))
        except TooLarge as refusal:
            _say(sink, Status.LARGE, str(refusal))
        except BadRequest as refusal:
            _say(sink, Status.BAD, str(refusal))
        except MemoryError:
            _say(sink, Status.MEMORY, "")
            return
        data = pixels = None  # type: ignore[assignment]  # not held while waiting


def _say(sink: BinaryIO, status: Status, text: str) -> None:
    words = text.encode("ascii", "replace")[:LONGEST_TEXT]
    _write(sink, ANSWER.pack(status, len(words), 0, 0) + words)


def _write(sink: BinaryIO, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left.nbytes:
        left = left[sink.write(left) :]
