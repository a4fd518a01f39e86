"""Build the page "Static or dynamic?": its own files, and its data from the records in benchmarks/records/.

    python docs/choose/build_data.py build/choose     # then open build/choose/index.html, or serve the folder

Which records there are decides what can be chosen on the page. Every entry names the records that it is made
of; nothing is computed here but the interval of an accuracy whose record has the value alone, and means and
medians of what a record has one by one.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from reading_records import ROOT, Data, load, names, source  # noqa: E402
from timed_records import exports_of, speeds_of  # noqa: E402

SCRIPTS = ("recommend.js", "reading.js", "charts.js", "tables.js", "views.js", "page.js")
PAGE = ("index.html", "choose.css", *SCRIPTS)
DATA = "records.js"

NETWORKS, TRIALS, PAPER = (
    "Networks",
    "Trials of objectives, CIFAR-10, 12 epochs",
    "MNIST, the paper's ResNet-18",
)
TITLES = {
    "choosing_cifar10_deep": "CIFAR-10, ResNet-18 of 15 units, timed",
    "choosing_cifar10_small": "CIFAR-10, small ResNet-18",
    "choosing_cifar10_twin": "CIFAR-10, ResNet-18 of 15 units, a shorter fit, timed",
    "choosing_digits": "Handwritten digits, ResNet-18, every tolerance",
    "quickstart": "Handwritten digits, ResNet-18, timed",
}
ALSO = {  # records that tell more of the same network
    "choosing_cifar10_small": {
        "cifar10_small": "How the network was trained; its exits and its certificate",
        "halting_policies": "Its halting policies against each other, with intervals of the differences",
    }
}
FAMILIES = ("snell", "confidence")
TEST_IMAGES, SELECTION_IMAGES = 10_000, 3_333  # of the trials, whose record has accuracies without them

# --- records with a whole report ---------------------------------------------------------------------


def of_reports() -> Iterator[Data]:
    """An entry for every record that holds a run's report."""
    for name in names():
        record = load(name)
        report = record.get("report")
        if not isinstance(report, dict) or not report.get("exits"):
            continue
        stops = record.get("stops")
        speeds, of_speeds, halting = speeds_of(report)
        exported, of_exported = exports_of(halting)
        sources = [source(name, record, "Everything but the times" if speeds else "Everything shown")]
        sources += [source(other, load(other), what) for other, what in ALSO.get(name, {}).items()]
        comparison = report.get("comparison")
        timed = [{**comparison, "record": name}] if comparison else []
        yield {
            "id": name,
            "group": NETWORKS,
            "title": TITLES.get(name, f"{report['model']} on {report['data']['name']}"),
            "report": slim(report),
            "tolerances": record.get("tolerances"),
            "timed": [*timed, *speeds],
            "exported": exported,
            "stops": stops,
            "pictures": pictures(stops, report["data"]),
            "sources": [*sources, *of_speeds, *of_exported],
        }


def slim(report: Data) -> Data:
    """The report without what the page does not show."""
    dynamic, curves = report.get("dynamic"), report.get("curves")
    if dynamic and dynamic.get("certificate"):
        kept = ("drop", "delta", "statement", "promise", "certified")
        certificate = {key: dynamic["certificate"].get(key) for key in kept}
        dynamic = {**dynamic, "certificate": certificate}
    if dynamic:
        policy = dynamic.get("policy") or {}
        dynamic = {**dynamic, "policy": {key: policy.get(key) for key in ("family", "kind", "setting")}}
    if curves:
        families = {name: curves["families"][name] for name in FAMILIES if name in curves["families"]}
        curves = {"n": curves["n"], "families": families}
    data = {key: report["data"].get(key) for key in ("name", "classes", "image_shape")}
    kept = {key: report.get(key) for key in ("schema", "model", "reference", "exits", "static", "search")}
    return {
        **kept,
        "data": data,
        "dynamic": dynamic,
        "curves": curves,
        "no_dynamic": report.get("no_dynamic"),
    }


def pictures(stops: Data | None, data: Data) -> Data:
    """Pictures of test images that stop early and late, as data URIs; or why there are none."""
    if not stops:
        return {"missing": "The record does not say which images stop where."}
    if data["name"] != "digits" or any("image" not in one for one in stops["early"]):
        return {
            "missing": f"The images of {data['name']} are not part of this repository, so the table below "
            "tells of them in words. For your own run, odn report --html RUN draws them."
        }
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        return {"missing": "scikit-learn, which brings the images, was not there when this page was built."}
    images = load_digits().images
    kinds = ("early", "late")
    return {kind: [_png(images[one["image"]] * (255.0 / 16.0)) for one in stops[kind]] for kind in kinds}


def _png(pixels: Any) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.round().astype("uint8")).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- other records -----------------------------------------------------------------------------------


