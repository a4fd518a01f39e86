"""Answers that segments give in any groups are those of the model they are segments of."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from staging import through
from torch import Tensor

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.export.halting import export_halting
from odn_hybrid.errors import InputError
from odn_hybrid.execution import Execution
from odn_hybrid.runner import RunnerOutput
from odn_hybrid.runner import load as load_runner
from odn_hybrid.serve.stages.exported import ExportedStages
from odn_hybrid.serve.stages.halting import HaltingStages
from odn_hybrid.serve.stages.plain import PlainStages
from odn_hybrid.serve.stages.states import gathered_states
from odn_hybrid.stopping import Calibration, HaltingTable
from odn_hybrid.trunk import State

SEEDS = st.integers(0, 10_000)


def same(found: RunnerOutput, wanted: RunnerOutput) -> None:
    """Answers are the same; digits move with the batch size by which kernels are chosen."""
    np.testing.assert_array_equal(found.exit, wanted.exit)
    np.testing.assert_array_equal(found.answered, wanted.answered)
    np.testing.assert_array_equal(found.units_run, wanted.units_run)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.confidence, wanted.confidence, rtol=0, atol=1e-5)
    assert found.certified == wanted.certified


def plainly(output: Any) -> RunnerOutput:
    """What a halting model gives, in numpy."""
    parts = [getattr(output, name) for name in ("logits", "exit", "units_run", "confidence")]
    return RunnerOutput(*(part.numpy() for part in parts), output.certified, output.answered.numpy())


# --- halting models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exporting.POLICIES)
@given(SEEDS)
@settings(max_examples=15)
def test_segments_answer_as_the_halting_model(name: str, seed: int) -> None:
    model = exporting.model(**exporting.POLICIES[name])
    images = exporting.images()
    wanted = plainly(model(images))
    assert len(set(wanted.exit.tolist())) > 1
    stages = HaltingStages(model)
    same(through(stages, images.numpy()), wanted)
    same(through(stages, images.numpy(), np.random.default_rng(seed)), wanted)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"embed_dim": 48, "num_heads": 3, "depth": 4}),
    "shared tables": ("vit_small_patch16_rope_mixed_224", {"embed_dim": 48, "num_heads": 3, "depth": 4}),
    "maps, channels last": ("resnet18", {"channels": [4, 8, 8, 12]}),
}


@cache
def network_of(name: str) -> tuple[MultiExit, Tensor, Any]:
    """A network, forty images, and the logits of all exits on them."""
    torch.manual_seed(0)
    timm_name, options = NETWORKS[name]
    sized = {} if "resnet" in timm_name else {"img_size": 32}
    model = timm.create_model(timm_name, num_classes=6, **sized, **options)
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(every=2)).eval()
    images = torch.randn(40, 3, 32, 32) * torch.linspace(0.1, 3, 40)[:, None, None, None]
    with torch.no_grad():
        for head in network.heads:
            for weight in head.parameters():
                weight.mul_(8)
        return network, images, torch.stack(network(images), 1).numpy()


def parting(logits: Any, *, recall: bool) -> HaltingTable:
    """A policy that stops a third at every exit; edges lie half-way between two inputs' scores."""
    exits = logits.shape[1]
    flat = Calibration.of_temperatures([1.0] * exits)
    kept = tuple([0.0, -0.1, 0.05, 0.0][:exits]) if recall else None
    table = HaltingTable.of_thresholds([0.5] * exits, flat, "margin", recall=kept)
    scores = np.sort(table.scores(logits), axis=0)
    gaps = np.diff(scores[20:35], axis=0).argmax(0) + 20
    edges = [float(scores[gap : gap + 2, k].mean()) for k, gap in enumerate(gaps)]
    return HaltingTable.of_thresholds(edges, flat, "margin", recall=kept)


@pytest.mark.parametrize(
    "execution", [Execution(), Execution(fold=True), Execution(precision="bf16")], ids=str
)
@pytest.mark.parametrize("recall", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_whose_state_is_more_than_one_tensor(name: str, recall: bool, execution: Execution) -> None:
    network, images, logits = network_of(name)
    made = network.copy().fold() if execution.fold else network.copy()
    model = HaltingModel(made, parting(logits, recall=recall), execution=execution)
    stages = HaltingStages(model)
    wanted = plainly(model(images))
    found = through(stages, images.numpy(), np.random.default_rng(1))
    if execution.precision != "fp32":  # three digits: inputs near an edge may stop elsewhere
        assert (found.exit == wanted.exit).mean() > 0.8
        alike = found.exit == wanted.exit
        np.testing.assert_allclose(found.logits[alike], wanted.logits[alike], rtol=0.1, atol=0.5)
        return
    assert len(set(wanted.exit.tolist())) > 1
    same(found, wanted)


def test_what_stands_around_the_caller_changes_nothing() -> None:
    model = exporting.model()
    stages, images = HaltingStages(model), exporting.images().numpy()
    wanted = through(stages, images)
    read_only = images.copy()
    read_only.setflags(write=False)  # as the bodies of requests are
    for around in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode(), torch.enable_grad()):
        with around:
            found = through(stages, read_only)
        np.testing.assert_array_equal(found.logits, wanted.logits)


