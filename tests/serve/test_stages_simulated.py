"""A simulated device answers what was recorded and takes the time that its table says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from staging import through

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.errors import InputError
from odn_hybrid.serve.stages.simulated import SimulatedStages, numbered_images
from odn_hybrid.stopping import NEVER, Calibration, HaltingTable

INPUTS, EXITS, CLASSES = 50, 4, 3
LOGITS = np.random.default_rng(0).normal(0, 2, (INPUTS, EXITS, CLASSES)).astype(np.float32)
FLAT = Calibration.of_temperatures([1.0] * EXITS)
TABLE = HaltingTable.of_thresholds([0.9, NEVER, 0.7, 0.0], FLAT)  # nobody looks at exit 2
TIMES = SegmentTimes(
    (1, 64), ((1.0, 64.0), (2.0, 128.0), (4.0, 256.0)), ((0.1, 6.4), (0.1, 6.4), (0.0, 0.0)), "table", "none"
)


def stages(spent: list[float] | None = None, **more: object) -> SimulatedStages:
    spend = (lambda seconds: None) if spent is None else spent.append
    return SimulatedStages(LOGITS, TABLE, TIMES, spend, **more)  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.lists(st.integers(0, INPUTS - 1), min_size=1, max_size=40))
def test_answers_are_those_of_the_recorded_outputs(seed: int, numbers: list[int]) -> None:
    found = through(stages(), numbered_images(numbers), np.random.default_rng(seed))
    taken, answered = TABLE.decide(LOGITS[numbers])
    np.testing.assert_array_equal(found.exit, taken)
    np.testing.assert_array_equal(found.logits, LOGITS[numbers, answered - 1])
    np.testing.assert_array_equal(found.confidence, TABLE.confidence(LOGITS[numbers], answered).astype("f4"))


@given(st.lists(st.integers(0, 256**4 - 1), min_size=1, max_size=20))
def test_every_number_fits_into_an_image_of_bytes(numbers: list[int]) -> None:
    images = numbered_images(numbers, (3, 4, 4))
    assert images.shape == (len(numbers), 3, 4, 4) and images.dtype == np.float32
    as_bytes = images.astype(np.uint8)
    assert (as_bytes == images).all()
    assert len({image.tobytes() for image in as_bytes}) == len(set(numbers))


def test_steps_and_copies_take_the_time_of_the_table() -> None:
    spent: list[float] = []
    device = stages(spent)
    held = device.gather([(device.enter(numbered_images([k])), np.array([0])) for k in range(8)], 0)
    after, _ = device.step(0, held)
    assert spent == [8.0]  # putting images together is not the device's work
    same = device.gather([(after, np.arange(8))], 1)
    assert spent == [8.0]
    half = device.gather([(same, np.arange(4))], 1)
    device.step(1, half)
    assert spent == pytest.approx([8.0, 0.4, 8.0])


def test_it_says_what_it_knows() -> None:
    device = stages(exits=(1, 2, 4, 8), units=(2, 4, 8, 16))
    assert device.numbers == (1, 3, 4) and device.exits == (1, 2, 4, 8) and device.classes == CLASSES
    taken, _ = TABLE.decide(LOGITS)
    assert device.shares == pytest.approx((1, (taken > 1).mean(), (taken > 3).mean()))
    assert device.measure(64) is TIMES and not device.certified


def test_what_does_not_fit_is_refused() -> None:
    device = stages()
    halves = numbered_images([1])
    halves[0, 0, 0, 0] = 0.5
    for wrong in (numbered_images([INPUTS]), halves, -numbered_images([1]), numbered_images([1], (1, 3, 3))):
        with pytest.raises(InputError, match="recorded input"):
            device.step(0, device.enter(wrong))
    after, _ = device.step(0, device.enter(numbered_images([1, 2])))
    with pytest.raises(InputError, match="before segment 1"):
        device.step(2, after)
    with pytest.raises(InputError, match="before segment 1"):
        device.gather([(after, np.arange(2))], 2)
    with pytest.raises(InputError, match="segments"):
        SimulatedStages(LOGITS, TABLE, SegmentTimes((1,), ((1.0,),), ((0.0,),), "", ""), print)
    with pytest.raises(InputError, match="logits have shape"):
        SimulatedStages(LOGITS[:, :3], TABLE, TIMES, print)
    with pytest.raises(InputError, match="units"):
        stages(units=(1, 2))
    with pytest.raises(InputError, match="fewer than 4"):
        stages(image_shape=(1, 1, 3))
    with pytest.raises(InputError, match="from 0"):
        numbered_images([-1])
