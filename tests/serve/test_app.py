"""The server over HTTP: answers are the model's own in every form, and refusals say what was wrong."""

from __future__ import annotations

import gc
import gzip
import io
import json
import logging
import shutil
import socket
import subprocess
import threading
import weakref
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import exporting
import httpx
import numpy as np
import pytest
import staged
import torch
from answering import LABELS, TRANSFORM, Answering, answering, opened
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from odn_hybrid.serve.app import guarding, inferring, service
from odn_hybrid.serve.app.asked import parse_request
from odn_hybrid.serve.app.bodies import accepted_encoding, inflate, packed
from odn_hybrid.serve.hosting.hosted import Opened
from odn_hybrid.serve.refusals import Refusal, TooLarge
from odn_hybrid.serve.settings import LaneSettings

INFER = "/v2/models/small/infer"
TOKEN = "a token of the tests"
LONGEST = 60.0  # seconds


@pytest.fixture(scope="module")
def server() -> Iterator[Answering]:
    with answering(max_body_bytes=200_000, max_images=8, max_pixels=100_000) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Answering) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=LONGEST) as found:
        yield found


def some_images(count: int = 5) -> np.ndarray:
    """Images that stop at different exits."""
    return exporting.images().numpy()[:: 64 // count][:count].copy()


def request_of(images: np.ndarray, **more: Any) -> dict[str, Any]:
    kind = {"float32": "FP32", "uint8": "UINT8"}[str(images.dtype)]
    data = {"name": "images", "shape": list(images.shape), "datatype": kind, "data": images.ravel().tolist()}
    return {"inputs": [data], **more}


def binary_of(images: np.ndarray, **more: Any) -> dict[str, Any]:
    """Content and headers of a request with a binary tensor."""
    asked = request_of(images, **more)
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": images.nbytes}
    head = json.dumps(asked).encode()
    return {
        "content": head + images.tobytes(),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def outputs_of(response: httpx.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    types = {"FP32": np.float32, "INT64": np.int64}
    length = response.headers.get("inference-header-content-length")
    answer = json.loads(response.content if length is None else response.content[: int(length)])
    left = b"" if length is None else response.content[int(length) :]
    found = {}
    for output in answer["outputs"]:
        dtype = types[output["datatype"]]
        if "data" in output:
            array = np.array(output["data"], dtype=dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            array, left = np.frombuffer(left[:size], dtype=dtype), left[size:]
        found[output["name"]] = array.reshape(output["shape"])
    assert not left
    return found


def check_answers(found: dict[str, np.ndarray], images: np.ndarray) -> None:
    """They are what the halting model gives alone."""
    wanted = exporting.model(**exporting.POLICIES["confidence"])(torch.from_numpy(images))
    np.testing.assert_array_equal(found["exit"], wanted.exit.numpy())
    np.testing.assert_array_equal(found["units_run"], wanted.units_run.numpy())
    np.testing.assert_array_equal(found["label"], wanted.logits.numpy().argmax(1))
    np.testing.assert_allclose(found["logits"], wanted.logits.numpy(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["confidence"], wanted.confidence.numpy(), rtol=0, atol=1e-5)


def status_line(port: int, *pieces: bytes) -> bytes:
    """What comes back for these bytes, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST) as wire:
        for piece in pieces:
            wire.sendall(piece)
        found = b""
        while more := wire.recv(65536):
            found += more
        return found


# --- the protocol --------------------------------------------------------------------------------------


def test_health_and_metadata(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    about = client.get("/v2/models/small").json()
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, *exporting.SHAPE]}]
    assert [(o["name"], o["datatype"], o["shape"]) for o in about["outputs"]] == [
        ("logits", "FP32", [-1, exporting.CLASSES]),
        ("label", "INT64", [-1]),
        ("confidence", "FP32", [-1]),
        ("exit", "INT64", [-1]),
        ("units_run", "INT64", [-1]),
    ]
    (version,) = about["versions"]
    for path in ("", "/ready", "/config"):
        one = client.get(f"/v2/models/small{path}")
        assert one.status_code == 200
        assert client.get(f"/v2/models/small/versions/{version}{path}").json() == one.json()
        assert client.get(f"/v2/models/small/versions/1{path}").status_code == 404
        assert client.get(f"/v2/models/other{path}").json() == {"error": "there is no model of this name"}


def _flat(images: np.ndarray) -> dict[str, Any]:
    return {"json": request_of(images)}


def _nested(images: np.ndarray) -> dict[str, Any]:
    asked = request_of(images)
    asked["inputs"][0]["data"] = images.tolist()
    return {"json": asked}


def _binary_out(images: np.ndarray) -> dict[str, Any]:
    return {"json": request_of(images, parameters={"binary_data_output": True})}


def _bare(images: np.ndarray) -> dict[str, Any]:
    return {"content": images.tobytes(), "headers": {"Inference-Header-Content-Length": "0"}}


def _gzip(images: np.ndarray) -> dict[str, Any]:
    made = binary_of(images)
    made["headers"] |= {"Content-Encoding": "gzip", "Accept-Encoding": "gzip"}
    return {**made, "content": gzip.compress(made["content"], mtime=0)}


def _deflate(images: np.ndarray) -> dict[str, Any]:
    content = zlib.compress(json.dumps(request_of(images)).encode())
    return {"content": content, "headers": {"Content-Encoding": "deflate", "Accept-Encoding": "deflate"}}


FORMS = [_flat, _nested, binary_of, _binary_out, _bare, _gzip, _deflate]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_answers_are_the_models_own_in_every_form(
    client: httpx.Client, form: Callable[[np.ndarray], dict[str, Any]]
) -> None:
    images = some_images()
    found = outputs_of(client.post(INFER, **form(images)))
    assert len(set(found["exit"].tolist())) > 1
    check_answers(found, images)


def test_raw_pixels_pass_through_the_models_transform(client: httpx.Client) -> None:
    random = np.random.default_rng(0)
    for shape in ((3, 8, 8, 3), (2, 20, 13, 3), (1, 8, 8, 1)):
        pixels = random.integers(0, 256, shape, dtype=np.uint8)
        for form in (_flat, binary_of):
            check_answers(outputs_of(client.post(INFER, **form(pixels))), TRANSFORM(pixels).numpy())


def test_large_bodies_and_answers_are_worked_on_elsewhere_and_the_same() -> None:
    images = np.concatenate([exporting.images().numpy()] * 4)
    with answering(max_images=256) as found, httpx.Client(base_url=found.url, timeout=LONGEST) as client:
        for form in (_flat, _nested, _gzip):
            made = form(images)
            assert "json" not in made or len(json.dumps(made["json"])) > service.LARGE
            check_answers(outputs_of(client.post(INFER, **made)), images)


@pytest.mark.parametrize("length", ["{}", "{:012}"])
def test_no_large_body_is_read_on_the_event_loop(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, length: str
) -> None:
    read: list[str] = []

    def noted(*args: Any) -> Any:
        read.append(threading.current_thread().name)
        return parse_request(*args)

    monkeypatch.setattr(inferring, "parse_request", noted)
    content = json.dumps(request_of(some_images(1))).encode() + b" " * service.LARGE
    header = {"Inference-Header-Content-Length": length.format(len(content))}
    assert client.post(INFER, content=content, headers=header).status_code == 200
    assert len(read) == 1 and read[0].startswith("odn-app")


def test_only_the_outputs_asked_for_come_and_in_that_order(client: httpx.Client) -> None:
    images = some_images()
    asked = [{"name": "exit", "parameters": {"binary_data": True}}, {"name": "logits"}]
    response = client.post(INFER, json=request_of(images, outputs=asked, id="mine"))
    found = outputs_of(response)
    assert list(found) == ["exit", "logits"]
    answer = json.loads(response.content[: int(response.headers["inference-header-content-length"])])
    assert answer["id"] == "mine" and answer["model_name"] == "small"
    assert answer["parameters"] == {"certified": False, "version": answer["model_version"]}
    assert "data" in answer["outputs"][1] and "data" not in answer["outputs"][0]


def test_classification_names_the_best_classes(client: httpx.Client) -> None:
    images = some_images()
    asked = [{"name": "logits", "parameters": {"classification": 2}}, {"name": "label"}]
    best, labels = client.post(INFER, json=request_of(images, outputs=asked)).json()["outputs"]
    assert best["datatype"] == "BYTES" and best["shape"] == [5, 2]
    first = [line.split(":") for line in best["data"][::2]]
    assert [int(index) for _, index, _ in first] == labels["data"]
    assert all(LABELS[int(index)] == name for _, index, name in first)
    values = [float(line.split(":")[0]) for line in best["data"]]
    assert all(one >= two for one, two in zip(values[::2], values[1::2], strict=True))


def test_a_requests_own_wishes_have_their_influence(client: httpx.Client) -> None:
    images = some_images()

    def units(**wishes: Any) -> list[int]:
        response = client.post(INFER, json=request_of(images, parameters=wishes))
        return outputs_of(response)["units_run"].tolist()

    free = units()
    assert units(max_depth=1) == [1] * 5
    assert units(max_depth=2) == [min(n, 2) for n in free]
    assert units(min_confidence=1.0) == [3] * 5
    assert units(deadline_ms=50_000, timeout=1, priority=3) == free
    late = client.post(INFER, json=request_of(images, parameters={"timeout": 1}))  # a microsecond
    assert late.status_code in (503, 504), late.text


def _changed(**changes: Any) -> dict[str, Any]:
    asked = request_of(some_images(1))
    asked["inputs"][0] |= changes
    return asked


def _set(key: str, value: Any) -> dict[str, Any]:
    return {**request_of(some_images(1)), key: value}


MANY = [0.5] * 192
BAD: dict[str, tuple[Any, int, str]] = {
    "no object": ([1], 400, "must be a JSON object"),
    "no inputs": ({}, 400, "inputs must be a list"),
    "two inputs": ({"inputs": [{}, {}]}, 400, "inputs must be a list with one tensor"),
    "other name": (_changed(name="input0"), 400, "it must be 'images'"),
    "other type": (_changed(datatype="FP16"), 400, "use FP32"),
    "other shape": (_changed(shape=[1, 3, 9, 9]), 400, "the model takes [n, 3, 8, 8]"),
    "no batch": (_changed(shape=[3, 8, 8]), 400, "four whole numbers"),
    "empty batch": (_changed(shape=[0, 3, 8, 8], data=[]), 400, "four whole numbers"),
    "bool shape": (_changed(shape=[True, 3, 8, 8]), 400, "four whole numbers"),
    "too many": (_changed(shape=[9, 3, 8, 8]), 413, "the limit is 8"),
    "very many": (_changed(shape=[10**19, 3, 8, 8]), 413, "the limit is 8"),
    "large image": (_changed(datatype="UINT8", shape=[1, 10**6, 10**6, 3]), 413, "the limit is 100000"),
    "short": (_changed(data=MANY[:-1]), 400, "data has 191 entries"),
    "long": (_changed(data=[*MANY, 1]), 400, "data has 193 entries"),
    "ragged": (_changed(data=[[[[1] * 8] * 8] * 2 + [[[1] * 8] * 7 + [[1]]]]), 400, "nested in another way"),
    "long text": (_changed(data=["a" * 100_000, *MANY[1:]]), 400, "must be numbers"),
    "nested otherwise": (_changed(data=[[MANY]]), 400, "nested in another way"),
    "text": (_changed(data=["0.5", *MANY[1:]]), 400, "must be numbers"),
    "null": (_changed(data=[None, *MANY[1:]]), 400, "must be numbers"),
    "above float32": (_changed(data=[1e39, *MANY[1:]]), 400, "NaN or infinite"),
    "above float64": (_changed(data=[10**400, *MANY[1:]]), 400, "NaN or infinite"),
    "long shape": (_changed(shape=[1] * 60_000), 400, "[1, 1, 1, 1, 1, 1, ...]"),
    "long wish": (_set("parameters", {"max_depth": "a" * 100_000}), 400, "must be a number"),
    "huge": (_changed(data=[3e38] * 192), 400, "no finite answer"),
    "half a byte": (_changed(datatype="UINT8", shape=[1, 8, 8, 3]), 400, "whole numbers from 0 to 255"),
    "no byte": (_changed(datatype="UINT8", shape=[1, 8, 8, 3], data=[256] * 192), 400, "from 0 to 255"),
    "five channels": (_changed(datatype="UINT8", shape=[1, 1, 1, 5], data=[1] * 5), 400, "channels"),
    "more than memory": (
        _changed(datatype="UINT8", shape=[1, 1, 1, 10**15], data=[[1]]),
        400,
        "nested in another way",
    ),
    "more than an index": (
        _changed(datatype="UINT8", shape=[1, 1, 1, 10**19], data=[[[[1]]]]),
        400,
        "nested in another way",
    ),
    "no data": ({"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 8, 8]}]}, 400, "neither"),
    "size without bytes": (_changed(parameters={"binary_data_size": 768}), 400, "both data and"),
    "shared memory": (_changed(parameters={"shared_memory_region": "a"}), 400, "not offered"),
    "unknown output": (_set("outputs", [{"name": "probs"}]), 400, "known: logits"),
    "output twice": (_set("outputs", [{"name": "exit"}, {"name": "exit"}]), 400, "comes twice"),
    "classified exit": (_set("outputs", [{"name": "exit", "parameters": {"classification": 1}}]), 400, "for"),
    "binary maybe": (_set("parameters", {"binary_data_output": 1}), 400, "true or false"),
    "unknown wish": (_set("parameters", {"max_dept": 1}), 400, "unknown parameter 'max_dept'"),
    "depth 0": (_set("parameters", {"max_depth": 0}), 400, "max_depth is 0"),
    "sure 2": (_set("parameters", {"min_confidence": 2}), 400, "min_confidence is 2"),
    "no time": (_set("parameters", {"deadline_ms": 0}), 400, "deadline_ms is 0"),
    "huge time": (_set("parameters", {"deadline_ms": 10**400}), 400, "deadline_ms is"),
    "id": (_set("id", 7), 400, "id must be a text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_is_wrong(client: httpx.Client, case: str) -> None:
    asked, status, why = BAD[case]
    response = client.post(INFER, content=json.dumps(asked).encode())
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"} and why in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "headers", "status", "why"),
    [
        (b"", {}, 400, "not JSON"),
        (b"\xff\xfe", {}, 400, "not JSON"),
        (b"[" * 5000, {}, 400, "not JSON"),
        (b'{"inputs": NaN}', {}, 400, "must be finite"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", {}, 400, "inputs must be"),
        (b"{}", {"Inference-Header-Content-Length": "3"}, 400, "Inference-Header-Content-Length"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "Inference-Header-Content-Length"),
        (b"12345", {"Inference-Header-Content-Length": "0"}, 400, "an image takes 768"),
        (b"1" * 768 * 9, {"Inference-Header-Content-Length": "0"}, 413, "the limit is 8"),
        (b"\x00\x00\xc0\x7f" * 192, {"Inference-Header-Content-Length": "0"}, 400, "NaN or infinite"),
        (b"{}", {"Content-Encoding": "br"}, 415, "Content-Encoding"),
        (b"{}", {"Content-Encoding": "gzip"}, 400, "not what its Content-Encoding says"),
        (gzip.compress(b"{}", mtime=0)[:-3], {"Content-Encoding": "gzip"}, 400, "cut off"),
        (gzip.compress(bytes(10**6), mtime=0), {"Content-Encoding": "gzip"}, 413, "unpacked body"),
        (bytes(200_001), {}, 413, "the limit of 200000 bytes"),
    ],
    ids=[f"body{n}" for n in range(15)],
)
def test_a_bad_body_is_told_what_is_wrong(
    client: httpx.Client, content: bytes, headers: dict[str, str], status: int, why: str
) -> None:
    response = client.post(INFER, content=content, headers=headers)
    assert response.status_code == status, response.text
    assert why in response.json()["error"]


def test_binary_data_must_be_as_long_as_it_says(client: httpx.Client) -> None:
    for change in (b"", b"1234"):
        made = binary_of(some_images(2))
        made["content"] = made["content"][:-4] + change * 2
        response = client.post(INFER, **made)
        assert response.status_code == 400 and "bytes follow the JSON" in response.json()["error"]
    with_text = {**binary_of(some_images(2)), "headers": {}}
    assert client.post(INFER, **with_text).status_code == 400


@given(st.binary(max_size=4000), st.sampled_from(["gzip", "deflate"]))
def test_packed_and_unpacked_is_the_same_and_bounded(data: bytes, encoding: str) -> None:
    found, used = packed(data, encoding)
    assert (used is None) == (len(data) < 1024)
    assert inflate(found, used or "", len(data)) == data
    if used is not None:
        with pytest.raises(TooLarge):
            inflate(found, used, len(data) - 1)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "identity", "br", "gzip, deflate", "ß"]))
def test_any_bytes_unpack_or_are_refused(data: bytes, encoding: str) -> None:
    try:
        assert isinstance(inflate(data, encoding, 1000), bytes)
    except Refusal as refusal:
        assert refusal.status in (400, 413, 415)


def test_which_packing_a_client_takes() -> None:
    cases = {"": None, "br": None, "gzip": "gzip", "br, deflate": "deflate", "gzip;q=0": None}
    cases |= {"gzip;q=0.0, deflate;q=0.5": "deflate", "GZIP;q=1.0": "gzip"}
    assert {header: accepted_encoding(header) for header in cases} == cases
    assert accepted_encoding(None) is None


# --- image files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> tuple[bytes, np.ndarray]:
    """A PNG file and its pixels."""
    pixels = np.random.default_rng(3).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


def check_prediction(found: dict[str, Any], pixels: np.ndarray) -> None:
    images = TRANSFORM(pixels)
    wanted = exporting.model(**exporting.POLICIES["confidence"])(images)
    best = wanted.logits[0].argsort(descending=True).tolist()
    assert found["class"] == best[0] and found["label"] == LABELS[best[0]]
    assert [entry["class"] for entry in found["top"]] == best[: len(found["top"])]
    assert found["top"][0]["probability"] == pytest.approx(found["confidence"], abs=1e-6)
    assert found["confidence"] == pytest.approx(float(wanted.confidence[0]), abs=1e-5)
    assert (found["exit"], found["units_run"]) == (int(wanted.exit[0]), int(wanted.units_run[0]))
    assert found["units_total"] == exporting.EXITS and found["certified"] is False
    assert found["milliseconds"] > 0


def test_an_image_file_is_answered_as_its_pixels_are(
    client: httpx.Client, picture: tuple[bytes, np.ndarray]
) -> None:
    data, pixels = picture
    for asked in (
        {"content": data, "headers": {"Content-Type": "image/png"}},
        {"content": data, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"file": ("cat.png", data, "image/png")}, "data": {"note": "x"}},
    ):
        response = client.post("/predict", **asked)  # type: ignore[arg-type]
        assert response.status_code == 200, response.text
        check_prediction(response.json(), pixels)
    all_of_them = client.post("/predict?model=small&top=9", content=data).json()
    assert sum(entry["probability"] for entry in all_of_them["top"]) == pytest.approx(1)
    assert client.post("/predict?max_depth=1", content=data).json()["units_run"] == 1
    assert client.post("/predict?min_confidence=1.0&deadline_ms=3e4", content=data).json()["units_run"] == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_curl_works_as_the_documentation_shows(
    server: Answering, picture: tuple[bytes, np.ndarray], tmp_path: Path
) -> None:
    data, pixels = picture
    file, url = tmp_path / "cat.jpg", f"{server.url}/predict"
    file.write_bytes(data)
    for arguments in (
        ["--data-binary", f"@{file}", "-H", "Content-Type: image/jpeg", url],
        ["-F", f"file=@{file}", url],
    ):
        done = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", *arguments], capture_output=True, timeout=LONGEST, check=True
        )
        check_prediction(json.loads(done.stdout), pixels)


@pytest.mark.parametrize(
    ("query", "asked", "status", "why"),
    [
        ("", {"content": b"no image"}, 400, ""),
        ("", {"content": b""}, 400, "no image file"),
        ("", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "image/jpeg"),
        ("", {"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "without Content-Encoding"),
        ("", {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "no boundary"),
        ("", {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}, 400, "form"),
        ("", {"files": {"image": b"x"}}, 400, "0 fields named 'file'"),
        ("", {"files": [("file", b"x"), ("file", b"y")]}, 400, "2 fields named 'file'"),
        ("", {"files": [("a", b"x")] * 17}, 400, "more than 16 parts"),
        ("model=other", {"content": b"x"}, 404, "no model of this name"),
        ("max_dept=1", {"content": b"x"}, 400, "unknown query parameter 'max_dept'"),
        ("max_depth=1&max_depth=2", {"content": b"x"}, 400, "comes twice"),
        ("max_depth=1.5", {"content": b"x"}, 400, "whole number"),
        ("max_depth=0", {"content": b"x"}, 400, "max_depth is 0"),
        ("min_confidence=nan", {"content": b"x"}, 400, "must be a number"),
        ("min_confidence=7", {"content": b"x"}, 400, "min_confidence is 7"),
        ("deadline_ms=0", {"content": b"x"}, 400, "deadline_ms is 0"),
        ("top=0", {"content": b"x"}, 400, "top is 0"),
    ],
)
def test_a_bad_prediction_is_told_what_is_wrong(
    client: httpx.Client, query: str, asked: dict[str, Any], status: int, why: str
) -> None:
    response = client.post(f"/predict?{query}", **asked)
    assert response.status_code == status, response.text
    assert why in response.json()["error"]


def test_of_several_models_one_must_be_named(picture: tuple[bytes, np.ndarray]) -> None:
    models = {"one": opened(), "two": opened("recall", transform=None, labels=None)}
    with answering(models) as found, httpx.Client(base_url=found.url, timeout=LONGEST) as client:
        response = client.post("/predict", content=picture[0])
        assert response.status_code == 400 and "one, two" in response.json()["error"]
        assert client.post("/predict?model=one", content=picture[0]).json()["model"] == "one"
        response = client.post("/predict?model=two", content=picture[0])
        assert response.status_code == 400 and "no transform" in response.json()["error"]
        asked = request_of(some_images(1), outputs=[{"name": "logits", "parameters": {"classification": 1}}])
        (best,) = client.post("/v2/models/two/infer", json=asked).json()["outputs"]
        assert best["data"][0].count(":") == 1  # there are no names
    with answering({}) as found, httpx.Client(base_url=found.url, timeout=LONGEST) as client:
        assert client.get("/v2/health/ready").status_code == 503
        assert client.post("/predict", content=picture[0]).headers["retry-after"] == "1"


def test_a_dead_device_thread_is_said_by_the_health_checks() -> None:
    with answering() as found, httpx.Client(base_url=found.url, timeout=LONGEST) as client:
        assert client.get("/v2/health/live").status_code == 200

        def broken(now: float) -> None:
            raise RuntimeError("a mistake of ours")

        found.host.engine._scheduler.pick = broken  # type: ignore[method-assign, assignment]
        assert client.post(INFER, json=request_of(some_images(1))).status_code == 503
        for path in ("/v2/health/live", "/v2/health/ready"):
            answer = client.get(path)
            assert answer.status_code == 503 and answer.json()["error"] and answer.headers["retry-after"]


def test_parsed_numbers_are_not_kept_while_a_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    images = some_images(7)
    content = json.dumps(request_of(images)).encode()

    def lists() -> int:
        return sum(type(one) is list and len(one) == images.size for one in gc.get_objects())

    with answering() as found:
        submit, seen = found.host.submit, []

        def watched(*arguments: Any, **options: Any) -> Future[Any]:
            seen.append(lists())
            return submit(*arguments, **options)

        monkeypatch.setattr(found.host, "submit", watched)
        before = lists()
        assert httpx.post(found.url + INFER, content=content, timeout=LONGEST).status_code == 200
        assert seen == [before]


# --- the guard -----------------------------------------------------------------------------------------


def test_everything_but_health_needs_the_token() -> None:
    page = APIRouter()
    page.add_api_route("/status", lambda: {"fine": True})
    with (
        answering(token=TOKEN, pages=[page]) as found,
        httpx.Client(base_url=found.url, timeout=LONGEST) as client,
    ):
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        for path in ("/v2", "/v2/models/small", "/status", "/openapi.json", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401 and set(refused.json()) == {"error"}
                assert refused.headers["www-authenticate"] == "Bearer"
        mine = {"Authorization": f"bearer {TOKEN}"}
        assert client.post(INFER, json=request_of(some_images(1))).status_code == 401
        assert client.post(INFER, json=request_of(some_images(1)), headers=mine).status_code == 200
        assert client.get("/status", headers=mine).json() == {"fine": True}
        assert client.get("/nothing", headers=mine).status_code == 404
        described = client.get("/openapi.json", headers=mine).json()
        assert described["security"] == [{"token": []}]
        assert described["paths"]["/v2/health/live"]["get"]["security"] == []


def test_a_request_keeps_its_id_or_gets_one(client: httpx.Client) -> None:
    for path in ("/v2", "/nothing"):
        assert client.get(path, headers={"X-Request-Id": "a-1:b"}).headers["x-request-id"] == "a-1:b"
        given = {
            client.get(path, headers={"X-Request-Id": bad}).headers["x-request-id"] for bad in ("", "<a>")
        }
        given.add(client.get(path, headers={"X-Request-Id": "a" * 129}).headers["x-request-id"])
        assert len(given) == 3 and all(len(name) == 32 for name in given)


def test_other_methods_and_paths_are_errors_of_the_same_kind(client: httpx.Client) -> None:
    response = client.delete(INFER)
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert set(response.json()) == {"error"}
    assert client.get("/v2/models/small/").status_code == 404


def test_a_body_above_the_limit_is_refused_however_it_comes(server: Answering) -> None:
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
    declared = status_line(server.port, start + b"Expect: 100-continue\r\nContent-Length: 200001\r\n\r\n")
    assert declared.startswith(b"HTTP/1.1 413 ")  # without a byte of it
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    chunked = status_line(
        server.port, start + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 4, b"0\r\n\r\n"
    )
    assert chunked.startswith(b"HTTP/1.1 413 ")
    lying = status_line(server.port, start + b"Content-Length: 2\r\n\r\n{}" + bytes(10))
    assert lying.startswith(b"HTTP/1.1 400 ")


def test_headers_above_the_limit_are_refused(client: httpx.Client, server: Answering) -> None:
    response = client.get("/v2", headers={"X-Long": "a" * server.settings.max_header_bytes})
    assert response.status_code == 431


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with answering(body_seconds=0.2) as found:
        start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode()
        assert status_line(found.port, start).startswith(b"HTTP/1.1 408 ")


def test_the_bodies_of_all_requests_together_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "BODIES", 1)
    with (
        answering(max_body_bytes=1000) as found,
        httpx.Client(base_url=found.url, timeout=LONGEST) as client,
        socket.create_connection(("127.0.0.1", found.port), timeout=LONGEST) as slow,
    ):
        start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 951\r\nExpect: 100-continue\r\n\r\n"
        slow.sendall(start.encode())
        assert b"100 Continue" in slow.recv(1000)  # it is being read
        slow.sendall(bytes(950))

        def refused() -> bool:  # as soon as the server has seen those
            response = client.post(INFER, content=bytes(900))
            assert response.status_code in (400, 503)
            assert response.status_code == 400 or response.headers["retry-after"] == "1"
            return response.status_code == 503

        assert any(refused() for _ in range(1000))
        slow.sendall(b"}")
        assert b"400 Bad Request" in slow.recv(1000)
        assert client.post(INFER, content=bytes(900)).status_code == 400


def test_a_connection_goes_on_after_an_error(client: httpx.Client, server: Answering) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    last = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    found = status_line(server.port, head, last)
    assert found.startswith(b"HTTP/1.1 400 ") and b"HTTP/1.1 200 OK" in found


def test_what_nobody_expected_says_nothing_but_its_id(caplog: pytest.LogCaptureFixture) -> None:
    page = APIRouter()

    @page.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret of the machine")

    with (
        answering(pages=[page]) as found,
        httpx.Client(base_url=found.url, timeout=LONGEST) as client,
        caplog.at_level(logging.ERROR),
    ):
        response = client.get("/broken", headers={"X-Request-Id": "abc"})
        assert response.status_code == 500
        assert response.json() == {"error": "internal error", "request_id": "abc"}
        assert "a secret of the machine" in caplog.text and "abc" in caplog.text
        assert client.get("/v2").status_code == 200


# --- waiting -------------------------------------------------------------------------------------------


class Held:
    """A model that answers when it is let."""

    def __init__(self) -> None:
        self.begun, self.let = threading.Event(), threading.Event()
        stages = staged.Table(np.zeros((4, 2, 3), dtype=np.float32), before=self._before)
        stages.measure = lambda largest: staged.times_of([[1e-3, 1e-3]] * 2, (1, largest))  # type: ignore[method-assign]
        self.asleep = False
        self.opened = Opened(stages=stages, kind="dynamic", digest="held" * 16)  # type: ignore[arg-type]

    def _before(self, segment: int, batch: int) -> None:
        if self.asleep:
            self.begun.set()
            assert self.let.wait(LONGEST)


@pytest.fixture
def held() -> Iterator[Held]:
    found = Held()
    yield found
    found.let.set()


def _one() -> dict[str, Any]:
    return request_of(staged.numbered([1]))


def test_a_full_queue_is_said_with_when_to_come_again(held: Held) -> None:
    lane = LaneSettings(max_batch=1, queue=1)
    with (
        answering({"small": held.opened}, lane=lane) as found,
        httpx.Client(base_url=found.url, timeout=LONGEST) as client,
        ThreadPoolExecutor() as pool,
    ):
        held.asleep = True
        first = pool.submit(client.post, INFER, json=_one())
        assert held.begun.wait(LONGEST)
        second = httpx.post(found.url + INFER, json=_one(), timeout=LONGEST)
        assert second.status_code == 503 and int(second.headers["retry-after"]) >= 1
        held.let.set()
        assert first.result().status_code == 200


def test_an_answer_that_does_not_come_is_not_waited_for(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GRACE", 0.0)
    with answering({"small": held.opened}, request_seconds=0.3) as found:
        held.asleep = True
        response = httpx.post(found.url + INFER, json=_one(), timeout=LONGEST)
        assert response.status_code in (503, 504), response.text
        held.let.set()


def test_pixels_are_not_kept_while_a_request_waits(
    held: Held, picture: tuple[bytes, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(images: Any) -> np.ndarray:
        return staged.numbered([1] * len(images))

    held.opened = replace(held.opened, transform=small)
    with (
        answering({"small": held.opened}) as found,
        httpx.Client(base_url=found.url, timeout=LONGEST) as client,
        ThreadPoolExecutor() as pool,
    ):
        decoded: list[weakref.ref[np.ndarray]] = []
        decode = found.decoders.decode

        async def watched(data: bytes) -> np.ndarray:
            pixels = await decode(data)
            decoded.append(weakref.ref(pixels))
            return pixels

        monkeypatch.setattr(found.decoders, "decode", watched)
        held.asleep = True
        first = pool.submit(client.post, "/predict", content=picture[0])
        assert held.begun.wait(LONGEST)
        assert (
            client.get("/v2/health/live").status_code == 200
        )  # the loop has gone on: only answers are awaited
        assert [pixels() for pixels in decoded] == [None]
        held.let.set()
        assert first.result().status_code == 200


def test_a_client_that_goes_takes_its_request_along(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering({"small": held.opened}) as found:
        futures: list[Future[Any]] = []
        cancelled = threading.Event()
        submit = found.host.submit

        def watched(*arguments: Any, **options: Any) -> Future[Any]:
            future = submit(*arguments, **options)
            future.add_done_callback(lambda done: done.cancelled() and cancelled.set())
            futures.append(future)
            return future

        monkeypatch.setattr(found.host, "submit", watched)
        held.asleep = True
        content = json.dumps(_one()).encode()
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", found.port)) as wire:
            wire.sendall(head + content)
            assert held.begun.wait(LONGEST)
        assert cancelled.wait(LONGEST)
        held.let.set()
        assert httpx.post(found.url + INFER, json=_one(), timeout=LONGEST).status_code == 200
        assert [future.cancelled() for future in futures] == [True, False]


def test_an_answer_is_of_one_model_also_when_that_is_replaced_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with answering() as found:
        submit = found.host.submit
        swaps: list[str] = []

        def swapping(*arguments: Any, **options: Any) -> Future[Any]:
            if not swaps:
                swaps.append(found.host.model("small").version)
                found.host.unload("small")
                found.host.put("small", opened("recall"))
            return submit(*arguments, **options)

        monkeypatch.setattr(found.host, "submit", swapping)
        response = httpx.post(found.url + INFER, json=request_of(some_images(1)), timeout=LONGEST)
        assert response.status_code == 200, response.text
        assert response.json()["model_version"] == found.host.model("small").version != swaps[0]
        swaps.clear()
        named = f"/v2/models/small/versions/{response.json()['model_version']}/infer"
        monkeypatch.setattr(found.host, "put", lambda *_: None)
        gone = httpx.post(found.url + named, json=request_of(some_images(1)), timeout=LONGEST)
        assert gone.status_code == 404
