"""A log file for each replica: two processes cannot put the same one aside."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from odn_hybrid.errors import StorageError
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["own_log"]

MOST = 4096  # replicas that write to one folder

#: Files that say which numbers are taken: locked until this process ends, however it ends.
_LOCKS: list[int] = []


def own_log(settings: ServeSettings) -> ServeSettings:
    """The settings with `server.log` as `server.replica-N.log`, N the smallest number that is free.

    So there are as many files as there were replicas at once, and a replica that comes for one that has gone
    writes on where that one ended. Where the system has no locks, N is the process's number.

    Raises `StorageError` where the folder cannot be written.
    """
    if settings.log_file is None:
        return settings
    return replace(settings, log_file=_free(Path(settings.log_file)))


def _free(path: Path) -> Path:
    try:
        import fcntl
    except ImportError:
        return _numbered(path, os.getpid())
    for number in range(MOST):
        mine = _numbered(path, number)
        try:
            lock = os.open(f"{mine}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"the log file {mine} cannot be written ({error.strerror}); choose another"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody else has it
            os.close(lock)
            continue
        except OSError:  # a file system without locks
            os.close(lock)
            return _numbered(path, os.getpid())
        _LOCKS.append(lock)
        return mine
    raise StorageError(f"{MOST} replicas write logs beside {path}; choose another log file")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.replica-{number}{path.suffix}")
