"""The server as it is, on a device that is not there; see serve_load.py.

    python benchmarks/load_simulated_server.py --folder FOLDER --kind dynamic --port 9000

FOLDER is as `load_simulated.write_simulated` writes it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from unittest import mock

import numpy as np

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.hosting.hosted import KINDS, Opened
from odn_hybrid.serve.running.server import serve
from odn_hybrid.serve.settings import LaneSettings, ServeSettings
from odn_hybrid.serve.stages.simulated import SimulatedStages
from odn_hybrid.stopping import HaltingTable


def opened(path: Path, kind: str, **_: object) -> Opened:
    """In the place of the library's own, which opens folders of models."""
    told = json.loads((path / f"{kind}.json").read_text())
    times = told["times"]
    stages = SimulatedStages(
        np.load(path / f"{kind}.npy"),
        HaltingTable.from_dict(told["policy"]),
        SegmentTimes(
            tuple(times["sizes"]),
            tuple(map(tuple, times["segments"])),
            tuple(map(tuple, times["gathers"])),
            times["device"],
            times["form"],
        ),
        time.sleep,
        exits=told["exits"],
        units=told["units"],
    )
    return Opened(stages=stages, kind=kind, digest="0" * 64)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    args = parser.parse_args()
    lane = LaneSettings(max_batch=args.max_batch, wait_ms=args.wait_ms)
    with mock.patch("odn_hybrid.serve.hosting.host.open_path", opened):
        serve({"model": args.folder}, ServeSettings(port=args.port, lane=lane), kind=args.kind)


if __name__ == "__main__":
    main()
