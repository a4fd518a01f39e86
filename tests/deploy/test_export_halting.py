"""An exported halting model answers as the model does; the one graph runs no segment that it need not run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
import timm
import torch

from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.export import halting as exports
from odn_hybrid.deploy.export.halting import export_halting
from odn_hybrid.deploy.export.halting_checking import check_export, distances
from odn_hybrid.deploy.export.halting_folder import write_manifest
from odn_hybrid.deploy.export.halting_graph import join_segments
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import ConfigError, ExportError, RunDirError
from odn_hybrid.exits import MultiExit
from odn_hybrid.runner import load
from odn_hybrid.runner.manifest import GRAPH
from odn_hybrid.stopping import NEVER, Calibration, HaltingTable
from odn_hybrid.trunk import Trunk

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, a graph per segment."""
    return export_halting(exporting.model(), tmp_path_factory.mktemp("export") / "segments")


def with_policy(exported: Path, folder: Path, policy: HaltingTable) -> Path:
    """The same graphs under another policy that looks at the same exits."""
    exporting.copied(exported, folder)
    write_manifest(folder, replace(load(exported).manifest, policy=policy))
    return folder


def as_one_graph(exported: Path, folder: Path, policy: HaltingTable) -> Path:
    exporting.copied(exported, folder)
    manifest = load(exported).manifest
    one = join_segments(folder, manifest.graphs, policy, manifest.exits)
    write_manifest(folder, replace(manifest, format=GRAPH, policy=policy, graphs=(one,)))
    return folder


# --- the same answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", exporting.POLICIES)
def test_segments_answer_as_the_model_at_any_batch_size(exported: Path, tmp_path: Path, name: str) -> None:
    model = exporting.model(**exporting.POLICIES[name])
    runner = load(with_policy(exported, tmp_path / "other", model.policy), threads=1)
    images = exporting.images()
    for rows in (images[:1], images[1:3], images[5:38], images):
        exporting.check_same(runner(rows.numpy()), model(rows))


@pytest.mark.parametrize("name", exporting.POLICIES)
def test_the_one_graph_answers_as_the_model(exported: Path, tmp_path: Path, name: str) -> None:
    model = exporting.model(**exporting.POLICIES[name])
    runner = load(as_one_graph(exported, tmp_path / "one", model.policy), threads=1)
    wanted = model(exporting.images())
    exporting.check_same(runner(exporting.images().numpy()), wanted)
    assert len(set(wanted.exit.tolist())) > 1
    if name == "recall":
        assert bool((wanted.answered != wanted.exit).any())


def test_segments_end_only_where_the_policy_looks(tmp_path: Path) -> None:
    policy = HaltingTable.of_thresholds([0.9, NEVER, 0.0], Calibration.of_temperatures([1.0] * 3))
    model = HaltingModel(exporting.network(), policy)
    path = export_halting(model, tmp_path / "two")
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "segment_1.onnx", "segment_3.onnx"]
    exporting.check_same(load(path)(exporting.images().numpy()), model(exporting.images()))


def test_a_policy_for_some_exits_of_the_network(tmp_path: Path) -> None:
    edge = float(np.median(exporting.policy().scores(exporting.logits())[:, 1]))
    policy = HaltingTable.of_thresholds([edge, 0.0], Calibration.of_temperatures([1.3, 0.8]))
    model = HaltingModel(exporting.network(), policy, exits=(2, 3))
    wanted = model(exporting.images())
    assert set(wanted.exit.tolist()) == {2, 3}
    for format in exports.HALTING_FORMATS:
        path = export_halting(model, tmp_path / format, format=format)
        exporting.check_same(load(path)(exporting.images().numpy()), wanted)


