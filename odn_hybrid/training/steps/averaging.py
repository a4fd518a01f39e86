"""The exponential moving average of the weights, of the part of the network that trains.

timm's and torch's averages walk over the whole network at every step. While two of eight units train, that
is most of the cost of a step, for weights that do not move; so the average here is told what does.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from odn_hybrid.exits import MultiExit, unused_modules

__all__ = ["WeightAverage", "idle_prefixes", "rising_decay"]


class WeightAverage:
    """Keeps `network`, a copy whose floating-point weights and buffers are averaged over `horizon` steps.

    The decay rises as 1 - (1 + t)^(-2/3) to 1 - 1/horizon, so that early averages are short (the warm-up of
    timm's ModelEmaV3). Integer buffers are copied.
    """

    def __init__(self, network: MultiExit, horizon: float) -> None:
        self.network = copy.deepcopy(network).eval()
        self.longest = 1 - 1 / max(1.0, horizon)
        self.steps = 0
        self._pairs: dict[int, tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]] = {}

    @torch.no_grad()
    def update(self, network: MultiExit, active: int) -> None:
        """Take in the weights of `network` after a step that trained exits 1..active."""
        self.steps += 1
        decay = rising_decay(self.steps, self.longest)
        kept, new, whole = self._paired(network, active)
        torch._foreach_lerp_(kept, new, 1 - decay)
        for target, source in whole:
            target.copy_(source)

    def _paired(
        self, network: MultiExit, active: int
    ) -> tuple[list[Tensor], list[Tensor], list[tuple[Tensor, Tensor]]]:
        if active not in self._pairs:
            idle = idle_prefixes(network, active)
            mine = self.network.state_dict(keep_vars=True)
            kept, new, whole = [], [], []
            for name, source in network.state_dict(keep_vars=True).items():
                if name.startswith(idle):
                    continue
                if source.is_floating_point():
                    kept.append(mine[name].data)
                    new.append(source.data)
                else:
                    whole.append((mine[name], source))
            self._pairs[active] = (kept, new, whole)
        return self._pairs[active]


def rising_decay(steps: int, longest: float) -> float:
    """The decay of step number `steps`, from 1; at most `longest`."""
    return min(longest, 1 - (1 + steps) ** (-2 / 3))


def idle_prefixes(network: MultiExit, active: int) -> tuple[str, ...]:
    """State-dict prefixes of what does not run when exits 1..active train."""
    # Plans are nested: the exits before `active` run no other units.
    units, after = unused_modules(network.trunk, network.plans[active - 1], own_head=network.own_head(active))
    heads = [f"heads.{number}." for number in range(active, len(network.heads))]
    return tuple([f"backbone.{name}." for name in [*units, *after]] + heads)
