"""What a client may send before it is understood, and how slowly; and who is let in at all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from odn_hybrid.serve.running.connections import limited_protocol, sweep
from odn_hybrid.serve.running.gate import Gate
from odn_hybrid.serve.settings import ServeSettings

SMALL = ServeSettings(
    header_seconds=0.3, body_seconds=0.3, max_header_bytes=2048, max_body_bytes=65536, connections=4
)
GET = b"GET /x HTTP/1.1\r\nhost: a\r\n"


class Recorder:
    """An application that reads the body and says its size; at /early it answers first."""

    def __init__(self) -> None:
        self.calls = 0
        self.gone = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.calls += 1
        size, early = 0, scope["path"] == "/early"
        while not early:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            size += len(message["body"])
            if not message["more_body"]:
                break
        body = b"x" * (8 << 20) if scope["path"] == "/large" else str(size).encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A server in a thread. Attributes: `port`, `app`, and `server`, uvicorn's."""

    def __init__(self, make: Callable[[uvicorn.Server], Any], settings: ServeSettings) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(
            self._app, interface="asgi3", http=limited_protocol(settings), log_config=None, lifespan="off",
            ws="none", timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.app = make(self.server)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True)
        self._thread.start()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)

    async def _live(self) -> None:
        async def sweeping() -> None:
            while True:
                await asyncio.sleep(0.02)
                sweep(self.server.server_state.connections, asyncio.get_running_loop().time())

        task = asyncio.create_task(sweeping())
        await self.server.serve(sockets=[self.listener])
        task.cancel()

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextmanager
def running(settings: ServeSettings = SMALL, make: Any = lambda _: Recorder()) -> Iterator[Running]:
    server = Running(make, settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch, running() as found:
        patch.setattr("odn_hybrid.serve.running.connections.GRACE", 0.0)
        yield found


@contextmanager
def client(server: Running) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as found:
        yield found


def everything(connection: socket.socket) -> bytes:
    """What the server says until it closes the connection."""
    said = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return said
        if not piece:
            return said
        said += piece


def status(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


# --- ordinary requests ------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_requests_in_pieces_of_any_size_are_understood(server: Running, piece: int) -> None:
    one = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\nhello world"
    two = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    last = GET + b"connection: close\r\n\r\n"
    data = one + two + one + last
    with client(server) as connection:
        for start in range(0, len(data), piece):
            connection.sendall(data[start : start + piece])
        said = everything(connection)
    assert said.count(b"HTTP/1.1 200 OK") == 4
    assert [part.split(b"\r\n\r\n")[1] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"11", b"3", b"11", b"0"]


def test_a_body_of_the_largest_size_in_small_chunks_passes(server: Running) -> None:
    chunks = (b"100\r\n" + b"a" * 256 + b"\r\n") * 256
    head = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    with client(server) as connection:
        connection.sendall(head + chunks + b"0\r\n\r\n")
        assert everything(connection).endswith(b"65536")


# --- too slow ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"GET /", GET, GET + b"\r\n" + GET, b"\r\n\r\n"])
def test_headers_that_come_byte_by_byte_end_with_408(server: Running, start: bytes) -> None:
    calls = server.app.calls
    begun = time.monotonic()
    with client(server) as connection:
        connection.sendall(start)
        said = b""
        connection.settimeout(0.03)
        while time.monotonic() < begun + 15:
            try:
                piece = connection.recv(65536)
                if not piece:
                    break
                said += piece
            except TimeoutError:
                if start and b"408" not in said:  # a byte now and then does not help
                    connection.sendall(b"\r" if start == b"\r\n\r\n" else b"a")
            except (ConnectionResetError, BrokenPipeError):
                break
        else:
            pytest.fail("the connection stays open")
    took = time.monotonic() - begun
    assert took > 0.29
    if start:
        last = said[said.rindex(b"HTTP/1.1") :]
        assert status(last) == 408
        assert json.loads(last.split(b"\r\n\r\n")[1])["error"]
    else:
        assert said == b""  # nothing was asked
    assert server.app.calls == calls + (start.count(b"GET") == 2)


def test_a_body_that_stalls_ends_with_408_and_the_application_learns_of_it(server: Running) -> None:
    server.app.gone.clear()
    with client(server) as connection:
        connection.sendall(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhello")
        assert status(everything(connection)) == 408
    assert server.app.gone.wait(10)


def test_a_body_that_nobody_reads_is_not_awaited_for_ever(server: Running) -> None:
    with client(server) as connection:
        connection.sendall(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhello")
        said = everything(connection)
    assert status(said) == 200 and said.count(b"HTTP/1.1") == 1


def test_a_client_that_does_not_take_its_answer_is_cut_off(server: Running) -> None:
    with client(server) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        connection.recv(1024)
        mine = connection.getsockname()
        until = time.monotonic() + 15
        while any(c.client == mine for c in list(server.server.server_state.connections)):
            assert time.monotonic() < until, "the connection stays open"
            threading.Event().wait(0.01)


def test_others_are_served_while_slow_ones_hang_on(server: Running) -> None:
    with client(server) as slow, client(server) as stalled, client(server) as quick:
        slow.sendall(GET)
        stalled.sendall(b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nhello")
        quick.sendall(GET + b"connection: close\r\n\r\n")
        assert status(everything(quick)) == 200


# --- too much ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        GET + b"a: " + b"b" * 5000,  # one header without an end
        GET + b"a: b\r\n" * 1000,
        GET + b"a: b\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        GET + b"a: " + b"b" * 5000 + b"\r\n\r\n",
    ],
    ids=["endless", "many", "many, complete", "line", "long"],
)
@pytest.mark.parametrize("piece", [100, 100_000])
def test_large_headers_end_with_431(server: Running, data: bytes, piece: int) -> None:
    calls = server.app.calls
    with client(server) as connection:
        for start in range(0, len(data), piece):
            try:
                connection.sendall(data[start : start + piece])
            except (BrokenPipeError, ConnectionResetError):
                break
        connection.shutdown(socket.SHUT_WR)
        assert status(everything(connection)) == 431
    assert server.app.calls == calls


def test_an_endless_body_is_cut_off_even_if_its_chunks_are_empty_frames(server: Running) -> None:
    head = b"POST /early HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with client(server) as connection, pytest.raises((BrokenPipeError, ConnectionResetError)):
        connection.sendall(head)
        for _ in range(2000):  # 20 MB
            connection.sendall(b"1;" + b"x" * 9990 + b"\r\na\r\n")


def test_trailers_are_not_kept(server: Running) -> None:
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"
    with client(server) as connection:
        sent = 0
        try:
            connection.sendall(head)
            for number in range(4000):
                connection.sendall(b"t%d: " % number + b"y" * 1000 + b"\r\n")
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent < 4000 or b"413" in everything(connection)


def test_connections_beyond_twice_the_limit_are_closed(server: Running) -> None:
    several = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(12)]
    try:
        several[-1].sendall(GET + b"\r\n")
        assert everything(several[-1]) == b""
        several[0].sendall(GET + b"connection: close\r\n\r\n")
        assert status(everything(several[0])) == 200
    except BrokenPipeError:  # closed before it was sent
        pass
    finally:
        for connection in several:
            connection.close()


# --- what is not plain HTTP/1.1 -----------------------------------------------------------------------

UPGRADE = (
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
)


@pytest.mark.parametrize("piece", [1, 50, 1000])
@pytest.mark.parametrize("wish", [UPGRADE, b"connection: upgrade\r\nupgrade: websocket\r\n"])
def test_a_wish_for_another_protocol_is_passed_over_and_the_body_is_kept(
    server: Running, wish: bytes, piece: int
) -> None:
    head = b"POST /x HTTP/1.1\r\nhost: a\r\n" + wish
    one = head + b"content-length: 11\r\n\r\nhello world"
    two = head + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    data = one + two + GET + wish + b"\r\n" + one + GET + b"connection: close\r\n\r\n"
    with client(server) as connection:
        for start in range(0, len(data), piece):
            connection.sendall(data[start : start + piece])
        said = everything(connection)
    assert [part.split(b"\r\n\r\n")[1] for part in said.split(b"HTTP/1.1 200 OK")[1:]] == [
        b"11", b"3", b"0", b"11", b"0"
    ]  # fmt: skip
    assert b"upgrade" not in said.lower()


def test_large_headers_with_such_a_wish_end_with_431(server: Running) -> None:
    calls = server.app.calls
    with client(server) as connection:
        connection.sendall(GET + UPGRADE + b"a: " + b"b" * 5000 + b"\r\n\r\n")
        assert status(everything(connection)) == 431
    assert server.app.calls == calls


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET /x HTTP/1.1\r\nbad header\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_what_is_no_http_ends_with_400(server: Running, data: bytes) -> None:
    with client(server) as connection:
        connection.sendall(data)
        said = everything(connection)
    head, body = said.split(b"\r\n\r\n")
    assert status(said) == 400 and json.loads(body)["error"] and b"\r\nx-request-id: " in head


def test_requests_before_what_is_no_http_are_answered(server: Running) -> None:
    with client(server) as connection:
        connection.sendall(GET + b"\r\n" + GET + b"\r\n" + b"hello\r\n\r\n" + GET + b"\r\n")
        said = everything(connection)
    assert said.count(b"HTTP/1.1 ") == said.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize(
    "bad",
    [
        b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        GET + b"a: b\r\n" * 1000,
        GET + b"a: b\r\n" * 1000 + b"\r\n",
    ],
)
@pytest.mark.parametrize("before", [1, 2])
def test_requests_before_one_that_is_refused_are_answered(server: Running, bad: bytes, before: int) -> None:
    with client(server) as connection:
        connection.sendall((GET + b"\r\n") * before + bad)
        said = everything(connection)
    assert said.count(b"HTTP/1.1 200 OK") == before
    assert said.count(b"HTTP/1.1 ") <= before + 1  # and perhaps why the last one was refused


def test_a_slow_client_gets_its_whole_answer_though_what_follows_is_no_http(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("odn_hybrid.serve.running.connections.LINGER", 0.01)
    with running(replace(SMALL, body_seconds=20)) as server, client(server) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n")
        said = connection.recv(1000)
        connection.sendall(b"hello\r\n\r\n")
        held = server.server.server_state.connections
        until = time.monotonic() + 20
        while any(not one.transport.is_closing() for one in list(held)):  # what was refused is over
            assert time.monotonic() < until
        said += everything(connection)
    assert status(said) == 200 and said.count(b"x") >= 8 << 20


def test_refusals_bear_the_id_of_the_request(server: Running) -> None:
    mine = GET + b"X-Request-Id: mine-1\r\n"
    for data in (
        mine + b"a: b\r\n" * 1000,
        mine + b"content-length: 100\r\n\r\nhello",
        mine + b"a: b\r\nbad header\r\n",
        mine + b"a: b\r\n" * 1000 + b"\r\n",
    ):
        with client(server) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR) if b"a: b" in data else None
            assert b"\r\nx-request-id: mine-1\r\n" in everything(connection)


# --- the gate ---------------------------------------------------------------------------------------


def gated(server: uvicorn.Server) -> Gate:
    return Gate(Recorder(), connections=server.server_state.connections, limit=2)


def ask(server: Running, path: str, body: bytes = b"") -> tuple[int, bytes]:
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with client(server) as connection:
        connection.sendall(head.encode() + body)
        said = everything(connection)
    return status(said), said


def test_the_gate_lets_in_who_may_come_in() -> None:
    with running(make=gated) as server:
        gate = server.app
        assert ask(server, "/v2/health/live")[0] == 200
        for ready, stopping in ((False, False), (True, True), (False, True)):
            gate.ready, gate.stopping = ready, stopping
            for path in ("/v2/health/ready", "/predict", "/v2/models/a/infer"):
                code, said = ask(server, path, b"y" * 50_000)
                assert code == 503 and b"retry-after: " in said and b'{"error"' in said
                assert b"\r\nx-request-id: " in said
            assert [ask(server, path)[0] for path in ("/v2/health/live", "/metrics", "/status", "/")] == [
                200
            ] * 4
        gate.ready, gate.stopping = True, False
        assert ask(server, "/predict", b"abc")[0] == 200
        with client(server), client(server):
            code, said = ask(server, "/predict")
        assert code == 503 and b"too many connections" in said


def test_the_gate_waits_for_those_inside() -> None:
    async def scene() -> None:
        leave = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await leave.wait()

        gate = Gate(app)
        gate.ready = True
        assert await gate.emptied(0)
        inside = [asyncio.create_task(gate({"type": "http", "path": "/x"}, None, None)) for _ in range(3)]  # type: ignore[arg-type]
        while gate.inside < 3:
            await asyncio.sleep(0)
        assert not await gate.emptied(0)
        inside[0].cancel()
        waiting = asyncio.create_task(gate.emptied(20))
        await asyncio.sleep(0)
        leave.set()
        assert await waiting and gate.inside == 0
        await asyncio.gather(*inside, return_exceptions=True)

    asyncio.run(scene())
