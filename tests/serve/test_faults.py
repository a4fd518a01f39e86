"""What goes wrong around a server: clients, models, disks, clocks, signals; each with a real `odn serve`."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import Server, body_of, until
from hosting import unpack_shared
from serving import serving

LIMITS = ["--max-batch", "1", "--queue", "8", "--threads", "1", "--max-body-bytes", "200000"]
SLOW = ["--header-seconds", "1", "--body-seconds", "1"]
Start = Callable[..., Server]


@pytest.fixture(scope="module")
def starter() -> Iterator[subprocess.Popen[str]]:
    yield from serving("faulty.py", OMP_NUM_THREADS="1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_shared(tmp_path_factory.mktemp("runs") / "net")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (40, 3, 32, 32)).round(2).astype(np.float32)


@pytest.fixture(scope="module")
def common(
    starter: subprocess.Popen[str], run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for all it must survive; its log file is on a full disk, its model in its own folder."""
    folder = tmp_path_factory.mktemp("common")
    shutil.copytree(run, folder / "net")
    more = ["--log-file", "/dev/full", "--allow-reload"]
    arguments = ["serve", str(folder / "net"), "--port", "0", *LIMITS, *SLOW, *more]
    found = Server(starter, folder / "server", arguments)
    try:
        yield found.ready()
    finally:
        found.end()


@pytest.fixture
def server(common: Server, images: np.ndarray) -> Iterator[Server]:
    """The common server, which works before and after."""
    yield common
    common.hold.unlink(missing_ok=True)
    assert common.infer(images[0]).status == 200


@pytest.fixture
def start(starter: subprocess.Popen[str], run: Path, tmp_path: Path) -> Iterator[Start]:
    found: list[Server] = []

    def begin(*arguments: str, what: str | None = None, **order: Any) -> Server:
        said = ["serve", what or str(run), "--port", "0", "--threads", "1", *arguments]
        found.append(Server(starter, tmp_path / f"server{len(found)}", said, **order))
        return found[-1]

    yield begin
    for server in found:
        server.end()


def gone(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    said = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


# --- clients ----------------------------------------------------------------------------------------


def test_work_for_clients_that_have_gone_is_dropped(server: Server, images: np.ndarray) -> None:
    steps = server.metric("odn_batch_images_sum", segment="0")
    left = server.metric("odn_http_responses_total", status="499")
    server.hold.touch()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.infer, images[0])
        server.held()
        connections = [server.raw(image) for image in images[1:6]]
        until(lambda: server.metric("odn_queue_images") == 5, "five images that wait")
        for connection in connections:
            connection.close()
        until(lambda: server.metric("odn_http_responses_total", status="499") == left + 5, "five who left")
        server.hold.unlink()
        assert first.result().status == 200
    assert server.infer(images[0]).status == 200
    assert server.metric("odn_batch_images_sum", segment="0") == steps + 2


def test_slow_clients_are_cut_off_and_others_served_meanwhile(server: Server, images: np.ndarray) -> None:
    body = body_of(images[0])
    head = b"POST /v2/models/net/infer HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n" % len(body)
    place = ("127.0.0.1", server.port)
    with socket.create_connection(place, 60) as slow, socket.create_connection(place, 60) as stalled:
        begun = time.monotonic()
        stalled.sendall(head + b"\r\n" + body[:100])
        said, sent, served = b"", 0, 0
        slow.settimeout(0.05)
        while b"408" not in said:
            assert time.monotonic() < begun + 60, "a slow client is not cut off"
            try:
                said += slow.recv(65536)
            except TimeoutError:
                slow.sendall(head[sent : sent + 1])
                sent += 1
            served += server.infer(images[served % 40]).status == 200
        assert served and sent < len(head) and time.monotonic() - begun > 0.99
        assert gone(stalled).startswith(b"HTTP/1.1 408 ")


def test_a_full_queue_refuses_and_memory_stays(server: Server, images: np.ndarray) -> None:
    server.hold.touch()
    with ThreadPoolExecutor(8) as pool:
        accepted = server.several(pool, images[:8])
        until(lambda: server.metric("odn_queue_images") == 7, "a full queue")

        def refused() -> None:
            answer = server.infer(images[0])
            assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
            assert "queue is full" in answer.json["error"]

        for _ in range(20):
            refused()
        before = server.memory()
        for _ in range(200):
            refused()
        assert server.memory() < before + (4 << 20)
        assert server.metric("odn_queue_images") == 7
        server.hold.unlink()
        assert [answer.result().status for answer in accepted] == [200] * 8


