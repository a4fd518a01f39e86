"""Write the tables of README.md and docs/ from the records, between markers, and docs/models.md as a whole.

A test checks that they are what the records say. The pages of theory/ read records themselves.

python benchmarks/tables.py            # rewrite them
python benchmarks/tables.py --check    # exit 1 if that would change one
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from load_table import load_table, soak_table
from models_page import page as models_page
from timed_table import timed_table

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"


def load(name: str) -> dict[str, Any]:
    """A record by name."""
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def percent(accuracy: dict[str, Any]) -> str:
    """A fraction with its interval, as percent."""
    value, low, high = (100 * accuracy[key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def quickstart() -> str:
    """Full, static and dynamic on the embedded set."""
    record = load("quickstart")
    comparison = record["report"]["comparison"]
    sizes = [str(size) for size in comparison["batch_sizes"]]
    images = comparison["rows"][0]["accuracy"]["n"]
    times = " | ".join(f"ms / image, batch {size}" for size in sizes)
    lines = [
        f"| model | test accuracy, % (n = {images}) | mean MMACs | MB | {times} |",
        "| --- | --- | --- | --- | " + " | ".join("---" for _ in sizes) + " |",
    ]
    for row in comparison["rows"]:
        name = row["name"] if row["certified"] in (None, True) else f"{row['name']} (not certified)"
        cells = [name, percent(row["accuracy"]), f"{row['mean_macs'] / 1e6:.2f}", f"{row['bytes'] / 1e6:.2f}"]
        for size in sizes:
            took, gain = row["ms_per_image"][size]["median"], row["speedup"][size]
            cells.append(f"{took:.2f} ({gain['median']:.2f} x)")
        lines.append("| " + " | ".join(cells) + " |")
    device = f"{comparison['device']}; fit in {record['fit_seconds']:.0f} s"
    lines += [
        "",
        f"Measured on {device}. In brackets: images a second, as a ratio to the full model in the same run.",
    ]
    return "\n".join(lines)


def mnist() -> str:
    """The paper's network on MNIST against the published run."""
    record = load("mnist_resnet18")
    summary, paper, runs = record["summary"], record["paper"], record["runs"]
    units = ", ".join(str(n) for n in summary["units_by_seed"])
    accuracies = ", ".join(f"{100 * value:.2f}" for value in summary["test_accuracy_by_seed"])
    shares = ", ".join(f"1/{1 / value:.0f}" for value in summary["train_macs_over_published"])
    return "\n".join(
        [
            "| | published | ours (seeds " + ", ".join(str(run["seed"]) for run in runs) + ") |",
            "| --- | --- | --- |",
            f"| test accuracy, % | {100 * paper['test_accuracy']:.2f} | "
            f"**{100 * summary['mean_test_accuracy']:.2f}** ({accuracies}) |",
            f"| units kept of 8 | {paper['units']} | {units} |",
            f"| fp32 size, MB | {paper['bytes'] / 1e6:.2f} | {summary['largest_bytes'] / 1e6:.2f} |",
            f"| training MACs | {paper['train_macs']:.2e} | {shares} of that |",
            f"| minutes on 2 CPU cores | not given | {', '.join(f'{m:.0f}' for m in summary['minutes'])} |",
        ]
    )


def step_cost() -> str:
    """What the exits add to a training step."""
    lines = ["| network | exits | ratio to the plain step (95 % interval) |", "| --- | --- | --- |"]
    for name, found in load("step_cost_cpu")["results"].items():
        for kind, ratio in found["ratios"].items():
            if kind != "plain":
                low, high = ratio["low"], ratio["high"]
                lines.append(
                    f"| {name}, {kind} | {found['exits']} | {ratio['median']:.3f} [{low:.3f}, {high:.3f}] |"
                )
    return "\n".join(lines)


