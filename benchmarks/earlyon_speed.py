"""earlyon 0.3.0 with a run's own network and trained heads, as fast as it can be had; see halting_speed.py.

Its wrapper takes any module as an exit's head, so ours go in as they are, and nothing is trained. Thresholds
are found by its own calibrators on the calibration split (temperatures on the selection split): its greedy
search for an accuracy drop and for budgets of computation, on its grid and on a finer one, over all exits
and over those only at which our model looks. Of the policies at least as accurate as ours there, the one
with the fewest MACs is taken. In a batch earlyon lets nobody leave before everybody may: with the thresholds
of single images almost nothing leaves early, and a batch is more accurate and slower. So its search is also
run under that rule, for which its calibrators have no option (our replay of the rule stands in for theirs).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from speeds import Entry
from torch import Tensor, nn

from odn_hybrid import MultiExit
from odn_hybrid.cost import Costs
from odn_hybrid.outputs import ExitRecord

__all__ = ["Goal", "peers"]

FINE = (0.999, 0.998, 0.995, *(k / 100 for k in range(99, 90, -1)), *(k / 20 for k in range(18, -1, -1)))
BUDGETS = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
SAME = 1e-3  # largest difference of logits, relative to the largest, between its forward and ours


@dataclass(frozen=True)
class Goal:
    """What our model does at a batch size: its accuracy on the calibration split, the exits it looks at."""

    accuracy: float
    looked: tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """Thresholds that were found: for which exits, and what they come to on the calibration split."""

    exits: tuple[int, ...]
    thresholds: tuple[float, ...]
    enabled: tuple[bool, ...]
    temperatures: dict[str, float]
    accuracy: float
    macs: float
    how: str

    def to_dict(self) -> dict[str, Any]:
        """For the record: the exits at which it looks only."""
        on = [k for k, enabled in zip(self.exits, self.enabled, strict=True) if enabled]
        kept = [t for t, enabled in zip(self.thresholds, self.enabled, strict=True) if enabled]
        figures = {"calibration_accuracy": self.accuracy, "calibration_macs": self.macs, "found_by": self.how}
        return {"exits": on, "thresholds": kept, **figures}


class Routed(nn.Module):
    """A wrapper for each batch size, called as its documentation says."""

    def __init__(self, wrappers: dict[int, Any]) -> None:
        super().__init__()
        self.wrappers = nn.ModuleDict({str(size): wrapper for size, wrapper in wrappers.items()})

    def forward(self, images: Tensor) -> Tensor:
        """Answers (batch, classes)."""
        wrapper: Any = self.wrappers[str(len(images))]
        if len(images) == 1:
            return wrapper(images, mode="inference").prediction
        return wrapper.forward_inference_batched(images).predictions


class Staged(nn.Module):
    """Its staged model, for single images."""

    def __init__(self, staged: Any) -> None:
        super().__init__()
        self.staged = staged

    def forward(self, images: Tensor) -> Tensor:
        """Answers (1, classes)."""
        return self.staged.infer(images).prediction


# --- our network in its structure ---------------------------------------------------------------------


def wrapped(
    network: MultiExit, exits: Sequence[int], policy: Policy | None = None, *, sequential: bool = False
) -> Any:
    """A copy of the network's backbone in its wrapper, our heads at `exits`; checked to answer as ours does.

    `sequential`: the backbone as a flat `nn.Sequential` of the same modules, which its `staged_model` needs.
    """
    from earlyon.core.types import EarlyExitConfig, ExitPoint
    from earlyon.core.wrappers import EarlyExitWrapper

    network, trunk = network.copy().eval(), network.trunk
    layers = {k: trunk.unit_names[network.units[k - 1] - 1][-1] for k in exits}
    backbone = network.backbone
    if sequential:
        backbone = flat(network)
        layers = {k: layer.replace(".", "_") for k, layer in layers.items()}
    widths = {k: trunk.layout(network.units[k - 1]).channels for k in exits}
    config = EarlyExitConfig(
        backbone="custom",
        num_classes=trunk.num_classes,
        exit_points=[ExitPoint(f"e{k}", layers[k], widths[k]) for k in exits],
    )
    if policy is not None:
        config.confidence_thresholds = list(policy.thresholds)
        config.enabled_exits = list(policy.enabled)
        config.temperatures = dict(policy.temperatures)
    shape = (1, *trunk.image_shape)
    heads = {f"e{k}": network.heads[k - 1] for k in exits}
    made = EarlyExitWrapper(backbone, heads, nn.Identity(), config, input_shape=shape).eval()
    _check(network, made, exits)
    return made


def flat(network: MultiExit) -> nn.Sequential:
    """Stem, units and end of a backbone that is no more than modules one after another."""
    trunk = network.trunk
    if trunk.chain is None:
        raise SystemExit("this backbone is more than a chain of modules: it cannot be staged by earlyon")
    made = nn.Sequential()
    for name in (*trunk.chain[0], *(n for unit in trunk.unit_names for n in unit), *trunk.after_names):
        made.add_module(name.replace(".", "_"), network.backbone.get_submodule(name))
    return made


@torch.no_grad()
def _check(network: MultiExit, made: Any, exits: Sequence[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, *network.trunk.image_shape, generator=generator)
    ours = network(images)
    theirs = made(images, mode="training")
    for k, logits in zip((*exits, len(network)), theirs, strict=True):
        apart = float((logits - ours[k - 1]).abs().max() / ours[k - 1].abs().max())
        if not apart <= SAME:
            raise SystemExit(f"earlyon's exit {k} does not answer as ours: relative difference {apart:.2g}")


# --- its search ---------------------------------------------------------------------------------------


def left(cache: Any, config: Any, size: int) -> NDArray[np.int64]:
    """Where each input leaves, from 0; its end is the number of exits. In batches of `size`, in order."""
    n = len(cache.targets)
    batch = np.arange(n) // size
    taken = np.full(n, len(config.exit_points))
    for index in range(len(config.exit_points) - 1, -1, -1):
        if config.enabled_exits[index]:
            scaled = cache.logits[index] / config.temperatures[config.exit_points[index].name]
            sure = torch.softmax(scaled, 1).amax(1).double() >= config.confidence_thresholds[index]
            waits = np.bincount(batch, weights=~sure.numpy()) > 0
            taken[~waits[batch]] = index
    return taken


def right_at(cache: Any, taken: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each input gets the right answer where it leaves."""
    answers = torch.stack([z.argmax(1) for z in cache.logits]).numpy()
    return np.asarray(answers[taken, np.arange(len(taken))] == cache.targets.numpy())


