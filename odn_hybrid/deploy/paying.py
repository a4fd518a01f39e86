"""Which exits are worth their head on a device: found by measured times, before anything is promised.

An exit costs its head, its decision and perhaps a copy of the survivors for everybody who comes by, and saves
later units for those who stop. On a small network or a fast device many exits never pay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from odn_hybrid.backbone import evaluating
from odn_hybrid.cost import Costs, measure
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.halting.graphflow import Replay
from odn_hybrid.deploy.halting.timing import sizes_upto
from odn_hybrid.deploy.promising.dynamic import Looks, evaluate_policy, uncertified_policy
from odn_hybrid.deploy.promising.promise import Promise
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.stopping import Calibration, HaltingTable, Looker

__all__ = ["AIMS", "ExitTimes", "measure_exits", "paying_exits"]

AIMS = {"throughput": 64, "latency": 1}  # and the batch size that each is measured at, if none is given
WORTH = 0.005  # fewer exits are better, as long as that costs no more than this share of the time


@dataclass(frozen=True)
class ExitTimes:
    """Seconds by batch size; rows are exits 1..m, columns `sizes`.

    Attributes:
        units: of the units since the exit before (the stem's too, for the first).
        heads: of the head and the decision.
        gathers: of copying so many survivors after the exit.
    """

    sizes: tuple[int, ...]
    units: tuple[tuple[float, ...], ...]
    heads: tuple[tuple[float, ...], ...]
    gathers: tuple[tuple[float, ...], ...]

    def prices(self, exits: Sequence[int], batch: int) -> tuple[float, ...]:
        """Seconds per input that stops at each of `exits`, in batches of `batch`, looking at these only."""
        found, total, before = [], 0.0, 0
        for exit in exits:
            total += sum(self._at(self.units[k], batch) for k in range(before, exit))
            total += self._at(self.heads[exit - 1], batch)
            found.append(total / batch)
            before = exit
        return tuple(found)

    def expected(self, exits: Sequence[int], halting: Sequence[float], batch: int) -> float:
        """Seconds per input in batches of `batch`, of which shares `halting` stop at each of `exits`.

        In batches of one, an input either runs a segment or does not.
        """
        total, before, going = 0.0, 0, 1.0
        for exit, stops in zip(exits, halting, strict=True):
            here = batch * going
            parts = [*self.units[before:exit], self.heads[exit - 1]]
            if batch == 1:
                total += going * sum(self._at(part, 1) for part in parts)
            else:
                total += sum(self._at(part, here) for part in parts)
                if stops > 0 and exit != exits[-1]:
                    total += self._at(self.gathers[exit - 1], here - batch * stops)
            going -= stops
            before = exit
            if going * batch < 1e-9:
                break
        return total / batch

    def _at(self, seconds: Sequence[float], batch: float) -> float:
        return float(np.interp(batch, self.sizes, seconds))


def measure_exits(
    network: MultiExit, reference: int, execution: Execution, *, batch: int, rounds: int = 5
) -> ExitTimes:
    """Time units, heads and gathers of exits 1..`reference`, at batch sizes up to `batch`."""
    like = next(network.parameters())
    images = torch.rand(batch, *network.trunk.image_shape, generator=torch.Generator().manual_seed(0))
    images = images.to(device=like.device, dtype=like.dtype, memory_format=image_layout(network))
    found: list[list[list[float]]] = [[], [], []]
    sizes = sizes_upto(batch)
    with torch.inference_mode(False), torch.no_grad(), evaluating(network):
        for size in sizes:
            things = _things(network, reference, execution, images[:size])
            timed = measure(things, rounds=rounds, warmup=2, device=like.device.type)
            for kind, column in zip(("units", "heads", "gathers"), found, strict=True):
                column.append([timed[f"{kind} {k}"].median for k in range(1, reference + 1)])
    # A larger batch never takes less: what says so is noise.
    rows = [np.maximum.accumulate(np.array(column).T, axis=1) for column in found]
    units, heads, gathers = (tuple(map(tuple, table.tolist())) for table in rows)
    return ExitTimes(sizes, units, heads, gathers)


def _things(
    network: MultiExit, reference: int, execution: Execution, images: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """What is timed; CUDA graphs where the runtime would replay some."""
    device = images.device
    table = HaltingTable.of_thresholds([0.5] * reference, Calibration.of_temperatures([1.0] * reference))
    looker, decider = Looker(table), Decider(table)
    rows = torch.arange(len(images), device=device)
    things: dict[str, Callable[[], object]] = {}
    before: Any = None
    for number in range(1, reference + 1):

        def units(number: int = number, before: Any = before) -> Any:
            with execution.casting(device):
                return network.advance(network.trunk.stem(images) if before is None else before, number)

        state = units()

        def head(number: int = number, state: Any = state) -> Any:
            with execution.casting(device):
                logits = network.classify(number, state).float()
            if device.type == "cpu":
                return looker.look(number, logits.numpy(), None)
            return decider.look(number, logits, None)

        def gather(state: Any = state) -> Any:
            return state.select(rows)

        for kind, function in (("units", units), ("heads", head), ("gathers", gather)):
            function()
            things[f"{kind} {number}"] = Replay(function, device, None)
        before = state
    return things


def paying_exits(
    promise: Promise, calibration: ExitRecord, costs: Costs, times: ExitTimes, *, reference: int, batch: int
) -> Looks:
    """At which exits to look so that inputs take the least time, with the accuracy promised on `calibration`.

    From all exits, the one whose loss saves most is left out, again and again, while that costs at most
    `WORTH` of the time.
    """
    exits = tuple(range(1, reference + 1))
    best = _seconds(promise, calibration, costs, times, exits, batch)
    while len(exits) > 1:
        fewer = [tuple(e for e in exits if e != gone) for gone in exits[:-1]]
        seconds = [_seconds(promise, calibration, costs, times, one, batch) for one in fewer]
        least = int(np.argmin(seconds))
        if seconds[least] > best * (1 + WORTH):
            break
        exits, best = fewer[least], min(best, seconds[least])
    return _looks(costs, times, exits, batch)


def _looks(costs: Costs, times: ExitTimes, exits: tuple[int, ...], batch: int) -> Looks:
    return Looks(exits, tuple(costs.passing(exits)), times.prices(exits, batch))


def _seconds(
    promise: Promise,
    calibration: ExitRecord,
    costs: Costs,
    times: ExitTimes,
    exits: tuple[int, ...],
    batch: int,
) -> float:
    """Expected seconds per input of the cheapest policy that keeps the promise on the calibration split."""
    looks = _looks(costs, times, exits, batch)
    try:
        member = uncertified_policy(promise, calibration, looks)
    except ConfigError:  # a budget that these exits cannot keep
        return float("inf")
    halting = evaluate_policy(member, calibration.of(exits), looks.macs)["halting"]
    return times.expected(exits, halting, batch)
