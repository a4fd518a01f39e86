"""The load generator of benchmarks/serve_load.py: what it measures is what it says."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
#: Gives the answer to the n-th request (from 0): status and body, or None: close the connection.
Reply = Callable[[int, bytes], Any]


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pytest.importorskip("httptools")


def benchmark(name: str) -> ModuleType:
    return pytest.importorskip(name)


# --- a server -----------------------------------------------------------------------------------------


async def _serve(reply: Reply, counter: Iterator[int], reader: Any, writer: Any) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"Content-Length")
            )
            body = await reader.readexactly(length)
            found = reply(next(counter), body)
            found = await found if asyncio.iscoroutine(found) else found
            if found is None:
                break
            status, said = found
            writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: {len(said)}\r\n\r\n".encode() + said)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def answering(reply: Reply):
    counter = iter(range(1_000_000))
    server = await asyncio.start_server(lambda r, w: _serve(reply, counter, r, w), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextmanager
def answering_elsewhere(reply: Reply) -> Iterator[int]:
    """The same in a thread."""
    loop, port, ready = asyncio.new_event_loop(), [0], threading.Event()
    stop = asyncio.Event()

    async def run() -> None:
        async with answering(reply) as found:
            port[0] = found
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def request(body: bytes = b"x") -> bytes:
    return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


# --- when requests come -------------------------------------------------------------------------------


@given(rate=st.floats(1, 500), seconds=st.floats(0.1, 20), seed=st.integers(0, 99), bursty=st.booleans())
def test_arrivals_are_in_order_and_in_time_and_a_seed_is_one_sequence_at_every_rate(
    rate: float, seconds: float, seed: int, bursty: bool
) -> None:
    load = benchmark("load_arrivals")
    bursts = load.Bursts() if bursty else None
    found = load.arrivals(rate, seconds, seed, bursts)
    assert (np.diff(found) > 0).all() and (found >= 0).all() and (found < seconds).all()
    more = load.arrivals(2 * rate, seconds, seed, bursts)
    assert len(more) >= len(found) and (more[: len(found)] <= found).all()
    if not bursty:
        np.testing.assert_allclose(2 * more[: len(found)], found)


def test_the_mean_rate_is_kept_and_bursts_are_bursts() -> None:
    load = benchmark("load_arrivals")
    by_kind = {}
    for name, bursts in (("poisson", None), ("bursty", load.Bursts(share=0.5, on_seconds=0.5))):
        times = load.arrivals(100.0, 1000.0, 0, bursts)
        assert len(times) == pytest.approx(100_000, rel=0.08)
        counts = np.bincount((4 * times).astype(int), minlength=4000)  # in quarters of a second
        by_kind[name] = counts.var() / counts.mean()
    assert by_kind["poisson"] == pytest.approx(1, abs=0.15)  # as a Poisson process has it
    assert by_kind["bursty"] > 10


# --- what is said over the wire -----------------------------------------------------------------------


def test_a_v2_request_and_an_answer_in_binary_and_in_words() -> None:
    wire = benchmark("load_wire").wire_of({"v2": {"model": "m", "input": "images"}})
    images = np.random.default_rng(0).normal(size=(2, 1, 2, 3)).astype(np.float32)
    head, _, body = wire.request(images).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/models/m/infer HTTP/1.1\r\n")
    headers = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    assert int(headers["Content-Length"]) == len(body)
    length = int(headers["Inference-Header-Content-Length"])
    asked = json.loads(body[:length])
    assert asked["inputs"] == [
        {"name": "images", "shape": [2, 1, 2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 48}}
    ]
    assert body[length:] == images.tobytes()

    logits, exits = np.array([[1.0, 2.0, 0.5]], dtype=np.float32), np.array([3])
    outputs = [
        {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
        {"name": "logits", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}},
        {"name": "exit", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
    text = json.dumps({"outputs": outputs}).encode()
    answer = wire.answer(
        {"inference-header-content-length": str(len(text))}, text + b"\1\0\0\0x" + logits.tobytes()
    )
    assert set(answer) == {"logits", "exit"}
    np.testing.assert_array_equal(answer["logits"], logits)
    np.testing.assert_array_equal(answer["exit"], exits)


# --- the open loop ------------------------------------------------------------------------------------


def test_requests_are_sent_when_due_and_charged_from_then_though_none_before_is_answered() -> None:
    client = benchmark("load_client")
    count = 40
    due = np.linspace(0, 0.2, count)

    async def run() -> Any:
        everybody = asyncio.Event()

        async def reply(number: int, body: bytes) -> tuple[int, bytes]:
            if number == count - 1:
                everybody.set()
            await everybody.wait()  # nobody is answered before the last has come
            return 200, body

        async with answering(reply) as port:
            pool = client.Pool("127.0.0.1", port)
            sent = await client.open_loop(pool, due, [request(b"%d" % k) for k in range(count)])
            pool.close()
        return sent

    sent = asyncio.run(run())
    assert not sent.cut and sent.peak == count
    assert (sent.status == 200).all()
    assert [answer.body for answer in sent.answers] == [b"%d" % k for k in range(count)]
    assert (sent.sent >= due).all()  # never early
    assert (sent.done - sent.due >= due[-1] - due).all()


def test_latency_counts_from_when_a_request_was_due_where_no_connection_was_free() -> None:
    client = benchmark("load_client")
    due = np.zeros(3)

    async def run() -> Any:
        released = [asyncio.Event() for _ in due]
        released[0].set()

        async def reply(number: int, body: bytes) -> tuple[int, bytes]:
            await released[number].wait()
            if number + 1 < len(due):
                asyncio.get_running_loop().call_later(0.05, released[number + 1].set)
            return 200, body

        async with answering(reply) as port:
            pool = client.Pool("127.0.0.1", port, most=1)
            sent = await client.open_loop(pool, due, [request()] * len(due))
            pool.close()
        return sent

    sent = asyncio.run(run())
    assert sent.connections == 1 and (sent.status == 200).all()
    latency = sent.done - sent.due
    assert latency[1] > 0.04 and latency[2] > 0.09


def test_sending_stops_when_too_many_are_refused() -> None:
    client = benchmark("load_client")
    due = np.arange(200) * 0.002

    async def run() -> Any:
        async with answering(lambda number, body: (503 if number >= 20 else 200, b"")) as port:
            pool = client.Pool("127.0.0.1", port)
            sent = await client.open_loop(pool, due, [request()] * len(due), limit=0.02, allowed=5, warm=0.1)
            pool.close()
        return sent

    sent = asyncio.run(run())
    assert sent.cut and 50 < len(sent.due) < 200  # refusals of the warm-up do not count
    assert (sent.status == 503).sum() >= 6


def test_a_connection_closed_while_idle_is_no_error_and_one_closed_at_work_is() -> None:
    client = benchmark("load_client")

    async def run() -> Any:
        closing = asyncio.Event()

        async def reply(number: int, body: bytes) -> Any:
            if number == 1 or body == b"die":
                closing.set()
                return None  # as a server does that had just closed an idle connection
            return 200, body

        async with answering(reply) as port:
            pool = client.Pool("127.0.0.1", port)
            found = [await pool.ask(request(body)) for body in (b"first", b"second", b"third")]
            fresh = client.Pool("127.0.0.1", port)
            found.append(await fresh.ask(request(b"die")))
            pool.close(), fresh.close()
        return found, pool.resent

    found, resent = asyncio.run(run())
    assert [answer.status for answer in found] == [200, 200, 200, client.LOST]
    assert found[1].body == b"second" and resent == 1


def test_nobody_there_is_a_lost_request() -> None:
    client = benchmark("load_client")

    async def run() -> Any:
        async with answering(lambda number, body: (200, b"")) as port:
            pass
        pool = client.Pool("127.0.0.1", port)
        return await client.open_loop(pool, np.zeros(3), [request()] * 3)

    assert (asyncio.run(run()).status == client.LOST).all()


# --- the process --------------------------------------------------------------------------------------


def test_the_process_tells_which_image_got_which_answer(tmp_path: Path) -> None:
    generator = benchmark("load_generator")
    images = np.random.default_rng(0).normal(size=(7, 1, 1, 5)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    with answering_elsewhere(lambda number, body: (200, body)) as port, generator.Generator() as process:
        process.aim(port, {"raw": {"path": "/", "classes": 5}}, tmp_path / "images.npy")
        assert (process.alone(5) > 0).all()
        run = process.load(generator.Traffic(rate=200, seconds=0.5, warm=0.1, seed=3))
        again = process.load(generator.Traffic(rate=200, seconds=0.5, warm=0.1, seed=3))
    assert (run.status == 200).all() and not run.cut and len(run.status) > 50
    assert run.due.min() >= 0.1 and (run.latency > run.lag).all() and (run.exit == -1).all()
    np.testing.assert_array_equal(run.said, images.reshape(7, 5).argmax(1)[run.image])
    np.testing.assert_array_equal(run.image, again.image)
    np.testing.assert_array_equal(run.due, again.due)
