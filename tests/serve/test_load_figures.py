"""What benchmarks/serve_load.py and serve_soak.py make of the runs that they measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pytest.importorskip("httptools")


def benchmark(name: str) -> ModuleType:
    return pytest.importorskip(name)


# --- what is made of it -------------------------------------------------------------------------------


def watched(latency: np.ndarray, status: np.ndarray | None = None, **other: Any) -> Any:
    n = len(latency)
    zeros = np.zeros(n, dtype=np.int64)
    status = np.full(n, 200) if status is None else status
    usual = {"cut": False, "connections": 1, "resent": 0, "peak": 1, "lag": np.zeros(n)}
    Watched = benchmark("load_generator").Watched
    return Watched(
        due=np.arange(n) / n, latency=latency, status=status, image=zeros, said=zeros, exit=zeros - 1,
        **{**usual, **other},
    )  # fmt: skip


def test_a_rate_is_good_by_its_99_percent_point_and_its_refusals() -> None:
    goal = benchmark("load_goodput").Goal(limit=0.1)
    n = 1000
    latency, status = np.full(n, 0.05), np.full(n, 200)
    assert goal.met(watched(latency, status))
    latency[:10] = 1.0
    assert goal.met(watched(latency, status))
    latency[10] = 1.0
    assert not goal.met(watched(latency, status))
    latency[:] = 0.05
    status[:10] = 503
    assert goal.met(watched(latency, status))
    status[10] = 503
    assert not goal.met(watched(latency, status))
    for code in (500, 0):  # no refusal but an error
        assert not goal.met(watched(latency, np.where(np.arange(n) == 0, code, 200)))
    assert not goal.met(watched(np.full(n, 0.05), cut=True))


@pytest.mark.parametrize("start", [3.0, 40.0, 900.0])
def test_the_search_comes_close_to_the_highest_good_rate(start: float) -> None:
    load = benchmark("load_goodput")
    highest = 123.0
    found = load.goodput(
        lambda rate: watched(np.full(500, 0.05 if rate <= highest else 0.5)),
        load.Goal(limit=0.1), start, seconds=10, precision=1.03, most=40,
    )  # fmt: skip
    assert highest / 1.03 <= found.rate <= highest
    assert found.good == pytest.approx(50)  # 500 answers in 10 seconds
    assert [run["met"] for run in found.tried] == [run["rate"] <= highest for run in found.tried]


def test_a_late_generator_invalidates_a_run() -> None:
    load = benchmark("load_goodput")
    lags = iter([0.01, 0.0])

    def run(rate: float) -> Any:
        return watched(np.full(500, 0.05), lag=np.full(500, next(lags, 0.0)), cut=rate > 10)

    assert load.goodput(run, load.Goal(0.1), 8.0, seconds=10).rate > 9
    with pytest.raises(SystemExit, match="late"):
        load.goodput(lambda rate: watched(np.ones(9), lag=np.ones(9)), load.Goal(0.1), 8.0, seconds=1)


def test_one_late_request_of_a_few_is_no_reason_to_doubt_the_run() -> None:
    late = np.zeros(14)
    late[0] = 0.5
    assert watched(np.full(14, 0.05), lag=late).valid()
    late[1] = 0.5
    assert not watched(np.full(14, 0.05), lag=late).valid()
    many = np.zeros(1000)
    many[:10] = 0.5
    assert watched(np.full(1000, 0.05), lag=many).valid()
    many[10] = 0.5
    assert not watched(np.full(1000, 0.05), lag=many).valid()


def test_a_peer_that_cannot_be_measured_is_left_out_and_ours_never() -> None:
    serve_load = benchmark("serve_load")
    late = benchmark("load_goodput").LateGenerator
    left_out: dict[str, str] = {}
    with serve_load.peer_may_fail("ray", left_out):
        raise late("late by 3 ms")
    assert left_out == {"ray": "late by 3 ms"}
    with pytest.raises(SystemExit), serve_load.peer_may_fail("dynamic", left_out):
        raise late("late by 3 ms")
    with pytest.raises(SystemExit), serve_load.peer_may_fail("ray", left_out):
        raise SystemExit("the server died")  # a fault, not a limit of the measurement


def test_batchings_that_cannot_be_told_apart_go_to_the_simplest(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, servers = benchmark("load_bench"), benchmark("load_servers")
    rates = {1: 15.8, 4: 21.0, 8: 22.0}
    now: list[int] = []

    @contextmanager
    def started(_: Any, batching: Any, core: Any) -> Iterator[None]:
        now[:] = [batching.max_batch]
        yield

    monkeypatch.setattr(bench, "started", started)
    monkeypatch.setattr(bench.Bench, "aim", lambda *_: None)
    found = benchmark("load_goodput").Search
    monkeypatch.setattr(bench.Bench, "search", lambda *_, **__: found(rates[now[0]], rates[now[0]], []))
    server = servers.Server("full", (), {})
    grid = [servers.Batching(size, 0.0) for size in rates]
    one = bench.Bench(None, None, None, bench.Lengths(1, 1, 1))
    assert one.tuned(server, grid, 10.0)["chosen"]["max_batch"] == 4  # 8 is less than 8 % better


# --- drift --------------------------------------------------------------------------------------------


def test_a_rise_is_told_from_noise() -> None:
    drift = benchmark("serve_soak").drift
    times = np.arange(0.0, 900.0, 10.0)
    noise = np.random.default_rng(0).normal(size=len(times))
    assert drift(times, 100 + noise, 0.02)["flat"]
    assert drift(times, 100 - 0.05 * times, 0.02)["flat"]  # what falls does no harm
    leak = drift(times, 100 + noise + 10 * times / times[-1], 0.02)
    assert not leak["flat"] and leak["rise"] == pytest.approx(10 / 105, rel=0.1)
    assert leak["low"] < leak["rise"] < leak["high"]
    assert drift(times, 100 + times / times[-1], 0.02)["flat"]  # certain, but within what is allowed
    assert drift(times[:2], times[:2], 0.02)["flat"] is None


def test_memory_may_rise_by_two_percent_and_by_20_megabytes_at_most() -> None:
    line = benchmark("serve_soak").memory_line
    times = np.arange(0.0, 900.0, 10.0)
    climb = times / times[-1]
    small = line(times, 100e6 + 1.9e6 * climb)
    assert small["flat"] and small["allowed_megabytes"] == pytest.approx(2.02, rel=0.01)
    assert not line(times, 100e6 + 2.2e6 * climb)["flat"]
    large = line(times, 4e9 + 30e6 * climb)  # less than 1 %
    assert not large["flat"] and large["rise_megabytes"] == pytest.approx(30)
    assert line(times, 4e9 + 19e6 * climb)["flat"]
    saw = np.where(np.arange(len(times)) % 2, 5e8, -5e8)  # the interval has 0 in it, which is no excuse
    noisy = line(times, 2e9 + saw + 1e8 * climb)
    assert noisy["low"] < 0 and not noisy["flat"]
    assert line(times[:2], times[:2])["flat"] is None
    late = line(times, 2e9 + 35e6 * (times > 0.9 * times[-1]))  # its line rises by less than 20 MB
    assert late["rise_megabytes"] < 20 and late["step_megabytes"] == pytest.approx(35) and not late["flat"]


def test_a_soak_is_passed_only_if_the_load_was_the_one_that_was_meant() -> None:
    passed = benchmark("serve_soak").passed
    flat, short, steep = {"flat": True}, {"flat": None}, {"flat": False}
    assert passed(0, {"memory": flat, "p50": flat}, True)
    assert not passed(0, {"memory": flat, "p50": short}, True)  # too short to tell
    assert not passed(0, {"memory": flat}, False)
    assert not passed(1, {"memory": flat}, True)
    assert not passed(0, {"memory": flat, "p99": steep}, True)


# --- what rounds come to ------------------------------------------------------------------------------


def one_round(goodput: float, p50: float) -> dict[str, Any]:
    return {
        "poisson": {"goodput": goodput},
        "half": {"latency_ms": {"p50": p50, "p99": 3 * p50}},
    }


def test_the_verdict_compares_rounds_in_pairs_and_says_where_it_loses() -> None:
    load = benchmark("load_verdict")
    rounds = {
        "full": [one_round(50, 20), one_round(40, 25), one_round(60, 20)],
        "static": [one_round(110, 9), one_round(90, 9), one_round(130, 9)],
        "dynamic": [one_round(100, 10), one_round(80, 15), one_round(120, 11)],
    }
    alone = load.alone_ratio(
        {"full": {"1": [20.0, 20.0], "2": [18.0, 22.0]}, "dynamic": {"1": [10.0, 10.0], "2": [9.0, 11.0]}},
        {"full": 1, "dynamic": 2},
    )
    assert alone["ratio"]["rounds"] == pytest.approx([20 / 9, 20 / 11])
    found = load.verdict(rounds, alone)
    assert found["over"]["full"]["goodput, poisson"] == {"median": 2.0, "rounds": [2.0, 2.0, 2.0]}
    assert found["over"]["full"]["p50 at half load"]["median"] == pytest.approx(0.55)
    assert all(one["reached"] for one in found["asked"].values()) and len(found["asked"]) == 2
    assert len(found["loses"]) == 3 and all("static" in text for text in found["loses"])
    slower = {**rounds, "dynamic": [one_round(80, 16)] * 3}
    assert not any(one["reached"] for one in load.verdict(slower, alone)["asked"].values())
    (asked,) = load.verdict(rounds, None)["asked"].values()
    assert asked == {"value": 2.0, "at_least": 1.7, "reached": True}


def test_what_cannot_be_measured_is_shown_and_not_left_out() -> None:
    load = benchmark("load_verdict")
    rounds = {
        "full": [{"poisson": {"goodput": 0.0}}, one_round(40, 25)],
        "dynamic": [{"poisson": {"goodput": 90.0}}, one_round(80, 15)],
        "static": [{"poisson": {"goodput": 50.0}}, one_round(50, 20)],
    }
    found = load.verdict(rounds, None)
    over = found["over"]["full"]
    assert over["goodput, poisson"]["median"] is None
    assert over["goodput, poisson"]["not_measurable"] == "its figure is 0 in 1 of 2 rounds"
    assert found["goodput"]["poisson"]["full"] == {"median": 20.0, "rounds": [0.0, 40.0]}
    assert found["over"]["static"]["goodput, poisson"]["rounds"] == pytest.approx([1.8, 1.6])
    (asked,) = found["asked"].values()
    assert asked["value"] is None and not asked["reached"] and asked["not_measurable"]
    assert any("goodput, poisson over full is not measurable" in text for text in found["loses"])
    dead = {name: ones[:1] for name, ones in rounds.items()}
    alone = load.alone_ratio({"full": {"1": [20.0]}, "dynamic": {"1": [10.0]}}, {"full": 1, "dynamic": 1})
    asked = load.verdict(dead, alone)["asked"]
    assert len(asked) == 2 and all(one["not_measurable"] and not one["reached"] for one in asked.values())
    json.dumps(load.verdict(dead, alone), allow_nan=False)


def test_a_simulated_segment_is_flat_until_the_device_is_full() -> None:
    simulated = benchmark("load_simulated")
    times = simulated.Device(full_ms=30, fills=8, launch_ms=1).times([0.2, 0.8])
    assert times.segment(0, 1) == times.segment(0, 8) == pytest.approx(0.007)
    assert times.segment(1, 32) == pytest.approx(0.001 + 4 * 0.024)
    assert times.gather(1, 8) == 0
