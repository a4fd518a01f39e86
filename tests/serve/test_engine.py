"""The device thread: answers, refusals, failures, cancelling, replacing, draining."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import SHAPE, Table, numbered, table_of, times_of

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import BadRequest, Failed, Overloaded, Refusal, Stopping
from odn_hybrid.serve.scheduling import Engine, Lane
from odn_hybrid.serve.settings import LaneSettings

SOON = 30.0  # seconds after which something is broken


class Door:
    """Holds the device before a step until it is opened."""

    def __init__(self) -> None:
        self.open, self.reached = threading.Event(), threading.Event()

    def __call__(self, segment: int, batch: int) -> None:
        self.reached.set()
        assert self.open.wait(SOON)


class Noted:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.answers: list[tuple[str, RunnerOutput, float]] = []
        self.refusals: list[type[Refusal]] = []

    def stepped(self, model: str, segment: int, batch: int, seconds: float) -> None:
        self.steps.append((model, segment, batch))

    def answered(self, model: str, output: RunnerOutput, seconds: float) -> None:
        self.answers.append((model, output, seconds))

    def refused(self, model: str, why: type[Refusal]) -> None:
        self.refusals.append(why)


def table(rows: int = 50, exits: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, exits, 4)).astype(np.float32)


def opened(engine: Engine, stages: Table, **lane: float) -> Lane:
    times = times_of([(1e-4, 1e-3)] * len(stages.numbers), (1, 64))
    return engine.open("net", stages, times, LaneSettings(**lane))  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Noted())
    made.start()
    yield made
    made.close()
    assert not made.alive and not made.died


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=25),
    score=st.sampled_from(["confidence", "margin", "entropy", "streak"]),
    recall=st.booleans(),
    most=st.integers(1, 16),
)
def test_every_answer_is_the_one_from_alone(seed, sizes, score, recall, most):
    """Whoever was in the batch, whatever the order, from three threads at once."""
    generator = np.random.default_rng(seed)
    edge = 2.0 if score == "streak" else 0.6
    stages = Table(table(60, 4, seed), table_of(4, edge, score=score, recall=recall))
    engine = Engine()
    lane = opened(engine, stages, max_batch=most, queue=1000)
    engine.start()
    requests = [generator.integers(0, 60, size) for size in sizes]
    with ThreadPoolExecutor(3) as clients:
        futures = list(clients.map(lambda rows: engine.submit(lane, numbered(rows), Options()), requests))
    for rows, future in zip(requests, futures, strict=True):
        output = future.result(SOON)
        for place, row in enumerate(rows):
            logits, exit = stages.alone(int(row))
            np.testing.assert_array_equal(output.logits[place], logits)
            assert output.exit[place] == exit and output.units_run[place] == exit // 2 * 3
        assert output.certified
    engine.close()
    assert lane.inside == 0 and stages.closed == 1
    assert max(len(rows) for _, rows in stages.ran) <= most


def test_a_request_s_own_depth_and_confidence(engine):
    logits = np.zeros((3, 3, 2), dtype=np.float32)
    logits[0, :, 0] = 1.0  # 0.73 at every exit: stops at the first
    logits[1, 2, 0] = 9.0  # stops at the last
    logits[2, :, 0] = (1.0, 2.0, 3.0)
    lane = opened(engine, Table(logits))
    ask = lambda rows, **options: engine.submit(lane, numbered(rows), Options(**options)).result(SOON)  # noqa: E731
    assert ask([0, 1]).exit.tolist() == [2, 6] and ask([0, 1]).certified
    shallow = ask([0, 1], max_depth=8)  # units are 3, 6, 9
    assert shallow.exit.tolist() == [2, 4] and shallow.units_run.tolist() == [3, 6] and not shallow.certified
    assert ask([0], max_depth=8).certified  # the policy's own answer
    sure = ask([2], min_confidence=0.85)
    assert sure.exit.tolist() == [4] and sure.confidence[0] >= 0.85 and not sure.certified
    assert ask([0], min_confidence=0.99).exit.tolist() == [6]
    assert ask([2], min_confidence=0.5).certified
    with pytest.raises(BadRequest, match="max_depth is 2; the first exit of net comes after 3 units"):
        ask([0], max_depth=2)


def test_the_least_confidence_is_that_of_the_answer_as_it_is_told(engine):
    logits = np.zeros((40, 3, 2), dtype=np.float32)
    logits[:, 0, 0] = np.linspace(1.0, 2.0, 40)  # half of these confidences are rounded up, half down
    lane = opened(engine, Table(logits))
    ask = lambda row, **options: engine.submit(lane, numbered([row]), Options(**options)).result(SOON)  # noqa: E731
    for row in range(40):
        told = float(ask(row).confidence[0])
        assert ask(row, min_confidence=told).exit.tolist() == [2]
        assert ask(row, min_confidence=float(np.nextafter(told, 1.0))).exit.tolist() == [6]


def test_what_cannot_be_taken(engine):
    lane = opened(engine, Table(table()), max_batch=4, queue=8)
    for images in (
        np.zeros((1, 3, 2, 2), np.float32),
        np.zeros((0, *SHAPE), np.float32),
        np.zeros((1, *SHAPE), np.float64),
        np.zeros(SHAPE, np.float32),
        np.zeros((9, *SHAPE), np.float32),
    ):
        with pytest.raises(BadRequest):
            engine.submit(lane, images, Options())
    for bad in (
        {"max_depth": 0},
        {"max_depth": True},
        {"min_confidence": 1.5},
        {"deadline_ms": float("nan")},
    ):
        with pytest.raises(BadRequest):
            Options(**bad)
    assert engine.submit(lane, numbered([1]), Options()).result(SOON)


def test_a_full_queue_refuses_and_takes_again_when_there_is_room(engine):
    door = Door()
    lane = opened(engine, Table(table(), before=door), max_batch=4, queue=8)
    futures = [engine.submit(lane, numbered([n, n + 1]), Options()) for n in range(4)]
    with pytest.raises(Overloaded, match="the queue is full") as refused:
        engine.submit(lane, numbered([0]), Options())
    assert refused.value.status == 503 and refused.value.retry_after is not None
    door.open.set()
    wait(futures, SOON)
    assert engine.submit(lane, numbered([0]), Options()).result(SOON)
    assert engine.observer.refusals == [Overloaded]


def test_who_is_cancelled_costs_nothing_more(engine):
    door = Door()
    stages = Table(table(), before=door)
    lane = opened(engine, stages, max_batch=1)
    first = engine.submit(lane, numbered([0]), Options())
    assert door.reached.wait(SOON)
    gone = engine.submit(lane, numbered([7, 8]), Options())
    assert gone.cancel()
    assert lane.inside == 1
    last = engine.submit(lane, numbered([1]), Options())
    door.open.set()
    first.result(SOON), last.result(SOON)
    assert not {7, 8} & {row for _, rows in stages.ran for row in rows}


def test_a_failing_step_ends_its_requests_only(engine):
    stages = Table(table())

    def broken(segment: int, batch: int) -> None:
        stages.before = lambda *_: None
        raise RuntimeError("secret path /home/somebody")

    stages.before = broken
    lane = opened(engine, stages)
    with pytest.raises(Failed) as failed:
        engine.submit(lane, numbered([0]), Options()).result(SOON)
    assert "secret" not in str(failed.value)
    assert engine.submit(lane, numbered([0]), Options()).result(SOON)
    assert lane.inside == 0 and engine.alive


def test_an_answer_that_is_not_finite_is_no_answer(engine):
    logits = table()
    logits[3] = np.nan
    door = Door()
    stages = Table(logits, before=door)
    lane = opened(engine, stages)
    futures = [engine.submit(lane, numbered([row]), Options()) for row in (1, 3, 5)]
    door.open.set()
    assert isinstance(futures[1].exception(SOON), BadRequest)
    for row, future in ((1, futures[0]), (5, futures[2])):
        np.testing.assert_array_equal(future.result(SOON).logits[0], stages.alone(row)[0])


def test_replacing_a_model_drops_nobody(engine):
    door = Door()
    old, new = Table(table(), before=door), Table(table(seed=1))
    lane = opened(engine, old)
    waiting = [engine.submit(lane, numbered([n]), Options()) for n in range(5)]
    replacing = opened(engine, new)
    retired = engine.retire(lane)
    with pytest.raises(Stopping):
        engine.submit(lane, numbered([0]), Options())
    assert not retired.done() and not old.closed
    door.open.set()
    for row, future in enumerate(waiting):
        np.testing.assert_array_equal(future.result(SOON).logits[0], old.alone(row)[0])
    retired.result(SOON)
    assert old.closed == 1
    got = engine.submit(replacing, numbered([0]), Options()).result(SOON)
    np.testing.assert_array_equal(got.logits[0], new.alone(0)[0])
    assert engine.retire(replacing).result(SOON) is None and new.closed == 1


def test_draining_answers_what_was_accepted(engine):
    door = Door()
    lane = opened(engine, Table(table(), before=door))
    futures = [engine.submit(lane, numbered([n]), Options()) for n in range(9)]
    assert not engine.drain(0.0)
    with pytest.raises(Stopping):
        engine.submit(lane, numbered([0]), Options())
    door.open.set()
    assert engine.drain(SOON)
    assert all(future.done() and future.exception() is None for future in futures)


def test_closing_refuses_what_is_left():
    engine, door = Engine(), Door()
    lane = opened(engine, Table(table(), before=door), max_batch=1)
    engine.start()
    futures = [engine.submit(lane, numbered([n]), Options()) for n in range(3)]
    assert door.reached.wait(SOON)
    closing = threading.Thread(target=engine.close)
    closing.start()
    wait(futures[1:], SOON)
    door.open.set()
    closing.join(SOON)
    assert all(isinstance(future.exception(SOON), Stopping) for future in futures[1:])
    assert futures[0].done()
    with pytest.raises(Stopping):
        opened(engine, Table(table()))


def test_a_model_can_be_retired_after_closing():
    engine = Engine()
    stages = Table(table())
    lane = opened(engine, stages)
    engine.start()
    engine.close()
    assert engine.retire(lane).result(SOON) is None and stages.closed == 1


def test_what_is_cancelled_during_a_long_step_does_not_pile_up(engine):
    """Nor do those who wait lose their place by it."""
    door = Door()
    stages = Table(table(), before=door)
    lane = opened(engine, stages, max_batch=4, queue=8)
    first = engine.submit(lane, numbered([0]), Options())
    assert door.reached.wait(SOON)
    others = [engine.submit(lane, numbered([n]), Options()) for n in (1, 2)]
    most = 0
    for _ in range(200):
        assert engine.submit(lane, numbered([3, 4, 5]), Options()).cancel()
        most = max(most, sum(engine.queues().values()))
    assert lane.inside == 3 and most <= 2 * 8 + 3
    door.open.set()
    for row, future in ((0, first), (1, others[0]), (2, others[1])):
        np.testing.assert_array_equal(future.result(SOON).logits[0], stages.alone(row)[0])
    assert not {3, 4, 5} & {row for _, rows in stages.ran for row in rows}


def test_a_slow_while_does_not_keep_everybody_out_for_good(engine):
    """Where nothing waits, deadlines are held against the times that were measured, and pace is learned."""
    lane = opened(engine, Table(table()))
    for _ in range(400):
        lane.expected.took(0, 1, 1.0)
    before = lane.expected.pace
    # 0.1 ms, as measured; at that pace it would be 2 ms before the first exit.
    work = max(lane.expected.seconds(0, 1), float(lane.expected.remaining[0]))
    deadline = 1e3 * work * before / 2
    for _ in range(20):
        try:
            engine.submit(lane, numbered([0]), Options(deadline_ms=deadline)).exception(SOON)
        except Overloaded as refusal:  # only of a machine that is itself so slow
            assert "deadline" in str(refusal)
    assert lane.expected.pace < before


def test_a_model_that_fails_when_asked_for_its_certificate_hangs_nobody(engine):
    class Broken(Table):
        @property
        def certified(self):
            raise RuntimeError("secret path /home/somebody")

        @certified.setter
        def certified(self, value):
            pass

    lane = opened(engine, Broken(table()))
    failed = engine.submit(lane, numbered([0]), Options()).exception(SOON)
    assert isinstance(failed, Failed) and "secret" not in str(failed)
    assert lane.inside == 0 and engine.drain(SOON)


def test_when_the_device_thread_dies_nobody_waits_for_it():
    engine, door = Engine(), Door()
    lane = opened(engine, Table(table(), before=door), max_batch=1)
    engine.start()
    futures = [engine.submit(lane, numbered([n]), Options()) for n in range(4)]
    assert door.reached.wait(SOON)

    def broken(now):
        raise RuntimeError("a mistake of ours")

    engine._scheduler.pick = broken
    door.open.set()
    assert all(isinstance(future.exception(SOON), Stopping) for future in futures[1:])
    with pytest.raises(Stopping):
        engine.submit(lane, numbered([0]), Options())
    assert engine.died
    engine.close()
    assert not engine.alive and lane.inside == 0


def test_two_models_share_the_device(engine):
    one, two = Table(table(seed=1)), Table(table(seed=2))
    lanes = opened(engine, one), opened(engine, two)
    futures: list[tuple[Table, int, Future[RunnerOutput]]] = []
    for row in range(40):
        which = row % 2
        futures.append(((one, two)[which], row, engine.submit(lanes[which], numbered([row]), Options())))
    for stages, row, future in futures:
        np.testing.assert_array_equal(future.result(SOON).logits[0], stages.alone(row)[0])


def test_states_of_who_left_are_not_kept(engine):
    """Where most of a batch have left, those who wait do not hold the memory of the others."""
    logits = np.zeros((64, 2, 2), dtype=np.float32)
    logits[:60, :, 0] = 5.0
    doors = Door(), Door()
    states = []

    class Watched(Table):
        def step(self, segment, held):
            after, found = super().step(segment, held)
            states.append((len(after), weakref.ref(after)))
            return after, found

    stages = Watched(logits, before=lambda segment, batch: doors[segment](segment, batch))
    lane = opened(engine, stages, max_batch=64)
    futures = [engine.submit(lane, numbered([0]), Options())]
    assert doors[0].reached.wait(SOON)
    futures += [engine.submit(lane, numbered([n]), Options()) for n in range(1, 64)]
    doors[0].open.set()
    assert doors[1].reached.wait(SOON)
    gc.collect()
    assert max(size for size, _ in states) >= 16
    assert not [size for size, state in states if state() is not None and size > 8]
    doors[1].open.set()
    assert [future.result(SOON).exit[0] for future in futures] == [2] * 60 + [4] * 4


def test_cancelled_futures_raise_as_futures_do(engine):
    door = Door()
    lane = opened(engine, Table(table(), before=door), max_batch=1)
    engine.submit(lane, numbered([0]), Options())
    assert door.reached.wait(SOON)
    future = engine.submit(lane, numbered([1]), Options())
    future.cancel()
    door.open.set()
    with pytest.raises(CancelledError):
        future.result(SOON)
