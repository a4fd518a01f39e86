"""A running `odn serve` and clients that mean it no good: it says so, gives nothing away, and goes on."""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import PATIENCE, Answer, Server, body_of
from picturing import BOMBS, PICTURES, saved, text_bomb
from PIL import Image
from serving import serving

TOKEN = "a-token-that-nobody-guesses-123"
BEARER = f"Bearer {TOKEN}"
LIMITS = ["--threads", "1", "--max-body-bytes", "300000", "--header-seconds", "20", "--body-seconds", "20"]
INFER = "/v2/models/net/infer"
#: What a refusal may be: the client's mistake, or one of the documented reasons of the server.
FINE = {*range(400, 500), 503, 504}
#: What a client must never read: paths, code, libraries, addresses in memory.
TELLING = re.compile(
    rb"/(tmp|home|usr|root|proc|var|etc|work)\b|\.py\b|site-packages|Traceback|uvicorn|starlette|httptools"
    rb"|pydantic|numpy|torch|PIL|python|0x[0-9a-f]{6}|" + re.escape(TOKEN.encode()),
    re.I,
)


@pytest.fixture(scope="module")
def server(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from odn_hybrid.fitting import fit

    folder = tmp_path_factory.mktemp("safety")
    # Some looks more than usual, so that there are several exits.
    fit(**{**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 12}}, out=folder / "net")
    secret = folder / "token"
    secret.write_text(TOKEN)
    secret.chmod(0o600)
    arguments = ["serve", str(folder / "net"), "--port", "0", "--uncertified", "--token-file", str(secret)]
    for starter in serving("faulty.py", OMP_NUM_THREADS="1"):
        found = Server(starter, folder / "server", [*arguments, *LIMITS])
        try:
            found.ready()
            children = readers(found)
            yield found
            # Whatever was done to it: no failure of its own, nothing of clients' in the log, and it answers.
            assert works(found) and len(readers(found)) == len(children)
            assert "Traceback" not in found.err and TOKEN not in found.err + found.out
            assert re.search(r"[^\n\x20-\x7e]", found.err) is None
            last = readers(found)
            found.kill()
            assert found.wait() == 0
            assert not any(alive(pid) for pid in {*children, *last})
        finally:
            found.end()


def readers(server: Server) -> list[int]:
    """The processes that it has started."""
    if sys.platform != "linux":
        return []
    found = []
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def works(server: Server) -> bool:
    """Whether honest clients get their answers."""
    picture = server.ask("POST", "/predict", PICTURES["PNG RGB"], Authorization=BEARER)
    tensor = server.ask("POST", INFER, body_of(np.zeros((1, 12, 12), np.float32)), Authorization=BEARER)
    assert (picture.status, tensor.status) == (200, 200), picture.body + tensor.body
    return True


def checked(answer: Answer) -> Answer:
    """It is a refusal that says why in JSON, and nothing else."""
    assert answer.status in FINE, answer.body
    assert list(answer.json) == ["error"] and 0 < len(answer.json["error"]) < 400
    assert "\n" not in answer.json["error"]
    told = answer.body + str(answer.headers).encode()
    assert TELLING.search(told) is None, told
    assert answer.headers["server"] is None
    return answer


def refused(
    server: Server, status: int, method: str, path: str, body: bytes | None = None, **more: str
) -> str:
    answer = checked(server.ask(method, path, body, **{"Authorization": BEARER, **more}))
    assert answer.status == status, answer.body
    return str(answer.json["error"])


def sent(server: Server, data: bytes, *, finish: bool = True) -> list[int]:
    """The statuses that bytes on a connection of their own are answered with, none if it is only closed."""
    said = b""
    place = ("127.0.0.1", server.port)
    with socket.create_connection(place, timeout=PATIENCE) as connection, suppress(ConnectionError):
        connection.sendall(data)
        if finish:
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            said += piece
    assert TELLING.search(said.replace(data, b"")) is None, said
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", said)]


