"""Models are swapped and unloaded while requests come, and no request is lost or answered by a mixture."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.errors import ConfigError, ModelError, OdnError
from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.refusals import Refusal, Stopping, Unknown
from odn_hybrid.serve.scheduling import Engine
from odn_hybrid.serve.settings import LaneSettings, ServeSettings
from odn_hybrid.serve.stages.simulated import SimulatedStages, numbered_images
from odn_hybrid.stopping import Calibration, HaltingTable

SETTINGS = ServeSettings(lane=LaneSettings(max_batch=4, queue=4096))
TIMES = SegmentTimes((1, 4), ((1e-3, 1e-3),) * 2, ((0.0, 0.0),) * 2, "none", "simulated")
INPUTS = 32
SECONDS = 30.0  # after which a test has failed
PLAIN = Options()


class Device(SimulatedStages):
    """Model `version` answers input k with the logit `version` for class k % 2 at exit 1 + k % 2."""

    def __init__(self, version: int, spend: Callable[[float], object] = lambda seconds: None) -> None:
        logits = np.zeros((INPUTS, 2, 2), dtype=np.float32)
        logits[np.arange(INPUTS), :, np.arange(INPUTS) % 2] = version
        logits[1::2, 0] = 0.0  # not sure before the second exit
        table = HaltingTable.of_thresholds([0.6, 0.0], Calibration.of_temperatures([1.0, 1.0]))
        super().__init__(logits, table, TIMES, spend)
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


def opened(version: int, device: Device | None = None) -> Opened:
    return Opened(stages=device or Device(version), kind="dynamic", digest=f"{version:064x}"[::-1])


def ask(host: Host, numbers: list[int], name: str = "m") -> Future[RunnerOutput]:
    return host.submit(name, numbered_images(numbers), PLAIN)


def version_of(output: RunnerOutput, numbers: list[int]) -> int:
    """Whose answer it is; of one model alone, and the right one."""
    said = output.logits[np.arange(len(numbers)), np.array(numbers) % 2]
    assert len(set(said.tolist())) == 1
    np.testing.assert_array_equal(output.exit, 1 + np.array(numbers) % 2)
    return int(said[0])


class Refused:
    """Counts requests that were refused; an observer of the engine."""

    def __init__(self) -> None:
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def refused(self, model: str, why: type[Refusal]) -> None:
        self.count += 1


@pytest.fixture
def refused() -> Refused:
    return Refused()


@pytest.fixture
def host(refused: Refused) -> Iterator[Host]:
    engine = Engine(refused)
    engine.start()
    yield Host(engine, SETTINGS)
    engine.close()


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a path leads to: something opened, or an error."""
    found: dict[str, Any] = {}

    def open_path(path: str | Path, kind: str = "dynamic", **how: Any) -> Opened:
        held = found[str(path)]
        if isinstance(held, Exception):
            raise held
        return held if isinstance(held, Opened) else held(kind=kind, **how)  # type: ignore[no-any-return]

    monkeypatch.setattr("odn_hybrid.serve.hosting.host.open_path", open_path)
    return found


def test_requests_from_many_threads_while_models_are_swapped(
    host: Host, folders: dict[str, Any], refused: Refused
) -> None:
    devices = {version: Device(version) for version in range(1, 9)}
    for version, device in devices.items():
        folders[f"v{version}"] = opened(version, device)
    host.load("m", "v1")
    going = threading.Event()
    seen: list[list[int]] = [[] for _ in range(3)]

    def client(mine: list[int]) -> None:
        random = np.random.default_rng(id(mine) % 1000)
        while not going.is_set():
            numbers = random.integers(0, INPUTS, int(random.integers(1, 6))).tolist()
            mine.append(version_of(ask(host, numbers).result(SECONDS), numbers))

    def until_each_has(version: int) -> None:
        deadline = time.monotonic() + SECONDS
        while not all(mine and mine[-1] >= version for mine in seen):
            assert time.monotonic() < deadline and not any(worker.done() for worker in workers)
            going.wait(0.001)  # lets the others run

    with ThreadPoolExecutor(len(seen)) as pool:
        workers = [pool.submit(client, mine) for mine in seen]
        for version in range(2, 9):
            until_each_has(version - 1)
            host.reload("m", f"v{version}")
        until_each_has(8)
        going.set()
        for worker in workers:
            worker.result(SECONDS)
    assert refused.count == 0
    for mine in seen:
        assert mine == sorted(mine) and set(mine) == set(range(1, 9))  # never back to an older one
    for version, device in devices.items():
        assert device.closed.wait(SECONDS) if version < 8 else not device.closed.is_set()


