"""history.jsonl: one JSON object a line, appended while the fit runs.

A line counts once its newline is on the disk; a last line cut short by a crash is not there.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from odn_hybrid.errors import RunDirError
from odn_hybrid.rundir.files import MAX_JSON_BYTES, parse_json, storage_errors, to_plain, write_bytes

__all__ = ["append", "read", "trim"]


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add one row, flushed to the disk. Raises `StorageError`, the earlier rows being intact."""
    line = _line(row)
    with storage_errors(path):
        descriptor = _open_here(path)
        with os.fdopen(descriptor, "r+b", buffering=0) as file:
            end = _end_of_last_line(file.seek(0, os.SEEK_END), file.fileno())
            file.truncate(end)
            try:
                file.seek(end)
                written = file.write(line)
                if written != len(line):  # a short write comes just before "no space left"
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except BaseException:
                with suppress(OSError):
                    file.truncate(end)
                raise


def read(path: Path) -> list[dict[str, Any]]:
    """All whole rows. Raises `RunDirError` for a damaged row before the last."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise RunDirError(f"{path} has more than {MAX_JSON_BYTES >> 20} MiB: not written by odn_hybrid")
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror or error}") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):
                break
            raise RunDirError(f"line {number} of {path} is damaged ({error}): remove that line") from None
        rows.append(row)
    return rows


def trim(path: Path, n: int) -> int:
    """Keep the first `n` rows (all, if there are fewer); returns how many there are now."""
    rows = read(path)[: max(0, n)]
    if path.exists():
        write_bytes(path, b"".join(_line(row) for row in rows))
    return len(rows)


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(to_plain(row), allow_nan=False) + "\n").encode()


def _open_here(path: Path) -> int:
    try:
        more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        return os.open(path, os.O_RDWR | os.O_CREAT | more, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunDirError(f"{path} is a symbolic link, never followed for writing: remove it") from None
        raise


def _end_of_last_line(size: int, descriptor: int) -> int:
    """Where the last whole line ends: looks back from the end, block by block, for a newline."""
    while size > 0:
        start = max(0, size - 4096)
        os.lseek(descriptor, start, os.SEEK_SET)
        newline = os.read(descriptor, size - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        size = start
    return 0
