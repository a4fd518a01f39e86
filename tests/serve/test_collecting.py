"""Garbage collections of a server do not walk through its models, and what it lets go is freed."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.running.service import Service
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.simulated import SimulatedStages, numbered_images
from odn_hybrid.stopping import Calibration, HaltingTable

SECONDS = 30.0  # after which a test has failed
TIMES = SegmentTimes((1, 4), ((1e-3, 1e-3),) * 2, ((0.0, 0.0),) * 2, "none", "simulated")


class Device(SimulatedStages):
    def __init__(self, spend: Callable[[float], object]) -> None:
        table = HaltingTable.of_thresholds([0.6, 0.0], Calibration.of_temperatures([1.0, 1.0]))
        super().__init__(np.zeros((32, 2, 2), dtype=np.float32), table, TIMES, spend)
        self.myself = self  # as modules hold each other: only a collection frees it


class Work:
    """What a device does for a step: nothing, or to stand still until it is let go."""

    def __init__(self) -> None:
        self.stands, self.at_it, self.let_go = False, threading.Event(), threading.Event()

    def __call__(self, seconds: float) -> None:
        if self.stands:
            self.at_it.set()
            assert self.let_go.wait(SECONDS)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch, work: Work) -> list[weakref.ref[Device]]:
    made: list[weakref.ref[Device]] = []

    def open_path(*_: Any, **__: Any) -> Opened:
        device = Device(work)
        made.append(weakref.ref(device))
        return Opened(stages=device, kind="dynamic", digest=f"{len(made):064x}"[::-1])

    monkeypatch.setattr("odn_hybrid.serve.hosting.host.open_path", open_path)
    return made


def test_what_is_loaded_is_not_walked_through_again(
    devices: list[weakref.ref[Device]], tmp_path: Path
) -> None:
    async def life() -> None:
        service = Service(Loading(models={"m": tmp_path}, allow_reload=True), ServeSettings())
        service.engine.start()
        before = len(gc.get_objects())
        await service.load_all()
        assert len(gc.get_objects()) < before / 10
        await service.load("m")
        assert len(devices) == 2 and len(gc.get_objects()) < before / 10
        assert devices[0]() is None and devices[1]() is not None
        await service.unload("m")
        assert devices[1]() is None
        await service.close()

    asyncio.run(life())
    assert gc.get_freeze_count() == 0  # a process that goes on collects as before


def test_a_load_is_over_when_the_model_before_has_answered_and_is_gone(
    devices: list[weakref.ref[Device]], work: Work, tmp_path: Path
) -> None:
    answered: list[bool] = []

    async def life() -> None:
        service = Service(Loading(models={"m": tmp_path}, allow_reload=True), ServeSettings())
        service.engine.start()
        await service.load_all()
        before = service.host.model("m").version
        work.stands = True
        asked = service.host.submit("m", numbered_images([0]), Options())
        asked.add_done_callback(lambda done: answered.append(done.exception() is None))
        del asked  # it knows the model
        assert await asyncio.to_thread(work.at_it.wait, SECONDS)
        work.stands = False
        loading = asyncio.ensure_future(service.load("m"))
        while service.host.model("m").version == before:
            await asyncio.sleep(0)
        assert not loading.done() and not answered
        work.let_go.set()
        await asyncio.wait_for(loading, SECONDS)
        assert answered == [True] and devices[0]() is None
        await service.close()

    asyncio.run(life())
