"""The process of `odn serve`: uvicorn, signals, and the order in which things start and end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.running.connections import limited_protocol, sweep
from odn_hybrid.serve.running.listening import BACKLOG, address, allow_files, beyond, listen, tls, warn_of
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.running.service import Service, busy_threads
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching import configure_logging, say

__all__ = ["serve"]

log = logging.getLogger("odn_hybrid.serve")

KEEP_ALIVE = 10  # seconds that a connection may be idle
CLOSING = 5  # seconds for connections to end, after the last answer
SWEEPS = 4  # looks at every connection within the shortest time limit


def serve(
    models: Mapping[str, Path],
    settings: ServeSettings,
    *,
    listening: Callable[[str], None] | None = None,
    **loading: Any,
) -> None:
    """Serve models until SIGTERM or SIGINT; in the main thread.

    Args:
        models: name -> run directory, or saved or exported model.
        settings: address and limits.
        listening: told the server's URL once it takes connections; the models are still to be loaded then.
        loading: `kind`, `uncertified`, `device`, `threads`, `allow_reload`, see `Loading`.

    Raises:
        ConfigError: address, certificate or options that cannot be used.
        OdnError: a model that cannot be loaded.
    """
    wanted = Loading(models=models, **loading)
    context = tls(settings)
    allow_files(settings)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in listen(settings)]
        logs = stack.enter_context(configure_logging(settings))
        warn_of(settings, beyond=beyond(listeners))
        server = Server(wanted, settings, listeners, context)
        server.lost = logs.lost
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(server.live(listening))
    if busy_threads():
        # Told to stop while a model was loading: the interpreter cannot end around a thread in torch.
        sys.stdout.flush()
        os._exit(0)


class Server(uvicorn.Server):
    """uvicorn with this server's life: load, serve, drain.

    Args:
        loading, settings: see `serve`.
        listener: a socket that listens already.
        context: TLS, or None.
    """

    def __init__(
        self,
        loading: Loading,
        settings: ServeSettings,
        listeners: Sequence[socket.socket],
        context: ssl.SSLContext | None,
    ) -> None:
        self.loading, self.settings, self.listeners = loading, settings, listeners
        self.service: Service | None = None
        self.lost: Counter[str] = Counter()
        self.protocol = limited_protocol(settings)
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._loaded = asyncio.Event()  # or it failed
        super().__init__(
            uvicorn.Config(
                self._app,
                interface="asgi3",
                http=self.protocol,
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=CLOSING,
                ssl_context_factory=None if context is None else lambda *_: context,
            )
        )

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert self.service is not None
        await self.service.app(scope, receive, send)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing: signals are the event loop's, see `live`."""
        yield

    async def startup(self, sockets: Any = None) -> None:
        """As uvicorn's own, but a TLS handshake may not take longer than headers."""
        loop = asyncio.get_running_loop()
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise ConfigError("the application did not start; the log says why")
        more: dict[str, Any] = {}
        if self.config.ssl is not None:
            more = {"ssl": self.config.ssl, "ssl_handshake_timeout": self.settings.header_seconds}
        make = functools.partial(
            self.protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            _loop=loop,
        )
        self.servers = [
            await loop.create_server(make, sock=listener, backlog=BACKLOG, **more)
            for listener in self.listeners
        ]
        self.started = True

    async def live(self, listening: Callable[[str], None] | None) -> None:
        """From the first connection to the last."""
        self.service = service = Service(
            self.loading, self.settings, connections=self.server_state.connections
        )
        service.watch.lost = self.lost
        self._take_signals()
        await service.open()
        tasks = [asyncio.create_task(self._sweep()), asyncio.create_task(self._reloads())]
        serving = asyncio.create_task(self.serve(sockets=list(self.listeners)))
        loading = asyncio.create_task(service.load_all())
        loading.add_done_callback(lambda _: self._loaded.set())
        stop = asyncio.create_task(self._stop.wait())
        try:
            if listening is not None:
                listening(address(self.listeners[0], self.settings))
            await asyncio.wait({serving, loading, stop}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not stop.done() and not serving.done():
                loading.result()  # raises what is wrong with a model
                await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
            await service.drain()
        finally:
            self.should_exit = True
            for task in (*tasks, loading, stop):
                task.cancel()
            await asyncio.gather(*tasks, loading, stop, return_exceptions=True)
            await asyncio.gather(serving, return_exceptions=True)
            await service.close()
        serving.result()

    # --- signals --------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("stopped at once by a second signal")
            os._exit(1)
        say(log, "stopping", signal=number.name)
        self._stop.set()

    async def _reloads(self) -> None:
        assert self.service is not None
        await self._loaded.wait()  # a signal during the first load is kept until then
        while True:
            await self._reload.wait()
            self._reload.clear()
            if self.service.gate.ready and not self.service.gate.stopping:
                await self.service.reload_all()

    async def _sweep(self) -> None:
        loop, settings = asyncio.get_running_loop(), self.settings
        pause = min(settings.header_seconds, settings.body_seconds, 4.0) / SWEEPS
        while True:
            await asyncio.sleep(pause)
            sweep(self.server_state.connections, loop.time())