def of_mnist() -> Iterator[Data]:
    """The chosen depth of every seed; these records keep no other exit."""
    for name in ("mnist_resnet18", "mnist_resnet18_again"):
        record = load(name)
        for run in record["runs"]:
            both = {"selection": run["selection_accuracy"], "test": run["test_accuracy"]}
            sizes = {"macs_static": run["macs"], "params": run["params"], "bytes": run["bytes"]}
            exit, units = run["static"]["exit"], run["static"]["units"]
            row = {"exit": exit, "units": units, "trained": True, **sizes, "accuracy": both}
            again = ", again" if name.endswith("again") else ""
            yield {
                "id": f"{name}-{run['seed']}",
                "group": PAPER,
                "title": f"MNIST, ResNet-18, seed {run['seed']}{again}",
                "units_in_all": 8,
                "report": {
                    "schema": 1, "model": "resnet18", "data": {"name": "MNIST"}, "exits": [row],
                    "reference": {"exit": exit, "units": units, "full": False}, "static": run["static"],
                    "dynamic": None, "no_dynamic": "this record has the static depth only",
                    "search": run["search"],
                },
                "tolerances": None, "timed": [], "stops": None, "pictures": pictures(None, {}),
                "sources": [source(name, record, "Everything shown")],
            }  # fmt: skip


def of_trials() -> Iterator[Data]:
    """Short trainings of one network by several objectives: exits and curves, no certificate."""
    from odn_hybrid.stopping import wilson

    record, pack = load("depth_reg_trials"), load("cifar10_small")
    sizes = {row["macs_dynamic"]: row for row in pack["exits"]}

    def accuracy(value: float, n: int) -> Data:
        right = round(value * n)
        assert abs(right / n - value) < 1e-9, f"{value} is no share of {n} images"
        low, high = wilson(right, n)
        return {"value": value, "n": n, "low": low, "high": high}

    for trial in record["trials"]:
        exits = []
        for at, macs in enumerate(trial["macs"]):
            like = sizes[macs]
            both = {
                split: accuracy(trial["exits"][split][at], n)
                for split, n in (("selection", SELECTION_IMAGES), ("test", TEST_IMAGES))
            }
            kept = {key: like[key] for key in ("exit", "units", "macs_static", "params", "bytes")}
            exits.append({**kept, "trained": True, "accuracy": both})
        last = exits[-1]
        families = {
            name: [
                {"share": share, "accuracy": accuracy(value, TEST_IMAGES)} for share, value in found["test"]
            ]
            for name, found in trial["curves"].items()
        }
        no_dynamic = "this record has the policies' curves only, no certificate"
        seed = trial["changes"]["seed"]
        yield {
            "id": f"trial-{trial['name']}-{seed}",
            "group": TRIALS,
            "title": f"CIFAR-10, trained by {trial['name']}" + (f", seed {seed}" if seed else ""),
            "report": {
                "schema": 1, "model": "resnet18", "data": {"name": "CIFAR-10"}, "exits": exits,
                "reference": {"exit": last["exit"], "units": last["units"], "full": True},
                "static": {"exit": last["exit"], "reason": ""}, "dynamic": None, "no_dynamic": no_dynamic,
                "curves": {"n": TEST_IMAGES, "families": families}, "search": trial["search"],
            },
            "tolerances": None, "timed": [], "stops": None, "pictures": pictures(None, {}),
            "sources": [
                source("depth_reg_trials", record, "Accuracies and curves (intervals: Wilson's, made here)"),
                source("cifar10_small", pack, "MACs, parameters and bytes of the same network"),
            ],
        }  # fmt: skip


def overheads() -> list[Data]:
    """What halting itself costs, per network, batch and pattern, from the records that measured it."""
    found = []
    for name in names():
        if not name.startswith("halting_cost_"):
            continue
        record = load(name)
        rows = []
        for row in record["rows"]:
            over = "over_plain" if "over_plain" in row["limit"] else "over_ideal"
            told = {key: row[key] for key in ("network", "batch", "pattern", "survivors", "met")}
            rows.append({**told, "over": over, "ratio": row[over], "limit": row["limit"][over]})
        said = {key: record[key] for key in ("device", "execution", "threads", "met", "of")}
        found.append({**said, "rows": rows, "source": source(name, record, "What halting itself costs")})
    return found


def build_data() -> Data:
    """All that the page shows."""
    entries = [*of_reports(), *of_mnist(), *of_trials()]
    order = list(TITLES)
    place = {name: at for at, name in enumerate(order)}
    entries.sort(key=lambda one: place.get(one["id"], len(order)))
    return {"entries": entries, "overheads": overheads()}


def build_page(out: Path) -> Path:
    """Write the page into the folder `out`; its index.html."""
    out.mkdir(parents=True, exist_ok=True)
    for name in PAGE:
        shutil.copyfile(HERE / name, out / name)
    text = json.dumps(build_data(), allow_nan=False, separators=(",", ":"))
    (out / DATA).write_text(f"globalThis.odnRecords = {text};\n", encoding="utf-8")
    return out / "index.html"


def main() -> None:
    """Build it where it is wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "out", type=Path, nargs="?", default=ROOT / "build" / "choose", help="folder for the page"
    )
    print(build_page(parser.parse_args().out))


if __name__ == "__main__":
    main()
