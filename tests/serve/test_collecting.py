"""Garbage collections of a server do not walk through its models, and what it lets go is freed."""

from __future__ import annotations

import asyncio
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.running.service import Service
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.simulated import SimulatedStages
from odn_hybrid.stopping import Calibration, HaltingTable

TIMES = SegmentTimes((1, 4), ((1e-3, 1e-3),) * 2, ((0.0, 0.0),) * 2, "none", "simulated")


class Device(SimulatedStages):
    def __init__(self) -> None:
        table = HaltingTable.of_thresholds([0.6, 0.0], Calibration.of_temperatures([1.0, 1.0]))
        super().__init__(np.zeros((32, 2, 2), dtype=np.float32), table, TIMES, lambda seconds: None)
        self.myself = self  # as modules hold each other: only a collection frees it


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Device]]:
    made: list[weakref.ref[Device]] = []

    def open_path(*_: Any, **__: Any) -> Opened:
        device = Device()
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
