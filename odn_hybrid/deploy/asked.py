"""What a user asks of a dynamic model beside the promise: fast at what, and at which exits it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from odn_hybrid.cost import Costs
from odn_hybrid.deploy.paying import AIMS, measure_exits, paying_exits
from odn_hybrid.deploy.promising.dynamic import Looks
from odn_hybrid.deploy.promising.promise import Promise
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord

__all__ = ["Asked"]


@dataclass(frozen=True)
class Asked:
    """A promise and the way in which it is to be kept.

    Attributes:
        promise: what is promised.
        reference: exit that the drop is measured against.
        optimise_for: "throughput" or "latency", or None for few MACs.
        size: images given at once, for `optimise_for`; None is 64, or 1 for latency.
        exits: to look at, or None.

    Raises:
        ConfigError: wishes that are unknown, contradict each other, or do not fit the network.
    """

    promise: Promise
    reference: int
    optimise_for: str | None = None
    size: int | None = None
    exits: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.optimise_for not in (None, *AIMS):
            raise ConfigError(f"optimise_for is {self.optimise_for!r}; choose one of {', '.join(AIMS)}")
        if self.optimise_for is not None and self.exits is not None:
            raise ConfigError("exits and optimise_for were both given; give one: the latter chooses exits")
        if self.size is not None:
            if self.optimise_for is None:
                raise ConfigError(f"batch is {self.size!r} without optimise_for; say what to optimise for")
            if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
                raise ConfigError(f"batch is {self.size!r}; give a whole number of 1 or more")
        if self.exits is not None:
            mine = list(self.exits)
            known = range(1, self.reference + 1)
            if not mine or mine != sorted(set(mine) & set(known)) or mine[-1] != self.reference:
                raise ConfigError(
                    f"exits are {mine}; give some of 1 to {self.reference} in ascending order, the reference "
                    f"{self.reference} last"
                )

    @property
    def batch(self) -> int:
        """Images given at once."""
        return self.size or AIMS[self.optimise_for or "throughput"]

    @property
    def wish(self) -> dict[str, Any]:
        """What makes two of these the same, beside the promise: measured times do not."""
        if self.optimise_for is not None:
            return {"optimise_for": self.optimise_for, "batch": self.batch}
        return {} if self.exits is None else {"exits": list(self.exits)}

    def looks(self, network: MultiExit, costs: Costs, calibration: ExitRecord, execution: Execution) -> Looks:
        """At which exits to look; with `optimise_for` that is measured now, which takes a while."""
        if self.exits is not None:
            macs = tuple(costs.passing(tuple(self.exits)))
            return Looks(tuple(self.exits), macs, macs)
        if self.optimise_for is None:
            return Looks.all_of(costs.cumulative, self.reference)
        times = measure_exits(network, self.reference, execution, batch=self.batch)
        return paying_exits(
            self.promise, calibration, costs, times, reference=self.reference, batch=self.batch
        )
