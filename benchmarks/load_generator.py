"""The load generator, a process of its own on a core of its own; takes orders as lines of JSON.

    python benchmarks/load_generator.py    # orders on standard input, an answer to each on standard output

`Generator` starts one and talks to it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load_arrivals import Bursts, arrivals
from load_client import LOST, Answer, Pool, Sent, closed_loop, open_loop
from load_pinning import pinned
from load_wire import Wire, wire_of
from numpy.typing import NDArray

__all__ = ["LAG", "Generator", "Traffic", "Watched"]

CONNECTIONS = 64  # open before the first request
LAG = 0.001  # seconds: where more than 1 % of the requests are sent later than this, a run is not valid


@dataclass(frozen=True)
class Traffic:
    """An open loop to be run.

    Attributes:
        rate: requests a second, on average.
        seconds: how long requests come, after `warm` seconds that do not count.
        seed: of arrivals and of which images are sent.
        bursts: None: Poisson.
        limit: seconds within which an answer is good.
        allowed: share of the requests that may be late, and that may be refused; where there are more of both
            together than may be, sending stops early.
    """

    rate: float
    seconds: float
    seed: int = 0
    warm: float = 1.0
    bursts: Bursts | None = None
    limit: float | None = None
    allowed: float = 0.01

    def to_dict(self) -> dict[str, Any]:
        """As an order."""
        bursts = None if self.bursts is None else [self.bursts.share, self.bursts.on_seconds]
        return {**self.__dict__, "bursts": bursts}

    @classmethod
    def of(cls, told: dict[str, Any]) -> Traffic:
        """From an order."""
        bursts = told["bursts"] and Bursts(*told["bursts"])
        return cls(**{**told, "bursts": bursts})


@dataclass(frozen=True)
class Watched:
    """What became of requests, those of the warm-up left out.

    Attributes:
        due: (n,) seconds from the beginning when each was due.
        latency: (n,) seconds from there to the answer; nan: there was none.
        lag: (n,) seconds by which each was sent late.
        status: (n,) of the answers.
        image, said, exit: (n,) which image was sent, which class was answered, and at which exit (-1: not
            told).
        cut: sending was stopped early.
        connections, resent, peak: see `load_client.Pool`.
    """

    due: NDArray[np.float64]
    latency: NDArray[np.float64]
    lag: NDArray[np.float64]
    status: NDArray[np.int64]
    image: NDArray[np.int64]
    said: NDArray[np.int64]
    exit: NDArray[np.int64]
    cut: bool
    connections: int
    resent: int
    peak: int

    def valid(self, largest_lag: float = LAG) -> bool:
        """Whether the generator kept to its times: all but 1 % of them, or but one, to so many seconds."""
        return int((self.lag >= largest_lag).sum()) <= max(1, 0.01 * len(self.lag))


# --- the side that orders -----------------------------------------------------------------------------


class Generator:
    """A generator process on core `core`; None: anywhere."""

    def __init__(self, core: int | None = None) -> None:
        command = pinned([sys.executable, str(Path(__file__).resolve())], core)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def aim(self, port: int, wire: dict[str, Any], images: Path, host: str = "127.0.0.1") -> None:
        """Speak to this server from now on; `images` is an .npy file of (n, channels, height, width)."""
        self._order("aim", host=host, port=port, wire=wire, images=str(images.resolve()))

    def alone(self, count: int, seed: int = 0) -> NDArray[np.float64]:
        """Seconds of `count` requests of one image, one after another."""
        return np.array(self._order("alone", count=count, seed=seed)["seconds"])

    def load(self, traffic: Traffic) -> Watched:
        """Run an open loop."""
        told = self._order("load", **traffic.to_dict())
        numbers = {name: np.array(value) for name, value in told.items() if isinstance(value, list)}
        return Watched(**{**told, **numbers})

    def _order(self, do: str, **how: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **how}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the load generator died; its error is above")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise SystemExit(f"load generator: {found['error']}")
        return found


# --- the process --------------------------------------------------------------------------------------


class Aim:
    """A server, and a request for every image."""

    def __init__(self, host: str, port: int, wire: dict[str, Any], images: str) -> None:
        self.host, self.port = host, port
        self.wire: Wire = wire_of(wire)
        pixels = np.load(images)
        self.requests = [self.wire.request(pixels[k : k + 1]) for k in range(len(pixels))]

    def pick(self, count: int, seed: int) -> NDArray[np.int64]:
        """Which images are sent."""
        return np.random.default_rng([seed, 2]).integers(0, len(self.requests), count)

    async def alone(self, count: int, seed: int) -> dict[str, Any]:
        """See `Generator.alone`."""
        pool = Pool(self.host, self.port, most=1)
        seconds, answers = await closed_loop(pool, [self.requests[k] for k in self.pick(count, seed)])
        pool.close()
        bad = [answer.status for answer in answers if answer.status != 200]
        return {"error": f"the server answered {bad[0]}"} if bad else {"seconds": seconds.tolist()}

    async def load(self, traffic: Traffic) -> dict[str, Any]:
        """See `Generator.load`."""
        due = arrivals(traffic.rate, traffic.warm + traffic.seconds, traffic.seed, traffic.bursts)
        image = self.pick(len(due), traffic.seed)
        pool = Pool(self.host, self.port)
        await pool.warm(CONNECTIONS)
        sent = await open_loop(
            pool,
            due,
            [self.requests[k] for k in image],
            warm=traffic.warm,
            limit=float("inf") if traffic.limit is None else traffic.limit,
            allowed=max(2 * traffic.allowed * int((due >= traffic.warm).sum()), 3),
        )
        pool.close()
        return self._told(sent, image, traffic.warm)

    def _told(self, sent: Sent, image: NDArray[np.int64], warm: float) -> dict[str, Any]:
        said, exit = (np.array(column) for column in zip(*map(self._read, sent.answers), strict=True))
        some = sent.due >= warm
        microseconds = {
            "due": sent.due,
            "latency": sent.done - sent.due,
            "lag": sent.sent - sent.due,
        }
        numbers = {"status": sent.status, "image": image[: len(some)], "said": said, "exit": exit}
        found: dict[str, Any] = {name: np.round(x[some], 6).tolist() for name, x in microseconds.items()}
        found |= {name: x[some].tolist() for name, x in numbers.items()}
        return found | {name: getattr(sent, name) for name in ("cut", "connections", "resent", "peak")}

    def _read(self, answer: Answer) -> tuple[int, int]:
        if answer.status != 200:
            return -1, -1
        outputs = self.wire.answer(answer.headers, answer.body)
        exit = outputs.get("exit")
        return int(outputs["logits"].argmax()), -1 if exit is None else int(exit.reshape(-1)[0])


def orders(lines: Sequence[str] | Any) -> None:
    """Do what each line says."""
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    aim: Aim | None = None
    for line in lines:
        order = json.loads(line)
        match order.pop("do"):
            case "aim":
                aim, found = Aim(**order), {}
            case "alone" if aim is not None:
                found = run(aim.alone(**order))
            case "load" if aim is not None:
                found = run(aim.load(Traffic.of(order)))
            case other:
                found = {"error": f"cannot do {other!r} now"}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    assert LOST == 0
    orders(sys.stdin)
