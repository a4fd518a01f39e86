"""A server's parts, put together: the same under uvicorn and in a replica of Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from odn_hybrid.errors import OdnError
from odn_hybrid.serve.app import create_app
from odn_hybrid.serve.decoding import Decoders
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.refusals import Unknown
from odn_hybrid.serve.running.collecting import give_back, set_aside
from odn_hybrid.serve.running.gate import Gate
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.running.repository import repository_routes
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching import Following, Watch, WatchedEngine, say, tracing, watch_routes

__all__ = ["Service", "busy_threads"]

log = logging.getLogger("odn_hybrid.serve")

Result = TypeVar("Result")
THREAD = "odn-work"
AT_LAST = 5.0  # seconds for what was refused at the end of a drain to be written


class Service:
    """Engine, models, decoders, watch and application of one process; belongs to one event loop.

    Args:
        loading: models, and how to load them.
        settings: limits.
        connections: those open now, to be limited; None: somebody else does that.

    Attributes:
        app: the ASGI application, whole. gate: the part of it that lets requests in.
    """

    def __init__(
        self, loading: Loading, settings: ServeSettings, *, connections: Collection[Any] | None = None
    ) -> None:
        self.loading, self.settings = loading, settings
        self.watch = Watch()
        self.engine = WatchedEngine(self.watch)
        self.host = Host(self.engine, settings)
        self.decoders = Decoders(settings)
        pages = [watch_routes(self.watch, self.host)]
        if loading.allow_reload:
            pages.append(repository_routes(self))
        inner = create_app(self.host, settings, self.decoders, pages=pages)
        self.gate = Gate(inner, connections=connections, limit=settings.connections)
        self.app = tracing(Following(self.gate, self.watch))
        self._changing = asyncio.Lock()

    async def open(self) -> None:
        """Start the device thread and the processes that read images."""
        self.engine.start()
        await self.decoders.start()

    async def load_all(self) -> None:
        """Load and warm up every model, then let requests in. Raises `OdnError` for one that cannot be."""
        threads = self.loading.threads
        if threads is not None:
            await in_thread(lambda: _use_threads(threads))
        for name in self.loading.models:
            await self.load(name)
        self.gate.ready = True
        say(log, "ready", models=list(self.loading.models))

    async def load(self, name: str) -> None:
        """Load a model, or load it again and swap it once it is ready; a broken one changes nothing.

        Back when a model that was replaced has answered what it had accepted: only then can it be freed.
        Raises `Unknown` for a name that the server was not started with.
        """
        path, loading = self._path(name), self.loading
        how: dict[str, Any] = {
            "uncertified": loading.uncertified, "device": loading.device, "threads": loading.threads
        }  # fmt: skip
        async with self._changing:
            lanes = {hosted.name: hosted.lane for hosted in self.host.models()}
            if (lane := lanes.pop(name, None)) is not None:
                await in_thread(lambda: self.host.reload(name, path))
                left, lane = lane.retired, None  # nothing here is to keep it
                assert left is not None
                await in_thread(left.result)
            else:
                await in_thread(lambda: self.host.load(name, path, loading.kind, **how))
            set_aside()

    async def unload(self, name: str) -> None:
        """Answer what was accepted for a model, then close it."""
        self._path(name)
        async with self._changing:
            await in_thread(lambda: self.host.unload(name))
            set_aside()

    async def reload_all(self) -> None:
        """Load every model again; what fails is said in the log, and the old one stays."""
        for name in self.loading.models:
            try:
                await self.load(name)
                say(log, "reloaded", model=name)
            except OdnError as error:
                log.error("model %s was not loaded again, the old one stays: %s", name, error)
            except Exception:
                log.exception("model %s was not loaded again, the old one stays", name)

    async def drain(self) -> bool:
        """Let nobody in any more and answer who is inside; False if `drain_seconds` was not enough."""
        self.gate.stopping = True
        if await self.gate.emptied(self.settings.drain_seconds):
            return True
        log.warning(
            "%d requests are not answered after %g seconds", self.gate.inside, self.settings.drain_seconds
        )
        await self._close_engine()
        await self.gate.emptied(AT_LAST)
        return False

    async def close(self) -> None:
        """Stop everything."""
        self.gate.stopping = True
        await self.decoders.close()
        await self._close_engine()
        give_back()

    async def _close_engine(self) -> None:
        """A device that hangs is not waited for: the process ends without it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(in_thread(self.engine.close), AT_LAST)

    def _path(self, name: str) -> Path:
        path = self.loading.models.get(name)
        if path is None:
            raise Unknown("there is no model of this name")
        return path


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Do it in a thread that nobody waits for when the process ends, unlike those of the event loop."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def finish(result: Result | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    return await done


def busy_threads() -> bool:
    """Whether something is still being done in a thread, e.g. a model loaded that nobody waits for."""
    return any(thread.name == THREAD for thread in threading.enumerate())
