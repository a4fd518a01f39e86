"""The order of work, on a virtual clock: efficiency, latency, fairness, deadlines."""

from __future__ import annotations

import math
from concurrent.futures import Future
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import Table, numbered, times_of

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import DeadlinePassed, Overloaded
from odn_hybrid.serve.scheduling import Engine
from odn_hybrid.serve.scheduling.expected import Expected
from odn_hybrid.serve.settings import LaneSettings

SIZES = (1, 8, 64)
FLAT = (0.010, 0.010, 0.080)  # of a device that is only fast on full batches
LINEAR = (0.002, 0.016, 0.128)


class World:
    """An engine whose device takes the time that a table says, and requests that come when told to."""

    def __init__(self, logits: np.ndarray, seconds: list[tuple[float, ...]], **lane: float) -> None:
        self.now = 0.0
        self.times = times_of(seconds, SIZES)
        self.stages = Table(logits, before=self._spend)
        self.engine = Engine(clock=lambda: self.now)
        self.lane = self.engine.open("net", self.stages, self.times, LaneSettings(**lane))  # type: ignore[arg-type]
        self.busy = 0.0
        self.begun: list[float] = []  # of every step

    def _spend(self, segment: int, batch: int) -> None:
        self.begun.append(self.now)
        self.now += self.times.segment(segment, batch)
        self.busy += self.times.segment(segment, batch)

    def run(
        self, arrivals: list[tuple[float, int, Options]]
    ) -> list[tuple[float, Future[RunnerOutput] | Overloaded]]:
        """Per arrival (time, row of the table, options): how long it took, and what came of it."""
        found: list[tuple[float, Future[RunnerOutput] | Overloaded]] = []
        ended: dict[int, float] = {}
        waiting = sorted(arrivals, key=lambda a: a[0])
        while waiting or self.lane.inside:
            while waiting and waiting[0][0] <= self.now:
                due, row, options = waiting.pop(0)
                place = len(found)
                try:
                    future = self.engine.submit(self.lane, numbered([row]), options, arrived=due)
                except Overloaded as refusal:
                    found.append((0.0, refusal))
                    continue
                future.add_done_callback(lambda _, p=place, d=due: ended.update({p: self.now - d}))
                found.append((due, future))
            if not self.engine.turn():
                coming = [waiting[0][0]] if waiting else []
                wake = self.engine._scheduler.wake()
                coming += [] if math.isinf(wake) else [wake]
                self.now = max(self.now, min(coming, default=self.now))
        return [(ended.get(place, 0.0), what) for place, (_, what) in enumerate(found)]


def logits_of(stops: list[int], exits: int) -> np.ndarray:
    """(N, exits, 2): input n is sure of itself from exit stops[n] on."""
    logits = np.zeros((len(stops), exits, 2), dtype=np.float32)
    for row, stop in enumerate(stops):
        logits[row, stop - 1 :, 0] = 5.0 + row % 3
    return logits


def test_survivors_wait_for_company_only_where_the_device_wants_full_batches():
    """Hard inputs one by one: where time is flat in the batch they meet, where it is linear they don't."""
    logits = logits_of([2] * 40, 2)
    steps = {}
    for name, seconds in (("flat", FLAT), ("linear", LINEAR)):
        world = World(logits, [seconds, seconds], patience_ms=1e6)
        world.run([(0.003 * n, n, Options()) for n in range(40)])
        steps[name] = len(world.stages.ran)
        assert sorted(r for s, rows in world.stages.ran if s == 1 for r in rows) == list(range(40))
    assert steps["flat"] <= 40
    assert steps["linear"] >= 60


def test_the_device_is_never_idle_while_something_waits():
    generator = np.random.default_rng(0)
    logits = logits_of(generator.integers(1, 4, 200).tolist(), 3)
    world = World(logits, [FLAT, LINEAR, FLAT])
    arrivals = [(0.0, row, Options()) for row in range(200)]
    world.run(arrivals)
    assert world.now == pytest.approx(world.busy)


