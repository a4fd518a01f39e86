"""What all handlers share: the models, and a few threads for work that would hold up the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.app.statuses import ClientGone
from odn_hybrid.serve.asking import LONGEST, Options
from odn_hybrid.serve.refusals import BadRequest, DeadlinePassed, Stopping, Unknown
from odn_hybrid.serve.settings import ServeSettings

if TYPE_CHECKING:
    from odn_hybrid.serve.decoding import Decoders
    from odn_hybrid.serve.hosting.host import Host
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["Service", "answer_of"]

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2
LARGE = 1 << 16  # units of work that are done in a thread: bytes of text, or as much
GRACE = 5.0  # seconds after its deadline that a request is waited for: then the device hangs


class Service:
    """Models, decoders and threads of one app."""

    def __init__(self, host: Host, settings: ServeSettings, decoders: Decoders) -> None:
        self.host, self.settings, self.decoders = host, settings, decoders
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="odn-app")

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def work(self, size: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it here, or in a thread if `size` is large. It does not block: it computes."""
        if size < LARGE:
            return function(*args, **kwargs)
        job = self._threads.submit(function, *args, **kwargs)
        return await asyncio.wrap_future(job)

    def only(self) -> str:
        """The name of the one model there is; `BadRequest` where there are several."""
        names = sorted(hosted.name for hosted in self.host.models())
        if not names:
            raise Stopping("no model is loaded", retry_after=1)
        if len(names) > 1:
            raise BadRequest(f"say which model you mean (model=NAME): {', '.join(names[:20])}")
        return names[0]

    async def ask(
        self,
        request: Request,
        name: str,
        version: str | None,
        prepare: Callable[[Hosted], Awaitable[NDArray[np.float32]]],
        options: Options,
    ) -> tuple[Hosted, RunnerOutput]:
        """Answers of the images that `prepare` makes for a model, and which model it was.

        A model that is replaced meanwhile is asked for in its new version, unless the client named one:
        transform, answer and names of classes are always of one model.

        Raises:
            Refusal: no answer. ClientGone: nobody waits for it.
        """
        arrived = request.scope["state"]["arrived"]
        until = self.until(request, options)
        options = replace(options, deadline_ms=min(max((until - arrived) * 1e3, 1e-3), LONGEST))
        hosted = self.host.model(name, version)
        while True:
            images = await prepare(hosted)
            try:
                future = self.host.submit(
                    hosted.name, images, options, arrived=arrived, version=hosted.version
                )
                break
            except (Unknown, Stopping):
                newer = self.host.model(name, version)
                if newer is hosted:
                    raise
                hosted = newer
        return hosted, await answer_of(request, asyncio.wrap_future(future), until + GRACE)

    def until(self, request: Request, options: Options) -> float:
        """When an answer is of no use any more, on the monotonic clock."""
        wished = self.settings.request_seconds
        if options.deadline_ms is not None:
            wished = min(options.deadline_ms / 1e3, wished)
        return float(request.scope["state"]["arrived"] + wished)


async def answer_of(request: Request, work: Awaitable[T], until: float) -> T:
    """What `work` gives; it is cancelled if the client goes first, or at `until` on the monotonic clock."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        left = max(until - time.monotonic(), 0.0)
        await asyncio.wait((answer, gone), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if gone.done():
            raise ClientGone
        raise DeadlinePassed("there is no answer in time")
    except asyncio.CancelledError:
        if answer.cancelled():
            raise Stopping("the request was dropped") from None
        raise
    finally:
        gone.cancel()
        answer.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
