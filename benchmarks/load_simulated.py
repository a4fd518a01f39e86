"""A device that is not there, with times as a GPU has them, and what a run's models take on it.

As long as a batch does not fill such a device, its time is that of launching and latency, whatever the batch;
once all processors are busy, time grows with the batch. The constants are chosen, not measured; what is asked
of the scheduler (whether it gathers survivors of several requests into batches that pay) does not depend on
them. A segment takes the share of the full model's time that it has of its MACs, its head with it, and a
launch of its own with the copy of its logits to the host.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.run import Run
from odn_hybrid.serve.hosting.runs import dynamic_of_run
from odn_hybrid.stopping import Calibration, HaltingTable

__all__ = ["SIZES", "Device", "write_simulated"]

SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Device:
    """Times of the device.

    Attributes:
        full_ms: of the full model on a batch that just fills the device, or less.
        fills: images that fill it.
        launch_ms: of each segment, whatever the batch.
        gather_ms: of putting survivors together, whatever the batch.
    """

    full_ms: float = 32.0
    fills: int = 8
    launch_ms: float = 0.3
    gather_ms: float = 0.1

    def times(self, shares: list[float]) -> SegmentTimes:
        """Of segments that have these shares of the full model's MACs."""
        flat = [max(1.0, size / self.fills) for size in SIZES]
        rows = [[(self.launch_ms + self.full_ms * share * f) / 1e3 for f in flat] for share in shares]
        copies = [[self.gather_ms / 1e3 * f for f in flat] for _ in shares]
        copies[-1] = [0.0] * len(SIZES)
        return SegmentTimes(
            SIZES, tuple(map(tuple, rows)), tuple(map(tuple, copies)), "simulated", "simulated"
        )

    def to_dict(self) -> dict[str, Any]:
        """For the record."""
        return {**self.__dict__, "rule": "launch + share of MACs x full x max(1, batch / fills)"}


def write_simulated(run: Run, record: ExitRecord, device: Device, folder: Path) -> dict[str, Any]:
    """`KIND.json` and `KIND.npy` for each kind in `folder`; gives the tables, and what to expect of them.

    `expected_ms_per_image`: at the largest batch, of the recorded images.
    """
    reference, costs = int(run.report_["reference"]["exit"]), run.parts.costs
    whole = costs.static(reference)
    plain = HaltingTable.of_thresholds([0.0], Calibration.of_temperatures([1.0]))
    model = dynamic_of_run(run)
    paid = costs.passing(model.looked)
    kinds: dict[str, tuple[HaltingTable, list[int], list[float]]] = {
        "dynamic": (
            model.policy, list(model.exits), [step / whole for step in np.diff([0, *paid])]
        ),
        "full": (plain, [reference], [1.0]),
        "static": (plain, [run.depth_["exit"]], [costs.static(run.depth_["exit"]) / whole]),
    }  # fmt: skip
    told = {}
    for kind, (policy, exits, shares) in kinds.items():
        times = device.times(shares)
        logits = record.logits[:, np.array(exits) - 1]
        units = [run.network.units[exit - 1] for exit in exits]
        np.save(folder / f"{kind}.npy", logits)
        table = {"policy": policy.to_dict(), "times": times.to_dict(), "exits": exits, "units": units}
        (folder / f"{kind}.json").write_text(json.dumps(table))
        stops = policy.decide(logits)[0]
        reached = [float((stops >= number).mean()) for number in policy.needed]
        each = [share * row[-1] / SIZES[-1] for share, row in zip(reached, times.segments, strict=True)]
        told[kind] = {
            "times": times.to_dict(),
            "reached": reached,
            "expected_ms_per_image": 1000 * sum(each),
        }
    return told