def test_easy_inputs_do_not_wait_for_hard_ones():
    """Their mean latency beside hard ones is that of the easy alone, but for the step that is running."""
    logits = logits_of([1] * 20 + [8] * 20, 8)
    world = World(logits, [LINEAR] * 8, patience_ms=1e6)
    mixed = [(0.02 * (n // 2), n // 2 + 20 * (n % 2), Options()) for n in range(40)]
    easy = [seconds for seconds, _ in world.run(mixed)[::2]]
    alone = World(logits, [LINEAR] * 8).run([m for m in mixed if m[1] < 20])
    assert np.mean(easy) <= np.mean([seconds for seconds, _ in alone]) + 0.005


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(1, 5),
    count=st.integers(1, 60),
    gap=st.sampled_from([0.0, 0.001, 0.003, 0.02]),
    patience=st.sampled_from([1.0, 20.0, 200.0]),
    flat=st.booleans(),
)
def test_everybody_is_answered_right_and_within_the_stated_bound(seed, exits, count, gap, patience, flat):
    """Patience and the running step, and then only steps of itself and of those that were due before."""
    generator = np.random.default_rng(seed)
    stops = generator.integers(1, exits + 1, count).tolist()
    world = World(
        logits_of(stops, exits), [FLAT if flat else LINEAR] * exits, patience_ms=patience, queue=4096
    )
    arrivals = [
        (float(t), row, Options()) for row, t in enumerate(np.cumsum(generator.exponential(gap, count)))
    ]
    results = world.run(arrivals)
    came = np.array([t for t, _, _ in arrivals])
    ended = came + [seconds for seconds, _ in results]
    begun = np.array(world.begun)
    due = came + patience / 1e3
    for (_, future), (_, row, _) in zip(results, arrivals, strict=True):
        assert isinstance(future, Future)
        output = future.result(0)
        assert output.exit[0] == 2 * stops[row] and output.certified
        np.testing.assert_array_equal(output.logits[0], world.stages.logits[row, stops[row] - 1])
        first = int(((due <= due[row]) & (ended > due[row])).sum())  # itself among them
        assert int(((begun >= due[row]) & (begun < ended[row] - 1e-9)).sum()) <= exits * first
    assert world.lane.inside == 0 and not any(world.engine.queues().values())


def test_a_hard_input_is_not_starved_by_a_stream_of_easy_ones():
    """The stream alone fills the device; the hard input still gets through, within patience at each place."""
    logits = logits_of([1] * 2000 + [3], 3)
    arrivals = [(0.00185 * n, n, Options()) for n in range(2000)] + [(0.5, 2000, Options())]
    world = World(logits, [LINEAR] * 3, patience_ms=50.0, queue=4096)
    results = world.run(sorted(arrivals, key=lambda a: a[0]))
    place = sorted(range(2001), key=lambda n: arrivals[n][0]).index(2000)
    seconds, future = results[place]
    assert isinstance(future, Future) and future.result(0).exit[0] == 6
    assert seconds < 0.050 + 0.3


def test_deadlines():
    """Who has passed an exit gets its answer, uncertified; who has not is refused; the hopeless at once."""
    logits = logits_of([3, 3, 3], 3)
    world = World(logits, [LINEAR] * 3)
    ((took, future),) = world.run([(0.0, 0, Options(deadline_ms=6.5))])
    assert isinstance(future, Future) and future.result(0).exit[0] == 6 and future.result(0).certified
    world = World(logits, [(0.004,) * 3] * 3)
    world.lane.expected.remaining[:] = 0.001  # it believes that there is time enough
    world.lane.expected.pace = 0.3
    ((took, future),) = world.run([(0.0, 0, Options(deadline_ms=9.0))])
    assert isinstance(future, Future)
    output = future.result(0)
    assert output.exit[0] == 4 and not output.certified and took <= 0.009
    world = World(logits, [LINEAR] * 3)
    ((_, refusal),) = world.run([(0.0, 0, Options(deadline_ms=1.0))])
    assert isinstance(refusal, Overloaded) and refusal.retry_after is not None


def test_no_work_is_spent_on_who_is_too_late():
    logits = logits_of([1, 1], 1)
    world = World(logits, [(0.1,) * 3], patience_ms=1e6, max_batch=1)
    world.lane.expected.pace = 0.1  # it is much slower than believed
    later: list[Future[RunnerOutput]] = []

    def meanwhile(segment: int, batch: int) -> None:
        later.append(world.engine.submit(world.lane, numbered([1]), Options(deadline_ms=50.0)))
        world.now += 0.1

    world.stages.before = meanwhile
    world.run([(0.0, 0, Options())])
    assert isinstance(later[0].exception(0), DeadlinePassed)
    assert world.stages.ran == [(0, [0])]


def test_who_is_too_late_does_not_run_before_others():
    """However short the steps: an input whose deadline passed just now is not the first to be served."""
    world = World(logits_of([1] * 7, 1), [(0.010,) * 3], max_batch=1)
    world.lane.expected.pace = 0.01  # it is much slower than believed
    arrivals = [(0.0, row, Options(deadline_ms=12.0)) for row in range(6)] + [(0.0, 6, Options())]
    results = world.run(arrivals)
    assert [rows for _, rows in world.stages.ran] == [[0], [1], [6]]
    refused = [future.exception(0) for _, future in results[2:6]]
    assert all(isinstance(refusal, DeadlinePassed) for refusal in refused)


def test_waiting_for_a_full_batch():
    """What plain dynamic batching does: a full batch at once, else when the first has waited long enough."""
    logits = logits_of([1] * 20, 1)
    world = World(logits, [FLAT], max_batch=8, wait_ms=30.0)
    world.run([(0.001 * n, n, Options()) for n in range(10)])
    assert [len(rows) for _, rows in world.stages.ran] == [8, 2]
    # The ninth and tenth are taken in when the device is free again, after 7 + 10 ms.
    assert world.now == pytest.approx(0.017 + 0.030 + 0.010)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 1.0), min_size=5, max_size=5),
)
def test_the_index_is_that_of_gittins(seconds, stays):
    """Against its definition: the best rate over all sets of depths at which to go on, not only intervals."""
    count = len(seconds)
    stays = stays[: count - 1]
    shares = np.cumprod([1.0, *stays])
    expected = Expected(times_of([(s,) for s in seconds], (1,)), np.maximum(shares, 1e-6).tolist(), 1)
    stay = [float(np.clip(max(b, 1e-6) / max(a, 1e-6), 0, 1)) for a, b in pairwise(shares)] + [0.0]
    for k in range(count):
        rates = []
        for until in range(k, count):
            reach, work, left = 1.0, 0.0, 0.0
            for j in range(k, until + 1):
                work, left, reach = work + reach * seconds[j], left + reach * (1 - stay[j]), reach * stay[j]
            rates.append(left / work)
        assert expected.index[k] == pytest.approx(max(rates), rel=1e-9)
        mean = sum(np.prod(stay[k:j]) * seconds[j] for j in range(k, count))
        assert expected.remaining[k] == pytest.approx(mean, rel=1e-9)


