"""A light HTTP client that sends when a request is due, whatever became of those before.

A request's latency counts from when it was due, so that a server that stands still is charged for all that
should have come meanwhile (no coordinated omission), and so is a client that is late, which also tells by
how much it was. Connections are kept alive; as many are opened as there are requests under way, up to a
limit.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httptools
import numpy as np
from numpy.typing import NDArray

__all__ = ["LOST", "Answer", "Pool", "Sent", "closed_loop", "open_loop"]

LOST = 0  # status of a request that got no answer
SPIN = 0.002  # seconds before a request is due from which the clock is watched: timers are no finer than 1 ms
GRACE = 60.0  # seconds to wait for the last answers


@dataclass(frozen=True)
class Answer:
    """What came back; `status` LOST: nothing did."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport: Any = None
        self.tell: Callable[[Answer], None] | None = None  # whom the answer is for
        self.request = b""
        self.served, self.begun = 0, False

    def ask(self, request: bytes, tell: Callable[[Answer], None]) -> None:
        """Send; `tell` gets the answer."""
        self.request, self.tell, self.begun = request, tell, False
        self.parser = httptools.HttpResponseParser(self)
        self.headers: dict[str, str] = {}
        self.parts: list[bytes] = []
        self.transport.write(request)

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.begun = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        self.parts.append(data)

    def on_message_complete(self) -> None:
        """See httptools."""
        answer = Answer(self.parser.get_status_code(), self.headers, b"".join(self.parts))
        tell, self.tell = self.tell, None
        self.served += 1
        if self.parser.should_keep_alive():
            self.pool.free(self)
        else:
            self.transport.close()
        if tell is not None:
            tell(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.pool.gone(self)
        tell, self.tell = self.tell, None
        if tell is None:
            return
        if self.served and not self.begun:
            # The server closed an idle connection while the request was on its way: any client asks again.
            self.pool.resent += 1
            self.pool.send(self.request, tell)
        else:
            tell(Answer(LOST))


class Pool:
    """Connections to one server.

    Args:
        host, port: of the server.
        most: connections at a time; requests beyond them wait here.

    Attributes:
        opened, resent: connections made, requests sent again because an idle connection was closed.
        peak: most requests under way or waiting at a time.
    """

    def __init__(self, host: str, port: int, *, most: int = 900) -> None:
        self.host, self.port, self.most = host, port, most
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()
        self.waiting: deque[tuple[bytes, Callable[[Answer], None]]] = deque()
        self.opening: set[asyncio.Task[None]] = set()
        self.opened = self.resent = self.peak = 0

    async def warm(self, count: int) -> None:
        """Have so many connections open and idle."""
        await asyncio.gather(*(self._open() for _ in range(count - len(self.open))))

    def send(self, request: bytes, tell: Callable[[Answer], None]) -> None:
        """Send on a free connection, on a new one, or when one is free; `tell` gets the answer."""
        if self.idle:
            self.idle.pop().ask(request, tell)
        else:
            self.waiting.append((request, tell))
            if len(self.open) + len(self.opening) < self.most:
                task = asyncio.get_running_loop().create_task(self._open())
                self.opening.add(task)
                task.add_done_callback(self.opening.discard)
        self.peak = max(self.peak, len(self.open) - len(self.idle) + len(self.waiting))

    async def ask(self, request: bytes) -> Answer:
        """Send and wait."""
        found: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.send(request, lambda answer: found.done() or found.set_result(answer))
        return await found

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, made = await loop.create_connection(lambda: Connection(self), self.host, self.port)
        except OSError:
            if self.waiting and not self.open:  # nobody else would take it
                self.waiting.popleft()[1](Answer(LOST))
            return
        self.opened += 1
        self.open.add(made)
        self.free(made)

    def free(self, connection: Connection) -> None:
        """A connection can take the next request."""
        if self.waiting:
            connection.ask(*self.waiting.popleft())
        else:
            self.idle.append(connection)

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if self.waiting and not self.open and not self.opening:
            self.send(*self.waiting.popleft())

    def close(self) -> None:
        """Close all."""
        for connection in list(self.open):
            connection.transport.abort()


@dataclass(frozen=True)
class Sent:
    """An open loop's requests, in the order in which they were due; seconds from its beginning.

    Attributes:
        due, sent, done: (n,) when each should have been sent, was, and was answered; nan: never.
        status: (n,) of the answers; LOST: none.
        answers: the answers themselves.
        cut: whether sending stopped early, more requests being late or refused than were allowed.
        connections, resent, peak: see `Pool`.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    done: NDArray[np.float64]
    status: NDArray[np.int64]
    answers: list[Answer]
    cut: bool
    connections: int
    resent: int
    peak: int


class _Tally:
    """Counts requests that were not answered well in time, as soon as that is certain."""

    def __init__(self, due: NDArray[np.float64], limit: float, warm: float) -> None:
        self.due, self.limit = due.tolist(), limit
        self.next = int(np.searchsorted(due, warm))
        self.bad = 0

    def count(self, now: float, done: NDArray[np.float64], status: NDArray[np.int64]) -> int:
        while self.next < len(self.due) and self.due[self.next] + self.limit < now:
            k = self.next
            self.bad += not (status[k] == 200 and done[k] - self.due[k] <= self.limit)
            self.next += 1
        return self.bad


async def open_loop(
    pool: Pool,
    due: NDArray[np.float64],
    requests: Sequence[bytes],
    *,
    warm: float = 0.0,
    limit: float = float("inf"),
    allowed: float = float("inf"),
) -> Sent:
    """Send request k at `due[k]` seconds from now, and wait for all the answers.

    Args:
        pool: open connections.
        due: (n,) ascending.
        requests: n of them.
        warm: what is due before this counts neither as late nor as refused.
        limit, allowed: stop sending when more than `allowed` requests were not answered well within `limit`
            seconds.
    """
    count = len(due)
    sent, done = np.full(count, np.nan), np.full(count, np.nan)
    status = np.full(count, LOST, dtype=np.int64)
    answers = [Answer(LOST)] * count
    tally = _Tally(due, limit, warm)
    left, finished = count, asyncio.Event()
    gc.collect()
    gc.disable()  # a collection takes as long as several requests
    start = perf_counter() + 0.01
    try:
        for k in range(count):
            when = start + float(due[k])
            while (rest := when - perf_counter()) > 0:
                await asyncio.sleep(rest - SPIN if rest > SPIN else 0)
            now = perf_counter() - start
            if tally.count(now, done, status) > allowed:
                break

            def tell(answer: Answer, k: int = k) -> None:
                nonlocal left
                done[k] = perf_counter() - start
                status[k], answers[k] = answer.status, answer
                left -= 1
                if not left:
                    finished.set()

            sent[k] = now
            pool.send(requests[k], tell)
            if not k % 16:
                await asyncio.sleep(0)  # answers are read also when requests are due faster than they leave
        unsent = int(np.isnan(sent).sum())
        left -= unsent
        if left:
            async with asyncio.timeout(GRACE):
                await finished.wait()
    except TimeoutError:
        pass  # those are lost
    finally:
        gc.enable()
    some = ~np.isnan(sent)
    kept = answers[: int(some.sum())]
    return Sent(
        due[some], sent[some], done[some], status[some], kept,
        bool(unsent), pool.opened, pool.resent, pool.peak,
    )  # fmt: skip


async def closed_loop(pool: Pool, requests: Sequence[bytes]) -> tuple[NDArray[np.float64], list[Answer]]:
    """One request after another: seconds of each, and the answers."""
    found, answers = [], []
    for request in requests:
        begun = perf_counter()
        answers.append(await pool.ask(request))
        found.append(perf_counter() - begun)
    return np.array(found), answers