def test_no_work_is_done_for_a_deadline_that_has_passed(server: Server, images: np.ndarray) -> None:
    steps = server.metric("odn_batch_images_sum", segment="0")
    server.hold.touch()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(server.infer, images[0])
        server.held()
        late = server.several(pool, images[1:4], deadline_ms=1500)
        until(lambda: server.metric("odn_queue_images") >= 3, "three that wait")
        end = time.monotonic() + 1.6
        until(lambda: time.monotonic() > end, "the deadline")
        server.hold.unlink()
        assert first.result().status == 200
        for answer in late:
            assert answer.result().status == 504 and "deadline" in answer.result().json["error"]
    assert server.metric("odn_batch_images_sum", segment="0") == steps + 1


def test_nan_and_huge_inputs_are_refused(server: Server, images: np.ndarray) -> None:
    bad = images[0].copy()
    for value in (np.nan, np.inf):
        bad[0, 3, 3] = value
        assert server.infer(bad).status == 400
        tensor = {
            "name": "images", "shape": [1, *bad.shape], "datatype": "FP32",
            "parameters": {"binary_data_size": bad.nbytes},
        }  # fmt: skip
        said = json.dumps({"inputs": [tensor]}).encode()
        answer = server.ask(
            "POST",
            "/v2/models/net/infer",
            said + bad.tobytes(),
            Inference_Header_Content_Length=str(len(said)),
        )
        assert answer.status == 400 and "NaN" in answer.json["error"]
    large = np.full((3, 32, 32), 3e38, dtype=np.float32)
    assert server.infer(large).status in (200, 400, 500)  # overflows inside, and nobody else minds
    assert server.ask("POST", "/v2/models/net/infer", b" " * 200_001).status == 413
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/v2/models/net/infer")
    connection.putheader("content-length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


# --- models, disks, clocks --------------------------------------------------------------------------


def test_a_broken_model_does_not_take_the_old_ones_place(server: Server, images: np.ndarray) -> None:
    weights = server.folder.parent / "net" / "model.safetensors"
    good, before = weights.read_bytes(), server.infer(images[0]).json
    answers: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        over = server.folder / "over"
        asking = pool.submit(
            lambda: [answers.append(server.infer(images[0]).status) for _ in iter(over.exists, True)]
        )
        try:
            weights.write_bytes(good[: len(good) // 2])
            server.kill(signal.SIGHUP)
            until(lambda: "the old one stays" in server.err, "the log to say so")
            answer = server.ask("POST", "/v2/repository/models/net/load")
            assert answer.status == 400 and str(weights.parent) not in answer.body.decode()
            assert server.infer(images[0]).json == before
            weights.write_bytes(good)
            server.kill(signal.SIGHUP)
            until(lambda: '"reloaded"' in server.err, "the log to say so")
            assert server.ask("POST", "/v2/repository/models/net/load").status == 200
        finally:
            weights.write_bytes(good)
            over.touch()
        asking.result()
    assert set(answers) == {200}
    assert server.infer(images[0]).json["model_version"] == before["model_version"]


def test_models_come_and_go_by_their_own_names_only(server: Server, images: np.ndarray) -> None:
    def post(path: str, body: bytes = b"") -> int:
        return server.ask("POST", f"/v2/repository/{path}", body).status

    assert post("models/other/load") == 404 and post("models/..%2Fnet/load") == 404
    assert post("models/net/load", b'{"parameters": {"config": "{}"}}') == 400
    assert post("models/net/load", b"no json") == 400
    assert server.ask("POST", "/v2/repository/index").json[0]["state"] == "READY"
    assert post("models/net/unload", b'{"parameters": {"unload_dependents": true}}') == 200
    assert server.infer(images[0]).status == 404
    assert server.ask("POST", "/v2/repository/index").json[0]["state"] == "UNAVAILABLE"
    assert post("models/net/load") == 200


def test_a_full_disk_costs_log_lines_and_nothing_else(server: Server, images: np.ndarray) -> None:
    assert server.infer(images[0]).status == 200
    until(lambda: server.metric("odn_log_lines_lost_total", why="file") > 0, "lines that were lost")
    assert server.err.count("cannot be written") == 1
    assert '"route": "/v2/models/{' in server.err  # standard error has them all the same


def test_nothing_depends_on_the_time_of_day(start: Start, images: np.ndarray) -> None:
    server = start("--max-batch", "4", clock=True).ready()
    with ThreadPoolExecutor(4) as pool:
        answers = [answer.result() for answer in server.several(pool, images)]
        assert {answer.status for answer in answers} == {200}
        timely = [a.result().status for a in server.several(pool, images[:8], deadline_ms=60_000)]
        assert timely == [200] * 8
    server.kill()
    assert server.wait() == 0


# --- stopping ---------------------------------------------------------------------------------------


def test_sigterm_answers_all_that_was_accepted(start: Start, images: np.ndarray) -> None:
    server = start("--max-batch", "2").ready()
    server.hold.touch()
    with ThreadPoolExecutor(30) as pool:
        accepted = server.several(pool, images[:30])
        until(lambda: server.metric("odn_queue_images") >= 28, "all of them in the queue")
        server.kill()
        until(lambda: server.get("/v2/health/ready").status == 503, "a server that says it stops")
        late = server.infer(images[0])
        assert late.status == 503 and "stopping" in late.json["error"] and late.headers["retry-after"]
        assert server.get("/v2/health/live").status == 200
        server.hold.unlink()
        assert [answer.result().status for answer in accepted] == [200] * 30
    assert server.wait() == 0


def test_a_device_that_hangs_does_not_keep_the_server_from_ending(start: Start, images: np.ndarray) -> None:
    server = start("--max-batch", "1", "--drain-seconds", "1").ready()
    server.hold.touch()
    connection = server.raw(images[0])
    until(lambda: server.hold.with_name(server.hold.name + "-held").exists(), "a device that hangs")
    server.kill()
    assert server.wait() == 0
    connection.close()


def test_what_is_not_answered_in_time_is_refused_and_a_second_signal_waits_for_nobody(
    start: Start, images: np.ndarray
) -> None:
    server = start("--max-batch", "1").ready()
    server.hold.touch()
    connections = [server.raw(image) for image in images[:3]]
    until(lambda: server.metric("odn_queue_images") == 2, "all of them in the queue")
    server.kill(signal.SIGINT)
    until(lambda: server.get("/v2/health/ready").status == 503, "a server that says it stops")
    server.kill(signal.SIGTERM)
    assert server.wait() == 1
    for connection in connections:
        assert gone(connection) == b""
        connection.close()


def test_tls_and_a_token_and_stopping_while_models_load(start: Start, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    key, certificate, token = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "token"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    token.write_text("a-secret-of-the-test\n")
    token.chmod(0o600)
    files = ["--certfile", str(certificate), "--keyfile", str(key), "--token-file", str(token)]
    server = start(*files, "--header-seconds", "1")
    url = until(lambda: re.fullmatch(r"https://127.0.0.1:(\d+)\n", server.out), "the address")
    place = ("127.0.0.1", int(url[1]))
    context = ssl.create_default_context(cafile=str(certificate))

    def ask(path: str, **headers: str) -> int:
        connection = http.client.HTTPSConnection(*place, timeout=60, context=context)
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status

    with socket.create_connection(place, 60) as silent:
        assert ask("/v2/health/live") == 200
        assert ask("/metrics") == 401
        assert ask("/metrics", authorization="Bearer a-secret-of-the-test") == 200
        assert gone(silent) == b""  # a handshake that does not come
    assert "a-secret" not in server.err
    server.kill()
    assert server.wait() == 0


# --- starting ---------------------------------------------------------------------------------------


def test_what_cannot_start_says_why_in_one_line(start: Start, run: Path, tmp_path: Path) -> None:
    def fails(*arguments: str, **more: Any) -> tuple[int, str]:
        server = start(*arguments, **more)
        status = server.wait()
        said = [line for line in server.err.splitlines() if not line.startswith("{")]
        assert len(said) == 1 and said[0].startswith("odn: "), server.err
        return status, said[0]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, said = fails("--port", port)
    assert status == 2 and port in said and "--port" in said
    assert fails("--host", "no.such.host.invalid")[0] == 2
    (tmp_path / "empty").touch()
    status, said = fails("--certfile", str(tmp_path / "empty"), "--keyfile", str(tmp_path / "empty"))
    assert status == 2 and "certificate" in said
    assert fails("--certfile", str(tmp_path / "empty"))[0] == 2
    status, said = fails(what=str(tmp_path / "nowhere"))
    assert status == 1 and "nowhere" in said
    shutil.copytree(run, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status, said = fails(what=str(tmp_path / "damaged"))
    assert status == 1 and "damaged" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b/a"], "two models"),
        (["x y=a"], "cannot name a model"),
        (["a", "--replicas", "2"], "--ray"),
        (["a", "--queue", "1"], "queue is 1"),
        (["a", "--threads", "0"], "threads is 0"),
        (["a", "--token-file", "nowhere"], "--token-file"),
        (["a", "--port", "70000"], "port is 70000"),
        (["a", "--ray", "--replicas", "3:2"], "MIN"),
    ],
)
def test_choices_out_of_range(odn: Any, arguments: list[str], said: str) -> None:
    status, out, err = odn("serve", *arguments)
    assert status == 2 and out == "" and said in err and err.count("\n") == 1


def test_the_token_is_no_secret_of_child_processes(
    odn: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ODN_SERVE_TOKEN", "short")
    status, _, err = odn("serve", "a")
    assert status == 2 and "token is too short" in err and "short\n" not in err
    assert "ODN_SERVE_TOKEN" not in os.environ