def test_a_request_that_is_on_its_way_is_not_overtaken(folders: dict[str, Any]) -> None:
    at_the_door = threading.Event()

    class Late(Engine):
        def submit(self, *args: Any, **more: Any) -> Future[RunnerOutput]:
            if not at_the_door.is_set():
                at_the_door.set()
                swapped.wait(0.3)  # the swap has to wait for this request: it is not through by then
            return super().submit(*args, **more)

    swapped = threading.Event()
    engine = Late()
    engine.start()
    host = Host(engine, SETTINGS)
    folders["new"] = opened(2)
    host.put("m", opened(1))

    def swap() -> None:
        assert at_the_door.wait(SECONDS)
        host.reload("m", "new")
        swapped.set()

    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(swap)
        assert version_of(ask(host, [0, 1]).result(SECONDS), [0, 1]) == 1
        swapping.result(SECONDS)
    assert version_of(ask(host, [0, 1]).result(SECONDS), [0, 1]) == 2
    engine.close()


class Slow:
    """A device that stands still in its first step until it is let go."""

    def __init__(self) -> None:
        self.at_work, self.let_go, self.on = threading.Event(), threading.Event(), False

    def __call__(self, seconds: float) -> None:
        if self.on:
            self.at_work.set()
            assert self.let_go.wait(SECONDS)


def test_the_old_model_answers_what_it_had_accepted(host: Host, folders: dict[str, Any]) -> None:
    slow = Slow()
    old = Device(1, slow)
    folders["old"], folders["new"] = opened(1, old), opened(2)
    first = host.load("m", "old")
    slow.on = True
    begun = ask(host, [0, 1])
    assert slow.at_work.wait(SECONDS)
    waiting = ask(host, [2, 3])
    second = host.reload("m", "new")
    assert host.model("m") is second and host.model("m", second.version) is second
    with pytest.raises(Unknown, match="version"):
        host.model("m", first.version)
    with pytest.raises(Unknown, match="version"):
        host.submit("m", numbered_images([0]), PLAIN, version=first.version)
    after = ask(host, [4, 5])
    assert not old.closed.is_set()
    slow.on = False
    slow.let_go.set()
    assert version_of(begun.result(SECONDS), [0, 1]) == 1
    assert version_of(waiting.result(SECONDS), [2, 3]) == 1
    assert version_of(after.result(SECONDS), [4, 5]) == 2
    assert old.closed.wait(SECONDS)


class Broken(Device):
    """Fails while it is made ready."""

    def __init__(self, how: str) -> None:
        super().__init__(7)
        self.how = how

    def measure(self, largest: int) -> SegmentTimes:
        if self.how == "measure":
            raise RuntimeError("out of memory\nat some place")
        return super().measure(largest)

    def step(self, segment: int, held: Any) -> Any:
        after, logits = super().step(segment, held)
        if self.how == "nan" and segment == 1:
            logits = np.full_like(logits, np.nan)
        return after, logits[:, :1] if self.how == "shape" else logits


