"""False certificates by simulation: the whole procedure, from calibration to the promise, again and again.

    python benchmarks/validity.py            # make validity: all settings, a few minutes on one core

From a finite population of images, whose candidates' true drops are therefore known, a calibration sample
and a certification sample are drawn with replacement, again and again. The first orders the candidates, the
second certifies by fixed sequence. A certificate is false if the chosen candidate's true drop is the promise
or more. Per setting a binomial test asks whether false certificates are more frequent than delta, at 1 %
Bonferroni over all settings. The same program must catch two procedures that are not valid: a
normal-approximation z-test in the place of the exact test, and ordering on the certification sample itself.
Exits 1 if a valid procedure is rejected or an invalid one is not caught.

Populations, all in units of the promise eps:
- `ladder`: nine nested candidates with drops from 0.3 to 2, one exactly 1, as thresholds make them;
- `boundary`: twelve candidates with a drop of exactly 1 each and nothing else in common;
- `losses`: two candidates with continuous, skewed losses that rise by exactly 1 on average (betting test).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from record import write_record
from scipy.special import ndtri
from scipy.stats import binom

from odn_hybrid.stopping import BettingTest, PairedTest
from odn_hybrid.stopping.promises.sequence import STEPS, SURE, _sequence, predicted_power

DROPS, DELTAS, SIZES = (0.005, 0.01, 0.02), (0.05, 0.1), (500, 2_000, 10_000)
IMAGES = 20_000  # in a population; eps times this is a whole number
VALID = ("exact ladder", "exact boundary", "betting losses")
INVALID = ("z-test", "same data")
LEVEL = 0.01
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Population:
    """A finite population by its kinds of images.

    `images` (P,): of each kind; `wrong`, `right` (P, m): whether a kind is newly wrong, newly right for each
    candidate; `costs` (m,). The last kind is never changed.
    """

    images: Counts
    wrong: Counts
    right: Counts
    costs: NDArray[np.float64]

    def drops(self) -> NDArray[np.float64]:
        """True drop of every candidate."""
        return (self.images @ (self.wrong - self.right)) / self.images.sum()

    def sample(self, rng: np.random.Generator, n: int, trials: int) -> tuple[Counts, Counts]:
        """Newly wrong and newly right images in samples of `n`, (trials, m) each."""
        drawn = rng.multinomial(n, self.images / self.images.sum(), size=trials)
        return drawn @ self.wrong, drawn @ self.right


def ladder(drop: float) -> Population:
    """Nested candidates from well within the promise to far beyond it, with newly right images too."""
    shares = np.array([0.3, 0.6, 0.85, 1.0, 1.02, 1.1, 1.3, 1.6, 2.0])
    lost = np.round(shares * drop * IMAGES).astype(int)
    gained = np.round(0.5 * shares * drop * IMAGES).astype(int)
    steps = len(shares)
    reached = np.tril(np.ones((steps, steps), int)).T  # kind of step i is changed by candidates i, i + 1, ...
    none = np.zeros((steps, steps), int)
    return _population(np.diff(lost + gained, prepend=0), np.diff(gained, prepend=0), reached, none)


def boundary(drop: float) -> Population:
    """Candidates that all lose exactly the promise, each on images of its own, and gain next to nothing."""
    count = 12
    lost, gained = round(drop * IMAGES), round(0.02 * drop * IMAGES)
    own, none = np.eye(count, dtype=int), np.zeros((count, count), int)
    return _population(np.full(count, lost + gained), np.full(count, gained), own, none)


def _population(wrong: Counts, right: Counts, touched: Counts, none: Counts) -> Population:
    rest = IMAGES - wrong.sum() - right.sum()
    last = np.zeros((1, touched.shape[1]), int)
    return Population(
        images=np.concatenate([wrong, right, [rest]]),
        wrong=np.concatenate([touched, none, last]),
        right=np.concatenate([none, touched, last]),
        costs=np.arange(touched.shape[1], 0, -1.0),
    )


class Exact:
    """The exact test tabulated: for every count of newly right images the most newly wrong that pass."""

    def __init__(self, n: int, drop: float, delta: float) -> None:
        self.n, self.drop, self.delta = n, drop, delta
        self.limits: dict[int, int] = {}

    def passes(self, wrong: Counts, right: Counts) -> NDArray[np.bool_]:
        """Whether outcomes are certified."""
        self._fill(np.unique(right))
        table = np.full(right.max() + 1, -1)
        for count, limit in self.limits.items():
            if count < len(table):
                table[count] = limit
        return wrong <= table[right]

    def _fill(self, counts: Iterable[int]) -> None:
        limit = -1  # rises with the number of newly right images (Lemma 1 of theory/certificate.md)
        for right in map(int, counts):
            if right not in self.limits:
                while limit + 1 + right <= self.n and self._rejects(limit + 1, right):
                    limit += 1
                self.limits[right] = limit
            limit = self.limits[right]

    def _rejects(self, wrong: int, right: int) -> bool:
        return PairedTest(self.n, wrong, right, self.drop, self.delta).rejects()


def z_test(wrong: Counts, right: Counts, n: int, drop: float, delta: float) -> NDArray[np.bool_]:
    """The normal approximation: not valid."""
    lost, moved = (wrong - right) / n, (wrong + right) / n
    return lost + ndtri(1 - delta) * np.sqrt(np.maximum(moved - lost**2, 0) / n) <= drop


def choose(
    calibration: tuple[Counts, Counts], passes: NDArray[np.bool_], population: Population,
    n: int, drop: float, delta: float,
) -> Counts:  # fmt: skip
    """The candidate that each trial certifies, (trials,), -1 for none: the library's order, then the walk."""
    wrong, right = calibration
    chance = predicted_power((wrong - right) / n, (wrong + right) / n, n, n, drop, delta)
    chosen = np.full(len(wrong), -1)
    for trial, (row, passed) in enumerate(zip(chance, passes, strict=True)):
        for candidate in _sequence(row, population.costs, SURE, STEPS):
            if not passed[candidate]:
                break
            chosen[trial] = candidate
    return chosen


