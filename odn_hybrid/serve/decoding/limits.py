"""What a process that reads images may do; the server's own clock watches over it besides."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from pathlib import Path

__all__ = ["close_inherited", "die_with_parent", "grant_seconds", "limit_process"]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h


def close_inherited() -> None:
    """Close all but standard input, output and error: a listening socket must not live on here."""
    last = 4096
    with contextlib.suppress(OSError, ValueError):
        last = max(map(int, os.listdir("/dev/fd")))
    os.closerange(3, last + 1)


def die_with_parent() -> None:
    """Signals meant for the server are its own business; its death is ours (else the pipe's end tells)."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit_process(memory: int) -> None:
    """From now on: `memory` more bytes, no file, no socket, no core, and first to go when memory is short.

    Everything that reading needs must be imported before. macOS does not keep to the limit of memory.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if sys.platform == "win32":
        return
    import resource

    taken = 1 << 30
    with contextlib.suppress(OSError, ValueError):  # no /proc: a guess, large enough
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _lower(resource.RLIMIT_AS, taken + memory)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    _lower(resource.RLIMIT_NOFILE, 0)  # what is open stays so


def grant_seconds(seconds: float) -> None:
    """The system ends this process when it computes for `seconds` (rounded up) from now."""
    if sys.platform == "win32":
        return
    import resource

    spent = sum(os.times()[:2])
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = math.ceil(spent + seconds) + 1
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, value))
