"""A long run at 80 % of capacity: memory and latency must stay flat, and nothing may fail.

    python benchmarks/serve_soak.py --run RUN --data cifar10.npz            # 15 minutes, and finding the rate
    python benchmarks/serve_soak.py --run RUN --data cifar10.npz --seconds 60 --rate 40     # to try it out

The run's certified halting model by `odn serve`, one thread, on a core of its own; Poisson arrivals of real
test images from another core, latencies from when requests were due. Capacity is the goodput rate of
serve_load.py (99 % within 3 x the full model's unloaded latency), found by bisection first. Resident memory
of the server and its children is read every 10 seconds. A line is fitted to memory and to each minute's
latency. What comes in the first minute, when allocators and caches fill, is not part of the line. Flat means
that over the whole run the line for memory rises by no more than 2 % and by no more than 20 MB, whichever is
less, and those for the median and the 99 % point of the latencies by no more than 10 %, or that their 95 %
interval has 0 in it. For memory that interval is no excuse: it is read without error, and a leak that comes
in a few large steps has a wide one. A soak is passed if all three are flat, every request was answered with
200, and the generator kept its times.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from load_bench import Bench, Lengths
from load_generator import LAG, Generator, Traffic, Watched
from load_goodput import told
from load_pinning import cores
from load_servers import Batching, end_on_signals, started
from load_subjects import real_subjects
from numpy.typing import NDArray
from record import write_record
from scipy import stats

TIMES, SHARE = 3.0, 0.8
EVERY, MINUTE = 10.0, 60.0
RISE = {"memory": 0.02, "latency": 0.10}
MEMORY = 20e6  # bytes that it may rise by, however large it is
SEED = 7
SOME = 6  # readings of memory, a minute of them


class Memory:
    """Reads the memory of a process and its children every so often, in a thread."""

    def __init__(self, pid: int, every: float = EVERY) -> None:
        self.process, self.every = psutil.Process(pid), every
        self.times: list[float] = []
        self.bytes: list[int] = []
        self.processes: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Memory:
        self.begun = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            found = []
            for one in (self.process, *self.process.children(recursive=True)):
                try:
                    found.append(one.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue  # it ended meanwhile
            self.times.append(time.monotonic() - self.begun)
            self.bytes.append(sum(found))
            self.processes.append(len(found))
            if self._stop.wait(self.every):
                return


def drift(
    times: NDArray[np.float64], values: NDArray[np.float64], allowed: float, *, noisy: bool = True
) -> dict[str, Any]:
    """A line through values over time: by how much it rises from the first to the last, relative to the mean.

    `flat`: by no more than `allowed` or, if the values are `noisy`, not to be told from 0; None where there
    are too few values to say.
    """
    if len(values) < 3:
        return {"flat": None, "values": len(values)}
    line = stats.linregress(times, values)
    span = float(times[-1] - times[0]) / float(values.mean())
    error = float(stats.t.ppf(0.975, len(values) - 2)) * line.stderr
    rise, low, high = (span * slope for slope in (line.slope, line.slope - error, line.slope + error))
    return {
        "rise": float(rise), "low": float(low), "high": float(high), "allowed": allowed,
        "values": len(values), "flat": bool(rise <= allowed or (noisy and low <= 0)),
    }  # fmt: skip


def memory_line(times: NDArray[np.float64], held: NDArray[np.float64]) -> dict[str, Any]:
    """The line of memory, in bytes: it may rise by 2 %, and by 20 MB at most."""
    if not len(held):
        return drift(times, held, RISE["memory"])
    mean = float(held.mean())
    line = drift(times, held, min(RISE["memory"], MEMORY / mean), noisy=False)
    if "rise" in line:
        line |= {
            "rise_megabytes": line["rise"] * mean / 1e6,
            "allowed_megabytes": line["allowed"] * mean / 1e6,
            "step_megabytes": float(held[-SOME:].mean() - held[:SOME].mean()) / 1e6,
        }
        # A step near the end hardly tilts a line.
        line["flat"] = line["flat"] and line["step_megabytes"] <= line["allowed_megabytes"]
    return line


def passed(errors: int, lines: dict[str, dict[str, Any]], generator_valid: bool) -> bool:
    """Whether nothing failed, nothing rose, and the load was the one that was meant."""
    return errors == 0 and generator_valid and all(line["flat"] is True for line in lines.values())


def by_minute(run: Watched, warm: float) -> list[dict[str, Any]]:
    """Latencies of the requests due in each whole minute."""
    minute = ((run.due - warm) // MINUTE).astype(int)
    found = []
    for number in range(minute.max() + 1):
        latency = 1000 * run.latency[(minute == number) & (run.status == 200)]
        if len(latency):
            p50, p90, p99 = (float(np.quantile(latency, q)) for q in (0.5, 0.9, 0.99))
            row = {"requests": len(latency), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99}
            found.append({"minute": number, **row})
    return found


def soaked(bench: Bench, seconds: float, rate: float | None, batching: Batching) -> dict[str, Any]:
    """Find the rate, if it is not given, then run and watch."""
    servers, lengths = bench.subjects.servers, bench.lengths
    alone = bench.unloaded(servers["full"], TIMES)
    assert bench.goal is not None
    limit = bench.goal.limit
    with started(servers["dynamic"], batching, bench.core) as up:
        bench.aim(up)
        search = None
        if rate is None:
            search = bench.search(900.0 / alone["p50_ms"], SEED, "poisson", lengths.tuning)
            rate = SHARE * search.rate
        print(f"{rate:.1f} requests a second for {seconds:g} s", flush=True)
        with Memory(up.pid) as memory:
            run = bench.generator.load(Traffic(rate, seconds, SEED + 1, lengths.warm))
        batches = up.batches()
    minutes = by_minute(run, lengths.warm)
    times, held = np.array(memory.times), np.array(memory.bytes, dtype=np.float64)
    settled = times >= min(MINUTE, times[-1] / 3)
    later = minutes[1:]  # as memory
    at = np.array([row["minute"] * MINUTE for row in later])
    lines = {"memory": memory_line(times[settled], held[settled])}
    for point in ("p50", "p99"):
        values = np.array([row[f"{point}_ms"] for row in later])
        lines[point] = drift(at, values, RISE["latency"])
    errors, valid = int((run.status != 200).sum()), bool(run.valid(bench.largest_lag))
    return {
        "flat": {name: line["flat"] for name, line in lines.items()},
        "errors": errors,
        "passed": passed(errors, lines, valid),
        "unloaded": alone,
        "limit_ms": 1000 * limit,
        "capacity": None if search is None else search.to_dict(),
        "rate": rate,
        "run": told(run, limit, seconds, bench.subjects.labels),
        "generator_valid": valid,
        "lines": lines,
        "minutes": minutes,
        "memory": {
            "seconds": np.round(times, 1).tolist(),
            "megabytes": (held / 1e6).round(2).tolist(),
            "processes": memory.processes,
        },
        "batches": {segment: list(pair) for segment, pair in batches.items()},
    }


def main() -> None:
    """Soak and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--dynamic", type=Path, help="a saved halting model in place of the run's own")
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--rate", type=float, help="requests a second [default: 80 % of what is found]")
    parser.add_argument("--batching", type=Batching.of, default=Batching(64, 0.0), help="MAX:WAIT_MS")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--largest-lag-ms", type=float, default=1000 * LAG)
    parser.add_argument("--name", default="serve_soak", help="of the record")
    args = parser.parse_args()
    end_on_signals()
    server_core, generator_core = cores()
    with tempfile.TemporaryDirectory() as name, Generator(generator_core) as generator:
        subjects = real_subjects(args.run, args.data, Path(name), args.images, (), args.dynamic)
        os.sched_setaffinity(0, {generator_core})
        lengths, lag = Lengths(args.seconds, 15.0, 2.0), args.largest_lag_ms / 1e3
        bench = Bench(subjects, generator, server_core, lengths, largest_lag=lag)
        found = soaked(bench, args.seconds, args.rate, args.batching)
    figures = found["run"]["latency_ms"]
    print(f"errors {found['errors']}, flat {found['flat']}, p50 {figures['p50']} ms, p99 {figures['p99']} ms")
    if not found["generator_valid"]:
        print("the load generator was late: this is no measurement of the server")
    record = {
        "cores": {"server": server_core, "generator": generator_core, "threads": 1},
        "seconds": args.seconds,
        "batching": args.batching.to_dict(),
        **subjects.told,
        **found,
    }
    claim = "at 80 % of capacity memory and latency stay flat, and nothing fails"
    print(write_record(args.name, claim, record))
    if not found["passed"]:
        raise SystemExit("not passed")


if __name__ == "__main__":
    main()
