"""Drift: how often the monitor cries wolf, and how soon it notices a change.

    python benchmarks/drift.py                                 # synthetic exits: writes the record `drift`
    python benchmarks/drift.py --outputs RUN/outputs.safetensors    # recorded exit outputs: false alarms
    python benchmarks/drift.py --run RUN                       # a run's test images: blur, noise, classes

False alarms: reference and stream are one shuffled lot. Delay: inputs from the change to the alarm, after a
stretch without change. `--name NAME` records the last two (by default they are printed only). theory/drift.md
shows the record `drift`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from odn_hybrid.stopping import DriftMonitor, clopper_pearson, outcomes, policy_path
from odn_hybrid.stopping.watching.rank_bets import RankBets, bets

Pair = tuple[np.ndarray, np.ndarray]  # confidences and exits, (n,) each
ALPHA, PER, STREAM = 0.05, 10_000, 10_000
CHANGES = {
    "harder inputs": [0.05, 0.1, 0.2, 0.4, 0.8],  # shift of the difficulty, in its standard deviations
    "wider spread of difficulty": [1.1, 1.25, 1.5, 2.0],  # factor
    "a new class": [0.02, 0.05, 0.1, 0.2],  # share of inputs, of middling difficulty and low confidence
    "overconfidence": [1.1, 1.25, 1.5, 2.0],  # factor on the logit of the confidence; exits unchanged
}


# --- synthetic exits ----------------------------------------------------------------------------------


def draw(rng: np.random.Generator, n: int, change: str = "", size: float = 0.0) -> Pair:
    """Four exits: the harder an input, the later its exit and, within an exit, the lower its confidence."""
    difficulty = rng.normal(size=n)
    if change == "harder inputs":
        difficulty += size
    elif change == "wider spread of difficulty":
        difficulty *= size
    new = (rng.random(n) < size) if change == "a new class" else np.zeros(n, dtype=bool)
    difficulty[new] = rng.normal(0.5, 0.3, size=int(new.sum()))
    taken = np.digitize(difficulty + 0.3 * rng.normal(size=n), [-0.5, 0.5, 1.2]) + 1
    logit = 2.5 - difficulty + 0.5 * rng.normal(size=n) - 1.5 * new
    if change == "overconfidence":
        logit *= size
    return 1 / (1 + np.exp(-logit)), taken


class FixedReference(RankBets):
    """What not to do: the same bets on p-values against the reference alone, taken for independent."""

    def _predict(self, levels: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.log(self.sums / (self.m + 1)), (len(levels), len(self.sums)))


def monitor(reference: Pair, exits: int, per: int | None, *, fixed: bool = False) -> DriftMonitor:
    """A monitor, or with `fixed` its invalid cousin."""
    made = DriftMonitor(*reference, exits=exits, alpha=ALPHA, per=per)
    if fixed:
        for each in made._bets:
            each.__class__ = FixedReference
    return made


def false_alarms(
    lots: Iterator[tuple[Pair, Pair]], exits: int, per: int | None, *, fixed: bool = False
) -> dict[str, Any]:
    """Over pairs of reference and stream without change: how many streams had an alarm, and alarms in all."""
    alarms = []
    for reference, stream in lots:
        made = monitor(reference, exits, per, fixed=fixed)
        alarms.append(made.update(*stream).alarms)
    hit, n = int(np.count_nonzero(alarms)), len(alarms)
    low, high = clopper_pearson(hit, n, 0.95)
    row = {"reference": len(reference[0]), "stream": len(stream[0]), "per": per, "fixed_reference": fixed}
    return {**row, "streams": n, "with_alarm": hit, "low": low, "high": high, "alarms": int(sum(alarms))}


def delay(reference: Pair, exits: int, per: int | None, before: Pair, after: Pair) -> dict[str, Any]:
    """One change: whether the alarm was false, its delay, and the error of `since`; None if never."""
    made, n = monitor(reference, exits, per), len(before[0])
    early = made.update(*before)
    if early.alarm and per is None:
        return {"early": True, "delay": None, "since": None}
    for start in range(0, len(after[0]), 250):  # in pieces: most alarms come long before the end
        state = made.update(after[0][start : start + 250], after[1][start : start + 250])
        if state.alarms > early.alarms:
            return {"early": early.alarm, "delay": state.at - n, "since": state.since - n - 1}
    return {"early": early.alarm, "delay": None, "since": None}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over repetitions: alarms before the change, changes noticed, delays."""
    known = [row for row in rows if not row["early"]]
    delays = np.array([np.inf if row["delay"] is None else row["delay"] for row in known])
    since = [abs(row["since"]) for row in known if row["since"] is not None]
    quantiles = np.quantile(delays, [0.5, 0.9], method="inverted_cdf") if len(known) else [np.inf] * 2
    median, late = (int(value) if np.isfinite(value) else None for value in quantiles)
    found = {"streams": len(rows), "alarm_before": len(rows) - len(known), "noticed": len(since)}
    error = float(np.median(since)) if since else None
    return {**found, "median_delay": median, "p90_delay": late, "median_error_of_since": error}


