"""A running `odn serve`, and a client that asks it, for tests."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Answer", "Server", "body_of", "until"]

PATIENCE = 120.0  # seconds that something may take on a machine with much else to do


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Look again and again until it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain: {what}")
        time.sleep(0.01)
    return found


class Answer:
    """Status, headers and body of a response."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def body_of(image: np.ndarray, **parameters: Any) -> bytes:
    """A request of the inference protocol for one image (channels, height, width)."""
    pixels = image.ravel().tolist()
    tensor = {"name": "images", "shape": [1, *image.shape], "datatype": "FP32", "data": pixels}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


class Server:
    """`odn serve`, started in a process of `faulty.py`.

    Attributes:
        pid: of the process.
        port: where it listens.
        hold: a file; while it exists, the device does nothing.
    """

    def __init__(
        self, starter: subprocess.Popen[str], folder: Path, arguments: list[str], **order: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.starter, self.folder, self.hold = starter, folder, folder / "hold"
        self.status: int | None = None
        started = {"arguments": arguments, "folder": str(folder), "hold": str(self.hold), **order}
        self.pid = int(self._tell(started))
        self.port = 0

    def ready(self) -> Server:
        """Wait until it answers."""
        url = until(
            lambda: re.fullmatch(r"https?://.*:(\d+)\n", self.out) or self._gone(), "the server's address"
        )
        self.port = int(url[1])
        until(lambda: self.get("/v2/health/ready").status == 200 or self._gone(), "a server that is ready")
        return self

    def _gone(self) -> None:
        if os.path.exists(f"/proc/{self.pid}/stat"):
            state = Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1][0]
            if state not in "ZX":
                return
        raise AssertionError(f"the server has ended:\n{self.err}")

    def _tell(self, order: dict[str, Any]) -> str:
        assert self.starter.stdin is not None and self.starter.stdout is not None
        self.starter.stdin.write(json.dumps(order) + "\n")
        self.starter.stdin.flush()
        return self.starter.stdout.readline()

    @property
    def out(self) -> str:
        path = self.folder / "stdout"
        return path.read_text() if path.is_file() else ""

    @property
    def err(self) -> str:
        path = self.folder / "stderr"
        return path.read_text() if path.is_file() else ""

    def held(self) -> None:
        """Wait until the device has work in hand that it does not do."""
        until(lambda: os.path.exists(f"{self.hold}-held"), "a step")

    # --- asking ---------------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def infer(self, image: np.ndarray, **parameters: Any) -> Answer:
        return self.ask("POST", "/v2/models/net/infer", body_of(image, **parameters))

    def raw(self, image: np.ndarray, **parameters: Any) -> socket.socket:
        """A connection on which the request was sent, and nothing read."""
        body = body_of(image, **parameters)
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        head = f"POST /v2/models/net/infer HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        return connection

    def several(self, pool: ThreadPoolExecutor, images: np.ndarray, **parameters: Any) -> list[Any]:
        """Futures of answers, each image asked for in a thread of its own."""
        return [pool.submit(self.infer, image, **parameters) for image in images]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values over the labels that are not named."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def memory(self) -> int:
        """Bytes of it that are in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    # --- ending ---------------------------------------------------------------------------------------

    def kill(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit status; below 0: the signal that ended it."""
        if self.status is None:
            self.status = int(self._tell({"wait": self.pid}))
        return self.status

    def end(self) -> None:
        """Whatever state it is in."""
        self.hold.unlink(missing_ok=True)
        if self.status is None:
            self.kill(signal.SIGKILL)
            self.wait()
