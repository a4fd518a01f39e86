"""A program of the tests as a process that takes orders on its standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["serving"]

TESTS = Path(__file__).resolve().parent


def serving(program: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The process of `program`, a file beside this one; it ends with its input."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    with subprocess.Popen(
        [sys.executable, str(TESTS / program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    ) as server:
        yield server
        assert server.stdin is not None
        server.stdin.close()
