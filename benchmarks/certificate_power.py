"""How often the certificate is earned: the exact paired test against a box of Clopper-Pearson bounds.

    python benchmarks/certificate_power.py

Promise: accuracy drop of at most 1 point at delta 0.05. For true rates b (newly wrong) and c (newly right),
outcomes of n images are drawn and both tests are asked; the share certified is the power, or, where b - c is
the promised drop, the rate of false certificates.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
from record import write_record

from odn_hybrid.stopping import PairedTest, clopper_pearson

DROP, DELTA = 0.01, 0.05
RATES = [(0.010, 0.007), (0.015, 0.010), (0.004, 0.001)]
BOUNDARY = [(0.0105, 0.0005), (0.015, 0.005), (0.03, 0.02)]
SIZES = [1_000, 2_000, 5_000, 10_000]


@cache
def exact(n: int, wrong: int, right: int) -> bool:
    """The library's certificate."""
    return PairedTest(n, wrong, right, DROP, DELTA).rejects()


@cache
def box(n: int, wrong: int, right: int) -> bool:
    """Upper bound on b less lower bound on c, three quarters of delta for the first."""
    high = clopper_pearson(wrong, n, 1 - 0.75 * DELTA, side="upper")[1]
    return high - clopper_pearson(right, n, 1 - 0.25 * DELTA, side="lower")[0] <= DROP


def main() -> None:
    """Draw, ask, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2_000)
    args = parser.parse_args()
    rows = []
    for b, c in RATES + BOUNDARY:
        for n in SIZES:
            drawn = np.random.default_rng(0).multinomial(n, [b, c, 1 - b - c], size=args.trials)
            shares = {
                name: float(np.mean([test(n, int(wrong), int(right)) for wrong, right, _ in drawn]))
                for name, test in (("box", box), ("exact", exact))
            }
            rows.append({"b": b, "c": c, "n": n, "boundary": (b, c) in BOUNDARY, **shares})
            print(rows[-1], flush=True)
    claim = "the exact paired certificate has more power than Clopper-Pearson bounds and keeps its level"
    data = {"drop": DROP, "delta": DELTA, "trials": args.trials, "seed": 0, "rows": rows}
    print(write_record("certificate_power", claim, data))


if __name__ == "__main__":
    main()
