"""Segments: the units between two exits at which somebody looks, with the head of the later one.

A segment is the runtime's unit of work, and what is compiled, captured and exported one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import State

__all__ = ["Segment", "segments_of"]


class Segment(nn.Module):
    """From one exit's state (or the images, `start` 0) to the next state and the logits there.

    `segment(*tensors)` takes images (batch, channels, height, width), or what the segment before gave after
    its logits. It gives `(logits, *state)`: logits (batch, classes), then tensors (batch, ...) and tables that
    all inputs share; the segment that nobody goes on from gives `(logits,)`.

    Args:
        network: exits of prefix plans.
        start, stop: exits, 0 <= start < stop.
        ends: no segment goes on from this one.
        route: steps for the precision at hand, as a state of it names them; default: fp32's.

    Attributes:
        before, after: how many (batch, ...) tensors the state has where it starts (1 for images) and ends.
    """

    def __init__(self, network: MultiExit, start: int, stop: int, *, ends: bool, route: Any = None) -> None:
        super().__init__()
        self.network = network
        self.start, self.stop, self.ends = start, stop, ends
        self._route = route or network.trunk.route
        cuts = self._route.split.cuts
        self._depth = network.units[start - 1] if start else 0
        self.before = len(cuts[self._depth].rows) if start else 1
        self.after = 0 if ends else len(cuts[network.units[stop - 1]].rows)

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        """See the class."""
        state, logits = self.run(self.state(*tensors))
        return (logits,) if self.ends else (logits, state.x, *state.streams, *state.tables)

    def state(self, *tensors: Any) -> State:
        """The tensors that `forward` takes, as the state it goes on from."""
        if not self.start:
            return self.network.trunk.stem(tensors[0])
        x, *streams = tensors[: self.before]
        return State(x, self._depth, tuple(streams), tensors[self.before :], self._route)

    def run(self, state: State) -> tuple[State, Tensor]:
        """From a state to the state and the logits at exit `stop`."""
        state = self.network.advance(state, self.stop)
        return state, self.network.classify(self.stop, state)


def segments_of(network: MultiExit, exits: Sequence[int], route: Any = None) -> list[Segment]:
    """The segments that end at these exits, the last of which none goes on from."""
    return [
        Segment(network, start, stop, ends=stop == exits[-1], route=route)
        for start, stop in pairwise((0, *exits))
    ]
