"""The embedded data set: what `odn fit` and `odn compare` say on this machine.

    python benchmarks/quickstart.py

The same fit as `make demo`; the record holds its report, the comparison and the time it took.
"""

from __future__ import annotations

import time

import torch
from record import write_record

import odn_hybrid as odn


def main() -> None:
    """Fit, compare, write the record."""
    started = time.monotonic()
    run = odn.fit()
    seconds = time.monotonic() - started
    run.compare(batch_sizes=(1, 16, 64), rounds=15)
    report = {key: value for key, value in run.report_.items() if key != "environment"}
    claim = (
        "one command gives full, static and dynamic models of the embedded set, within 3 minutes on 2 cores"
    )
    data = {"threads": torch.get_num_threads(), "fit_seconds": seconds, "seed": 0, "report": report}
    print(write_record("quickstart", claim, {**data, "history": run.history_}))


if __name__ == "__main__":
    main()
