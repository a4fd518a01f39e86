"""Full, static and dynamic side by side on this device, and which of them is worth it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.cost import size_of
from odn_hybrid.deploy.comparing.advice import recommend
from odn_hybrid.deploy.comparing.candidates import Candidate, equal_exit, own_candidates
from odn_hybrid.deploy.comparing.energy import joules, meter_of
from odn_hybrid.deploy.comparing.forms import formed
from odn_hybrid.deploy.comparing.ideal import exits_taken, halting_shares, ideal_speed
from odn_hybrid.deploy.comparing.memory import held_by, peak_growth
from odn_hybrid.deploy.comparing.turns import (
    LEAST_CALLS,
    LEAST_IMAGES,
    Clocked,
    batches_of,
    calls_within,
    ratio,
    take_turns,
    waiter,
)
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.halting.choosing import image_layout
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit

__all__ = ["Wish", "compare_models", "images_wanted"]

MOST_BYTES = 512 << 20  # of images held at once
EXIT_ROUNDS = 5  # for the times of all exits, which make a picture and decide nothing


@dataclass(frozen=True)
class Wish:
    """What is to be measured.

    Attributes:
        sizes: images given at once.
        rounds: repetitions; models take turns within each.
        seconds: about how long the turns at one batch size may take; fewer images a round where it is short.
        exits: time the static model of every trained exit, too, for a picture.
    """

    sizes: tuple[int, ...] = (1, 16, 64)
    rounds: int = 9
    seconds: float = 20.0
    exits: bool = False

    def check(self) -> None:
        """Raise `ConfigError` for what cannot be measured."""
        whole = all(isinstance(b, int) and not isinstance(b, bool) and b >= 1 for b in self.sizes)
        if not self.sizes or not whole or len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(
                f"batch sizes are {list(self.sizes)!r}; give whole numbers of 1 or more, each once"
            )
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ConfigError(f"rounds is {self.rounds!r}; measure 1 or more times")
        if (
            isinstance(self.seconds, bool)
            or not isinstance(self.seconds, (int, float))
            or not 0 < self.seconds < math.inf
        ):
            raise ConfigError(f"seconds is {self.seconds!r}; it must be a number above 0")


@dataclass(frozen=True)
class _Plan:
    """What all parts of a comparison have in common."""

    wish: Wish
    images: Tensor
    device: torch.device
    execution: Execution


def compare_models(
    network: MultiExit,
    report: dict[str, Any],
    halting: HaltingModel | None,
    images: Tensor,
    wish: Wish,
    *,
    told: dict[str, Any] | None = None,
    given: Sequence[Candidate] = (),
    execution: Execution | None = None,
    spec: BackboneSpec | None = None,
    accuracy: Callable[[nn.Module], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Measure the models on real images; gives the `comparison` part of `report.json`.

    Args:
        network: the trained multi-exit network.
        report: the fit's report; accuracies and the static choice are taken from it.
        halting: the dynamic model, or None where there is none.
        images: (n, channels, height, width), already transformed.
        wish: batch sizes and the like.
        told: what a report says of `halting`, where that is not the report's own dynamic model.
        given: models of the user's, beside these.
        execution: how plain models are run; default: as the dynamic model is.
        accuracy: measures a model's on the test split; where precision is lower than that of the outputs
            recorded, and the report's accuracies are not those of the models measured.

    Speed-ups are medians of ratios of the same round, with bootstrap 95 % intervals. Raises `ConfigError`.
    """
    wish.check()
    if len(images) == 0:
        raise ConfigError("no images to compare on: the test split is empty")
    execution = execution or (Execution() if halting is None else halting.execution)
    device = next(network.parameters()).device
    images = images.to(device).contiguous(memory_format=image_layout(network))
    plan = _Plan(wish, images, device, execution)
    told = told or report["dynamic"]
    candidates = [*own_candidates(network, report, halting, told, execution, spec), *given]
    held = {candidate.name: _prepared(candidate, plan) for candidate in candidates}
    rows = [candidate.to_dict() for candidate in candidates]
    if accuracy is not None and execution.precision != "fp32":
        for row, candidate in zip(rows, candidates, strict=True):
            row["accuracy"] = accuracy(candidate.model) if candidate.images is None else row["accuracy"]
    measured = {str(size): _at(size, candidates, held, plan) for size in wish.sizes}
    for row in rows:
        for size, found in measured.items():
            for key, value in found["rows"][row["name"]].items():
                row.setdefault(key, {})[size] = value
    equal = equal_exit(report, told) if halting is not None and told else None
    result: dict[str, Any] = {
        "device": _device_name(device),
        "runtime": execution.name(device),
        "threads": torch.get_num_threads(),
        "batch_sizes": list(wish.sizes),
        "rounds": wish.rounds,
        "images": {size: found["images"] for size, found in measured.items()},
        "rows": rows,
        "equal_accuracy_exit": equal,
        "halting": {size: found["halting"] for size, found in measured.items()},
        "ideal": {size: found["ideal"] for size, found in measured.items()},
        "memory": next(iter(measured.values()))["memory"],
        "energy": meter_of(device)[1],
        "exits": _all_exits(network, report, plan, spec, rows) if wish.exits else None,
    }
    mix = {size: _mix(shares, report, told) for size, shares in result["halting"].items()}
    result["recommendation"] = recommend(rows, report, wish.sizes, mix)
    return result


