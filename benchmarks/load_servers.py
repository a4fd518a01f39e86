"""Servers under test as processes: started on a core of their own, awaited, stopped with all they started."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from load_pinning import pinned

__all__ = ["Batching", "Server", "Up", "end_on_signals", "started"]

START_SECONDS = 300.0
STOP_SECONDS = 60.0
PORTS = range(20_000, 30_000)  # below those that systems give to who asks for any
BATCHES = "odn_batch_images"  # histogram of batch sizes, with a label "segment"


@dataclass(frozen=True)
class Batching:
    """How a server batches: at most so many images, and how long it waits for them."""

    max_batch: int
    wait_ms: float

    @classmethod
    def of(cls, text: str) -> Batching:
        """From "8:2": up to 8 images, 2 ms."""
        most, _, wait = text.partition(":")
        return cls(int(most), float(wait or 0))

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {"max_batch": self.max_batch, "wait_ms": self.wait_ms}


@dataclass(frozen=True)
class Server:
    """A server that can be started.

    Attributes:
        name: in tables.
        command: what starts it; it gets `--port`, `--max-batch` and `--wait-ms` besides.
        wire: how it is spoken to; see `load_wire.wire_of`.
        ready: path that answers 200 as soon as requests are taken.
        tells: whether it has `/metrics` with batch sizes.
    """

    name: str
    command: tuple[str, ...]
    wire: dict[str, Any]
    ready: str = "/v2/health/ready"
    tells: bool = True
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Up:
    """A server that runs."""

    server: Server
    port: int
    pid: int

    def batches(self) -> dict[str, tuple[float, float]]:
        """By segment, how many steps were taken so far and on how many images altogether."""
        if not self.server.tells:
            return {}
        from prometheus_client.parser import text_string_to_metric_families

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                for part in ("count", "sum"):
                    if sample.name == f"{BATCHES}_{part}":
                        found.setdefault(sample.labels["segment"], {})[part] = sample.value
        return {segment: (parts["count"], parts["sum"]) for segment, parts in found.items()}


@contextmanager
def started(server: Server, batching: Batching, core: int | None) -> Iterator[Up]:
    """The server, ready; stopped in the end.

    Raises:
        SystemExit: it did not start; with the last of what it said.
    """
    port = free_port()
    command = [
        *server.command, "--port", str(port), "--max-batch", str(batching.max_batch),
        "--wait-ms", str(batching.wait_ms),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            pinned(command, core),
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1", **server.environment},
            start_new_session=True,
        )
        try:
            _await(process, f"http://127.0.0.1:{port}{server.ready}", server.name, log)
            yield Up(server, port, process.pid)
            if process.poll() is not None:
                raise SystemExit(f"{server.name} died:\n{_tail(log)}")
        finally:
            _stop(process)


def end_on_signals() -> None:
    """End as an error does on SIGTERM, so that no server is left behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))


def free_port() -> int:
    """One that nobody listens on, and that no process is given which asks for any (Ray's do, by dozens)."""
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise SystemExit(f"no port of {PORTS} is free")


def _await(process: subprocess.Popen[bytes], url: str, name: str, log: Any) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"{name} did not start:\n{_tail(log)}")
        unready = suppress(urllib.error.URLError, http.client.HTTPException, OSError)
        with unready, urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise SystemExit(f"{name} was not ready in {START_SECONDS:g} s:\n{_tail(log)}")


def _tail(log: Any) -> str:
    log.seek(0)
    return "".join(log.readlines()[-25:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for whatever of its session is left after a minute."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
