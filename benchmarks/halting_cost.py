"""What halting costs at run time: prescribed patterns against the sum of the segments' own times.

    python benchmarks/halting_cost.py                      # resnet50 and vit_small at 224, resnet18 at 32
    python benchmarks/halting_cost.py --device cuda --batches 64,256
    python benchmarks/halting_cost.py --networks resnet18 --seconds 1    # to try it out

Networks have random weights: nothing but speed is measured. An exit stands after a quarter, a half and three
quarters of the units, and thresholds are set on the very images, so that a given share of those who come to
an exit leave there. Ideal is the sum, over the segments, of a segment's own time (with its head, without
decision) on a batch of as many inputs as really came there, run as the runtime runs it. Everything takes
turns in one run; ratios are of the same round. Where calls take less than a tenth of a second on
average, each is made twice and the second is measured: a model that is served finds its own code in the
caches, not another's. The plain model is called as anybody calls it; beside it stands the same without
module calls, as the runtime has it on the CPU (`deploy/halting/straight.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from record import write_record
from torch import Tensor

import odn_hybrid as odn
from odn_hybrid.cost import measure
from odn_hybrid.deploy.comparing.turns import waiter
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.halting.segments import segments_of, straighten
from odn_hybrid.deploy.halting.straight import Direct
from odn_hybrid.execution import Execution
from odn_hybrid.stopping import Calibration, HaltingTable

NETWORKS: dict[str, tuple[str, int]] = {
    "resnet50": ("resnet50", 224),
    "vit_small": ("vit_small_patch16_224", 224),
    "resnet18": ("resnet18", 32),
}
PATTERNS = {"none": 0.0, "tenth": 0.1, "half": 0.5, "most": 0.9}
LIMITS = {"pattern": 1.10, "none": 1.05, "single": 1.08}
BOOTSTRAP = 2000
AGAIN = 0.1  # mean seconds of a turn below which all is gone through once before the calls that count


@dataclass(frozen=True)
class Case:
    """A network ready to run: folded, channels last."""

    name: str
    network: odn.MultiExit
    exits: tuple[int, ...]
    execution: Execution
    device: torch.device

    def images(self, batch: int) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        images = torch.randn(batch, *self.network.trunk.image_shape, generator=generator)
        return images.to(self.device)


def make_case(name: str, device: torch.device, execution: Execution) -> Case:
    """Build a network with exits after a quarter, a half, three quarters and all of its units."""
    model, size = NETWORKS[name]
    torch.manual_seed(0)
    trunk = odn.Trunk(timm.create_model(model, num_classes=100).eval(), image_size=size)
    network = odn.MultiExit(trunk).eval().to(device)
    units = len(trunk)
    exits = tuple(network.exit_of(round(units * part)) for part in (0.25, 0.5, 0.75, 1.0))
    if execution.fold:
        network.fold()
    network.to(memory_format=image_layout(network))
    return Case(name, network, exits, execution, device)


@torch.no_grad()
def prescribed(case: Case, images: Tensor, share: float) -> HaltingTable:
    """Thresholds at which `share` of those who come to an exit leave; nobody, but with all heads, for 0."""
    flat = Calibration.of_temperatures([1.0] * len(case.exits))
    with case.execution.casting(case.device):
        logits = case.network(images.contiguous(memory_format=image_layout(case.network)))
    some = torch.stack([logits[exit - 1].float() for exit in case.exits], 1).cpu().numpy()
    scores = HaltingTable.of_thresholds([1.0] * len(case.exits), flat).scores(some)
    going = np.arange(len(images))
    limits = []
    for column in range(len(case.exits) - 1):
        here = np.sort(scores[going, column])[::-1]
        leaving = min(round(share * len(here)), len(here) - 1)  # somebody goes on
        if leaving == 0:
            limits.append(float(here[0] + 1) / 2)  # within reach: the exit has to look
            continue
        limit = float(here[leaving - 1] + here[leaving]) / 2  # between two, so that last digits don't matter
        limits.append(limit)
        going = going[scores[going, column] < limit]
    return HaltingTable.of_thresholds([*limits, 0.0], flat)


def run_case(case: Case, batch: int, rounds: int, least: float) -> list[dict[str, Any]]:
    """All patterns at one batch size."""
    images = case.images(batch)
    found = []
    for pattern, share in PATTERNS.items():
        if batch == 1 and pattern != "none":
            continue
        table = prescribed(case, images, share)
        model = odn.HaltingModel(case.network, table, exits=case.exits, execution=case.execution)
        assert model.looked == case.exits  # also where nobody leaves, heads and decisions are paid for
        model.warm_up((batch,), rounds=3)
        out = model(images)
        survivors = [int((out.exit >= exit).sum()) for exit in case.exits]
        things = {"dynamic": {"dynamic": lambda model=model: model(images)}}
        things["plain"] = {"plain": plain(case, images)}
        if case.device.type == "cpu":
            direct = plain(case, images, Direct(case.network.backbone).eval())
            things["plain, direct"] = {"plain, direct": direct}
        things["segments"] = segment_runs(case, images, survivors)
        tried = timed_calls(things, 6, case.device)
        once = sum(float(np.median(values[3:])) for values in tried.values())
        again = once < AGAIN * len(things)
        fill = int(least / (once * (1 + again)))
        seconds = timed_calls(things, max(rounds, fill), case.device, again=again)
        ideal = sum(seconds[name] for name in seconds if name.startswith("segment"))
        row = {
            "network": case.name,
            "batch": batch,
            "pattern": pattern,
            "survivors": survivors,
            "called_twice": again,
            "over_ideal": ratio(seconds["dynamic"] / ideal),
            "over_plain": ratio(seconds["dynamic"] / seconds["plain"]),
            "over_direct": ratio(seconds["dynamic"] / seconds.get("plain, direct", seconds["plain"])),
            "seconds": {name: values.tolist() for name, values in seconds.items()},
        }
        row["limit"], row["met"] = verdict(row)
        print(
            f"{case.name:10s} batch {batch:4d} {pattern:6s} survivors {survivors} over ideal "
            f"{row['over_ideal']['median']:.3f}, over plain {row['over_plain']['median']:.3f} "
            f"(direct {row['over_direct']['median']:.3f})",
            flush=True,
        )
        found.append(row)
    return found


def timed_calls(
    things: dict[str, dict[str, Callable[[], object]]],
    rounds: int,
    device: torch.device,
    *,
    again: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Seconds of each call, (rounds,): things take turns, the calls of one thing follow each other.

    `again`: each thing has been gone through just before. A first round is not counted.
    """
    wait = waiter(device)
    taken: dict[str, list[float]] = {name: [] for calls in things.values() for name in calls}

    def turn(calls: dict[str, Callable[[], object]]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(again):
                for call in calls.values():
                    call()
                wait()
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                wait()
                taken[name].append(time.perf_counter() - start)

        return run

    turns = {name: turn(calls) for name, calls in things.items()}
    measure(turns, rounds=rounds, warmup=1, device=device.type)
    return {name: np.array(values[1:]) for name, values in taken.items()}


def verdict(row: dict[str, Any]) -> tuple[dict[str, float], bool]:
    """What is asked of a row, and whether its median meets it."""
    if row["pattern"] != "none":
        return {"over_ideal": LIMITS["pattern"]}, row["over_ideal"]["median"] <= LIMITS["pattern"]
    limit = LIMITS["single"] if row["batch"] == 1 else LIMITS["none"]
    return {"over_plain": limit}, row["over_plain"]["median"] <= limit


def plain(case: Case, images: Tensor, model: Any = None) -> Any:
    """The whole network without exits, in the same form; `model`: its backbone, called in another way."""
    layout = image_layout(case.network)
    model = model or case.network.backbone

    def run() -> Tensor:
        with torch.inference_mode(), case.execution.casting(case.device):
            return model(images.contiguous(memory_format=layout))

    return graphed(run, case.device)


@torch.no_grad()
def segment_runs(case: Case, images: Tensor, survivors: list[int]) -> dict[str, Any]:
    """Per segment that anybody enters: run it, head included, on as many inputs as came."""
    runs: dict[str, Any] = {}
    entry: Any = images.contiguous(memory_format=image_layout(case.network))
    segments = segments_of(case.network, case.exits)
    straighten(segments, image_layout(case.network), case.execution)  # as the runtime has them
    for number, (segment, here) in enumerate(zip(segments, survivors, strict=True)):
        if not here:
            break
        if number:
            entry = entry.select(torch.arange(here, device=case.device))

        def run(segment: Any = segment, entry: Any = entry) -> Any:
            with torch.inference_mode(), case.execution.casting(case.device):
                return segment.quick(entry)

        entry, _ = run()
        with torch.inference_mode():
            entry = entry.select(torch.arange(here, device=case.device))  # a copy of its own
        runs[f"segment {number + 1}"] = graphed(run, case.device)
    return runs


def graphed(run: Any, device: torch.device) -> Any:
    """On CUDA as one graph, as the runtime has it; else as it is."""
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
    torch.cuda.synchronize(device)
    return graph.replay


def ratio(values: Any) -> dict[str, float]:
    """Median of ratios by round, with a bootstrap 95 % interval."""
    random = np.random.default_rng(0)
    medians = np.median(values[random.integers(0, len(values), (BOOTSTRAP, len(values)))], axis=1)
    low, high = np.quantile(medians, (0.025, 0.975))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9, help="at least; half of them from batch 64 on")
    parser.add_argument("--seconds", type=float, default=12.0, help="of rounds for each row, at least")
    parser.add_argument("--name", default=None, help="of the record")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    execution = Execution(fold=True, precision=args.precision)
    rows = []
    for name in args.networks.split(","):
        case = make_case(name, device, execution)
        for batch in map(int, args.batches.split(",")):
            rounds = args.rounds if batch < 64 else max(3, args.rounds // 2)
            rows += run_case(case, batch, rounds, args.seconds)
    claim = "dynamic halting takes at most 1.10 x the sum of its segments' own times"
    data = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "execution": execution.name(device),
        "threads": args.threads,
        "met": sum(row["met"] for row in rows),
        "of": len(rows),
        "rows": rows,
    }
    print(write_record(args.name or f"halting_cost_{device.type}", claim, data))


if __name__ == "__main__":
    main()
