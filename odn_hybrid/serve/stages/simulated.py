"""A device that is not there: segment times from a table, answers from recorded outputs.

For tests and benchmarks of all that lies above the device. An image says which recorded input it is by its
first four values (of the first channel's first row, and on), which are the digits of its number to base 256,
the lowest first. Files of uint8 pixels and tensors can both hold them; what changes pixels in between (a
resize, a normalisation) breaks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.errors import InputError
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.serve.stages.rows import Rows, gathered, shares_of
from odn_hybrid.stopping import HaltingTable, Looker

__all__ = ["SimulatedStages", "numbered_images"]

DIGITS = 4
BASE = 256


def numbered_images(numbers: Sequence[int], shape: tuple[int, int, int] = (1, 2, 2)) -> NDArray[np.float32]:
    """Images (n, *shape) that stand for the recorded inputs `numbers` (from 0); other pixels are 0."""
    found = np.zeros((len(numbers), int(np.prod(shape))), dtype=np.float32)
    if found.shape[1] < DIGITS:
        raise InputError(
            f"images of shape {shape} have fewer than {DIGITS} values: they cannot hold a number"
        )
    left = np.array(numbers, dtype=np.int64)
    if ((left < 0) | (left >= BASE**DIGITS)).any():
        raise InputError(f"numbers of recorded inputs are from 0 to {BASE**DIGITS - 1}")
    for digit in range(DIGITS):
        found[:, digit] = left % BASE
        left //= BASE
    return found.reshape(len(numbers), *shape)


class SimulatedStages:
    """See the module, and `Stages`.

    Args:
        logits: (N, P, classes) recorded at the policy's exits.
        policy: of P exits.
        times: of as many segments as the policy has exits that matter (`policy.needed`).
        spend: called with the seconds that each step, and each gathering that copies, takes: `time.sleep`, or
            a clock of a test's own.
        image_shape: of images; at least four values.
        exits, units: as answers name them; default 1 to P.
        shares: of inputs that reach each segment; default: of the recorded ones.

    Raises:
        InputError: shapes that do not fit each other; in a step, an image that stands for no recorded input.
    """

    def __init__(
        self,
        logits: NDArray[np.float32],
        policy: HaltingTable,
        times: SegmentTimes,
        spend: Callable[[float], object],
        *,
        image_shape: tuple[int, int, int] = (1, 2, 2),
        exits: Sequence[int] | None = None,
        units: Sequence[int] | None = None,
        shares: Sequence[float] | None = None,
    ) -> None:
        if logits.ndim != 3 or not len(logits) or logits.shape[1] != len(policy):
            raise InputError(f"logits have shape {logits.shape}; expected (n, {len(policy)}, classes)")
        self.numbers = policy.needed
        if len(times.segments) != len(self.numbers):
            raise InputError(f"times of {len(times.segments)} segments; the policy needs {len(self.numbers)}")
        numbered_images([len(logits) - 1], image_shape)
        self._logits = np.asarray(logits, dtype=np.float32)
        self._times, self._spend = times, spend
        self.looker = Looker(policy)
        known = range(1, len(policy) + 1)
        self.exits = tuple(known if exits is None else exits)
        self.units = tuple(known if units is None else units)
        if not len(self.exits) == len(self.units) == len(policy):
            raise InputError(f"exits {self.exits} and units {self.units}; the policy has {len(policy)} exits")
        self.image_shape, self.classes = image_shape, logits.shape[2]
        if shares is None:
            shares = shares_of(self.numbers, policy.decide(self._logits)[0])
        self.shares = tuple(shares)
        self.runtime, self.certified = "simulated", False

    def enter(self, images: NDArray[np.float32]) -> Held:
        """See `Stages`."""
        return 0, np.array(images, dtype=np.float32)

    def gather(self, parts: Sequence[tuple[Held, Rows]], segment: int) -> Held:
        """See `Stages`."""
        for (at, _), _ in parts:
            self._check(at, segment)
        arrays = [(array, rows) for (_, array), rows in parts]
        found = gathered(arrays)
        if segment and found is not arrays[0][0]:
            self._spend(self._times.gather(segment - 1, len(found)))
        return segment, found

    def step(self, segment: int, held: Held) -> tuple[Held, NDArray[np.float32]]:
        """See `Stages`."""
        at, rows = held
        self._check(at, segment)
        if segment == 0:
            rows = self._numbers(rows)
        self._spend(self._times.segment(segment, len(rows)))
        return (segment + 1, rows), self._logits[rows, self.numbers[segment] - 1]

    def measure(self, largest: int) -> SegmentTimes:
        """The table."""
        return self._times

    def close(self) -> None:
        """See `Stages`."""

    def _numbers(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        digits = images.reshape(len(images), -1)[:, :DIGITS]
        fine = (digits == np.floor(digits)) & (digits >= 0) & (digits < BASE)
        numbers = np.where(fine, digits, 0).astype(np.int64) @ (BASE ** np.arange(DIGITS, dtype=np.int64))
        if images.shape[1:] != self.image_shape or not fine.all() or (numbers >= len(self._logits)).any():
            raise InputError("an image stands for no recorded input; see numbered_images")
        return numbers

    @staticmethod
    def _check(at: int, segment: int) -> None:
        if at != segment:
            raise InputError(f"a state before segment {at} was given to segment {segment}")
