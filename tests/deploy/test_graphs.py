"""Halting by CUDA graphs, on a GPU: the answers of the CPU, at any size and from threads, in fixed memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.halting.graphflow import GraphFlow
from odn_hybrid.errors import InputError
from odn_hybrid.execution import Execution
from odn_hybrid.stopping import Calibration, HaltingTable

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


@pytest.fixture(scope="module", params=["resnet18", "vit"])
def made(request: pytest.FixtureRequest) -> tuple[MultiExit, HaltingTable, Tensor, np.ndarray]:
    """A network on the GPU, thresholds amid its confidences, images, and the scores of every exit on them."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if request.param == "resnet18":
        model = timm.create_model("resnet18", num_classes=6, channels=[16, 16, 32, 32])
    else:
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=48, num_heads=3, depth=4, num_classes=6
        )
    every = 2 if request.param == "resnet18" else 1
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(every=every)).eval()
    with torch.no_grad():
        for head in network.heads:
            head.fc.weight.mul_(8)  # type: ignore[union-attr, operator]
        images = torch.rand(256, 3, 32, 32) * torch.rand(256, 3, 1, 1)
        logits = torch.stack(network(images), 1).numpy()
    flat = Calibration.of_temperatures([1.0] * len(network))
    scores = HaltingTable.of_thresholds([1.0] * len(network), flat).scores(logits)
    limits = [float(np.median(scores[:, k])) for k in range(len(network))]
    return network.cuda(), HaltingTable.of_thresholds(limits, flat), images.cuda(), scores


def check(model: HaltingModel, images: Tensor, scores: np.ndarray) -> None:
    out = model(images)
    limits = np.array([row[0][0][0] if row[0][0] else 0.0 for row in model.policy.rows])
    taken = np.argmax((scores >= limits) | (np.arange(len(limits)) == len(limits) - 1), axis=1) + 1
    near = (np.abs(scores - limits)[:, :-1] < 1e-4).any(1)  # kernels differ from the CPU's in last digits
    assert ((out.exit.cpu().numpy() == taken) | near).all()
    assert near.mean() < 0.05


def test_graphs_answer_as_the_cpu_does(made: tuple[MultiExit, HaltingTable, Tensor, np.ndarray]) -> None:
    network, table, images, scores = made
    model = HaltingModel(network.copy(), table)
    random = np.random.default_rng(0)
    for size in [256, 1, 7, 64, *random.integers(1, 257, 30).tolist()]:
        rows = random.integers(0, 256, size)
        check(model, images[torch.from_numpy(rows).cuda()], scores[rows])
    assert isinstance(next(iter(model._flows._made.values())), GraphFlow)


def test_bad_images_leave_nothing_behind(made: tuple[MultiExit, HaltingTable, Tensor, np.ndarray]) -> None:
    network, table, images, scores = made
    model = HaltingModel(network.copy(), table)
    spoiled = images[:9].clone()
    spoiled[8, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        model(spoiled)
    check(model, images[:5], scores[:5])
    with pytest.raises(InputError, match="cpu; the model is"):
        model(images[:2].cpu())


def test_memory_is_fixed_after_warming_up(made: tuple[MultiExit, HaltingTable, Tensor, np.ndarray]) -> None:
    network, table, images, _ = made
    model = HaltingModel(network.copy(), table)
    model.warm_up((1, 64), rounds=2)
    random = np.random.default_rng(1)
    sizes = random.integers(1, 65, 2000).tolist()
    model(images[:64])
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    for size in sizes:
        model(images[:size])
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == reserved


def test_two_threads_on_streams_of_their_own(
    made: tuple[MultiExit, HaltingTable, Tensor, np.ndarray],
) -> None:
    network, table, images, scores = made
    model = HaltingModel(network.copy(), table)
    model.warm_up((64,), rounds=2)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(100):
                rows = random.integers(0, 256, int(random.integers(1, 65)))
                check(model, images[torch.from_numpy(rows).cuda()], scores[rows])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))  # raises what a thread raised


def test_bf16_and_compiled(made: tuple[MultiExit, HaltingTable, Tensor, np.ndarray]) -> None:
    network, table, images, _ = made
    plain = HaltingModel(network.copy(), table)(images)
    for execution in (Execution(precision="bf16"), Execution(compile=True)):
        model = HaltingModel(network.copy(), table, execution=execution)
        for size in (256, 33, 1):
            out = model(images[:size])
            same = (out.exit == plain.exit[:size]).float().mean()
            assert float(same) > 0.9
