"""Every answer under load is the one that the runtime gives alone, and goes to whom it is for."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odn_hybrid as odn
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.stopping import Calibration, HaltingTable

httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytestmark = pytest.mark.timeout(600)

CLIENTS = 64
EACH = 32  # images that only one client has
MOST = 8  # images in a request
LEAVING = 0.35  # share of those who come to an exit that leaves there
TOLERANCE = 1e-4  # of logits: batches of another size have other last digits
NEAR = 1e-5  # a score so close to a threshold may fall on either side of it
READY = 300.0  # seconds, on a machine with much else to do
OUTPUTS = {"logits": "<f4", "confidence": "<f4", "exit": "<i8", "units_run": "<i8"}


@dataclass(frozen=True)
class Alone:
    """What the runtime says of every image, alone; `near`: a score of it is close to a threshold."""

    images: np.ndarray
    outputs: dict[str, np.ndarray]
    near: np.ndarray
    folder: Path


@pytest.fixture(scope="module")
def alone(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A tiny network that halts at all of its exits, saved, and its answers."""
    network = odn.fit(**tiny).network.eval()
    shape = network.trunk.image_shape
    images = np.random.default_rng(0).normal(size=(CLIENTS * EACH, *shape)).astype(np.float32)
    with torch.no_grad():
        logits = torch.stack(network(torch.from_numpy(images)), 1).numpy()
    flat = Calibration.of_temperatures([1.0] * len(network))
    scores = HaltingTable.of_thresholds([1.0] * len(network), flat).scores(logits)
    limits, going = [], np.arange(len(images))
    for column in range(len(network) - 1):
        limits.append(float(np.quantile(scores[going, column], 1 - LEAVING)))
        going = going[scores[going, column] < limits[-1]]
    model = HaltingModel(network, HaltingTable.of_thresholds([*limits, 0.0], flat))
    out = model(torch.from_numpy(images))
    outputs = {name: getattr(out, name).numpy() for name in OUTPUTS}
    assert len(np.unique(outputs["exit"])) == len(network) >= 3
    # Nobody could take another's answer for his own.
    assert len(np.unique(np.round(outputs["logits"] / (10 * TOLERANCE)), axis=0)) == len(images)
    near = (np.abs(scores[:, :-1] - limits) < NEAR).any(1)
    folder = odn.save(model, tmp_path_factory.mktemp("served") / "model")
    return Alone(images, outputs, near, folder)


@pytest.fixture(scope="module")
def url(alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server process of that model."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    command = [sys.executable, "-m", "odn_hybrid.cli", "serve", f"model={alone.folder}"]
    command += ["--uncertified", "--port", "0", "--threads", "1", "--max-batch", "32"]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            found = re.search(r"http://[\w.:]+", server.stdout.readline())
            assert found, log.read_text()
            until = time.monotonic() + READY
            while not _ready(found[0]):
                assert server.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.05)
            yield found[0]
        finally:
            server.terminate()
        assert server.wait(60) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


def _ready(url: str) -> bool:
    try:
        return bool(httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200)
    except httpx.TransportError:
        return False


# --- clients ------------------------------------------------------------------------------------------


class Client:
    """Knows some images that nobody else has, and checks every answer at once."""

    def __init__(self, number: int, alone: Alone, url: str) -> None:
        self.number, self.alone, self.url = number, alone, url
        self.random = np.random.default_rng([1, number])
        self.images = self.differ = 0

    async def ask(self, http: Any, count: int) -> None:
        for k in range(count):
            rows = self.number * EACH + self.random.choice(EACH, int(self.random.integers(1, MOST + 1)))
            self._check(rows, *await self._answer(http, rows, f"{self.number}-{k}"))
            self.images += len(rows)

    async def _answer(self, http: Any, rows: np.ndarray, name: str) -> tuple[dict[str, Any], bytes]:
        pixels = self.alone.images[rows]
        size = {"binary_data_size": pixels.nbytes}
        tensor = {"name": "images", "datatype": "FP32", "shape": pixels.shape, "parameters": size}
        wanted = [{"name": output, "parameters": {"binary_data": True}} for output in OUTPUTS]
        head = json.dumps({"id": name, "inputs": [tensor], "outputs": wanted}).encode()
        answer = await http.post(
            f"{self.url}/v2/models/model/infer",
            content=head + pixels.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(head))},
        )
        assert answer.status_code == 200, answer.text
        length = int(answer.headers["Inference-Header-Content-Length"])
        told = json.loads(answer.content[:length])
        assert told["id"] == name
        return told, answer.content[length:]

    def _check(self, rows: np.ndarray, told: dict[str, Any], data: bytes) -> None:
        found, at = {}, 0
        for output in told["outputs"]:
            size = output["parameters"]["binary_data_size"]
            array = np.frombuffer(data[at : at + size], dtype=OUTPUTS[output["name"]])
            found[output["name"]] = array.reshape(output["shape"])
            at += size
        assert at == len(data) and set(found) == set(OUTPUTS)
        expected = {name: values[rows] for name, values in self.alone.outputs.items()}
        same = found["exit"] == expected["exit"]
        assert (same | self.alone.near[rows]).all()
        self.differ += int((~same).sum())
        np.testing.assert_array_equal(found["units_run"][same], expected["units_run"][same])
        for name in ("logits", "confidence"):
            np.testing.assert_allclose(found[name][same], expected[name][same], atol=TOLERANCE, rtol=0)


async def _load(clients: list[Client], count: int) -> None:
    """All at once, each on a connection of its own."""
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(_one(client, count))


async def _one(client: Client, count: int) -> None:
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=100) as http:
        await client.ask(http, count)


def _counted(url: str) -> Counter[str]:
    """What the server has counted, over all labels."""
    found: Counter[str] = Counter()
    for line in httpx.get(f"{url}/metrics", trust_env=False).text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            found[name.partition("{")[0]] += float(value)  # type: ignore[assignment]
    return found


def _check(alone: Alone, url: str, requests: int) -> None:
    before = _counted(url)
    clients = [Client(number, alone, url) for number in range(CLIENTS)]
    asyncio.run(_load(clients, -(-requests // CLIENTS)))
    after = _counted(url)
    after.subtract(before)
    assert after["odn_requests_answered_total"] == CLIENTS * -(-requests // CLIENTS) >= requests
    assert after["odn_images_answered_total"] == sum(client.images for client in clients)
    assert after["odn_refusals_total"] == 0
    # Requests were batched with others', or this would show little.
    assert after["odn_batch_images_sum"] > (MOST + 1) / 2 * after["odn_batch_images_count"]
    differ = sum(client.differ for client in clients)
    print(
        f"{differ} exits differ; {alone.near.sum()} of {len(alone.near)} images have a score near a threshold"
    )


def test_answers_of_500_requests_of_64_clients_are_those_of_the_runtime_alone(alone: Alone, url: str) -> None:
    _check(alone, url, 500)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_answers_of_20_000_requests_of_64_clients_are_those_of_the_runtime_alone(
    alone: Alone, url: str
) -> None:
    _check(alone, url, 20_000)
