"""Goodput of the depth-batched server against plain full-depth batching, side by side over HTTP.

    python benchmarks/serve_load.py --run RUN --data cifar10.npz [--dynamic FOLDER]
    python benchmarks/serve_load.py --run RUN --data cifar10.npz --simulated [--device-ms 32 --fills 8]
    PYTHONPATH=PEER python benchmarks/serve_load.py --run RUN --data cifar10.npz --peers litserve,ray

Servers run in turns, on one core with one thread: the full model under dynamic batching, the run's static
choice and its certified halting model, all by `odn serve`; with --peers the full model under LitServe and
Ray Serve, under Poisson arrivals only. How each batches is tuned for it first. The generator runs on another
core and sends real test images, as binary tensors, one a request, when they are due (open loop); latencies
count from there. The limit is 3 x the full model's unloaded latency over the same HTTP. Goodput is what is
answered within the limit at the highest rate at which 99 % of the answers come within it and no more than 1 %
are refused, found by bisection; every round has arrivals of its own, the same for all servers. Half load is
half of the full model's rate in the first round.

With --simulated, times come from a table (`load_simulated`) and answers from recorded outputs; scheduler,
server and HTTP are the same.

PEER:  uv pip install --target PEER --no-deps litserve==0.2.19    (Ray: pip install "ray[serve]")
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_bench import PATTERNS, Bench, Lengths, size_seen
from load_generator import LAG, Generator
from load_goodput import LateGenerator
from load_pinning import cores, pinned
from load_servers import Batching, end_on_signals
from load_simulated import Device
from load_subjects import OURS, PEERS, Subjects, real_subjects, simulated_subjects
from load_verdict import alone_ratio, shown, verdict
from record import write_record

HERE = Path(__file__).resolve().parent
TIMES = 3.0  # the limit over the full model's unloaded latency


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a finished fit with a certificate")
    parser.add_argument("--data", required=True, help="its data set")
    parser.add_argument("--dynamic", type=Path, help="a saved halting model in place of the run's own")
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--device-ms", type=float, default=Device.full_ms)
    parser.add_argument("--fills", type=int, default=Device.fills)
    parser.add_argument("--peers", default="", help=f"some of {', '.join(PEERS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a run")
    parser.add_argument("--tune-seconds", type=float, default=10.0, help="of a run that tunes")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before them that do not count")
    parser.add_argument("--images", type=int, default=1000, help="test images that are sent")
    parser.add_argument("--grid", help="MAX_BATCH:WAIT_MS,...")
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    parser.add_argument(
        "--largest-lag-ms", type=float, default=1000 * LAG, help="of the generator, 99 %% of a run's requests"
    )
    parser.add_argument("--name", help="of the record")
    args = parser.parse_args()
    args.peers = [name for name in args.peers.split(",") if name]
    patterns = {name for name in args.patterns.split(",") if name}
    if not set(args.peers) <= set(PEERS) or (args.peers and args.simulated):
        parser.error(f"--peers are {', '.join(PEERS)}, and have no simulated device")
    if not {"poisson"} <= patterns <= set(PATTERNS):
        parser.error(f"--patterns are {', '.join(PATTERNS)}, poisson among them")
    args.patterns = [name for name in PATTERNS if name in patterns]
    if args.simulated and args.dynamic:
        parser.error("--simulated takes the run's own halting model")
    # A CPU gains little from batches; a device with room to fill gains much, up to a size.
    args.grid = args.grid or ("8:0,16:0,32:0,32:5" if args.simulated else "1:0,4:0,16:0,64:0,4:2")
    return args


def subjects_of(args: argparse.Namespace, folder: Path) -> Subjects:
    """What takes part."""
    if args.simulated:
        device = Device(full_ms=args.device_ms, fills=args.fills)
        return simulated_subjects(args.run, args.data, folder, args.images, device)
    return real_subjects(args.run, args.data, folder, args.images, args.peers, args.dynamic)


def compared(bench: Bench, args: argparse.Namespace) -> dict[str, Any]:
    """Tune every server, then let them take turns."""
    servers = bench.subjects.servers
    grid = [Batching.of(text) for text in args.grid.split(",")]
    alone = bench.unloaded(servers["full"], TIMES)
    assert bench.goal is not None
    print(f"unloaded {alone['p50_ms']:.2f} ms, limit {1000 * bench.goal.limit:.2f} ms", flush=True)
    start = 600.0 / alone["p50_ms"]
    tuned: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, server in servers.items():
        with peer_may_fail(name, left_out):
            tuned[name] = bench.tuned(server, grid, start)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in tuned}
    half = None
    for number in range(args.rounds):
        names = [name for name in tuned if name not in left_out]
        names = names if number % 2 == 0 else names[::-1]
        print(f"round {number + 1}: {', '.join(names)}", flush=True)
        for name in names:
            patterns = args.patterns if name in OURS else ["poisson"]
            with peer_may_fail(name, left_out):
                found = bench.round(servers[name], tuned[name]["chosen"], 1 + number, patterns, half)
                rounds[name].append(found)
                half = half or found.get("half", {}).get("rate")  # the full model comes first
                shown(name, found)
    return {
        "unloaded": alone, "limit_ms": 1000 * bench.goal.limit, "tuned": tuned, "rounds": rounds,
        "left_out": left_out,
    }  # fmt: skip


@contextmanager
def peer_may_fail(name: str, left_out: dict[str, str]) -> Iterator[None]:
    """A peer at which the generator can't keep its times is left out from there on; the record says so."""
    try:
        yield
    except LateGenerator as late:
        if name not in PEERS:
            raise
        left_out[name] = str(late)
        print(f"  {name} is left out: {late}", flush=True)