def cifar10_small() -> str:
    """Full, static and dynamic of the shared small network."""
    record = load("cifar10_small")
    exits = {row["exit"]: row for row in record["exits"]}
    full, static = (exits[record[key]["exit"]] for key in ("reference", "static"))
    dynamic, most = record["dynamic"], full["macs_static"]
    lines = ["| model | units | test accuracy, % (n = 10,000) | mean MMACs | MB |", "| --- " * 5 + "|"]
    for name, row in (("full", full), ("static", static)):
        cells = [name, str(row["units"]), percent(row["accuracy"]["test"])]
        cells += [
            f"{row['macs_static'] / 1e6:.1f} ({row['macs_static'] / most:.0%})",
            f"{row['bytes'] / 1e6:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    certified = "certified" if dynamic["certificate"] else "not certified"
    cells = [f"dynamic ({certified})", f"{dynamic['mean_units']:.2f}", percent(dynamic["accuracy"]["test"])]
    cells += [
        f"{dynamic['mean_macs'] / 1e6:.1f} ({dynamic['mean_macs'] / most:.0%})",
        f"{dynamic['bytes'] / 1e6:.2f}",
    ]
    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def halting_policies() -> str:
    """Snell against the best threshold at equal mean cost."""
    found = load("halting_policies")["results"]["temperature"]
    lines = [
        "| mean cost | Snell, % | best threshold, % | gain, points [95 %] | trees, % | hindsight, % |",
        "| --- " * 6 + "|",
    ]
    for row in found["rows"]:
        gain, low, high = (100 * row[key] for key in ("gain", "low", "high"))
        trees = "-" if row["trees"] is None else f"{100 * row['trees']:.1f}"
        cells = [
            f"{100 * row['cost']:.0f} %",
            f"{100 * row['snell']:.2f}",
            f"{100 * row['best_threshold']:.2f}",
        ]
        cells += [f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]", trees, f"{100 * row['hindsight']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drift_cifar10() -> str:
    """Changes of the real test images and when they are noticed."""
    record = load("drift_cifar10")
    lines = ["| change | noticed | median delay, inputs | 9 of 10 within |", "| --- " * 4 + "|"]
    for row in record["delays"]:
        of = row["streams"] - row["alarm_before"]
        median, late = ("-" if row[k] is None else f"{row[k]:,}" for k in ("median_delay", "p90_delay"))
        lines.append(f"| {row['change']} | {row['noticed']} of {of} | {median} | {late} |")
    alarms = [row for row in record["false_alarms"] if row["per"] is None]
    for row in alarms:
        how = "in random order" if row["way"] == "shuffled" else "drawn with replacement"
        share, low, high = (100 * x for x in (row["with_alarm"] / row["streams"], row["low"], row["high"]))
        lines += [
            "",
            f"Without change, images {how}: an alarm in {row['with_alarm']} of {row['streams']:,} streams of "
            f"{row['stream']:,}, {share:.1f} % [{low:.1f}, {high:.1f}].",
        ]
    return "\n".join(lines)


def exhaustive() -> str:
    """Exits trained together against depths trained alone."""
    record = load("exhaustive_cifar10")
    fits = record["fits"]
    lines = [
        "| units | alone, % | " + " | ".join(f"`{fit['name']}`" for fit in fits) + " |",
        "| --- " * (2 + len(fits)) + "|",
    ]
    for rows in zip(*(fit["exits"] for fit in fits), strict=True):
        cells = [f"{rows[0]['units']}", f"{100 * rows[0]['alone']['value']:.1f}"]
        for row in rows:
            less = row["joint_less_alone"]
            half = 196 * less["standard_error"]
            cells.append(f"{100 * row['joint']['value']:.1f} ({100 * less['value']:+.2f} +- {half:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    picked = [f"{fit['ours']['units']}" for fit in fits]
    lines.append(f"| depth picked | {fits[0]['exhaustive']['units']} | " + " | ".join(picked) + " |")
    macs = [f"{fit['macs_ratio']:.3f} of that" for fit in fits]
    total = f"{fits[0]['exhaustive']['train_macs'] / 1e12:.0f} T"
    lines.append(f"| training MACs | {total} | " + " | ".join(macs) + " |")
    return "\n".join(lines)


PAGES = (
    "README.md",
    "docs/expansion.md",
    "docs/halting.md",
    "docs/serving/load.md",
    "docs/static-or-dynamic.md",
    "docs/training.md",
)
TABLES: dict[str, Callable[[], str]] = {
    "quickstart": quickstart,
    "mnist": mnist,
    "step_cost": step_cost,
    "cifar10_small": cifar10_small,
    "halting_policies": halting_policies,
    "drift_cifar10": drift_cifar10,
    "exhaustive": exhaustive,
    "timed": lambda: timed_table(load),
    "serve_load": lambda: load_table(load),
    "serve_soak": lambda: soak_table(load),
}


#: Pages that are nothing but a record's tables: the records they need, and how they are written.
WHOLE: dict[str, tuple[tuple[str, ...], Callable[..., str]]] = {
    "docs/models.md": (("coverage", "sweep"), models_page),
}


def whole(page: str) -> str | None:
    """The text of a page of `WHOLE`; None while a record that it needs was not written yet."""
    records, write = WHOLE[page]
    if all((RECORDS / f"{name}.json").is_file() for name in records):
        return write(*map(load, records))
    return None


def filled(text: str) -> str:
    """`text` with every marked block replaced by its table."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        text = re.sub(
            re.escape(start) + ".*?" + re.escape(end),
            lambda _, s=start, e=end, t=table: f"{s}\n{t()}\n{e}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
    return text


def pages() -> dict[str, tuple[str, str]]:
    """Per page, what stands there and what should."""
    found = {}
    for page in PAGES:
        before = (ROOT / page).read_text(encoding="utf-8")
        found[page] = (before, filled(before))
    for page in WHOLE:
        path, after = ROOT / page, whole(page)
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        found[page] = (before, before if after is None else after)
    return found


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    changed = {page: after for page, (before, after) in pages().items() if before != after}
    if not args.check:
        for page, after in changed.items():
            (ROOT / page).write_text(after, encoding="utf-8")
    return int(args.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
