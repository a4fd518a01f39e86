"""NVIDIA's own client, as it comes from the registry, gets metadata and right answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import exporting
import numpy as np
import pytest
import torch
from answering import LABELS, TRANSFORM, Answering, answering
from numpy.typing import NDArray

with warnings.catch_warnings():
    # gevent and what it needs warn of their own imports; nothing of ours calls them.
    warnings.simplefilter("ignore")
    triton = pytest.importorskip("tritonclient.http")
    from tritonclient.utils import InferenceServerException

OUTPUTS = ("logits", "label", "confidence", "exit", "units_run")


@pytest.fixture(scope="module")
def server() -> Iterator[Answering]:
    with answering() as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Answering) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4) as found:
        yield found


def tensor(images: NDArray, *, binary: bool = True) -> triton.InferInput:
    kind = {"float32": "FP32", "uint8": "UINT8"}[str(images.dtype)]
    made = triton.InferInput("images", list(images.shape), kind)
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def check(result: triton.InferResult, images: NDArray) -> None:
    """All outputs are those of the halting model alone."""
    wanted = exporting.model(**exporting.POLICIES["confidence"])(torch.from_numpy(images))
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    assert [found[name].dtype for name in OUTPUTS] == [np.float32, np.int64, np.float32, np.int64, np.int64]
    np.testing.assert_array_equal(found["exit"], wanted.exit.numpy())
    np.testing.assert_array_equal(found["units_run"], wanted.units_run.numpy())
    np.testing.assert_array_equal(found["label"], wanted.logits.numpy().argmax(1))
    np.testing.assert_allclose(found["logits"], wanted.logits.numpy(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["confidence"], wanted.confidence.numpy(), rtol=0, atol=1e-5)


def some(count: int) -> NDArray[np.float32]:
    return exporting.images().numpy()[:: 64 // count][:count].copy()


def test_health_metadata_and_configuration(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("small") and not client.is_model_ready("other")
    assert {"binary_tensor_data", "classification"} <= set(client.get_server_metadata()["extensions"])
    about = client.get_model_metadata("small")
    assert about["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, *exporting.SHAPE]}]
    assert tuple(output["name"] for output in about["outputs"]) == OUTPUTS
    assert client.is_model_ready("small", about["versions"][0])
    config = client.get_model_config("small")
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["max_batch_size"] == 64


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("sent", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("got", [None, True, False], ids=["default", "binary out", "JSON out"])
def test_answers(client: triton.InferenceServerClient, count: int, sent: bool, got: bool | None) -> None:
    images = some(count)
    outputs = None if got is None else [triton.InferRequestedOutput(n, binary_data=got) for n in OUTPUTS]
    result = client.infer("small", [tensor(images, binary=sent)], outputs=outputs, request_id="seven")
    check(result, images)
    answer = result.get_response()
    assert answer["id"] == "seven" and answer["parameters"]["certified"] is False
    version = client.get_model_metadata("small")["versions"][0]
    assert answer["model_version"] == version
    check(client.infer("small", [tensor(images, binary=sent)], model_version=version), images)


def test_raw_pixels(client: triton.InferenceServerClient) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
    for binary in (True, False):
        check(client.infer("small", [tensor(pixels, binary=binary)]), TRANSFORM(pixels).numpy())


@pytest.mark.parametrize("kind", ["gzip", "deflate"])
def test_compression_both_ways(client: triton.InferenceServerClient, kind: str) -> None:
    images = some(64)  # of which the answer is long enough to be packed
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
        result = client.infer(
            "small",
            [tensor(images, binary=binary)],
            outputs=outputs,
            request_compression_algorithm=kind,
            response_compression_algorithm=kind,
        )
        check(result, images)


def test_classification(client: triton.InferenceServerClient) -> None:
    images = some(5)
    for binary in (True, False):
        asked = triton.InferRequestedOutput("logits", binary_data=binary, class_count=2)
        found = client.infer("small", [tensor(images)], outputs=[asked]).as_numpy("logits")
        wanted = exporting.model(**exporting.POLICIES["confidence"])(torch.from_numpy(images)).logits.numpy()
        assert found.shape == (5, 2)
        for line, row in zip(found[:, 0], wanted, strict=True):
            value, index, name = (line.decode() if binary else str(line)).split(":")
            assert int(index) == row.argmax() and name == LABELS[int(index)]
            assert float(value) == pytest.approx(row.max(), abs=1e-4)


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    asked = [client.async_infer("small", [tensor(some(n))]) for n in (1, 3, 5, 8, 1, 2)]
    for request, count in zip(asked, (1, 3, 5, 8, 1, 2), strict=True):
        check(request.get_result(), some(count))


def test_options_and_deadline(client: triton.InferenceServerClient) -> None:
    result = client.infer("small", [tensor(some(5))], parameters={"max_depth": 1}, timeout=50_000_000)
    assert result.as_numpy("units_run").tolist() == [1] * 5
    with pytest.raises(InferenceServerException) as error:
        client.infer("small", [tensor(some(5))], timeout=1)  # a microsecond
    assert error.value.status() in ("503", "504")


def test_errors_reach_the_client_in_words(client: triton.InferenceServerClient) -> None:
    bad = {
        "no model of this name": lambda: client.infer("other", [tensor(some(1))]),
        "no such version": lambda: client.infer("small", [tensor(some(1))], model_version="9"),
        "the model takes [n, 3, 8, 8]": lambda: client.infer("small", [tensor(some(1)[:, :, :7])]),
        "known: logits": lambda: client.infer(
            "small", [tensor(some(1))], outputs=[triton.InferRequestedOutput("probs")]
        ),
        "NaN or infinite": lambda: client.infer("small", [tensor(some(1) * np.float32("nan"))]),
        "unknown parameter": lambda: client.infer("small", [tensor(some(1))], parameters={"depth": 1}),
        "the limit is 64": lambda: client.infer("small", [tensor(np.concatenate([some(64)] * 2))]),
        "Not Found": lambda: client.get_inference_statistics("small"),
    }
    for words, ask in bad.items():
        with pytest.raises(InferenceServerException, match=words.replace("[", r"\[")) as error:
            ask()
        assert error.value.status() in ("400", "404", "413")
    check(client.infer("small", [tensor(some(5))]), some(5))
