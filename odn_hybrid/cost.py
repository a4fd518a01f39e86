"""What depth costs: MACs, parameters, bytes per unit and per exit; and the one timing helper.

MACs are counted by torch's own FLOP counter (two FLOPs are one MAC) on one image. A static model pays
for its units and one head; a dynamic one for its units and every head it passed.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from odn_hybrid.backbone import evaluating
from odn_hybrid.errors import ConfigError
from odn_hybrid.exits import MultiExit, forks_of, unused_modules

__all__ = ["Costs", "Timing", "count_costs", "count_macs", "measure", "size_of"]


@dataclass(frozen=True)
class Costs:
    """Costs of a multi-exit network, per image and per exit.

    Attributes:
        stem, units: MACs of the stem and of each unit.
        heads: MACs of each exit's head; the last is the backbone's own tail.
        plans: per exit, the numbers (from 0) of the units it runs.
        passed: whether an input on its way to an exit passes the heads of shallower ones.
        params, bytes: size of the static model cut at each exit (parameters; fp32 bytes with buffers).

    Example:
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> costs = odn.count_costs(odn.MultiExit(trunk))
        >>> len(costs.units), costs.passed
        (8, True)
    """

    stem: int
    units: tuple[int, ...]
    heads: tuple[int, ...]
    plans: tuple[tuple[int, ...], ...]
    params: tuple[int, ...]
    bytes: tuple[int, ...]
    passed: bool = True

    def prefix(self, exit: int) -> int:
        """MACs of stem and units of exit 1..K."""
        return self.stem + sum(self.units[unit] for unit in self.plans[exit - 1])

    def static(self, exit: int) -> int:
        """MACs of a static model cut at this exit: stem, its units and one head."""
        return self.prefix(exit) + self.heads[exit - 1]

    def dynamic(self, exit: int) -> int:
        """MACs of an input that halts at this exit: stem, its units and every head up to it.

        A thin network is chosen before it runs; it passes no other head.
        """
        return self.prefix(exit) + sum(self.heads[:exit]) if self.passed else self.static(exit)

    def joint(self, exit: int) -> int:
        """MACs of one forward that answers at all of exits 1 to `exit`, as training does.

        With prefix plans this is `dynamic(exit)`. Of thin networks each goes on from the first unit that it
        runs and the one before does not.
        """
        total = self.stem
        for plan, fork, head in zip(self.plans[:exit], forks_of(self.plans), self.heads, strict=False):
            total += head + sum(self.units[unit] for unit in plan if unit >= fork)
        return total

    def passing(self, exits: Sequence[int]) -> tuple[int, ...]:
        """MACs of inputs that halt at each of `exits` (ascending) where only their heads are looked at."""
        heads = 0
        found = []
        for exit in exits:
            heads += self.heads[exit - 1]
            found.append(self.prefix(exit) + heads)
        return tuple(found)

    @property
    def cumulative(self) -> tuple[int, ...]:
        """Dynamic MACs of exits 1..K: the cost that halting policies and objectives see."""
        return tuple(self.dynamic(k) for k in range(1, len(self.heads) + 1))


def count_macs(run: Callable[[], object]) -> int:
    """MACs of everything `run()` computes (convolutions, matrix products, attention)."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _rnn_layer})
    with torch.no_grad(), _unfused(), counter:
        run()
    return int(counter.get_total_flops()) // 2


@contextmanager
def _unfused() -> Iterator[None]:
    """Without the kernels that do a whole layer in one call, of which torch's counter knows nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.backends.cudnn.flags(enabled=False) if torch.cuda.is_available() else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _rnn_layer(
    images: Sequence[int], inputs: Sequence[int], hidden: Sequence[int], *_: Any, **__: Any
) -> int:
    """FLOPs of oneDNN's recurrent layer, one direction: both weight matrices at every step."""
    return 2 * math.prod(images[:-1]) * (math.prod(inputs) + math.prod(hidden))


def size_of(modules: Sequence[nn.Module]) -> tuple[int, int]:
    """(parameters, bytes) of modules, each tensor once: fp32 for floating ones, as stored otherwise."""
    return _size([tensor for module in modules for tensor in module.state_dict(keep_vars=True).values()])


