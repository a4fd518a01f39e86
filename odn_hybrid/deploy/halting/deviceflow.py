"""A batch through the segments on any device: shapes change as inputs leave, decisions stay on the device."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from odn_hybrid.deploy.halting.deciding import Decider, Memory
from odn_hybrid.deploy.halting.hostflow import Answers, Casting, Part, check_finite
from odn_hybrid.deploy.halting.profit import Gathering
from odn_hybrid.deploy.halting.segments import Step
from odn_hybrid.trunk import State

__all__ = ["DeviceFlow"]


class DeviceFlow:
    """As `HostFlow`, with one copy to the host per segment: how many inputs are left."""

    def __init__(
        self,
        steps: Sequence[Step],
        numbers: Sequence[int],
        decider: Decider,
        gathers: Gathering,
        layout: torch.memory_format = torch.contiguous_format,
        casting: Casting = nullcontext,
    ) -> None:
        self.steps, self.numbers = steps, numbers
        self.decider, self.gathers, self.layout, self.casting = decider, gathers, layout, casting

    def __call__(self, images: Tensor) -> Answers:
        """Answers of images (batch, channels, height, width), in their order."""
        check_finite(images)
        count, device = len(images), images.device
        confidence = torch.empty(count, device=device)
        taken = torch.empty(count, dtype=torch.long, device=device)
        answered = torch.empty_like(taken)
        rows = torch.arange(count, device=device)
        waiting = torch.ones(count, dtype=torch.bool, device=device)
        state: State | Tensor = images.contiguous(memory_format=self.layout)
        memory: Memory | None = None
        logits: Tensor | None = None
        last = len(self.steps) - 1
        for index, (step, number) in enumerate(zip(self.steps, self.numbers, strict=True)):
            with self.casting():
                state, said = step(state)
            stops, memory = self.decider.look(number, said.float(), memory)
            logits = torch.empty_like(memory.logits) if logits is None else logits
            halts = waiting if index == last else waiting & stops
            done = rows[halts]
            logits[done], confidence[done] = memory.logits[halts], memory.confidence[halts].float()
            taken[done], answered[done] = number, memory.exit[halts]
            waiting = waiting & ~halts
            left = int(waiting.sum())  # the one device-to-host copy of this segment
            if not left:
                break
            if left < len(rows) and self.gathers(index, len(rows), left):
                state, memory, rows = state.select(waiting), memory.select(waiting), rows[waiting]
                waiting = torch.ones(left, dtype=torch.bool, device=device)
        assert logits is not None
        return Answers(logits, confidence, taken, answered)

    def parts(self, images: Tensor) -> list[Part]:
        """See `timing.Timed`."""
        found = []
        state: State | Tensor = images.contiguous(memory_format=self.layout)
        memory: Memory | None = None
        everybody = torch.arange(len(images), device=images.device)
        for step, number in zip(self.steps, self.numbers, strict=True):

            def run(
                step: Step = step,
                number: int = number,
                entry: State | Tensor = state,
                seen: Memory | None = memory,
            ) -> object:
                with self.casting():
                    after, answers = step(entry)
                stops, seen = self.decider.look(number, answers.float(), seen)
                return after, seen, int(stops.sum())

            state, memory, _ = run()  # type: ignore[misc]

            def gather(state: Any = state, memory: Any = memory) -> object:
                return state.select(everybody), memory.select(everybody)

            found.append(Part(run, gather))
        return found
