"""The server of the walk: started as README.md says, ended as a service manager does."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from checks import Broken, no_noise
from told import Told

READY = 120.0  # seconds to load, measure and try the model
LEAVE = 40.0  # more than the server takes to answer what it accepted


class Server:
    """`odn serve RUN` as a process of its own; its log goes to `log`."""

    def __init__(self, told: Told, here: Path, variables: dict[str, str], log: Path) -> None:
        self.told, self.log = told, log
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                ["bash", "-c", f"exec {told.command}"],
                cwd=here,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()  # the end of the file, if it died
        if (self.url,) != told.prints:
            self.kill()
            raise Broken(f"{told.command}: prints {self.url!r}, not {told.prints}\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_until_ready(self) -> None:
        """As an orchestrator does: ask until it is ready, has died, or has taken too long."""
        end = time.monotonic() + READY
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Broken(f"{self.told.command}: ended with {self.process.returncode}\n{self.said()}")
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=5):
                    return
            except urllib.error.URLError:  # 503, with Retry-After: models are being loaded
                time.sleep(0.2)
        raise Broken(f"{self.told.command}: not ready after {READY:g} s\n{self.said()}")

    def stop(self) -> None:
        """SIGTERM; it has to end with status 0, without a word of fright in its log."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.told.command}: still there {LEAVE:g} s after SIGTERM") from None
        if status:
            raise Broken(f"{self.told.command}: status {status} after SIGTERM\n{self.said()}")
        no_noise(self.told.command, self.said())

    def kill(self) -> None:
        """Whatever became of it, nothing of it stays."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
