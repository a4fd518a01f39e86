"""A whole server on a free port of this machine, with a small halting model, for tests that speak HTTP."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import exporting
import uvicorn
import uvloop
from fastapi import APIRouter, FastAPI

from odn_hybrid.data import Preprocess
from odn_hybrid.serve.app import create_app
from odn_hybrid.serve.decoding import Decoders
from odn_hybrid.serve.hosting.host import Host
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.scheduling import Engine
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.halting import HaltingStages

__all__ = ["LABELS", "TRANSFORM", "Answering", "answering", "opened"]

LABELS = ["ape", "bee", "cat", "dog", "eel"]
TRANSFORM = Preprocess(size=exporting.SHAPE[1:], mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.25))


def opened(policy: str = "confidence", **other: Any) -> Opened:
    """A halting model of three exits and five classes, with random weights; see `exporting`."""
    model = exporting.model(**exporting.POLICIES[policy])
    choices: dict[str, Any] = {
        "stages": HaltingStages(model),
        "kind": "dynamic",
        "digest": f"{policy:x<64}",
        "transform": lambda images: TRANSFORM(images).numpy(),
        "labels": LABELS,
        **other,
    }
    return Opened(**choices)


class _Server(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


class Answering:
    """A server that runs: `url`, `port`, and its parts."""

    def __init__(self, host: Host, settings: ServeSettings, pages: Sequence[APIRouter]) -> None:
        self.host, self.settings = host, settings
        self.decoders = Decoders(settings)
        self.app: FastAPI = create_app(host, settings, self.decoders, pages=pages)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.app, log_config=None, access_log=False, ws="none", lifespan="on")
        self.server = _Server(config)

    def main(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        await self.decoders.start()
        try:
            await self.server.serve(sockets=[self.socket])
        finally:
            await self.decoders.close()


@contextmanager
def answering(
    models: dict[str, Opened] | None = None, *, pages: Sequence[APIRouter] = (), **choices: Any
) -> Iterator[Answering]:
    """A server with these models (default: one, "small") and these settings, as long as the context lasts."""
    settings = ServeSettings(**choices)
    engine = Engine()
    host = Host(engine, settings)
    engine.start()
    try:
        for name, model in ({"small": opened()} if models is None else models).items():
            host.put(name, model)
        serving = Answering(host, settings, pages)
        thread = threading.Thread(target=serving.main)
        thread.start()
        try:
            assert serving.server.up.wait(60)
            yield serving
        finally:
            serving.server.should_exit = True
            thread.join(60)
            serving.socket.close()
            assert not thread.is_alive()
    finally:
        engine.close()


def main() -> None:
    """A server as a process of its own: says its port, and ends with its input."""
    with answering(max_body_bytes=300_000, max_images=8, max_pixels=100_000, body_seconds=2.0) as found:
        print(found.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