def test_the_manifest_says_what_was_exported(exported: Path) -> None:
    told = json.loads((exported / "manifest.json").read_text())
    assert (told["schema"], told["format"], told["classes"]) == (1, "onnx-segments", exporting.CLASSES)
    assert (told["exits"], told["units"], told["image_shape"]) == ([1, 2, 3], [1, 2, 3], [3, 8, 8])
    assert told["policy"] == exporting.policy().to_dict()
    assert [graph["file"] for graph in told["graphs"]] == [f"segment_{k}.onnx" for k in (1, 2, 3)]
    assert told["graphs"][0]["inputs"] == [{"name": "images", "shape": [3, 8, 8], "type": "float32"}]
    assert told["graphs"][0]["outputs"][1:] == told["graphs"][1]["inputs"]
    assert told["source"]["runtime"] == "eager fp32 cpu" and told["versions"]["onnxruntime"]
    assert told["checked"]["images"] > 0 and told["checked"]["largest_difference"] <= 1e-5
    assert str(exported) not in (exported / "manifest.json").read_text()
    for graph in told["graphs"]:
        assert b"/" + exporting.__name__.encode() not in (exported / graph["file"]).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "args"),
    [
        ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 3}),
        ("convnext_atto", 64, {"depths": (1, 1, 2, 1)}),
    ],
)
def test_other_families(tmp_path: Path, name: str, size: int, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=7, **args)
    trunk = Trunk(backbone, image_size=size)
    network = MultiExit(trunk, ExitConfig(every=len(trunk) // 2)).eval()
    images = torch.randn(24, 3, size, size)
    with torch.no_grad():
        logits = torch.stack(network(images), 1).numpy()
    policy = HaltingTable.of_thresholds(
        [0.5] * len(network), Calibration.of_temperatures([1.0] * len(network))
    )
    edges = np.median(policy.scores(logits), axis=0)
    model = HaltingModel(network, HaltingTable.of_thresholds(edges.tolist(), policy.calibration))
    for format in exports.HALTING_FORMATS:
        path = export_halting(model, tmp_path / format, format=format)
        out, wanted = load(path)(images.numpy()), model(images)
        logits_at = np.abs(wanted.logits.numpy()).max()
        same = out.exit == wanted.exit.numpy()  # the median of an even number lies half-way
        assert same.all() and np.abs(out.logits - wanted.logits.numpy()).max() <= 1e-5 * max(1.0, logits_at)


# --- the branch that is not taken ---------------------------------------------------------------------


def nodes_run(path: Path, image: np.ndarray, folder: Path) -> dict[str, int]:
    """How many convolutions of each segment onnxruntime ran for one image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {"images": image})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"]["op_name"] for event in events if event.get("name", "").endswith("_kernel_time")]
    return {kind: ran.count(kind) for kind in ("Conv", "FusedConv", "If")}


def test_what_lies_beyond_the_exit_taken_does_not_run(exported: Path, tmp_path: Path) -> None:
    folder = as_one_graph(exported, tmp_path / "one", exporting.policy())
    exits = exporting.model()(exporting.images()).exit.tolist()
    counts = {}
    for exit in (1, 2, 3):
        image = exporting.images()[exits.index(exit)][None].numpy()
        ran = nodes_run(folder / "halting.onnx", image, tmp_path)
        counts[exit] = (ran["Conv"] + ran["FusedConv"], ran["If"])
    # The stem and a convolution per unit; a decision at each exit but the last.
    assert counts == {1: (2, 1), 2: (3, 2), 3: (4, 2)}


@pytest.mark.parametrize("name", ["confidence", "entropy, agreement", "recall"])
def test_openvino_takes_the_one_graph(exported: Path, tmp_path: Path, name: str) -> None:
    openvino = pytest.importorskip("openvino")
    model = exporting.model(**exporting.POLICIES[name])
    folder = as_one_graph(exported, tmp_path / "one", model.policy)
    compiled = openvino.Core().compile_model(
        folder / "halting.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for image in exporting.images()[:24]:
        found, wanted = compiled({"images": image[None].numpy()}), model(image[None])
        assert found["exit"].tolist() == wanted.exit.tolist()
        np.testing.assert_allclose(found["logits"], wanted.logits.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(found["confidence"], wanted.confidence.numpy(), rtol=0, atol=1e-4)


# --- what cannot be exported --------------------------------------------------------------------------


def test_a_folder_in_use_and_an_unknown_format(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="exists and is not empty"):
        export_halting(exporting.model(), exported)
    with pytest.raises(ConfigError, match="'onnx-while'; a halting model is exported as one of"):
        export_halting(exporting.model(), tmp_path / "new", format="onnx-while")
    assert not (tmp_path / "new").exists()


def test_a_folder_named_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(export_halting(exporting.model(), Path("mine"))).manifest.graphs
    assert (tmp_path / "mine" / "manifest.json").is_file()


def test_an_export_that_answers_otherwise_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not exported: logits differ by .* allowed are 1e-12"):
        export_halting(exporting.model(), tmp_path / "strict", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_check_finds_another_networks_graphs(exported: Path) -> None:
    other = exporting.network().copy()
    with torch.no_grad():
        other.heads[0].fc.bias.add_(torch.tensor([0.001, 0, 0, 0, 0]))
    manifest = load(exported).manifest
    assert check_export(exported, manifest, exporting.network())["largest_difference"] < 1e-5
    with pytest.raises(ExportError, match=r"logits differ by 0\.000"):
        check_export(exported, manifest, other, tolerance=1e-5)


def test_a_check_finds_exits_that_no_threshold_excuses(exported: Path) -> None:
    other = exporting.network().copy()
    with torch.no_grad():
        other.heads[0].fc.bias.add_(torch.tensor([3.0, 0, 0, 0, 0]))
    with pytest.raises(ExportError, match=r"halts at another exit than in the model, .* nearest threshold"):
        check_export(exported, load(exported).manifest, other, images=exporting.images(), tolerance=math.inf)


def test_distance_from_being_decided_otherwise() -> None:
    policy = HaltingTable.of_thresholds([0.7, 0.0], Calibration.of_temperatures([1.0, 1.0]))
    sure = np.log([[[0.75, 0.25], [0.9, 0.1]], [[0.5, 0.5], [0.9, 0.1]]])
    found = distances(policy, sure, np.array([1, 1]), np.array([2, 2]))
    np.testing.assert_allclose(found, [0.05, 0.0], atol=1e-12)  # the second might have another answer


def test_the_export_is_the_models_even_if_it_is_double(tmp_path: Path) -> None:
    network = exporting.network().copy().double()
    model: Any = HaltingModel(network, exporting.policy())
    path = export_halting(model, tmp_path / "double")
    exporting.check_same(load(path)(exporting.images().numpy()), exporting.model()(exporting.images()))
    assert next(network.parameters()).dtype == torch.float64
