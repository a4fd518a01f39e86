"""Several models over the same batches, in turns; what their times say, and how sure that is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.cost import measure

__all__ = ["Clocked", "batches_of", "boot", "calls_within", "interval", "ratio", "take_turns", "waiter"]

LEAST_IMAGES = 512  # a round: halting depends on the images, so every round runs the same mix of many
LEAST_CALLS = 100  # in all, for a 99 % point that is more than the maximum
RESAMPLES = 2000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Clocked:
    """Times of one model at one batch size.

    Attributes:
        rounds: (R,) seconds of every round, all its batches.
        calls: (R * batches,) seconds of every call.
        images: in one round.
    """

    rounds: Array
    calls: Array
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds a call and an image, and images a second; medians over rounds with their 10 % ends."""
        each = 1000 * self.rounds / self.images
        low, median, high = np.quantile(each, (0.1, 0.5, 0.9))
        p50, p90, p99 = (1000 * float(np.quantile(self.calls, q)) for q in (0.5, 0.9, 0.99))
        return {
            "ms_per_image": {"median": float(median), "low": float(low), "high": float(high)},
            "ms_per_call": {"p50": p50, "p90": p90, "p99": p99, "calls": len(self.calls)},
            "images_per_second": 1000 / float(median),
            "rounds_ms": [float(f"{1000 * value:.6g}") for value in self.rounds],
        }


def waiter(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done what it was told."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def batches_of(images: Tensor, size: int, count: int) -> list[Tensor]:
    """Up to `count` batches of different images; where there are fewer than `size`, one with repetitions."""
    if len(images) < size:
        images = torch.cat([images] * -(-size // len(images)))[:size]
    count = max(1, min(count, len(images) // size))
    return [images[start : start + size] for start in range(0, count * size, size)]


@torch.inference_mode()
def calls_within(
    models: dict[str, nn.Module],
    batches: dict[str, Tensor],
    *,
    rounds: int,
    seconds: float,
    wait: Callable[[], None],
) -> int:
    """How many batches a round may have so that all rounds of all models take about `seconds`.

    Enough for `LEAST_IMAGES` a round and `LEAST_CALLS` in all, if that takes less. It calls every model three
    times, so that what is made on first use is there.
    """
    spent = 0.0
    for name, model in models.items():
        batch = batches[name]
        for _ in range(2):
            model(batch)
        wait()
        start = time.perf_counter()
        model(batch)
        wait()
        spent += time.perf_counter() - start
    wanted = max(-(-LEAST_IMAGES // len(batch)), -(-LEAST_CALLS // max(1, rounds)))
    return max(1, min(wanted, int(seconds / (spent * (rounds + 1)))))


def take_turns(
    models: dict[str, nn.Module],
    batches: dict[str, list[Tensor]],
    *,
    rounds: int,
    wait: Callable[[], None],
) -> dict[str, Clocked]:
    """Each model over all its batches, one after another, round by round; every call waits for its answer.

    A round before the first is not counted. Raises `ConfigError` for fewer than one round.
    """
    first = next(iter(batches.values()))
    taken: dict[str, list[float]] = {name: [] for name in models}

    def turn(name: str, model: nn.Module) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            for batch in batches[name]:
                start = time.perf_counter()
                model(batch)
                wait()
                taken[name].append(time.perf_counter() - start)

        return run

    found = measure(
        {name: turn(name, model) for name, model in models.items()},
        rounds=rounds,
        warmup=1,
        device=first[0].device.type,
    )
    images = sum(map(len, first))
    return {
        name: Clocked(np.array(found[name].seconds), np.array(taken[name][len(first) :]), images)
        for name in models
    }


# --- ratios -------------------------------------------------------------------------------------------


def boot(values: Array, seed: int = 0) -> Array:
    """Medians of `RESAMPLES` resamples of the rounds (R,); with another seed, of other rounds."""
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    return np.asarray(np.median(values[picks], axis=1))


def interval(median: float, resampled: Array) -> dict[str, float]:
    """A figure with its bootstrap 95 % interval."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return {"median": float(median), "low": min(float(low), median), "high": max(float(high), median)}


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times as fast `fast` is, from times of the same rounds: median and bootstrap 95 % interval."""
    values = np.asarray(slow, dtype=np.float64) / np.asarray(fast, dtype=np.float64)
    return interval(float(np.median(values)), boot(values))