def test_the_batch_size_is_the_one_that_serves_soonest():
    """Against a simulation of serving n inputs in batches of b."""

    def mean_end(n: int, b: int, seconds: float) -> float:
        ends, now, left = 0.0, 0.0, n
        while left > 0:
            now += seconds
            ends += now * min(b, left)
            left -= b
        return ends / n

    for seconds in (LINEAR, (0.004, 0.004 + 7 * 0.001, 0.004 + 63 * 0.001), FLAT):
        table = times_of([seconds], SIZES)
        expected = Expected(table, [1.0], 64)
        for n in (1, 2, 7, 30, 64):
            ends = {b: mean_end(n, b, table.segment(0, b)) for b in range(1, n + 1)}
            assert ends[expected.batch(0, n)] <= 1.05 * min(ends.values())


def test_the_batch_size_looks_to_the_end_of_the_way():
    """Few go on: where the next segment is only efficient on many, more are taken into the first."""
    alone = Expected(times_of([LINEAR], SIZES), [1.0], 64)
    before = Expected(times_of([LINEAR, (0.05, 0.05, 0.05)], SIZES), [1.0, 0.1], 64)
    assert alone.batch(0, 40) == 1 and before.batch(0, 40) >= 10


def test_a_backlog_is_worked_off_at_the_efficiency_of_full_batches():
    """Steps have a fixed cost, as on a CPU: 500 at once take hardly longer than in batches of 64 by hand."""
    generator = np.random.default_rng(0)
    stops = np.minimum(generator.geometric(0.3, 500), 8)
    step = (0.00045, 0.00034 + 8 * 0.00011, 0.00034 + 64 * 0.00011)
    world = World(logits_of(stops.tolist(), 8), [step] * 8)
    world.run([(0.0, row, Options()) for row in range(500)])
    by_hand = sum(
        world.times.segment(k, int((part > k).sum()))
        for part in np.array_split(stops, 8)
        for k in range(8)
        if (part > k).any()
    )
    assert world.now <= 1.1 * by_hand


def test_odds_follow_what_is_seen():
    expected = Expected(times_of([(0.01,), (0.01,)], (1,)), [1.0, 0.9], 1)
    before = expected.remaining[0]
    for _ in range(100):
        expected.saw(0, 100, 10)
    assert expected.remaining[0] < before
    assert expected.remaining[0] == pytest.approx(0.01 + 0.1 * 0.01, rel=0.05)