def macs_at(costs: Costs, exits: Sequence[int], enabled: Sequence[bool], end: int) -> NDArray[np.float64]:
    """MACs of an input that leaves at each of `exits` or at the end, past the heads that are switched on."""
    on = [k for k, one in zip(exits, enabled, strict=True) if one]
    paid = dict(zip((*on, end), costs.passing((*on, end)), strict=True))
    return np.array([paid.get(k, 0) for k in (*exits, end)], dtype=np.float64)


def cache_of(record: ExitRecord, wrapper: Any, exits: Sequence[int]) -> Any:
    """What its `collect_head_logits` would give, of recorded outputs of the same network and heads."""
    from earlyon.core.thresholds import HeadLogits

    flops = [wrapper._flops_at[point.layer_name] for point in wrapper.config.exit_points]
    return HeadLogits(
        head_names=wrapper.config.head_names,
        logits=[torch.from_numpy(record.logits[:, k - 1].copy()) for k in (*exits, record.logits.shape[1])],
        targets=torch.from_numpy(record.labels),
        flops=torch.tensor([*flops, 1.0], dtype=torch.float64),
    )


def search(
    network: MultiExit,
    costs: Costs,
    records: dict[str, ExitRecord],
    exits: tuple[int, ...],
    goal: float,
    size: int,
) -> list[Policy]:
    """What its calibrators find, in batches of `size`."""
    from earlyon.core import thresholds

    wrapper, end = wrapped(network, exits), len(network)
    config = wrapper.config
    held = {name: cache_of(records[name], wrapper, exits) for name in ("selection", "calibration")}
    cache = held["calibration"]
    whole = float((cache.logits[-1].argmax(1) == cache.targets).double().mean())
    alone = thresholds.simulate_policy

    def batched(given: Any, _: Any) -> Any:
        if size == 1:
            return alone(given, wrapper)
        taken = left(given, config, size)
        flops = float(given.flops.numpy()[taken].mean())
        return thresholds.PolicyEvaluation(float(right_at(given, taken).mean()), flops, {})

    found: list[Policy] = []

    def keep(how: str) -> None:
        taken = left(cache, config, size)
        macs = macs_at(costs, exits, config.enabled_exits, end)[taken]
        found.append(
            Policy(
                exits, tuple(config.confidence_thresholds), tuple(config.enabled_exits),
                dict(config.temperatures), float(right_at(cache, taken).mean()), float(macs.mean()), how,
            )
        )  # fmt: skip

    with (
        mock.patch.object(thresholds, "collect_head_logits", lambda _, name, __: held[name]),
        mock.patch.object(thresholds, "simulate_policy", batched),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of budgets that cannot be met
        for number, (grid_name, grid) in enumerate((("its grid", None), ("a finer grid", FINE))):
            thresholds.calibrate_thresholds(
                wrapper, "calibration", max(0.0, whole - goal), grid=grid,
                fit_temperature=number == 0, temperature_loader="selection",
            )  # fmt: skip
            keep(f"accuracy drop, {grid_name}")
            for budget in BUDGETS:
                thresholds.calibrate_thresholds_for_budget(wrapper, "calibration", budget, grid=grid)
                keep(f"budget {budget:g}, {grid_name}")
    return found


def best(found: Sequence[Policy], goal: float) -> Policy:
    """The fewest MACs among those as accurate as `goal`; the most accurate where none is."""
    enough = [policy for policy in found if policy.accuracy >= goal]
    return min(enough, key=lambda one: one.macs) if enough else max(found, key=lambda one: one.accuracy)


# --- what takes part ----------------------------------------------------------------------------------


def peers(
    plain: MultiExit,
    folded: MultiExit,
    costs: Costs,
    records: dict[str, ExitRecord],
    goals: dict[int, Goal],
) -> tuple[list[Entry], dict[str, Any]]:
    """earlyon as an entry of the comparison in each of its forms, and what its search found.

    Args:
        plain, folded: the run's network as it was trained, and as the other models run it.
        records: outputs of the folded network on selection, calibration and test.
        goals: by batch size.
    """
    from earlyon import __version__
    from earlyon.staged import staged_model

    known: dict[tuple[Any, ...], list[Policy]] = {}

    def searched(exits: tuple[int, ...], goal: float, together: int) -> list[Policy]:
        key = (exits, goal, together)
        if key not in known:
            known[key] = search(folded, costs, records, exits, goal, together)
        return known[key]

    chosen: dict[tuple[str, int], Policy] = {}
    for size, goal in goals.items():
        sets = {tuple(range(1, len(folded))), tuple(k for k in goal.looked if k < len(folded))} - {()}
        for rule, together in {"single": 1, **({"batch": size} if size > 1 else {})}.items():
            found = [one for exits in sets for one in searched(exits, goal.accuracy, together)]
            chosen[rule, size] = best(found, goal.accuracy)

    def entry(name: str, network: MultiExit, rule: str, sizes: Sequence[int]) -> Entry:
        wrappers = {size: wrapped(network, chosen[rule, size].exits, chosen[rule, size]) for size in sizes}
        model: nn.Module = Routed(wrappers)
        right, macs = {}, {}
        for size, wrapper in wrappers.items():
            policy = chosen[rule, size]
            cache = cache_of(records["test"], wrapper, policy.exits)
            taken = left(cache, wrapper.config, size)
            right[size] = right_at(cache, taken)
            macs[size] = float(macs_at(costs, policy.exits, policy.enabled, len(network))[taken].mean())
        return Entry(name, "peer", model, right, macs, last=network is folded)

    sizes, many = list(goals), [size for size in goals if size > 1]
    entries = [entry("earlyon", plain, "single", sizes), entry("earlyon, folded", folded, "single", sizes)]
    if many:
        entries.append(entry("earlyon, folded, thresholds for batches", folded, "batch", many))
    if 1 in goals and folded.trunk.chain is not None:
        policy, like = chosen["single", 1], entries[1]
        staged = staged_model(wrapped(folded, policy.exits, policy, sequential=True)).eval()
        entries.append(
            Entry("earlyon, folded, staged", "peer", Staged(staged), {1: like.right[1]}, {1: like.macs[1]})
        )
    policies = {f"{rule}, batch {size}": one.to_dict() for (rule, size), one in chosen.items()}
    return entries, {"version": __version__, "policies": policies}
