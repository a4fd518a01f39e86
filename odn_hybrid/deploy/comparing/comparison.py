"""Full, static and dynamic side by side on this device, and which of them is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.cost import Timing, measure
from odn_hybrid.data import Split, make_loader
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit

__all__ = ["compare_models", "first_images", "recommend"]

IMAGES_PER_ROUND = 64  # halting depends on the images, so every round runs the same mix of this many
WORTH_IT = 1.05  # a cheaper model is recommended only if it is faster by more than this, interval included


def compare_models(
    network: MultiExit,
    report: dict[str, Any],
    halting: HaltingModel | None,
    images: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 16, 64),
    rounds: int = 9,
) -> dict[str, Any]:
    """Measure the models on real images; gives the `comparison` part of `report.json`.

    Args:
        network: the trained multi-exit network.
        report: the fit's report; accuracies and the static choice are taken from it.
        halting: the dynamic model, or None where there is none.
        images: (n, channels, height, width), already transformed.
        batch_sizes: images given at once.
        rounds: repetitions; models take turns within each.

    Speed-ups are medians of ratios of the same round, with bootstrap 95 % intervals.
    """
    if not batch_sizes or any(not isinstance(b, int) or b < 1 for b in batch_sizes):
        raise ConfigError(f"batch sizes are {list(batch_sizes)!r}; give whole numbers of 1 or more")
    if len(images) == 0:
        raise ConfigError("no images to compare on")
    device = next(network.parameters()).device
    images = images.to(device)
    reference, static = report["reference"]["exit"], report["static"]["exit"]
    models: dict[str, nn.Module] = {"full": truncate(network, reference).eval()}
    models["static"] = truncate(network, static).eval()
    if halting is not None:
        models["dynamic"] = halting
    timings: dict[str, dict[str, Timing]] = {name: {} for name in models}
    counts: dict[int, int] = {}
    for size in batch_sizes:
        batches = _batches(images, size)
        counts[size] = sum(len(batch) for batch in batches)
        found = measure(
            {name: _runner(model, batches) for name, model in models.items()},
            rounds=rounds,
            device=device.type,
        )
        for name, timing in found.items():
            timings[name][str(size)] = timing
    rows = [_row(name, report, timings[name], counts) for name in models]
    result: dict[str, Any] = {
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "batch_sizes": list(batch_sizes),
        "rounds": rounds,
        "rows": rows,
    }
    result["recommendation"] = recommend(rows, report, str(batch_sizes[-1]))
    return result


def _batches(images: Tensor, size: int) -> list[Tensor]:
    wanted = max(size, IMAGES_PER_ROUND)
    repeats = -(-wanted // len(images))
    pool = torch.cat([images] * repeats)[:wanted] if repeats > 1 else images[:wanted]
    return [pool[start : start + size] for start in range(0, wanted - size + 1, size)]


def _runner(model: nn.Module, batches: list[Tensor]) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            model(batch)

    return run


def _row(
    name: str, report: dict[str, Any], timings: dict[str, Timing], counts: dict[int, int]
) -> dict[str, Any]:
    exits = {row["exit"]: row for row in report["exits"]}
    reference = exits[report["reference"]["exit"]]
    if name == "dynamic":
        dynamic = report["dynamic"]
        entry = {
            "accuracy": dynamic["accuracy"]["test"],
            "mean_macs": dynamic["mean_macs"],
            "params": dynamic["params"],
            "bytes": dynamic["bytes"],
            "certified": dynamic["certificate"] is not None,
        }
    else:
        row = reference if name == "full" else exits[report["static"]["exit"]]
        entry = {
            "accuracy": row["accuracy"]["test"],
            "mean_macs": row["macs_static"],
            "params": row["params"],
            "bytes": row["bytes"],
            "certified": None,
        }
    milliseconds = {
        size: {
            "median": 1000 * t.median / counts[int(size)],
            "low": 1000 * t.quantile(0.1) / counts[int(size)],
            "high": 1000 * t.quantile(0.9) / counts[int(size)],
        }
        for size, t in timings.items()
    }
    speedups = {
        size: {"median": 1 / t.ratio, "low": 1 / t.ratio_high, "high": 1 / t.ratio_low}
        for size, t in timings.items()
    }
    return {"name": name, **entry, "ms_per_image": milliseconds, "speedup": speedups}


def recommend(rows: list[dict[str, Any]], report: dict[str, Any], size: str) -> dict[str, str]:
    """Which model is worth it at the largest batch, and why; "full" where nothing clearly is.

    Static is a candidate if a shallower depth was chosen, dynamic if it is certified. The fastest wins if
    the low end of its speed-up's interval exceeds 1.05.
    """
    by_name = {row["name"]: row for row in rows}
    notes = []
    candidates = []
    shallower = report["static"]["exit"] < report["reference"]["exit"]
    if shallower:
        candidates.append("static")
    else:
        notes.append("no shallower depth was shown to be good enough")
    if "dynamic" in by_name:
        if by_name["dynamic"]["certified"]:
            candidates.append("dynamic")
        else:
            notes.append("dynamic halting has no certificate")
    else:
        notes.append("there is no dynamic model")
    worth = [name for name in candidates if by_name[name]["speedup"][size]["low"] > WORTH_IT]
    aside = f" ({'; '.join(notes)})" if notes else ""
    whole = "the full network" if report["reference"]["full"] else "the reference"
    if not worth:
        return {
            "choice": "full",
            "reason": f"keep {whole}: nothing else is clearly faster at batch {size}{aside}",
        }
    best = max(worth, key=lambda name: by_name[name]["speedup"][size]["median"])
    gain = by_name[best]["speedup"][size]
    reason = (
        f"{best} runs {gain['median']:.2f} x as fast as {whole} at batch {size} "
        f"(95 % interval {gain['low']:.2f} to {gain['high']:.2f}){aside}"
    )
    return {"choice": best, "reason": reason}


def first_images(split: Split, preprocess: Any, count: int) -> Tensor:
    """The first `count` images of a split, transformed: (count, channels, height, width)."""
    loader = make_loader(split.subset(min(count, len(split))), preprocess, batch_size=count)
    images: Tensor = next(iter(loader))[0]
    return images


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