def images_wanted(wish: Wish, shape: Sequence[int]) -> int:
    """How many images to prepare: as many as a round may have, within half a gigabyte."""
    most = max(wish.sizes)
    wanted = max(LEAST_IMAGES, most * -(-LEAST_CALLS // wish.rounds))
    return max(most, min(wanted, MOST_BYTES // (4 * math.prod(shape))))


def _prepared(candidate: Candidate, plan: _Plan) -> int:
    """Let a model make what it keeps for these batch sizes, outside of what is timed; bytes it holds then."""
    model, pool = candidate.model, plan.images if candidate.images is None else candidate.images

    def prepare() -> None:
        if isinstance(model, HaltingModel):
            model.warm_up(plan.wish.sizes)
        with torch.inference_mode():
            for size in plan.wish.sizes:
                model(batches_of(pool, size, 1)[0])

    return size_of([model])[1] + held_by(prepare, plan.device)


def _mix(shares: dict[str, float] | None, report: dict[str, Any], told: Any) -> float | None:
    """Mean MACs of halting on the images timed over those on the test split; None without halting."""
    if shares is None:
        return None
    macs = {str(row["exit"]): row["macs_dynamic"] for row in report["exits"]}
    mean = sum(share * macs[exit] for exit, share in shares.items())
    return float(mean / told["mean_macs"])


# --- one batch size ------------------------------------------------------------------------------------


def _at(size: int, candidates: Sequence[Candidate], held: dict[str, int], plan: _Plan) -> dict[str, Any]:
    """Everything measured at one batch size: by row, and what concerns all or the dynamic model."""
    models = {candidate.name: candidate.model for candidate in candidates}
    wait = waiter(plan.device)
    pools = {c.name: plan.images if c.images is None else c.images for c in candidates}
    one = {name: batches_of(pool, size, 1)[0] for name, pool in pools.items()}
    count = calls_within(models, one, rounds=plan.wish.rounds, seconds=plan.wish.seconds, wait=wait)
    batches = {name: batches_of(pool, size, count) for name, pool in pools.items()}
    clocked = take_turns(models, batches, rounds=plan.wish.rounds, wait=wait)
    rows = {name: _figures(one, clocked["full"]) for name, one in clocked.items()}
    memory = ""
    for name, model in models.items():
        grown, memory = peak_growth(_once(model, one[name]), plan.device)
        rows[name]["peak_bytes"] = None if grown is None else grown + held[name]
    used = _energy(models, batches, plan.device)
    for name in models:
        rows[name]["joules_per_image"] = used.get(name)
    found = {"rows": rows, "images": clocked["full"].images, "memory": memory, "halting": None, "ideal": None}
    dynamic = models.get("dynamic")
    if isinstance(dynamic, HaltingModel):
        taken = exits_taken(dynamic, batches["dynamic"])
        found["halting"] = halting_shares(taken)
        speedup = (clocked["full"].rounds, clocked["dynamic"].rounds)
        found["ideal"] = ideal_speed(
            dynamic, models["full"], batches["full"], taken, speedup, rounds=plan.wish.rounds
        )
    return found


def _figures(mine: Clocked, full: Clocked) -> dict[str, Any]:
    return {**mine.to_dict(), "speedup": ratio(full.rounds.tolist(), mine.rounds.tolist())}


def _once(model: nn.Module, batch: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return model(batch)

    return run


def _energy(models: dict[str, nn.Module], batches: dict[str, list[Tensor]], device: torch.device) -> Any:
    meter, _ = meter_of(device)
    if meter is None:
        return {}

    def turn(name: str) -> Callable[[], object]:
        calls = [_once(models[name], batch) for batch in batches[name]]
        return lambda: [call() for call in calls]

    return joules(meter, {name: (turn(name), sum(map(len, batches[name]))) for name in models})


# --- all exits -----------------------------------------------------------------------------------------


def _all_exits(
    network: MultiExit,
    report: dict[str, Any],
    plan: _Plan,
    spec: BackboneSpec | None,
    rows: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The static model of every trained exit: accuracy on test, and milliseconds an image by batch size.

    Those of `rows` have their times there. The others take turns of their own, beside the full model; their
    times are given in proportion to its time in the comparison itself.
    """
    known = {row["exit"]: row["ms_per_image"] for row in rows if row["exit"] is not None}
    trained = [row for row in report["exits"] if row["trained"]]
    reference = report["reference"]["exit"]
    models = {
        str(exit): formed(
            truncate(network, exit, spec, fold=plan.execution.fold), plan.execution, plan.device
        )
        for exit in (reference, *(row["exit"] for row in trained if row["exit"] not in known))
    }
    times = {str(exit): dict(found) for exit, found in known.items()}
    for size in plan.wish.sizes:
        for name, found in _side_by_side(models, size, plan).items():
            scale = known[reference][str(size)]["median"] / found.pop("full")
            if name != str(reference):
                times.setdefault(name, {})[str(size)] = {key: scale * ms for key, ms in found.items()}
    return [
        {
            "exit": row["exit"],
            "units": row["units"],
            "accuracy": row["accuracy"]["test"],
            "ms_per_image": times[str(row["exit"])],
        }
        for row in trained
    ]


def _side_by_side(models: dict[str, nn.Module], size: int, plan: _Plan) -> dict[str, dict[str, float]]:
    """Milliseconds an image of each, and, as `full`, the first one's."""
    wait, batch = waiter(plan.device), batches_of(plan.images, size, 1)[0]
    count = calls_within(
        models, dict.fromkeys(models, batch), rounds=EXIT_ROUNDS, seconds=plan.wish.seconds / 2, wait=wait
    )
    batches = batches_of(plan.images, size, count)
    found = take_turns(models, dict.fromkeys(models, batches), rounds=EXIT_ROUNDS, wait=wait)
    times = {name: clocked.to_dict()["ms_per_image"] for name, clocked in found.items()}
    full = next(iter(times.values()))["median"]
    return {name: {**one, "full": full} for name, one in times.items()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type