# --- who may ask --------------------------------------------------------------------------------------------

WRONG = [
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {TOKEN[:-1]}",
    f"Bearer {TOKEN}x",
    f"Bearer {TOKEN.upper()}",
    f"Basic {TOKEN}",
    TOKEN,
    "Bearer \xff\xfe",
    "Bearer " + "x" * 10_000,
]


PATHS = ["/predict", INFER, "/v2", "/v2/models/net", "/metrics", "/status", "/openapi.json", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_said(path: str, server: Server) -> None:
    method = "POST" if path in ("/predict", INFER) else "GET"
    for header in (None, *WRONG):
        more = {} if header is None else {"Authorization": header}
        answer = checked(server.ask(method, path, PICTURES["PNG RGB"] if method == "POST" else None, **more))
        assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert server.ask(method, f"{path}?token={TOKEN}&access_token={TOKEN}").status == 401


def test_health_needs_no_token_and_says_little(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        answer = server.get(path)
        assert answer.status == 200 and len(answer.body) < 40


# --- image files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(BOMBS))
def test_bombs(kind: str, server: Server) -> None:
    assert "pixels" in refused(server, 413, "POST", "/predict", BOMBS[kind])


def test_damaged_and_odd_files(server: Server) -> None:
    refused(server, 400, "POST", "/predict", b"")
    refused(server, 413, "POST", "/predict", text_bomb() + bytes(300_000))
    refused(server, 400, "POST", "/predict", PICTURES["JPEG RGB"][:-200])
    refused(server, 400, "POST", "/predict", saved(Image.new("F", (9, 9)), "TIFF"))
    refused(server, 400, "POST", "/predict", b"<svg xmlns='x'><image href='file:///etc/passwd'/></svg>")
    refused(server, 415, "POST", "/predict", PICTURES["JPEG RGB"], Content_Type="text/html")


def form(*parts: bytes, boundary: bytes = b"b") -> bytes:
    return (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    )


def test_forms(server: Server) -> None:
    kind = "multipart/form-data; boundary=b"
    head = b'Content-Disposition: form-data; name="file"; filename="../../../../etc/passwd"\r\n\r\n'
    picture = PICTURES["PNG RGB"]
    fine = server.ask("POST", "/predict", form(head + picture), Authorization=BEARER, Content_Type=kind)
    assert fine.status == 200
    for body in (
        b"",
        form(),
        form(head + picture, head + picture),
        form(*[head + b"x"] * 2000),
        form(head + picture)[:-30],
        form(b"x" * 10_000),
        b"--b\r\n" * 10_000,
        b"--b\r\nContent-Disposition: " + b"a;" * 50_000,
        form(head + picture, boundary=b"other"),
    ):
        refused(server, 400, "POST", "/predict", body, Content_Type=kind)
    refused(server, 400, "POST", "/predict", form(head), Content_Type="multipart/form-data")
    long = "multipart/form-data; boundary=" + "b" * 20_000
    refused(server, 400, "POST", "/predict", form(head), Content_Type=long)


# --- tensors ------------------------------------------------------------------------------------------------


def tensor(data: Any, shape: Any = (1, 1, 12, 12), **more: Any) -> bytes:
    images = {"name": "images", "datatype": "FP32", "shape": shape, "data": data, **more}
    return json.dumps({"inputs": [images]}).encode()


def test_numbers_that_are_none_and_shapes_that_cannot_be(server: Server) -> None:
    noughts = [0.0] * 144
    for bad in (
        tensor([*noughts[1:], float("nan")]),
        tensor([*noughts[1:], float("inf")]),
        tensor([*noughts[1:], 1e39]),
        tensor([*noughts[1:], 10**400]),
        tensor([*noughts[1:], "0"]),
        tensor([*noughts[1:], None]),
        tensor(noughts, [1, 1, 12, -12]),
        tensor(noughts, [1, 1, 10**18, 10**18]),
        tensor(noughts, [1.0, 1, 12, 12]),
        tensor(noughts, [1, 1, 12]),
        tensor([noughts, noughts]),
        tensor(None, parameters={"binary_data_size": 2**63}),
        tensor(noughts, datatype="BYTES"),
        tensor(None, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 1}),
        b"[" * 200_000,
        b'{"inputs":' * 20_000,
        b"9" * 200_000,
        b"\xff\xfe\x00",
        b'{"inputs": "\\ud800"}',
    ):
        refused(server, 400, "POST", INFER, bad)
    refused(server, 413, "POST", INFER, tensor([0.0] * 144 * 65, [65, 1, 12, 12]))
    raw = struct.pack("<f", float("nan")) * 144
    refused(server, 400, "POST", INFER, raw, Inference_Header_Content_Length="0")
    for length in ("-1", "1e3", "99999999999", "0x10", "\xb2", "144"):
        refused(server, 400, "POST", INFER, raw, Inference_Header_Content_Length=length)


def test_packed_bodies_that_unfold_to_much(server: Server) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = packer.compress(b"[" + b"0," * 50_000_000) + packer.flush()
    assert len(data) < 300_000
    before = server.memory()
    refused(server, 413, "POST", INFER, data, Content_Encoding="gzip")
    refused(server, 400, "POST", INFER, data[:50], Content_Encoding="gzip")
    refused(server, 415, "POST", INFER, data, Content_Encoding="br, gzip")
    refused(server, 415, "POST", "/predict", data, Content_Encoding="gzip")
    assert server.memory() < before + (32 << 20)


# --- HTTP itself --------------------------------------------------------------------------------------------


def test_floods_of_headers(server: Server) -> None:
    start = b"GET /v2 HTTP/1.1\r\nhost: a\r\nauthorization: " + BEARER.encode() + b"\r\n"
    before = server.memory()
    for flood in (
        start + b"".join(b"x-%d: y\r\n" % k for k in range(20_000)) + b"\r\n",
        start + b"x: " + b"y" * 2_000_000 + b"\r\n\r\n",
        start + b"x" * 2_000_000 + b": y\r\n\r\n",
        start + b"x: y\r\n" * 300_000,
        b"GET /" + b"x" * 2_000_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
        b"x" * 2_000_000,
        b"\r\n" * 1_000_000,
    ):
        assert set(sent(server, flood, finish=False)) <= {400, 431}
    assert server.memory() < before + (32 << 20)


SMUGGLED = b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /predict HTTP/1.1\r\nhost: a\r\nauthorization: " + BEARER.encode() + b"\r\n"


@pytest.mark.parametrize(
    "data",
    [
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"content-length: 0\r\ncontent-length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        POST + b"content-length: -5\r\n\r\n" + SMUGGLED,
        POST + b"content-length: 99999999999999999999999\r\n\r\n" + SMUGGLED,
        POST + b"content-length: 5, 5\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + SMUGGLED,
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n" + SMUGGLED,
        POST + b"transfer-encoding: xchunked\r\n\r\n" + SMUGGLED,
        POST + b"x: a\x00b\r\n\r\n" + SMUGGLED,
        POST + b"x : a\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\nhost: a\r\n\r\n",
        b"GET /v2\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET http://elsewhere/v2 HTTP/1.1\r\nhost: elsewhere\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
        b"TRACE /v2 HTTP/1.1\r\nhost: a\r\nx-secret: 1\r\n\r\n",
        bytes(range(256)) * 40,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    ],
    ids=range(20),
)
def test_requests_that_are_none(data: bytes, server: Server) -> None:
    statuses = sent(server, data)
    # What hides behind the first request is never answered as a request of its own.
    assert len(statuses) <= 1 and set(statuses) <= FINE


def test_tls_spoken_to_a_plain_server(server: Server) -> None:
    context = ssl.create_default_context()
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../../../etc/passwd",
        "/v2/models/..%2f..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%2e%2e/infer",
        "/v2/models/net%00/infer",
        "/v2/models/net/versions/..%2f/infer",
        "/v2/models/" + "n" * 5000,
        "/v2/models/%ff%fe%80",
        "/v2/models/net%0d%0aset-cookie:x",
        "/%1b[31mred%0a",
        "/status.js/../../settings",
        "//v2//models",
        "/docs",
        "/redoc",
        "/predict",
    ],
)
def test_paths_that_lead_nowhere(path: str, server: Server) -> None:
    for method in ("GET", "DELETE"):
        answer = checked(server.ask(method, path, Authorization=BEARER, X_Request_Id="<b>" * 3))
        assert answer.status in (404, 405)
        assert answer.headers["set-cookie"] is None and "<" not in answer.headers["x-request-id"]


