"""The tables of docs/serving/load.md: what the records of serve_load.py and serve_soak.py come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

__all__ = ["load_table", "soak_table"]

RECORDS = {"serve_load_cpu": "this CPU", "serve_load_simulated": "simulated device"}
SERVERS = {
    "full": "full model, dynamic batching",
    "static": "static choice",
    "dynamic": "halting, certified",
    "litserve": "full model, LitServe",
    "ray": "full model, Ray Serve",
}
POINTS = ("p50", "p99")
GOODPUT = {"poisson": "goodput, /s", "bursty": "bursts, /s"}


def load_table(load: Callable[[str], dict[str, Any]]) -> str:
    """Goodput and latency at half load of every server, medians of the rounds."""
    records = {device: load(name) for name, device in RECORDS.items()}
    ran = {kind for record in records.values() for kind in record["verdict"]["goodput"]}
    kinds = {kind: head for kind, head in GOODPUT.items() if kind in ran}
    head = ["device", "server", "batch : wait", *kinds.values(), "p50, ms", "p99, ms", "halting over it"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for device, record in records.items():
        lines += _rows(record, device, list(kinds))
    return "\n".join(lines)


def _rows(record: dict[str, Any], device: str, kinds: list[str]) -> Iterator[str]:
    said = record["verdict"]
    for name, rounds in record["rounds"].items():
        if name in record.get("left_out", {}):
            yield f"| {device} | {SERVERS[name]} | not measured: {record['left_out'][name]} |"
            continue
        chosen = record["tuned"][name]["chosen"]
        goodput = [_median(said["goodput"].get(kind, {}).get(name)) for kind in kinds]
        half = [[one["half"]["latency_ms"][point] for one in rounds if "half" in one] for point in POINTS]
        over = said["over"].get(name, {}).get("goodput, poisson")
        cells = [device, SERVERS[name], f"{chosen['max_batch']} : {chosen['wait_ms']:g} ms", *goodput]
        cells += [_middle(values) for values in half]
        cells += ["" if name == "dynamic" else _times(over)]
        yield f"| {' | '.join(cells)} |"


def _median(found: dict[str, Any] | None) -> str:
    return "-" if found is None else f"{found['median']:.1f}"


def _middle(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.1f}" if known and len(known) == len(values) else "-"


def _times(ratio: dict[str, Any] | None) -> str:
    return "-" if ratio is None or ratio["median"] is None else f"{ratio['median']:.2f} x"


def soak_table(load: Callable[[str], dict[str, Any]]) -> str:
    """Rise over the run of memory and latency, and what failed."""
    record = load("serve_soak")
    lines = ["| measure | mean | rise over the run | allowed |", "| --- " * 4 + "|"]
    line = record["lines"]["memory"]
    held = record["memory"]["megabytes"]
    lines.append(
        f"| memory, MB | {sum(held) / len(held):.0f} | {line['rise_megabytes']:+.1f} | "
        f"{line['allowed_megabytes']:.1f} |"
    )
    for point in POINTS:
        line = record["lines"][point]
        mean = sum(row[f"{point}_ms"] for row in record["minutes"]) / len(record["minutes"])
        rise = f"{100 * line['rise']:+.1f} % [{100 * line['low']:+.1f}, {100 * line['high']:+.1f}]"
        lines.append(f"| {point}, ms | {mean:.1f} | {rise} | {100 * line['allowed']:.0f} % |")
    return "\n".join(lines)
