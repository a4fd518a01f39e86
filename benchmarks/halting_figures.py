"""What the times of halting_speed.py come to."""

from __future__ import annotations

from typing import Any

__all__ = ["shown", "verdict"]


def shown(found: dict[str, Any], size: int) -> None:
    """One batch size in a few lines."""
    print(f"batch {size}; {found['recommendation']['reason']}")
    for name, row in found["rows"].items():
        gain, call = row["over_full"]["throughput"], row["ms_per_call"]
        mine = found["dynamic_over"].get(name)
        over = ""
        if mine is not None:
            over = f"; dynamic is {mine['throughput']['median']:.2f} x, p50 {mine['p50']['median']:.2f} x"
        print(
            f"  {name}: {row['images_per_second']:.0f} images/s, {gain['median']:.2f} x "
            f"[{gain['low']:.2f}, {gain['high']:.2f}], p50 {call['p50']:.2f} ms, p99 {call['p99']:.2f} ms, "
            f"{100 * row['accuracy']['value']:.2f} %, {row['mean_macs'] / 1e6:.1f} MMAC{over}",
            flush=True,
        )


def verdict(passes: dict[str, dict[str, Any]], full: dict[str, Any]) -> dict[str, Any]:
    """The figures that were asked for, at batch 64 and 1; `full` is the accuracy of the full network."""
    eager = passes["eager"]
    found: dict[str, Any] = {}
    if "64" in eager:
        one = eager["64"]
        gain = one["dynamic_over"][one["full"]]["throughput"]
        found[f"throughput over {one['full']} at 64"] = {
            **gain,
            "asked": 1.5,
            "reached": gain["median"] >= 1.5,
        }
    for size, figure, least in (("64", "throughput", 1.3), ("1", "p50", 1.0)):
        over = eager.get(size, {}).get("dynamic_over", {})
        found |= {
            f"{figure} over {name} at {size}": {
                **gain[figure],
                "asked": least,
                "reached": gain[figure]["median"] >= least,
            }
            for name, gain in over.items()
            if name.startswith("earlyon")
        }
    found["recommended"] = {
        form: {size: one["recommendation"]["choice"] for size, one in sizes.items()}
        for form, sizes in passes.items()
    }
    found["full_test_accuracy"] = full
    return found