def test_questions_at_predict_that_mean_nothing(server: Server) -> None:
    for query in (
        "max_depth=-1", "max_depth=1e9", "max_depth=" + "9" * 5000, "max_depth=%F0%9F%98%80", "max_depth=",
        "min_confidence=nan", "min_confidence=2", "deadline_ms=0", "deadline_ms=-5", "deadline_ms=inf",
        "top=0", "top=99999999999", "model=net&model=net", "nothing=1", "top=%00", "min_confidence=1e-99999",
    ):  # fmt: skip
        refused(server, 400, "POST", f"/predict?{query}", PICTURES["PNG RGB"])
    refused(server, 404, "POST", "/predict?model=..%2f..%2fetc", PICTURES["PNG RGB"])


HEADS = (
    b"content-length: %d", b"transfer-encoding: chunked", b"expect: 100-continue", b"content-encoding: gzip",
    b"inference-header-content-length: %d", b"content-type: multipart/form-data; boundary=b", b"x: \xff",
)  # fmt: skip


def test_two_hundred_requests_of_garbage(server: Server) -> None:
    chance = random.Random(8)
    paths = [b"/x?y=%zz", *(path.encode() for path in PATHS)]
    good = body_of(np.zeros((1, 12, 12), np.float32))
    before, statuses = server.memory(), []
    for _ in range(200):
        body = bytearray(chance.choice([good, form(b"x"), *PICTURES.values(), *BOMBS.values()]))
        for _ in range(chance.randrange(8)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        body = body[: chance.choice([len(body), len(body) // 2, 10])]
        lines = [chance.choice(HEADS).replace(b"%d", b"%d" % chance.choice([len(body), 3])) for _ in range(2)]
        lines.append(b"authorization: " + chance.choice([BEARER.encode(), BEARER.encode(), b"Bearer x"]))
        line = chance.choice([b"POST", b"POST", b"GET", b"PUT"]) + b" " + chance.choice(paths) + b" HTTP/1.1"
        data = bytearray(b"\r\n".join([line, b"host: a", b"connection: close", *lines, b"", b""]) + body)
        for _ in range(chance.choice([0, 0, 1, 3])):
            data[chance.randrange(min(len(data), 300))] = chance.randrange(256)
        statuses += [status for status in sent(server, bytes(data)) if status != 100]
    assert set(statuses) <= {200, *FINE}
    assert {400, 401} <= set(statuses) and len(statuses) > 100  # it was understood often enough
    assert works(server)
    assert server.memory() < before + (32 << 20)


def test_not_one_answer_was_a_failure_of_the_server(server: Server) -> None:
    answer = server.ask("GET", "/metrics", Authorization=BEARER)
    assert answer.status == 200
    told = re.findall(r'^(odn_http_responses_total\{.*status="(\d+)".*)$', answer.body.decode(), re.M)
    assert any(status == "200" for _, status in told)
    assert [line for line, status in told if int(status) not in {200, 499, *FINE}] == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_other_machines_do_not_reach_it(server: Server) -> None:
    lines = [line.split() for line in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]]
    ends = [line[1].split(":") for line in lines if line[3] == "0A"]  # of sockets that listen
    assert {place for place, port in ends if int(port, 16) == server.port} == {"0100007F"}  # 127.0.0.1
