"""Segments: the units between two exits at which somebody looks, with the head of the later one.

A segment is the runtime's unit of work, and what is compiled, captured and exported one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.deploy.halting.registering import registered
from odn_hybrid.deploy.halting.straight import Straight, straightened
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import State

__all__ = ["Segment", "Step", "flat", "segments_of", "steps_of", "straighten"]

#: Images, or a state at the exit before -> the state and the logits (batch, classes) at the next exit.
Step = Callable[[State | Tensor], tuple[State, Tensor]]


class Segment(nn.Module):
    """From one exit's state (or the images, `start` 0) to the next state and the logits there.

    `segment(*tensors)` takes images (batch, channels, height, width), or what the segment before gave after
    its logits. It gives `(logits, *state)`: logits (batch, classes), then tensors (batch, ...) and tables
    that all inputs share; the segment that nobody goes on from gives `(logits,)`.

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
        # Modules one after another are called at once; steps with bookkeeping between them cost microseconds.
        self._chain = self._route.chain(self._depth, network.units[stop - 1], stem=not start)
        self._known: tuple[int, list[nn.Module]] = (-1, [])
        self._straight: Straight | None = None

    def forward(self, *tensors: Any) -> tuple[Any, ...]:
        """See the class."""
        state, logits = self._run(self.entry(*tensors))
        return (logits,) if self.ends else (logits, *flat(state))

    def entry(self, *tensors: Any) -> State | Tensor:
        """The tensors that `forward` takes, as what a `Step` goes on from: images or a state."""
        return tensors[0] if not self.start else self._state(tensors, self._depth, self.before)

    def result(self, *tensors: Any) -> tuple[State, Tensor]:
        """What `forward` gave, as state and logits; of the last segment the logits stand for the state."""
        logits, *rest = tensors
        depth = self.network.units[self.stop - 1]
        if self.ends:
            return State(logits, depth), logits
        return self._state(tuple(rest), depth, self.after), logits

    def _state(self, tensors: tuple[Any, ...], depth: int, rows: int) -> State:
        x, *streams = tensors[:rows]
        return State(x, depth, tuple(streams), tensors[rows:], self._route)

    def run(self, entry: State | Tensor) -> tuple[State, Tensor]:
        """From images or a state to the state and the logits at exit `stop`."""
        if self._chain is not None:
            return self._chained(entry if isinstance(entry, Tensor) else entry.x)
        return self._run(entry)

    def quick(self, entry: State | Tensor) -> tuple[State, Tensor]:
        """The same, by what `straighten` wrote down, for as long as that holds."""
        straight = self._straight
        if straight is None:
            return self.run(entry)
        x = entry if isinstance(entry, Tensor) else entry.x
        if not straight.holds(x):
            if straight.gone and self._straight is straight:
                self._straight = None
            return self.run(entry)
        x, logits = straight.function(x)
        return State(x, self.network.units[self.stop - 1], (), (), self._route), logits

    def straighten(self, entry: State | Tensor) -> None:
        """Make `quick` quick, where that can be; `entry` is an example."""
        if self._chain is None:
            return
        network = self.network
        heads: list[nn.Module] = []
        if network.own_head(self.stop):
            heads += [network.backbone.get_submodule(name) for name in network.trunk.after_names]
        else:
            heads.append(network.heads[self.stop - 1])
        called = [module for part in (*self._parts(), *heads) for module in part.modules()]
        x = entry if isinstance(entry, Tensor) else entry.x
        self._straight = straightened(self._through, called, network, x)

    def _through(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state, logits = self._chained(x)
        return state.x, logits

    def _chained(self, x: Tensor) -> tuple[State, Tensor]:
        """`run` of modules one after another."""
        for part in self._parts():
            x = part(x)
        state = State(x, self.network.units[self.stop - 1], (), (), self._route)
        return state, self.network.classify(self.stop, state)

    def _run(self, entry: State | Tensor) -> tuple[State, Tensor]:
        """The same, looking nothing up outside, which compilers and exporters would have to follow."""
        state = self.network.trunk.stem(entry) if isinstance(entry, Tensor) else entry
        state = self.network.advance(state, self.stop)
        return state, self.network.classify(self.stop, state)

    def _parts(self) -> list[nn.Module]:
        """The chain's modules, looked up again when any module anywhere was replaced."""
        now = registered()
        if self._known[0] != now:
            assert self._chain is not None
            self._known = (now, [self.network.backbone.get_submodule(name) for name in self._chain])
        return self._known[1]

    def compiled(self) -> Step:
        """`run` through `torch.compile`."""
        function = torch.compile(self)

        def step(entry: State | Tensor) -> tuple[State, Tensor]:
            tensors = (entry,) if isinstance(entry, Tensor) else flat(entry)
            return self.result(*function(*tensors))

        return step


def flat(state: State) -> tuple[Any, ...]:
    """The tensors of a state: those of the inputs, then those that all share."""
    return (state.x, *state.streams, *state.tables)


def segments_of(network: MultiExit, exits: Sequence[int], route: Any = None) -> list[Segment]:
    """The segments that end at these exits, the last of which none goes on from."""
    return [
        Segment(network, start, stop, ends=stop == exits[-1], route=route)
        for start, stop in pairwise((0, *exits))
    ]


def steps_of(segments: Sequence[Segment], execution: Execution, device: torch.device) -> list[Step]:
    """How segments run on a device: compiled, or by as few calls as `straighten` left them."""
    if execution.compile:
        return [segment.compiled() for segment in segments]
    return [segment.quick if device.type == "cpu" else segment.run for segment in segments]


@torch.no_grad()
def straighten(segments: Sequence[Segment], layout: torch.memory_format, execution: Execution) -> None:
    """Spare consecutive segments from the images on the calls of their modules: on the CPU, not compiled."""
    network = segments[0].network
    like = next(network.parameters())
    if like.device.type != "cpu" or execution.compile:
        return
    images = torch.rand(1, *network.trunk.image_shape, generator=torch.Generator().manual_seed(0))
    entry: State | Tensor = images.to(like.dtype).contiguous(memory_format=layout)
    with execution.casting(like.device):
        for segment in segments:
            segment.straighten(entry)
            entry, _ = segment.run(entry)
