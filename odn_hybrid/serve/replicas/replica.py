"""One replica: the server's parts on one device, in a process of Ray's."""

from __future__ import annotations

from typing import Any

from odn_hybrid.serve.replicas.apart import own_log
from odn_hybrid.serve.replicas.plain import from_text
from odn_hybrid.serve.running.service import Service
from odn_hybrid.serve.watching import configure_logging

__all__ = ["Replica", "application"]

#: The service of this process, from a replica's start on; a replica has a process of its own.
_SERVICES: list[Service] = []


class Replica:
    """Loads the models, then answers; Ray calls the methods.

    Args:
        told: models and settings, as `plain.to_text` writes them.
    """

    async def __init__(self, told: str) -> None:  # type: ignore[misc]  # Ray awaits it
        loading, settings = from_text(told)
        self.logs = configure_logging(own_log(settings))
        self.service = Service(loading, settings)
        self.service.watch.lost = self.logs.lost
        try:
            await self.service.open()
            await self.service.load_all()
        except BaseException:
            await self.service.close()
            self.logs.close()
            raise
        _SERVICES.append(self.service)

    def check_health(self) -> None:
        """Raises where the device thread has ended: Ray then starts another replica."""
        engine = self.service.engine
        if engine.died or not engine.alive:
            raise RuntimeError("the device thread has ended")

    async def __del__(self) -> None:
        """Ray waits for the requests inside first."""
        if hasattr(self, "service"):
            await self.service.close()
            self.logs.close()


def application() -> Any:
    """The ASGI application of this process's replica; Ray asks for it once the replica has started."""
    return _SERVICES[-1].app
