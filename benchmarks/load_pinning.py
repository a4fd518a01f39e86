"""Processes on a core of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["cores", "pinned"]

PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execv(sys.argv[2], sys.argv[2:])"


def pinned(command: Sequence[str], core: int | None) -> list[str]:
    """The command, which will run on this core only, with all it starts; None: anywhere."""
    return list(command) if core is None else [sys.executable, "-c", PIN, str(core), *command]


def cores() -> tuple[int, int]:
    """One core for the server and one for the generator.

    Raises:
        SystemExit: there is one core only.
    """
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        raise SystemExit("the load generator must not share a core with the server: two cores are needed")
    return mine[0], mine[-1]
