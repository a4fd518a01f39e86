"""What is seen of a server: metrics, the last minute, drift; and that seeing it harms nobody."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from watched import CERTIFICATE, EXITS, answers, logits_of, model, serving_watched

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.refusals import DeadlinePassed, Failed, Overloaded
from odn_hybrid.serve.stages.simulated import numbered_images
from odn_hybrid.serve.watching import Watch
from odn_hybrid.serve.watching.drifting import Drifting
from odn_hybrid.serve.watching.metrics import Shown
from odn_hybrid.serve.watching.rolling import Rolling, latency_bin, percentile
from odn_hybrid.serve.watching.status import status
from odn_hybrid.stopping import DriftMonitor

SOON = 30.0  # seconds after which something is broken


def output(exits: list[int], *, certified: bool = True, confidence: float = 0.9) -> RunnerOutput:
    taken = np.array(exits, dtype=np.int64)
    sure = np.full(len(exits), confidence, dtype=np.float32)
    return RunnerOutput(np.zeros((len(exits), 3), dtype="f4"), taken, taken * 2, sure, certified, taken)


def scraped(watch: Watch) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = generate_latest(Shown(watch.metrics.registry)).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


# --- metrics ----------------------------------------------------------------------------------------------


def test_the_metrics_count_what_the_engine_tells() -> None:
    watch = Watch()
    watch.stepped("net", 0, 8, 0.25)
    watch.stepped("net", 0, 3, 0.5)
    watch.stepped("net", 1, 2, 0.125)
    watch.answered("net", output([1]), 0.004)
    watch.answered("net", output([1, 2, 2, 4], certified=False), 0.3)
    watch.refused("net", Overloaded)
    watch.refused("net", Overloaded)
    watch.refused("net", DeadlinePassed)
    watch.responded(200)
    found = scraped(watch)
    assert found[at("odn_requests_answered_total", model="net")] == 2
    assert found[at("odn_images_answered_total", model="net")] == 5
    assert found[at("odn_images_certified_total", model="net")] == 1
    assert found[at("odn_units_run_total", model="net")] == 2 * (1 + 1 + 2 + 2 + 4)
    assert [found[at("odn_exits_total", model="net", exit=str(e))] for e in EXITS] == [2, 2, 1]
    assert found[at("odn_refusals_total", model="net", why="Overloaded")] == 2
    assert found[at("odn_refusals_total", model="net", why="DeadlinePassed")] == 1
    assert found[at("odn_batch_images_count", model="net", segment="0")] == 2
    assert found[at("odn_batch_images_sum", model="net", segment="0")] == 11
    assert found[at("odn_device_busy_seconds_total", model="net", segment="0")] == 0.75
    assert found[at("odn_device_busy_seconds_total", model="net", segment="1")] == 0.125
    assert found[at("odn_request_seconds_bucket", model="net", le="0.005")] == 1
    assert found[at("odn_request_seconds_bucket", model="net", le="0.5")] == 2
    assert found[at("odn_request_seconds_sum", model="net")] == pytest.approx(0.304)
    assert found[at("odn_http_responses_total", status="200")] == 1
    assert found[at("process_resident_memory_bytes")] > 1e6
    assert found[at("odn_watch_errors_total")] == 0


def test_what_is_read_at_a_scrape_is_what_is_served() -> None:
    void = "the runtime is another than it was earned with"
    with serving_watched() as (watch, host):
        assert scraped(watch)[at("odn_ready")] == 0
        host.put("good", model(logits_of(50), reference=logits_of(50, seed=1)))
        host.put("void", model(logits_of(50), void=void))
        host.put("none", model(logits_of(50), certificate=None, void="there is no certificate"))
        found = scraped(watch)
        promised = {"drop": "0.01", "delta": "0.05"}
        assert found[at("odn_ready")] == 1
        assert found[at("odn_certificate_speaks", model="good", **promised)] == 1
        assert found[at("odn_certificate_speaks", model="void", **promised)] == 0
        assert found[at("odn_certificate_speaks", model="none", drop="", delta="")] == 0
        info = {"version": "0123456789ab", "kind": "dynamic", "runtime": "simulated"}
        assert found[at("odn_model_info", model="good", **info)] == 1
        assert found[at("odn_drift_alarm", model="good")] == 0
        assert found[at("odn_drift_inputs", model="good")] == 0
        assert at("odn_drift_alarm", model="void") not in found
        queues = {key: value for key, value in found.items() if key[0] == "odn_queue_images"}
        assert len(queues) == 9 and not any(queues.values())
        host.unload("void")
        assert at("odn_certificate_speaks", model="void", **promised) not in scraped(watch)


def test_queues_are_read_when_asked_for() -> None:
    with serving_watched() as (watch, host):
        host.put("net", model(logits_of(50)))
        host.engine.queues = lambda: {("net", 0): 3, ("net", 2): 7}  # type: ignore[method-assign]
        assert scraped(watch)[at("odn_queue_images", model="net", segment="2")] == 7
        (said,) = status(watch)["models"]
        assert [(row["segment"], row["exit"], row["images"]) for row in said["queue"]] == [
            (0, 1, 3), (1, 2, 0), (2, 4, 7),
        ]  # fmt: skip


def test_invented_names_do_not_fill_the_memory() -> None:
    watch = Watch()
    for number in range(3000):
        watch.refused(f"net{number}", Failed)
        watch.answered("net", output([number]), 0.1)
        watch.responded(number)
    found = scraped(watch)
    assert len(found) < 12_000
    assert sum(value for (name, _), value in found.items() if name == "odn_refusals_total") == 3000
    assert sum(value for (name, _), value in found.items() if name == "odn_exits_total") == 3000


def test_the_watch_never_raises_and_says_that_it_failed() -> None:
    watch = Watch()
    watch.answered("net", None, 0.1)  # type: ignore[arg-type]
    watch.stepped("net", 0, "many", 0.1)  # type: ignore[arg-type]
    watch.refused("net", None)  # type: ignore[arg-type]
    watch.accepted(None, None, None)  # type: ignore[arg-type]
    watch.answered("net", output([1]), float("nan"))
    assert scraped(watch)[at("odn_watch_errors_total")] >= 3
    watch.answered("net", output([1]), 0.1)
    assert watch.last("net").images >= 1


def test_series_have_no_times_of_creation() -> None:
    watch = Watch()
    watch.answered("net", output([1]), 0.1)
    assert not [name for name, _ in scraped(watch) if name.endswith("_created")]


# --- the last minute --------------------------------------------------------------------------------------

LATENCIES = st.floats(1e-5, 1e3)


@given(st.lists(LATENCIES, min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_percentiles_are_numpys_to_one_percent(seconds: list[float], share: float) -> None:
    rolling = Rolling(Clock())
    for value in seconds:
        rolling.answered(value, [1], 1, 1, True)
    assert rolling.last().percentile(share) == pytest.approx(np.quantile(seconds, share), rel=0.01)


@given(st.lists(st.floats(0, 200), max_size=100))
def test_the_last_minute_is_what_came_within_it(gaps: list[float]) -> None:
    clock = Clock()
    rolling, when = Rolling(clock), []
    for gap in gaps:
        clock.now += gap
        when.append(clock.now)
        rolling.answered(0.1, [1, 2], 2, 3, True)
    last, oldest = rolling.last(), int(clock.now) - 59
    kept = sum(moment >= oldest for moment in when)
    assert (last.requests, last.images, last.units) == (kept, 2 * kept, 3 * kept)
    assert last.exits == ({1: kept, 2: kept} if kept else {})
    assert 1 <= last.seconds <= 60
    clock.now += 61
    assert rolling.last().requests == 0 and rolling.last().percentile(0.5) is None


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_a_clock_that_jumps_loses_no_count_of_the_moment_and_raises_nothing(jumps: list[float]) -> None:
    clock = Clock(0.0)
    rolling = Rolling(clock)
    for jump in jumps:
        clock.now += jump
        rolling.answered(0.1, [1], 1, 1, True)
        last = rolling.last()
        assert 1 <= last.requests <= len(jumps) and 1 <= last.seconds <= 60


def test_the_time_of_day_may_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    for now in (0.0, 4e9, -1.0, 1e9):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        watch.answered("net", output([2]), 0.2)
    last = watch.last("net")
    assert last.requests == 4 and last.percentile(0.5) == pytest.approx(0.2, rel=0.01)


def test_a_minute_of_any_load_has_its_bound_of_memory() -> None:
    clock = Clock()
    rolling = Rolling(clock)
    draw = random.Random(0)
    for _ in range(20_000):
        clock.now += 0.01
        rolling.answered(draw.lognormvariate(-3, 3), [draw.randrange(8)], 1, 1, True)
    held = sum(len(second.latencies) + len(second.exits) for second in rolling._ring)
    assert held <= 61 * 110  # a hundred requests a second: no more bins than that, and 8 exits
    assert percentile({latency_bin(1e-30): 1}, 0.5) == pytest.approx(1e-6, rel=0.02)


# --- the status -------------------------------------------------------------------------------------------


def test_the_status_says_what_happened_in_the_last_minute() -> None:
    clock = Clock()
    with serving_watched(clock=clock) as (watch, host):
        host.put("net", model(logits_of(50), reference=logits_of(50, seed=1)))
        host.put("bare", model(logits_of(50), certificate=None, void="there is no certificate"))
        clock.now += 10
        for number in range(100):
            watch.answered("net", output([EXITS[number % 2]]), 0.001 * (number + 1))
        watch.refused("net", Overloaded)
        said = status(watch)
        net, bare = said["models"]
        assert said["ready"] and said["uptime_s"] == 10 and said["rss_bytes"] > 1e6
        assert net["requests"] == net["images"] == 100 and net["images_per_s"] == 10
        assert net["p50_ms"] == pytest.approx(50.5, rel=0.02) and net["p99_ms"] == pytest.approx(99, rel=0.02)
        assert [(row["exit"], row["units"], row["images"]) for row in net["exits"]] == [
            (1, 2, 50), (2, 4, 50), (4, 9, 0),
        ]  # fmt: skip
        assert net["mean_units"] == 3 and net["most_units"] == 9 and net["refused"] == {"Overloaded": 1}
        assert net["certificate"]["state"] == "speaks"
        assert net["certificate"]["statement"] == CERTIFICATE["statement"]
        assert net["drift"]["state"] == "watching" and "no drift seen" in net["drift"]["sentence"]
        assert bare["certificate"]["state"] == "none" and bare["drift"]["state"] == "unwatched"
        assert bare["p50_ms"] is None and bare["mean_units"] is None and bare["images_per_s"] == 0
        clock.now += 61
        assert status(watch)["models"][0]["images"] == 0


# --- drift ------------------------------------------------------------------------------------------------

REFERENCE = logits_of(1000, seed=1)


@pytest.fixture
def watched() -> Iterator[tuple[Watch, Host]]:
    with serving_watched() as found:
        yield found


def ask(
    host: Host, name: str, numbers: range | list[int], options: Options | None = None
) -> list[RunnerOutput]:
    """Every one a request of its own."""
    asked = [host.submit(name, numbered_images([number]), options or Options()) for number in numbers]
    return [future.result(SOON) for future in asked]


def feed(watch: Watch, host: Host, count: int) -> None:
    """Until the monitor of model net has been shown `count` inputs: the last answers may be on their way."""
    drift, until = host.model("net").drift, time.monotonic() + SOON
    assert drift is not None
    while drift.seen < count and time.monotonic() < until:
        watch.drifting.feed()
    assert drift.seen == count


def test_no_drift_alarm_where_answers_are_like_the_reference(watched: tuple[Watch, Host]) -> None:
    watch, host = watched
    host.put("net", model(logits_of(900), reference=REFERENCE))
    ask(host, "net", range(900))
    feed(watch, host, 900)
    found = scraped(watch)
    assert found[at("odn_drift_inputs", model="net")] == 900
    assert found[at("odn_drift_alarm", model="net")] == 0


def test_a_drift_alarm_where_they_are_not(
    watched: tuple[Watch, Host], caplog: pytest.LogCaptureFixture
) -> None:
    watch, host = watched
    host.put("net", model(logits_of(600, sure=0.8), reference=REFERENCE))
    ask(host, "net", range(600))
    feed(watch, host, 600)
    found = scraped(watch)
    assert found[at("odn_drift_alarm", model="net")] == 1
    assert found[at("odn_drift_limit", model="net")] == 20
    assert status(watch)["models"][0]["drift"]["state"] == "alarm"
    watch.drifting.feed()
    assert [r.odn_fields["model"] for r in caplog.records if getattr(r, "odn_event", "") == "drift"] == [
        "net"
    ]


def test_requests_with_own_options_choose_nothing_of_the_stream(watched: tuple[Watch, Host]) -> None:
    # Half of the requests may go no deeper than exit 2. Those of them that the policy ends there anyway are
    # certified: among all certified answers, the last exit is far too rare.
    watch, host = watched
    host.put("net", model(logits_of(800), reference=REFERENCE))
    asked = [
        host.submit("net", numbered_images([n]), Options(max_depth=4) if n % 2 else Options())
        for n in range(800)
    ]
    certified = [out for future in asked if (out := future.result(SOON)).certified]
    naive = DriftMonitor(*answers(REFERENCE), exits=EXITS[-1])
    state = naive.update(
        np.concatenate([out.confidence for out in certified]), np.concatenate([out.exit for out in certified])
    )
    assert 400 < len(certified) < 800 and state.alarm
    feed(watch, host, 400)
    found = scraped(watch)
    assert found[at("odn_drift_inputs", model="net")] == 400
    assert found[at("odn_drift_left_out_total", model="net", why="options")] == 400
    assert found[at("odn_drift_alarm", model="net")] == 0


class Standing:
    """For a lane, which is asked for nothing."""


class OneModel:
    """Of a `Drifting` on its own."""

    def __init__(self, **more: object) -> None:
        self.name, self.version, self.void, self.certificate = "net", "1", None, CERTIFICATE
        self.lane, self.drift = Standing(), DriftMonitor(*answers(REFERENCE), exits=EXITS[-1])
        self.out: list[str] = []
        self.drifting = Drifting(lambda: [self], lambda name, why: self.out.append(why), **more)  # type: ignore


def test_answers_that_come_in_another_order_are_fed_in_the_order_of_their_requests() -> None:
    # The sure ones are answered first; the others still wait when somebody looks.
    confidence, exit = answers(logits_of(600))
    asked: list[Future[RunnerOutput]] = [Future() for _ in exit]
    one, naive = OneModel(), DriftMonitor(*answers(REFERENCE), exits=EXITS[-1])
    for future in asked:
        one.drifting.accepted(one.lane, Options(), future)  # type: ignore[arg-type]
    for number in sorted(range(600), key=lambda number: exit[number]):
        asked[number].set_result(output([int(exit[number])], confidence=float(confidence[number])))
        naive.update(confidence[[number]], exit[[number]])
        if number % 50 == 0:
            one.drifting.feed()
    one.drifting.feed()
    assert naive.state.alarm
    assert one.drift.seen == 600 and not one.drift.state.alarm


def test_what_has_no_certified_answer_is_left_out_and_counted() -> None:
    one = OneModel(most=6)
    asked: list[Future[RunnerOutput]] = [Future() for _ in range(8)]
    for future in asked:
        one.drifting.accepted(one.lane, Options(), future)  # type: ignore[arg-type]
    asked[0].set_result(output([1], certified=False))
    asked[1].set_exception(Failed("no"))
    asked[2].cancel()
    asked[3].set_result(output([1, 2]))
    asked[5].set_result(output([2]))
    one.drifting.feed()
    assert one.drift.seen == 2  # request 4 is still in work, and 5 comes after it
    asked[4].set_result(output([4]))
    one.drifting.feed()
    assert one.drift.seen == 4
    assert sorted(one.out) == ["full", "full", "unanswered", "unanswered", "uncertified"]


def test_a_server_deadline_is_no_wish_but_a_shorter_one_is(watched: tuple[Watch, Host]) -> None:
    watch, host = watched
    host.put("net", model(logits_of(50), reference=REFERENCE))
    own = 1e3 * host.settings.request_seconds
    ask(host, "net", range(10), Options(deadline_ms=own))
    ask(host, "net", range(10), Options(deadline_ms=own - 1))
    feed(watch, host, 10)
    found = scraped(watch)
    assert found[at("odn_drift_inputs", model="net")] == 10
    assert found[at("odn_drift_left_out_total", model="net", why="options")] == 10


@pytest.mark.parametrize(
    "more",
    [{"void": "another runtime"}, {"certificate": None, "void": "there is no certificate"}],
    ids=["void", "none"],
)
def test_without_a_promise_nothing_is_watched(
    watched: tuple[Watch, Host], more: dict[str, str | None]
) -> None:
    watch, host = watched
    hosted = host.put("net", model(logits_of(400, sure=0.5), reference=REFERENCE, **more))  # type: ignore
    ask(host, "net", range(400))
    watch.drifting.feed()
    assert hosted.drift is not None and hosted.drift.seen == 0
    assert status(watch)["models"][0]["drift"]["state"] == "unwatched"
    assert at("odn_drift_alarm", model="net") not in scraped(watch)


def test_another_version_begins_anew(watched: tuple[Watch, Host]) -> None:
    watch, host = watched
    host.put("net", model(logits_of(400, sure=0.8), reference=REFERENCE))
    ask(host, "net", range(400))
    feed(watch, host, 400)
    assert scraped(watch)[at("odn_drift_alarm", model="net")] == 1
    ask(host, "net", range(100))  # not fed before it is replaced
    host.unload("net")
    host.put("net", model(logits_of(400), reference=REFERENCE, digest="another one"))
    ask(host, "net", range(50))
    feed(watch, host, 50)
    found = scraped(watch)
    assert found[at("odn_drift_alarm", model="net")] == 0
    assert found[at("odn_drift_inputs", model="net")] == 50