def paired_setting(drop: float, delta: float, n: int, trials: int, seed: int) -> dict[str, int]:
    """False certificates of the exact procedure and of the two that are not valid."""
    exact, false = Exact(n, drop, delta), {}
    for number, (name, make) in enumerate((("ladder", ladder), ("boundary", boundary))):
        population = make(drop)
        rng = np.random.default_rng([seed, number])
        first, second = population.sample(rng, n, trials), population.sample(rng, n, trials)
        bad = np.append(population.drops() >= drop - 1e-12, False)  # the last entry is "none chosen"
        passed, setting = exact.passes(*second), (population, n, drop, delta)
        false[f"exact {name}"] = int(bad[choose(first, passed, *setting)].sum())
        if name == "boundary":
            wrongly = z_test(*second, n, drop, delta)
            false["z-test"] = int(bad[choose(first, wrongly, *setting)].sum())
            false["same data"] = int(bad[choose(second, passed, *setting)].sum())
    return false


def betting_setting(drop: float, delta: float, n: int, trials: int, seed: int) -> int:
    """False certificates of the betting test on the candidate that looks better on the calibration sample."""
    rng = np.random.default_rng([seed, 2])
    changes = rng.beta(0.05, 0.5, (2, IMAGES)) * rng.choice([1.0, -1.0], (2, IMAGES), p=[0.6, 0.4])
    for row in changes:  # scaled and shifted so that the mean is the promise: mostly tiny, some large
        row *= 0.9
        row += drop - row.mean()
    assert np.abs(changes).max() <= 1 and np.allclose(changes.mean(axis=1), drop, atol=1e-12)
    false = 0
    for _ in range(trials):
        likelier = changes[:, rng.integers(IMAGES, size=n)].mean(axis=1).argmin()
        seen = changes[likelier, rng.integers(IMAGES, size=n)]
        false += BettingTest(seen, 1.0, drop, delta).rejects()
    return false


def run(
    drops: Iterable[float], deltas: Iterable[float], sizes: Iterable[int], trials: int, betting: bool = True
) -> list[dict[str, float | int | str]]:
    """One row per setting and procedure: false certificates and the p-value of "not more than delta"."""
    rows: list[dict[str, float | int | str]] = []
    deltas, sizes = list(deltas), list(sizes)
    for seed, (drop, delta, n) in enumerate((e, d, n) for e in drops for d in deltas for n in sizes):
        start = time.perf_counter()
        false = paired_setting(drop, delta, n, trials, seed)
        if betting:
            false["betting losses"] = betting_setting(drop, delta, n, trials, seed)
        for name, count in false.items():
            p_value = float(binom.sf(count - 1, trials, delta))
            setting = {"procedure": name, "drop": drop, "delta": delta, "n": n}
            rows.append({**setting, "false": count, "share": count / trials, "p_value": p_value})
        shares = ", ".join(f"{name} {count / trials:.4f}" for name, count in false.items())
        print(f"{drop} {delta} {n}: {shares} ({time.perf_counter() - start:.0f} s)", flush=True)
    return rows


def verdict(rows: list[dict[str, float | int | str]]) -> dict[str, dict[str, float | int]]:
    """Per procedure: settings, how many the binomial test rejects, the largest share in terms of delta."""
    checked = sum(row["procedure"] in VALID for row in rows)
    found = {}
    for name in (*VALID, *INVALID):
        own = [row for row in rows if row["procedure"] == name]
        if own:
            found[name] = {
                "settings": len(own),
                "rejected": sum(float(row["p_value"]) < LEVEL / checked for row in own),
                "worst_share_of_delta": max(float(row["share"]) / float(row["delta"]) for row in own),
            }
    return found


def holds(found: dict[str, dict[str, float | int]]) -> bool:
    """Whether no valid procedure is rejected and every invalid one is caught somewhere."""
    return all((found[name]["rejected"] == 0) == (name in VALID) for name in found)


def main() -> int:
    """All settings; the record; 1 if the program finds what it must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5_000)
    args = parser.parse_args()
    start = time.perf_counter()
    rows = run(DROPS, DELTAS, SIZES, args.trials)
    found = verdict(rows)
    for name, row in found.items():
        print(name, row)
    claim = (
        "the whole procedure gives false certificates with probability at most delta, "
        "and a procedure that does not is caught"
    )
    data = {"trials": args.trials, "level": LEVEL, "holds": holds(found), "summary": found, "rows": rows}
    print(write_record("validity", claim, {**data, "seconds": round(time.perf_counter() - start)}))
    return int(not holds(found))


if __name__ == "__main__":
    sys.exit(main())