def test_a_part_that_is_kept_does_not_keep_the_rest() -> None:
    stages = HaltingStages(exporting.model())
    held = stages.enter(exporting.images().numpy())
    after, _ = stages.step(0, held)
    some = stages.gather([(after, np.arange(3, dtype=np.intp))], 1)
    assert some.x.untyped_storage().nbytes() * 10 < after.x.untyped_storage().nbytes()
    first = stages.gather([(held, np.arange(3, dtype=np.intp))], 0)
    assert first.base is None or first.base.nbytes < held.nbytes
    whole = stages.gather([(after, np.arange(64, dtype=np.intp))], 1)
    assert whole.x.data_ptr() == after.x.data_ptr()  # and nothing is copied for nothing


@pytest.mark.parametrize("last", [False, True])
def test_rows_are_joined_in_their_own_memory_format(last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    states = [
        State(
            torch.rand(5, 3, 4, 4).contiguous(memory_format=layout),
            2,
            (torch.rand(5, 7), torch.rand(5, 2, 6)),
        )
        for _ in range(3)
    ]
    rows = [np.array(r, dtype=np.intp) for r in ([0, 1, 2, 3, 4], [4, 0, 3], [1, 2])]
    found = gathered_states(list(zip(states, rows, strict=True)))
    wanted = State.cat([state.select(torch.tensor(r)) for state, r in zip(states, rows, strict=True)])
    assert torch.equal(found.x, wanted.x) and found.x.stride() == wanted.x.stride() and found.depth == 2
    assert all(map(torch.equal, found.streams, wanted.streams))
    odd = [State(state.x.transpose(2, 3), 2) for state in states]  # of no format that we know
    assert torch.equal(gathered_states(list(zip(odd, rows, strict=True))).x, wanted.x.transpose(2, 3))
    with pytest.raises(InputError, match="different depths"):
        gathered_states([(states[0], rows[0]), (State(states[1].x, 3), rows[1])])


def test_shares_are_those_of_the_certification_images() -> None:
    model = exporting.model()
    assert HaltingStages(model).shares == pytest.approx((1, 2 / 3, 1 / 3))
    model.reference = (np.full(10, 0.5), np.array([1] * 5 + [2] * 3 + [3] * 2))
    assert HaltingStages(model).shares == pytest.approx((1, 0.5, 0.2))
    assert HaltingStages(model, shares=(1, 0.1, 0.1)).shares == (1, 0.1, 0.1)


# --- exports -----------------------------------------------------------------------------------------


def exported(model: HaltingModel, folder: Path) -> Any:
    """Its runner."""
    pytest.importorskip("onnxruntime")
    export_halting(model, folder, format="onnx-segments")
    return load_runner(folder, threads=1)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return exported(exporting.model(score="streak"), tmp_path_factory.mktemp("exports") / "streak")


@given(SEEDS)
@settings(max_examples=15)
def test_exported_segments_answer_as_the_runner(export: Any, seed: int) -> None:
    images = exporting.images().numpy()
    wanted = export(images)
    assert len(set(wanted.exit.tolist())) > 1
    stages = ExportedStages(export)
    same(through(stages, images), wanted)
    same(through(stages, images, np.random.default_rng(seed)), wanted)


def test_an_export_of_a_class_token_with_recall(tmp_path: Path) -> None:
    network, images, logits = network_of("class token")
    model = HaltingModel(network.copy(), parting(logits, recall=True))
    runner = exported(model, tmp_path / "vit")
    same(through(ExportedStages(runner), images.numpy(), np.random.default_rng(0)), runner(images.numpy()))


# --- plain models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_model_is_one_segment_in_which_all_stop(name: str) -> None:
    network, images, _ = network_of(name)
    scale = Calibration("vector", np.full((1, 6), 0.7), np.linspace(-0.1, 0.1, 6)[None])
    stages = PlainStages(
        network.backbone, image_shape=(3, 32, 32), classes=6, exit=2, units=4, calibration=scale
    )
    found = through(stages, images.numpy(), np.random.default_rng(0))
    with torch.no_grad():
        wanted = network.backbone(images)
    np.testing.assert_allclose(found.logits, wanted.numpy(), rtol=0, atol=2e-5)
    assert set(found.exit.tolist()) == {2} and set(found.units_run.tolist()) == {4}
    sure = (wanted * 0.7 + torch.linspace(-0.1, 0.1, 6)).softmax(1)
    given = sure.gather(1, wanted.argmax(1, keepdim=True))[:, 0]
    np.testing.assert_allclose(found.confidence, given.numpy(), rtol=0, atol=1e-5)
    assert not found.certified and stages.shares == (1.0,)


# --- all of them -------------------------------------------------------------------------------------


def test_times_are_of_every_segment_at_every_size(export: Any) -> None:
    network, *_ = network_of("maps, channels last")
    kinds: list[Any] = [
        HaltingStages(exporting.model()),
        ExportedStages(export),
        PlainStages(network.backbone, image_shape=(3, 32, 32), classes=6, exit=1, units=8),
    ]
    for stages in kinds:
        times = stages.measure(6)
        count = len(stages.numbers)
        assert times.sizes == (1, 2, 4, 6) and times.form == stages.runtime
        assert len(times.segments) == len(times.gathers) == count == len(stages.shares)
        assert all(value > 0 for row in times.segments for value in row)
        assert times.gathers[-1] == (0.0,) * 4
        stages.close()