def synthetic(streams: int, repeats: int) -> dict[str, Any]:
    """False alarms with and without the error, and delays by kind and size of change."""
    alarms, delays = [], []
    for m, per, fixed in [
        (2_000, None, False),
        (200, None, False),
        (2_000, PER, False),
        (2_000, None, True),
        (200, None, True),
    ]:
        rng = np.random.default_rng([m, fixed, per or 0])
        n = streams // 5 if fixed else streams
        lots = ((draw(rng, m), draw(rng, STREAM)) for _ in range(n))
        alarms.append(false_alarms(lots, 4, per, fixed=fixed))
        print(alarms[-1], flush=True)
    for change, sizes in CHANGES.items():
        for size in sizes:
            for before, per in ((0, None), (5_000, None), (5_000, PER)):
                rng = np.random.default_rng([before, int(1000 * size)])
                rows = []
                for _ in range(repeats):
                    after = draw(rng, 10_000, change, size)
                    rows.append(delay(draw(rng, 2_000), 4, per, draw(rng, before), after))
                row = {"change": change, "size": size, "clean": before, "per": per, **summary(rows)}
                delays.append(row)
                print(row, flush=True)
    return {"false_alarms": alarms, "delays": delays}


# --- recorded outputs ---------------------------------------------------------------------------------


def shuffled(lot: Pair, m: int, streams: int) -> Iterator[tuple[Pair, Pair]]:
    """The lot in random orders, cut into a reference of `m` and the stream."""
    rng = np.random.default_rng(0)
    for _ in range(streams):
        order = rng.permutation(len(lot[0]))
        yield tuple((lot[0][part], lot[1][part]) for part in (order[:m], order[m:]))  # type: ignore[misc]


def drawn(lot: Pair, m: int, streams: int) -> Iterator[tuple[Pair, Pair]]:
    """Reference and a stream of `STREAM`, both drawn from the lot with replacement (many equal values)."""
    rng = np.random.default_rng(0)
    for _ in range(streams):
        rows = rng.integers(0, len(lot[0]), m + STREAM)
        yield tuple((lot[0][part], lot[1][part]) for part in (rows[:m], rows[m:]))  # type: ignore[misc]


def lot_alarms(lot: Pair, m: int, exits: int, streams: int) -> list[dict[str, Any]]:
    """False alarms on a lot of real statistics, both ways, with both promises."""
    rows = []
    for way in (shuffled, drawn):
        for per in (None, PER):
            rows.append({"way": way.__name__, **false_alarms(way(lot, m, streams), exits, per)})
            print(rows[-1], flush=True)
    return rows


def joined(*pairs: Pair) -> Pair:
    """Pairs one after the other."""
    return np.concatenate([c for c, _ in pairs]), np.concatenate([e for _, e in pairs])


def recorded(file: Path, streams: int, drop: float) -> dict[str, Any]:
    """The policy comes from calibration; certification and, if there, test are shuffled."""
    from safetensors.numpy import load_file

    held = load_file(file)
    logits, labels = held["calibration.logits"], held["calibration.labels"]
    exits = logits.shape[1]
    path = policy_path("confidence", logits, labels, np.arange(1.0, exits + 1))
    right = logits.argmax(2) == labels[:, None]
    accuracy = [right[np.arange(len(labels)), gave - 1].mean() for gave in outcomes(path, logits)[1]]
    member = [one for one, found in zip(path, accuracy, strict=True) if found >= right[:, -1].mean() - drop][
        -1
    ]
    pairs = []
    for name in ("certification", "test"):
        if f"{name}.logits" in held:
            taken, answered = member.table.decide(held[f"{name}.logits"])
            pairs.append((member.table.confidence(held[f"{name}.logits"], answered), taken))
    lot = joined(*pairs)
    m = len(lot[0]) // 2 if len(pairs) == 1 else len(pairs[0][0])
    return {"policy": f"confidence {member.setting:.4f}", "false_alarms": lot_alarms(lot, m, exits, streams)}