def _size(tensors: Sequence[Any]) -> tuple[int, int]:
    """The same of what is stored of modules (`state_dict(keep_vars=True)`)."""
    each = {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}.values()
    sizes = [t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in each]
    return sum(t.numel() for t in each if isinstance(t, nn.Parameter)), sum(sizes)


@torch.no_grad()
def count_costs(network: MultiExit) -> Costs:
    """Count the costs of every exit of `network`, in MACs, on one random image of the traced shape.

    Example:
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> costs = odn.count_costs(odn.MultiExit(trunk))
        >>> len(costs.units), len(costs.heads)
        (8, 8)
    """
    trunk = network.trunk
    like = next(network.parameters())
    images = torch.zeros(1, *trunk.image_shape, device=like.device, dtype=like.dtype)
    with _still(network):
        return _count(network, images)


def _count(network: MultiExit, images: Tensor) -> Costs:
    trunk = network.trunk
    stem = count_macs(lambda: trunk.stem(images))
    states = [trunk.stem(images)]
    units = []
    for depth in range(len(trunk)):
        before = states[-1]
        units.append(count_macs(lambda s=before, d=depth: trunk.run(s, d, d + 1)))  # type: ignore[misc]
        states.append(trunk.run(before, depth, depth + 1))
    at = [states[units if network.shares_prefix else -1] for units in network.units]
    heads = [
        count_macs(lambda s=state, n=number: network.classify(n, s))  # type: ignore[misc]
        for number, state in enumerate(at, start=1)
    ]
    params, sizes = _sizes(network)
    plans = tuple(plan.keep for plan in network.plans)
    return Costs(stem, tuple(units), tuple(heads), plans, params, sizes, network.shares_prefix)


@contextmanager
def _still(network: MultiExit) -> Iterator[None]:
    """Evaluation mode and no gradients asked for: torch's counter trips over views of parameters that do."""
    asking = [p for p in network.parameters() if p.requires_grad]
    with evaluating(network):
        network.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in asking:
                parameter.requires_grad_(True)


def _sizes(network: MultiExit) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the static models: the whole backbone less what a cut removes, plus the exit's head."""
    trunk, model = network.trunk, network.backbone
    tensors = model.state_dict(keep_vars=True)  # those that two modules share under both names
    params, sizes = [], []
    for number, plan in enumerate(network.plans, start=1):
        own = network.own_head(number)
        units, after = unused_modules(trunk, plan, own_head=own)
        gone = tuple(f"{name}." for name in [*units, *after])
        kept = [tensor for name, tensor in tensors.items() if not name.startswith(gone)]
        head_params, head_bytes = size_of([] if own else [network.heads[number - 1]])
        kept_params, kept_bytes = _size(kept)
        params.append(kept_params + head_params)
        sizes.append(kept_bytes + head_bytes)
    return tuple(params), tuple(sizes)


# --- time -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing measured several times, beside others in the same run.

    `ratio` compares with the first thing measured, round by round, so that drift of the machine cancels;
    `ratio_low`, `ratio_high` are the 2.5 and 97.5 % points of a bootstrap of the median ratio.
    """

    seconds: tuple[float, ...]
    ratio: float
    ratio_low: float
    ratio_high: float

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    def quantile(self, q: float) -> float:
        """Seconds below which a share `q` of the rounds lies."""
        return float(np.quantile(self.seconds, q))


def measure(
    things: dict[str, Callable[[], object]], *, rounds: int = 15, warmup: int = 2, device: str = "cpu"
) -> dict[str, Timing]:
    """Time callables in turn (A B C, A B C, ...), so that all of them meet the same noise.

    The device is synchronised around each call. The first entry is what ratios refer to. Raises `ConfigError`
    for fewer than one round.
    """
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds!r}; measure 1 or more times")
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    taken: dict[str, list[float]] = {name: [] for name in things}
    for number in range(warmup + rounds):
        for name, thing in things.items():
            wait()
            start = time.perf_counter()
            thing()
            wait()
            if number >= warmup:
                taken[name].append(time.perf_counter() - start)
    base = np.array(taken[next(iter(things))])
    random = np.random.default_rng(0)
    picks = random.integers(0, rounds, (2000, rounds))
    timings = {}
    for name, seconds in taken.items():
        ratios = np.array(seconds) / base
        low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
        timings[name] = Timing(tuple(seconds), float(np.median(ratios)), float(low), float(high))
    return timings
