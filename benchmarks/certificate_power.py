"""How often the certificate is earned: exact paired test, betting test and a box of Clopper-Pearson bounds.

    python benchmarks/certificate_power.py

Promise: accuracy drop of at most 1 point at delta 0.05. For true rates b (newly wrong) and c (newly right),
outcomes of n images are drawn and both tests are asked; the share certified is the power, or, where b - c is
the promised drop, the rate of false certificates. `earlier` is what an earlier trial of a betting test on the
same cases found (400 trials): the power that the exact test must reach.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
from record import write_record

from odn_hybrid.stopping import BettingTest, PairedTest, clopper_pearson

DROP, DELTA = 0.01, 0.05
RATES = [(0.010, 0.007), (0.015, 0.010), (0.004, 0.001)]
BOUNDARY = [(0.0105, 0.0005), (0.015, 0.005), (0.03, 0.02)]
SIZES = [1_000, 2_000, 5_000, 10_000]
EARLIER = {
    (0.010, 0.007): (0.32, 0.57, 0.92, 1.0),
    (0.015, 0.010): (0.16, 0.28, 0.54, 0.86),
    (0.004, 0.001): (0.51, 0.94, 1.0, 1.0),
}


@cache
def exact(n: int, wrong: int, right: int) -> bool:
    """The library's certificate."""
    return PairedTest(n, wrong, right, DROP, DELTA).rejects()


@cache
def box(n: int, wrong: int, right: int) -> bool:
    """Upper bound on b less lower bound on c, three quarters of delta for the first."""
    high = clopper_pearson(wrong, n, 1 - 0.75 * DELTA, side="upper")[1]
    return high - clopper_pearson(right, n, 1 - 0.25 * DELTA, side="lower")[0] <= DROP


@cache
def betting(n: int, wrong: int, right: int) -> bool:
    """The betting test on the same outcome, in the order that its digest fixes."""
    change = np.zeros(n)
    change[:wrong], change[wrong : wrong + right] = 1.0, -1.0
    return BettingTest(change, 1.0, DROP, DELTA).rejects()


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
                for name, test in (("box", box), ("exact", exact), ("betting", betting))
            }
            earlier = EARLIER[b, c][SIZES.index(n)] if (b, c) in EARLIER else None
            rows.append(
                {"b": b, "c": c, "n": n, "boundary": (b, c) in BOUNDARY, **shares, "earlier": earlier}
            )
            print(rows[-1], flush=True)
    claim = (
        "the exact paired certificate has more power than Clopper-Pearson bounds and betting, at its level"
    )
    data = {"drop": DROP, "delta": DELTA, "trials": args.trials, "seed": 0, "rows": rows}
    print(write_record("certificate_power", claim, data))


if __name__ == "__main__":
    main()