# --- images -------------------------------------------------------------------------------------------


def image_changes(mean: Any, std: Any) -> dict[str, Callable[[Any], Any]]:
    """Blur and noise on pixels 0..1 of preprocessed images (B, C, H, W), by name."""
    import torch
    from torchvision.transforms.functional import gaussian_blur

    centre, scale = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
    generator = torch.Generator().manual_seed(0)

    def on_pixels(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: (change(x * scale + centre).clamp(0, 1) - centre) / scale

    changes = {"none": lambda x: x}
    for sigma in (0.5, 1.0, 2.0):
        width = 2 * round(3 * sigma) + 1
        changes[f"blur, sigma {sigma:g} pixels"] = on_pixels(
            lambda x, w=width, s=sigma: gaussian_blur(x, w, s)
        )
    for amount in (0.02, 0.05, 0.1, 0.2):
        noise = lambda x, a=amount: x + a * torch.randn(x.shape, generator=generator)  # noqa: E731
        changes[f"noise, deviation {amount:g}"] = on_pixels(noise)
    return changes


def statistics(model: Any, split: Any, transform: Any, change: Callable[[Any], Any]) -> Pair:
    """Confidence and exit of every image of a split, in its order."""
    import torch

    from odn_hybrid.data import make_loader

    found = []
    with torch.no_grad():
        for images, _, _ in make_loader(split, transform, batch_size=256):
            out = model(change(images))
            found.append((out.confidence.numpy(), out.exit.numpy()))
    return joined(*found)


def of_a_run(path: Path, data: str | None, streams: int, repeats: int) -> dict[str, Any]:
    """A run's halting model on its own test images: half of them clean, then the other half changed."""
    import odn_hybrid as odn

    run = odn.load(path)
    model, splits = run.dynamic(certify=False).eval(), run._data(data).splits
    changes = image_changes(run.transform.mean, run.transform.std)
    reference = statistics(model, splits["certification"], run.transform, changes["none"])
    seen = {name: statistics(model, splits["test"], run.transform, f) for name, f in changes.items()}
    clean, labels, exits = seen["none"], splits["test"].labels, len(model.policy)
    lot, m = joined(reference, clean), len(reference[0])
    alarms, rows = lot_alarms(lot, m, exits, streams), []
    classes = np.unique(labels)
    wanted = {f"{k} of {len(classes)} classes": classes[:k] for k in (1, 2, len(classes) // 2)}
    rng = np.random.default_rng(0)
    orders = [np.array_split(rng.permutation(len(labels)), 2) for _ in range(repeats)]
    for name in [*seen, *wanted]:
        after, kept = seen.get(name, clean), np.isin(labels, wanted.get(name, classes))
        found, changed = [], []
        for first, second in orders:
            second = second[kept[second]]
            streams_ = (clean[0][first], clean[1][first]), (after[0][second], after[1][second])
            found.append(delay(reference, exits, None, *streams_))
            changed.append(len(second))
        lengths = {"clean": len(orders[0][0]), "changed": int(np.median(changed))}
        rows.append({"change": name, **lengths, "per": None, **summary(found)})
        print(rows[-1], flush=True)
    sizes = {"reference": m, "test": len(labels), "exits": exits}
    return {"model": run.report_["model"], **sizes, "false_alarms": alarms, "delays": rows}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1_000, help="streams without change")
    parser.add_argument("--repeats", type=int, default=40, help="streams per kind and size of change")
    parser.add_argument("--outputs", type=Path, help="recorded exit outputs (.safetensors of a run)")
    parser.add_argument("--run", type=Path, help="a run directory")
    parser.add_argument("--data", help="the run's data set, where the recipe's own source is not here")
    parser.add_argument("--drop", type=float, default=0.01, help="of the policy for --outputs")
    parser.add_argument("--name", help="record --outputs or --run under this name")
    args = parser.parse_args()
    if args.outputs:
        found, name = recorded(args.outputs, args.streams, args.drop), args.name
    elif args.run:
        found, name = of_a_run(args.run, args.data, args.streams, args.repeats), args.name
    else:
        found, name = synthetic(args.streams, args.repeats), args.name or "drift"
    if name:
        from record import write_record  # imports torch; the tables need none

        claim = "false alarms stay within the promise, and changes of confidences and exits are noticed"
        print(write_record(name, claim, {"alpha": ALPHA, "bets": bets(256)[0].shape[1], **found}))


if __name__ == "__main__":
    main()
