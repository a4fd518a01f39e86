"""Times are measured rightly on a machine that has other work to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.stages.measuring import measured_times
from odn_hybrid.serve.stages.simulated import SimulatedStages, numbered_images
from odn_hybrid.stopping import Calibration, HaltingTable

SIZES = (1, 2, 4, 8)
TIMES = SegmentTimes(
    SIZES,
    ((1.0, 1.1, 1.5, 3.0), (2.0, 2.0, 2.0, 2.5), (0.1, 0.2, 0.4, 0.8)),
    ((0.01, 0.02, 0.04, 0.08), (0.01, 0.02, 0.03, 0.05), (0.0,) * 4),
    "table",
    "simulated",
)
TABLE = HaltingTable.of_thresholds([0.9, 0.9, 0.0], Calibration.of_temperatures([1.0] * 3))


class Machine(SimulatedStages):
    """A device with a clock of its own, on which others run now and then."""

    def __init__(self, random: np.random.Generator, busy: float) -> None:
        self.now, self.random, self.busy, self.steps = 0.0, random, busy, 0
        super().__init__(np.zeros((1, 3, 2), dtype=np.float32), TABLE, TIMES, self.work)

    def work(self, seconds: float) -> None:
        self.steps += 1
        self.now += seconds
        if self.random.random() < self.busy:
            self.now += float(self.random.exponential(30.0))

    def enter(self, images: NDArray[np.float32]) -> Any:
        return super().enter(numbered_images([0] * len(images)))


@given(st.integers(0, 10_000))
@settings(max_examples=50)
def test_a_busy_machine_gives_the_times_of_an_idle_one(seed: int) -> None:
    machine = Machine(np.random.default_rng(seed), busy=0.4)
    found = measured_times(machine, 8, "here", clock=lambda: machine.now / 1e3)
    assert found.sizes == SIZES and found.device == "here" and found.form == "simulated"
    np.testing.assert_allclose(found.segments, np.array(TIMES.segments) / 1e3, rtol=1e-6)
    # A single row is not copied when it is all there is.
    gathers = np.array(TIMES.gathers) / 1e3
    gathers[:, 0] = 0.0
    np.testing.assert_allclose(found.gathers, gathers, rtol=1e-6, atol=1e-12)


def test_a_slow_model_is_measured_a_few_times_only() -> None:
    machine = Machine(np.random.default_rng(0), busy=0.0)
    measured_times(machine, 8, "here", clock=lambda: machine.now * 100)
    passes = 1 + 1 + 4  # to have states of every segment, a round that does not count, four that do
    assert machine.steps <= len(SIZES) * passes * 5


@pytest.mark.parametrize("largest", [1, 3])
def test_any_largest_size(largest: int) -> None:
    machine = Machine(np.random.default_rng(0), busy=0.0)
    found = measured_times(machine, largest, "here", clock=lambda: machine.now)
    assert found.sizes[-1] == largest and all(len(row) == len(found.sizes) for row in found.segments)
    assert found.segment(0, largest) == pytest.approx(TIMES.segment(0, largest))
