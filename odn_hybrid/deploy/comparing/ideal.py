"""What halting could give at best: every segment run for those who need it, and nothing else.

The ideal time of a batch is the sum, over the segments between exits, of the measured time of the segment and
its exit head at the number of inputs still running. The full model is measured in the same turns, so that the
ideal speed-up is a ratio of times of the same rounds, as the measured one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.cost import measure
from odn_hybrid.deploy.comparing.forms import captured_call
from odn_hybrid.deploy.comparing.turns import Array, boot, interval
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.halting.segments import Segment, Step, segments_of, steps_of, straighten
from odn_hybrid.trunk import State

__all__ = ["exits_taken", "halting_shares", "ideal_speed"]

TURN = 0.02  # seconds that the full model has in each turn: a single call of a small batch is mostly noise
ANCHORS = 3  # batch sizes at which a segment is timed; between them time is taken as linear
LEAST_ROUNDS = 5


@torch.inference_mode()
def exits_taken(model: HaltingModel, batches: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """Per batch, the exit (batch,) where each image stops."""
    return [model(batch).exit.cpu().numpy() for batch in batches]


def halting_shares(taken: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    """Share of the images that stops at each exit where any does; JSON wants strings as keys."""
    exits, counts = np.unique(np.concatenate(taken), return_counts=True)
    return {str(exit): float(count / counts.sum()) for exit, count in zip(exits, counts, strict=True)}


def ideal_speed(
    model: HaltingModel,
    full: nn.Module,
    batches: Sequence[Tensor],
    taken: Sequence[NDArray[np.int64]],
    speedup: tuple[Array, Array],
    *,
    rounds: int,
) -> dict[str, Any]:
    """The ideal speed-up over `full` on these batches, and how much of it the measured one is.

    Args:
        taken: where each image stops, see `exits_taken`.
        speedup: seconds of `full` and of `model` over all batches, (R,) each, of the same rounds.

    Returns:
        `speedup` and `reached` (measured over ideal), each median, low, high; `segments`: per segment its
        exit, the mean number of inputs that enter it and its mean share of the full model's time.
    """
    segments = segments_of(model.network, model.looked)
    straighten(segments, image_layout(model.network), model.execution)
    entering = _entering(segments, taken)
    sizes = [_anchors(numbers) for numbers in entering]
    calls: dict[str, Callable[[], object]] = {"full": lambda: full(batches[0])}
    calls |= _calls(model, segments, batches[0], sizes)
    device = batches[0].device.type
    times = math.ceil(TURN / (float(np.median(speedup[0])) / len(batches)))
    turns = {name: _repeated(call, times) for name, call in calls.items()}
    with torch.inference_mode():
        found = measure(turns, rounds=max(LEAST_ROUNDS, rounds), warmup=1, device=device)
    base = np.array(found["full"].seconds)
    parts = []
    for index, numbers in enumerate(entering):
        took = [np.array(found[f"{index} {n}"].seconds) / base for n in sizes[index]]
        parts.append(_mean_over(numbers, sizes[index], np.array(took)) if took else np.zeros_like(base))
    ideal = 1 / np.sum(parts, axis=0)
    measured = speedup[0] / speedup[1]
    best, got = float(np.median(ideal)), float(np.median(measured))
    return {
        "speedup": interval(best, boot(ideal)),
        "reached": interval(got / best, boot(measured, seed=1) / boot(ideal)),
        "segments": [
            {"exit": s.stop, "inputs": float(numbers.mean()), "share": float(np.median(part))}
            for s, numbers, part in zip(segments, entering, parts, strict=True)
        ],
    }


def _entering(segments: Sequence[Segment], taken: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Per segment, how many inputs of each batch enter it, (batches,)."""
    return [np.array([int((exits > segment.start).sum()) for exits in taken]) for segment in segments]


def _anchors(numbers: NDArray[np.int64]) -> list[int]:
    some = np.unique(numbers[numbers > 0])
    if len(some) <= ANCHORS:
        return [int(n) for n in some]
    return [int(n) for n in np.unique(np.quantile(some, np.linspace(0, 1, ANCHORS)).round())]


@torch.inference_mode()
def _calls(
    model: HaltingModel, segments: Sequence[Segment], batch: Tensor, sizes: Sequence[Sequence[int]]
) -> dict[str, Callable[[], object]]:
    """Each segment with its exit head at each of its sizes, on the first rows of the batch.

    Run as the halting model runs them: in its precision, compiled, as CUDA graphs.
    """
    steps = steps_of(segments, model.execution, batch.device)
    calls: dict[str, Callable[[], object]] = {}
    for n in sorted({n for some in sizes for n in some}):
        entry: State | Tensor = batch[:n].clone(memory_format=torch.preserve_format)
        for index, step in enumerate(steps):
            if n in sizes[index]:
                calls[f"{index} {n}"] = captured_call(_call(step, entry, model, batch.device), batch.device)
            if any(n in some for some in sizes[index + 1 :]):
                entry = _call(step, entry, model, batch.device)()[0]
    return calls


def _call(step: Step, entry: State | Tensor, model: HaltingModel, device: torch.device) -> Callable[[], Any]:
    @torch.inference_mode()
    def run() -> Any:
        with model.execution.casting(device):
            return step(entry)

    return run


def _repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def _mean_over(numbers: NDArray[np.int64], sizes: Sequence[int], shares: Array) -> Array:
    """Per round, the mean over batches of a segment's time at the number of inputs there, (S, R) -> (R,).

    Linear between the sizes measured; no input, no time.
    """
    times = np.array([np.interp(numbers, sizes, column) for column in shares.T])  # (R, batches)
    return np.asarray(np.where(numbers > 0, times, 0.0).mean(axis=1))