def runtime_alone(args: argparse.Namespace, folder: Path, found: dict[str, Any], core: int) -> dict[str, Any]:
    """The same models on the same images without a server, at the batch sizes that the servers ran."""
    sizes = {name: size_seen(found["rounds"][name]) for name in ("full", "dynamic")}
    asked = sorted({1, *sizes.values()})
    command = [
        sys.executable, str(HERE / "load_alone.py"), "--run", str(args.run),
        "--images", str(folder / "images.npy"), "--sizes", ",".join(map(str, asked)),
        *(["--dynamic", str(args.dynamic)] if args.dynamic else []),
    ]  # fmt: skip
    done = subprocess.run(
        pinned(command, core), stdout=subprocess.PIPE, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return alone_ratio(json.loads(done.stdout), sizes)


def main() -> None:
    """Measure and write the record."""
    args = arguments()
    end_on_signals()
    begun = time.perf_counter()
    server_core, generator_core = cores()
    with tempfile.TemporaryDirectory() as name, Generator(generator_core) as generator:
        folder = Path(name)
        subjects = subjects_of(args, folder)
        os.sched_setaffinity(0, {generator_core})  # it only waits from now on
        lengths = Lengths(args.seconds, args.tune_seconds, args.warm)
        bench = Bench(subjects, generator, server_core, lengths, largest_lag=args.largest_lag_ms / 1e3)
        found = compared(bench, args)
        alone = None if args.simulated else runtime_alone(args, folder, found, server_core)
    said = verdict(found["rounds"], alone)
    print(json.dumps({key: said[key] for key in ("asked", "over", "loses")}, indent=1))
    record = {
        "verdict": said,
        "cores": {"server": server_core, "generator": generator_core, "threads": 1},
        "lengths": vars(lengths),
        "bursts": PATTERNS["bursty"].to_dict() if PATTERNS["bursty"] else None,
        "largest_lag_ms": args.largest_lag_ms,
        "seconds": round(time.perf_counter() - begun),
        **subjects.told,
        "alone": alone,
        **found,
    }
    kind = "simulated" if args.simulated else "cpu"
    claim = (
        "depth-batched serving at least 1.7 x the goodput of full-depth batching on a device as GPUs are"
        if args.simulated
        else "the server keeps at least 0.9 of the runtime's own gain as goodput under one latency limit"
    )
    print(write_record(args.name or f"serve_load_{kind}", claim, record))


if __name__ == "__main__":
    main()
