"""A batch through the segments on the CPU: shapes change as inputs leave, decisions are numpy's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odn_hybrid.deploy.halting.profit import Gathering
from odn_hybrid.deploy.halting.segments import Step
from odn_hybrid.errors import InputError
from odn_hybrid.stopping import HaltingTable, Looker, One, Seen
from odn_hybrid.trunk import State

__all__ = ["NOT_FINITE", "Answers", "Casting", "HostFlow", "Part", "check_finite"]

#: Makes a context in which the network computes.
Casting = Callable[[], AbstractContextManager[Any]]
NOT_FINITE = "images hold NaN or infinite values"


class Answers(NamedTuple):
    """Per input: logits (batch, classes), confidence, where it stopped and which exit answered.

    Exits are numbered as in the policy. `answered` is None where everybody's answer is that of the exit where
    it stopped.
    """

    logits: Tensor
    confidence: Tensor
    taken: Tensor
    answered: Tensor | None


@dataclass(frozen=True)
class Part:
    """One segment on a batch of its own, for measuring.

    `run` it, with its head and its decision; `gather` as many inputs after it.
    """

    run: Callable[[], object]
    gather: Callable[[], object]


class HostFlow:
    """Runs segments on batches of any size; keeps nothing between calls.

    Args:
        steps: what runs each segment, from the images to the policy's last exit.
        numbers: per segment, the number in the policy of the exit where it ends.
        gathers: the rule by which survivors are gathered, see `profit`.
        layout: of the images as the network takes them.
        casting: makes a context for the precision.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        numbers: Sequence[int],
        policy: HaltingTable,
        gathers: Gathering,
        layout: torch.memory_format = torch.contiguous_format,
        casting: Casting = nullcontext,
    ) -> None:
        self.steps, self.numbers = steps, numbers
        self.looker = Looker(policy)
        self.gathers, self.layout, self.casting = gathers, layout, casting

    def __call__(self, images: Tensor) -> Answers:
        """Answers of images (batch, channels, height, width), in their order."""
        check_finite(images)
        with self.casting():
            return self._one(images) if len(images) == 1 else self._several(images)

    def _one(self, images: Tensor) -> Answers:
        one, number = self._alone(images.contiguous(memory_format=self.layout), 0, None)
        return Answers(
            torch.from_numpy(one.logits[None].copy()),
            torch.tensor([one.confidence]),
            torch.tensor([number]),
            torch.tensor([one.exit]) if self.looker.recalls else None,
        )

    def _alone(self, state: State | Tensor, start: int, one: One | None) -> tuple[One, int]:
        """A single input from segment `start` on: nothing to gather, and little else that would take time.

        What is known of it where it stops, and at which exit of the policy that is.
        """
        number = 0
        for step, number in zip(self.steps[start:], self.numbers[start:], strict=True):
            state, answers = step(state)
            stops, one = self.looker.look_one(number, _plain(answers)[0], one)
            if stops:
                break
        assert one is not None
        return one, number

    def _several(self, images: Tensor) -> Answers:
        writer = _Writer(len(images))
        state: State | Tensor = images.contiguous(memory_format=self.layout)
        seen: Seen | None = None
        rows: NDArray[np.intp] | None = None  # whose the rows of the state are; None: everybody's, in order
        waiting: NDArray[np.bool_] | None = None  # which of these have no answer yet; None: all
        last = len(self.steps) - 1
        for index, (step, number) in enumerate(zip(self.steps, self.numbers, strict=True)):
            state, answers = step(state)
            stops, seen = self.looker.look(number, _plain(answers), seen)
            halts = stops if waiting is None else waiting & stops
            leaving = halts.nonzero()[0]
            if not leaving.size:
                continue
            writer.write(leaving if rows is None else rows[leaving], seen, leaving, number)
            if index == last:
                break
            waiting = ~halts if waiting is None else waiting & ~halts
            staying = waiting.nonzero()[0]
            if not staying.size:
                break
            if self.gathers(index, len(stops), len(staying)):
                rows, waiting = staying if rows is None else rows[staying], None
                seen = seen.select(staying) if self.looker.remembers else None
                if len(rows) == 1:
                    known = None if seen is None else seen.one(number)
                    writer.write_one(rows[0], *self._alone(state.only(int(staying[0])), index + 1, known))
                    break
                state = state.select(torch.from_numpy(staying))
        return writer.answers()

    def parts(self, images: Tensor) -> list[Part]:
        """See `timing.Timed`."""
        found = []
        state: State | Tensor = images.contiguous(memory_format=self.layout)
        seen: Seen | None = None
        everybody = np.arange(len(images))
        for step, number in zip(self.steps, self.numbers, strict=True):

            def run(
                step: Step = step,
                number: int = number,
                entry: State | Tensor = state,
                seen: Seen | None = seen,
            ) -> object:
                with self.casting():
                    after, answers = step(entry)
                return after, self.looker.look(number, _plain(answers), seen)[1]

            state, seen = run()  # type: ignore[misc]

            def gather(state: Any = state, seen: Any = seen) -> object:
                kept = seen.select(everybody) if self.looker.remembers else None
                return state.select(torch.from_numpy(everybody)), kept

            found.append(Part(run, gather))
        return found


def _plain(answers: Tensor) -> NDArray[np.float32]:
    """Logits as numpy has them; without a copy if they are fp32."""
    plain: NDArray[np.float32] = (answers if answers.dtype == torch.float32 else answers.float()).numpy()
    return plain


def check_finite(images: Tensor) -> None:
    """Raise `InputError` where images hold NaN or infinite values."""
    # A sum is several times faster to look at than every pixel, and never finite if one pixel is not.
    if not math.isfinite(float(images.sum())) and not bool(torch.isfinite(images).all()):
        raise InputError(NOT_FINITE)


class _Writer:
    """Collects the answers of `count` inputs, who leave in groups."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.logits: NDArray[np.float32] | None = None
        self.answered: NDArray[np.int64] | None = None  # with recall: else it is where they stopped

    def write(self, rows: NDArray[np.intp], seen: Seen, places: NDArray[np.intp], number: int) -> None:
        """Inputs `rows` stop at exit `number` with what `seen` holds of them at `places`."""
        if len(rows) == self.count:  # everybody at once: nothing to put together
            self.logits, self.confidence = seen.logits, seen.confidence.astype(np.float32)
            self.taken, self.answered = np.full(self.count, number), seen.exit
            return
        if self.logits is None:  # not before: what is called now finds numpy's code in the caches
            self.logits = np.empty((self.count, seen.logits.shape[1]), dtype=np.float32)
            self.confidence = np.empty(self.count, dtype=np.float32)
            self.taken = np.empty(self.count, dtype=np.int64)
            self.answered = None if seen.exit is None else np.empty(self.count, dtype=np.int64)
        self.logits[rows], self.confidence[rows] = seen.logits[places], seen.confidence[places]
        self.taken[rows] = number
        if self.answered is not None and seen.exit is not None:
            self.answered[rows] = seen.exit[places]

    def write_one(self, row: np.intp, one: One, number: int) -> None:
        """Input `row`, after others have left, stops at exit `number`."""
        assert self.logits is not None
        self.logits[row], self.confidence[row], self.taken[row] = one.logits, one.confidence, number
        if self.answered is not None:
            self.answered[row] = one.exit

    def answers(self) -> Answers:
        """All of them, as tensors."""
        assert self.logits is not None
        return Answers(
            torch.from_numpy(self.logits),
            torch.from_numpy(self.confidence),
            torch.from_numpy(self.taken),
            None if self.answered is None else torch.from_numpy(self.answered),
        )