@pytest.mark.parametrize("how", ["measure", "nan", "shape"])
def test_a_broken_model_is_closed_and_the_old_one_stays(
    how: str, host: Host, folders: dict[str, Any]
) -> None:
    folders["good"] = opened(1)
    kept = host.load("m", "good")
    broken = Broken(how)
    folders["bad"] = opened(7, broken)
    with pytest.raises(ModelError) as error:
        host.reload("m", "bad")
    assert "\n" not in str(error.value)
    assert broken.closed.is_set() and host.model("m") is kept
    assert version_of(ask(host, [0, 1, 2]).result(SECONDS), [0, 1, 2]) == 1
    folders["good"] = ConfigError("it is gone")
    with pytest.raises(ConfigError, match="gone"):
        host.reload("m")
    assert host.models() == [kept] and host.ready


def test_a_model_is_loaded_again_with_its_own_options(host: Host, folders: dict[str, Any]) -> None:
    asked: list[dict[str, Any]] = []

    def held(**how: Any) -> Opened:
        asked.append(how)
        return opened(len(asked))

    folders["x"] = held
    host.load("m", "x", "full", device="cpu")
    host.reload("m")
    assert asked == [{"kind": "full", "device": "cpu"}] * 2
    host.put("here", opened(5))
    with pytest.raises(ConfigError, match="no folder"):
        host.reload("here")


def test_unloading_answers_what_was_accepted(host: Host) -> None:
    slow = Slow()
    device = Device(1, slow)
    host.put("m", opened(1, device))
    host.put("other", opened(2))
    slow.on = True
    begun = ask(host, [0, 1])
    assert slow.at_work.wait(SECONDS)
    with ThreadPoolExecutor(1) as pool:
        unloading = pool.submit(host.unload, "m")
        deadline = time.monotonic() + SECONDS
        while [hosted.name for hosted in host.models()] != ["other"]:
            assert time.monotonic() < deadline
        assert not unloading.done() and not device.closed.is_set()
        with pytest.raises(Unknown):
            ask(host, [0])
        slow.let_go.set()
        unloading.result(SECONDS)
    assert device.closed.is_set() and version_of(begun.result(0), [0, 1]) == 1
    assert version_of(ask(host, [3], "other").result(SECONDS), [3]) == 2
    with pytest.raises(Unknown):
        host.unload("m")
    host.put("m", opened(3))  # the name is free again
    assert version_of(ask(host, [3]).result(SECONDS), [3]) == 3


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", ".", "a" * 101, "ü", "a\n", None, 3])
def test_names_that_no_address_could_hold(name: Any, host: Host) -> None:
    for call in (lambda: host.load(name, "nowhere"), lambda: host.put(name, opened(1))):
        with pytest.raises(ConfigError, match="cannot be called"):
            call()
    with pytest.raises(Unknown):
        host.model(name)


def test_a_name_is_taken_once(host: Host, folders: dict[str, Any]) -> None:
    host.put("A-1_b.c", opened(1))
    folders["x"] = opened(2)
    with pytest.raises(ConfigError, match="served already"):
        host.load("A-1_b.c", "x")
    assert len(host.models()) == 1


def test_ready_once_the_first_models_are_loaded(host: Host, folders: dict[str, Any]) -> None:
    states: list[bool] = []

    def loading(number: int) -> Callable[..., Opened]:
        def held(**how: Any) -> Opened:
            states.append(host.ready)
            return opened(number)

        return held

    folders.update({str(number): loading(number) for number in range(3)}, bad=ModelError("broken"))
    assert not host.ready
    with pytest.raises(OdnError):
        host.load("m", "bad")
    assert not host.ready
    host.load("a", "0")
    assert host.ready
    host.load("b", "1")  # one more later
    host.reload("a", "2")
    assert states == [False, True, True]
    host.unload("a")
    host.unload("b")
    assert not host.ready


def test_a_stopping_engine_takes_no_models(host: Host, folders: dict[str, Any]) -> None:
    device = Device(1)
    host.engine.close()
    with pytest.raises(Stopping):
        host.put("m", opened(1, device))
    assert device.closed.is_set() and host.models() == []
