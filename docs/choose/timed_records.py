"""Measured times for the page: records of benchmarks/halting_speed.py and benchmarks/exported_halting.py.

They are put to the network that they timed, which is known by what its fit said of its static choice. A
record may have been made on any device; each device, and each form of the models, is one choice on the page.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from typing import Any

from reading_records import Data, load, names, source

FORMS = {"eager": "", "compiled": ", compiled"}
RUNTIMES = {
    "torch": "torch",
    "runner": "ONNX Runtime, a graph per segment",
    "if": "ONNX Runtime, one graph",
    "openvino if": "OpenVINO, one graph",
}


def device_of(record: Data) -> str:
    """The device that a record was measured on, as `odn compare` calls it."""
    threads = record["threads"]
    device = record.get("device") or "cpu"
    return f"{device}, {threads} thread{'' if threads == 1 else 's'}" if device == "cpu" else str(device)


# --- full, static, dynamic and peers ------------------------------------------------------------------


def speeds_of(report: Data) -> tuple[list[Data], list[Data], list[Data]]:
    """Comparisons of the network of `report`, their sources, and where its halting models stop images."""
    found, sources, halting = [], [], []
    for name in names():
        record = load(name)
        if "passes" not in record or not same_network(record["fit"], report):
            continue
        units = {row["exit"]: row["units"] for row in report["exits"]}
        for form, sizes in record["passes"].items():
            found.append(_comparison(name, record, form, sizes, units))
        told = ", ".join(dict.fromkeys(one["device"] for one in found if one["record"] == name))
        sources.append(source(name, record, f"Times on {told}"))
        halting += [one["halting"]["test"] for one in record["dynamic"].values()]
    return found, sources, halting


def same_network(fit: Data, report: Data) -> bool:
    """Whether a record's fit is the one that a report tells of."""
    return all(fit[key] == report[key] for key in ("model", "reference", "static"))


def _comparison(name: str, record: Data, form: str, sizes: Data, units: dict[int, int]) -> Data:
    """A pass of the record as `odn compare` would leave it."""
    rows = [*_plain_rows(sizes), *_dynamic_rows(record, form, sizes, units)]
    return {
        "device": device_of(record) + FORMS[form],
        "record": name,
        "batch_sizes": [int(size) for size in sizes],
        "images": record["images_each_round"],
        "rounds": record["rounds"],
        "points": 100 * next(iter(record["dynamic"].values()))["certificate"]["drop"],
        "rows": rows,
        "everything": {size: list(_everything(block)) for size, block in sizes.items()},
        "recommendation": {size: block["recommendation"] for size, block in sizes.items()},
    }


def _times(blocks: dict[str, Data]) -> Data:
    """Times and speed-ups by batch size."""
    return {
        "ms_per_image": {size: row["ms_per_image"] for size, row in blocks.items()},
        "speedup": {size: row["over_full"]["throughput"] for size, row in blocks.items()},
    }


def _plain_rows(sizes: Data) -> Iterator[Data]:
    for name, first in next(iter(sizes.values()))["rows"].items():
        exit = re.fullmatch(r"static, exit (\d+)", name)
        if name != "full" and not exit:
            continue
        blocks = {size: block["rows"][name] for size, block in sizes.items() if name in block["rows"]}
        kept = {"accuracy": first["accuracy"], "mean_macs": first["mean_macs"], **_times(blocks)}
        number = int(exit[1]) if exit else None
        kind = "static" if exit else "full"
        yield {"name": name, "kind": kind, "exit": number, "certified": None, "note": None, **kept}


def _dynamic_rows(record: Data, form: str, sizes: Data, units: dict[int, int]) -> Iterator[Data]:
    """The halting model that was made for a batch size stands at that size only."""
    for aim, made in record["dynamic"].items():
        name = f"dynamic, {aim}"
        blocks = {size: block["rows"][name] for size, block in sizes.items() if block["dynamic"] == name}
        if not blocks:
            continue
        certificate, halting = made["certificate"], made["halting"]["test"]
        yield {
            "name": name,
            "kind": "dynamic",
            "exit": None,
            "certified": form == "eager" and certificate["certified"] and made["void"] is None,
            "note": made["void"] if form == "eager" else "compiled models are not certified",
            "promise": {"points": 100 * certificate["drop"], "statement": certificate["statement"]},
            "accuracy": made["accuracy"]["test"],
            "mean_macs": made["mean_macs"],
            "mean_units": sum(share * units[int(exit)] for exit, share in halting.items()),
            "halting": [halting.get(str(exit), 0.0) for exit in sorted(units)],
            "over": {
                size: {other: found["throughput"] for other, found in sizes[size]["dynamic_over"].items()}
                for size in blocks
            },
            **_times(blocks),
        }


def _everything(block: Data) -> Iterator[Data]:
    """All models timed at one batch size, peers among them."""
    for name, row in block["rows"].items():
        over = block["dynamic_over"].get(name)
        kept = {key: row[key] for key in ("accuracy", "mean_macs", "images_per_second")}
        calls = {key: row["ms_per_call"][key] for key in ("p50", "p99")}
        speed, gain = row["over_full"]["throughput"], over and over["throughput"]
        yield {"name": name, **kept, **calls, "speedup": speed, "dynamic_over": gain}


# --- the same halting model in other runtimes ---------------------------------------------------------


def exports_of(halting: list[Data]) -> tuple[list[Data], list[Data]]:
    """Times of exports of halting models that stop test images so, and their sources."""
    found, sources = [], []
    for name in names():
        record = load(name)
        if "torch_runtime" not in record or record["halting"] not in halting:
            continue
        batches = {
            size: [_exported(kind, row, record) for kind, row in rows.items()]
            for size, rows in record["times"].items()
        }
        found.append(
            {"device": device_of(record), "record": name, "images": record["images"], "batches": batches}
        )
        sources.append(source(name, record, f"Times of exported models on {device_of(record)}"))
    return found, sources


def _exported(kind: str, row: Data, record: Data) -> Data:
    median, low, high = row["throughput_to_torch"]
    told: dict[str, Any] = record["agreement"].get(kind, {})
    return {
        "name": RUNTIMES.get(kind, kind),
        "ms_per_image": 1000 * statistics.median(row["seconds"]) / row["images"],
        "over_torch": {"median": median, "low": low, "high": high},
        "same_exits": told.get("same_exits"),
        "difference": told.get("largest_difference_relative"),
    }
