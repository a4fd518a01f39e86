"""Whatever is sent: no status that is not documented, no crash, no growth, and the next one is answered."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import random
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from serving import serving

with warnings.catch_warnings():
    # What schemathesis is made of warns while it is imported; nothing of ours calls that.
    warnings.simplefilter("ignore")
    import requests

    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis import checks
    from schemathesis.generation import GenerationMode

REQUESTS = 10_000
GROWTH = 48 << 20  # bytes
INFER = "/v2/models/small/infer"
STATUSES = {200, 400, 401, 404, 405, 408, 413, 415, 431, 503, 504}
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
SECONDS = 60.0
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


@dataclass
class Target:
    """A server process, and how many requests it got."""

    pid: int
    port: int
    asked: int = 0
    found: dict[int, int] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def got(self, status: int, what: object) -> None:
        self.asked += 1
        self.found[status] = self.found.get(status, 0) + 1
        assert status in STATUSES, (status, what)

    def memory(self) -> int:
        """Bytes that it holds, without what decodes images."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def check_answers(self) -> None:
        asked = {"name": "images", "datatype": "FP32", "shape": list(IMAGES.shape), "data": IMAGES.tolist()}
        response = httpx.post(self.url + INFER, json={"inputs": [asked]}, timeout=SECONDS)
        assert response.status_code == 200, response.text
        response = httpx.post(self.url + "/predict", content=picture("PNG"), timeout=SECONDS)
        assert response.status_code == 200, response.text


@pytest.fixture
def target() -> Iterator[Target]:
    for process in serving("answering.py"):
        assert process.stdout is not None
        yield Target(process.pid, int(process.stdout.readline()))
        assert process.poll() is None, "the server has ended"


# --- by the description --------------------------------------------------------------------------------


def by_description(target: Target, examples: int) -> None:
    """Requests that fit the OpenAPI description, and that do not: statuses and bodies are as it says."""
    document = httpx.get(f"{target.url}/openapi.json", timeout=SECONDS).json()
    schema = schemathesis.openapi.from_dict(document)
    about = httpx.get(f"{target.url}/v2/models/small", timeout=SECONDS).json()
    known = {"name": "small", "version": about["versions"][0]}
    wanted = [
        checks.CHECKS.get_one(name)
        for name in ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    ]
    with requests.Session() as session:
        session.trust_env = False
        for operation in schema.get_all_operations():
            operation = operation.ok()
            posts = operation.method == "post"
            many = examples if posts else max(examples // 5, 1)
            # Bodies are only looked at where there is a model.
            places = {k: v for k, v in known.items() if f"{{{k}}}" in operation.path} if posts else {}
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @seed(1)
                @settings(
                    max_examples=many, database=None, deadline=None, suppress_health_check=list(HealthCheck)
                )
                @given(operation.as_strategy(generation_mode=mode, path_parameters=places or None))
                def ask(case: Any) -> None:
                    try:
                        response = case.call(base_url=target.url, session=session, timeout=SECONDS)
                    except (requests.exceptions.InvalidHeader, UnicodeError, ValueError):
                        return  # the client cannot send it
                    target.got(response.status_code, case)
                    if response.headers.get("server") == ["uvicorn"] and b"Invalid HTTP" in response.content:
                        return  # not HTTP: it never came to us
                    case.validate_response(response, checks=wanted)

                with suppress(Unsatisfiable):  # nothing to get wrong there
                    ask()


# --- by chance -----------------------------------------------------------------------------------------


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def valid_requests() -> list[tuple[str, dict[str, str], bytes]]:
    """Path, headers and body, one of every kind."""
    images = IMAGES
    tensor: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": list(images.shape)}
    plain = {"id": "a", "parameters": {"max_depth": 2, "min_confidence": 0.5, "deadline_ms": 1000.0}}
    plain |= {"inputs": [{**tensor, "data": images.round(2).tolist()}], "outputs": [{"name": "logits"}]}
    head = json.dumps(
        {"inputs": [{**tensor, "parameters": {"binary_data_size": images.nbytes}}], "parameters": {}}
    ).encode()
    raw = {"name": "images", "datatype": "UINT8", "shape": [1, 4, 5, 3], "data": [7] * 60}
    length = "Inference-Header-Content-Length"
    text = json.dumps(plain).encode()
    form = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--b--\r\n'
    return [
        (INFER, {}, text),
        (INFER, {}, json.dumps({"inputs": [raw]}).encode()),
        (INFER, {length: str(len(head))}, head + images.tobytes()),
        (INFER, {length: "0"}, images.tobytes()),
        (INFER, {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}, gzip.compress(text, mtime=0)),
        ("/predict?top=2", {"Content-Type": "multipart/form-data; boundary=b"}, form % picture("PNG")),
        *(("/predict", {"Content-Type": f"image/{k.lower()}"}, picture(k)) for k in KINDS),
    ]


KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
TOKENS = [b"", b"\x00", b"\xff" * 8, b"-1", b"1e999", b"NaN", b"null", b"{}", b"[", b'"', b"9" * 30, b"\r\n"]
VALUES = [
    "",
    "0",
    "-1",
    "1",
    "99999999999999999999",
    "gzip",
    "a;b=c",
    "\xff",
    "x" * 5000,
    "chunked, gzip",
    "é",
]
NAMES = (
    "Inference-Header-Content-Length", "Content-Encoding", "Content-Type", "Accept-Encoding", "Accept",
    "Authorization", "X-Request-Id", "Range", "Expect", "Origin",
)  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["cut", "put", "change", "repeat"]),
        st.floats(0, 1),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=8)),
    ),
    max_size=4,
)
HEADERS = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=2)
PATHS = (
    "/v2/models/%00/infer",
    "/v2/models/../infer",
    "/v2/models/small/versions/1/infer",
    "//",
    "/%ff",
    "/v2",
)


def edited(body: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for how, where, token in edits:
        at = int(where * len(body))
        if how == "cut":
            body = body[:at]
        elif how == "put":
            body = body[:at] + token + body[at:]
        elif how == "change":
            body = body[:at] + token + body[at + len(token) :]
        else:
            body = body[:at] + body[at : at + 64] * 50 + body[at:]
    return body


def by_chance(target: Target, examples: int) -> None:
    """Valid requests with bytes cut, put in, changed and repeated, under other headers, at other paths."""
    bases = valid_requests()
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=SECONDS)

    @seed(2)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(bases), EDITS, HEADERS, st.sampled_from([None] * 20 + list(PATHS)))
    def ask(base: Any, edits: Any, headers: dict[str, str], path: str | None) -> None:
        where, known, body = base
        sent = {name: value.encode("latin-1") for name, value in {**known, **headers}.items()}
        try:
            connection.request("POST", path or where, edited(body, edits), sent)
            response = connection.getresponse()
            response.read()
        except http.client.HTTPException as error:
            raise AssertionError((edits, headers, path)) from error
        except OSError:  # it hung up, as after a body that is too large
            connection.close()
            target.asked += 1
            return
        target.got(response.status, (base[:2], edits, headers, path))

    ask()
    connection.close()


def not_even_http(target: Target, examples: int) -> None:
    """Bytes on the wire that are hardly a request: some answer or none, and the connection ends."""
    chance = random.Random(3)
    lines = [
        b"POST " + INFER.encode() + b" HTTP/1.1", b"Host: x", b"Content-Length: 2", b"Content-Length: 5",
        b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Transfer-Encoding: chunked", b"",
        b"Transfer-Encoding: identity", b"Expect: 100-continue", b"{}", b"5\r\n{}", b"ffffffffffffffff", b"0",
        b"X: " + b"a" * 70_000, b"\x00\x01\x02", b"GET / HTTP/9.9", b": :", b" folded", b"Upgrade: websocket",
        b"Connection: Upgrade", b"PRI * HTTP/2.0", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]  # fmt: skip
    for _ in range(examples):
        asked = [lines[0]] * (chance.random() < 0.7) + chance.choices(lines, k=chance.randint(1, 6))
        with socket.create_connection(("127.0.0.1", target.port), timeout=SECONDS) as wire:
            found = b""
            with suppress(ConnectionError):
                wire.sendall(b"\r\n".join(asked) + b"\r\n\r\n")
                wire.shutdown(socket.SHUT_WR)
                while more := wire.recv(65536):
                    found += more
        target.asked += 1
        if found.startswith(b"HTTP/1.1 "):
            status = int(found[9:12])
            assert status in STATUSES or status == 100, (asked, found)


def everything(target: Target, count: int) -> None:
    """About `count` requests of all kinds; at least that many."""
    by_description(target, max(count // 26, 2))
    not_even_http(target, count // 10)
    by_chance(target, max(count - target.asked, count // 4))


@needs_linux
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [300, pytest.param(REQUESTS, marks=pytest.mark.long)])
def test_malformed_requests_do_no_harm(target: Target, count: int) -> None:
    target.check_answers()
    everything(target, max(count // 30, 60))  # by now all that is kept is there
    target.asked = 0
    before = target.memory()
    everything(target, count)
    assert target.asked >= count
    usual = {200, 400, 404, 415} | ({413} if count == REQUESTS else set())  # what is too large is rare
    assert usual <= set(target.found)
    target.check_answers()
    assert target.memory() - before < GROWTH
