"""Static models as files of other runtimes: the same answers there, described as they are, or an error."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid import MultiExit, Run, Trunk
from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.config import ExitConfig
from odn_hybrid.data import make_loader
from odn_hybrid.deploy.export import static
from odn_hybrid.deploy.export.graphs import difference, write_onnx
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError, ExportError, ModelError, OdnError, RunDirError, StorageError
from odn_hybrid.fitting import fit

ROOT = Path(__file__).resolve().parents[2]
WITHIN = {"pt2": 1e-5, "onnx": 1e-5, "openvino": 1e-4, "timm": 1e-4}


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {**tiny["overrides"], "expansion.max_looks": 12}
    return fit(**{**tiny, "overrides": overrides}, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def exports(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exit 2 of the run in a format, exported once."""
    folder, made = tmp_path_factory.mktemp("exports"), {}

    def get(format: str) -> Path:
        if format not in made:
            made[format] = odn.export(run, folder / format, format, exit=2)
        return made[format]  # type: ignore[no-any-return]

    return get


def some_images(n: int, *shape: int) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "export.json").read_text())  # type: ignore[no-any-return]


def opened(folder: Path, format: str) -> Callable[[Tensor], np.ndarray]:
    """What a user does with the files, without us."""
    if format == "pt2":
        program = torch.export.load(folder / "model.pt2").module()
        return lambda images: program(images).detach().numpy()  # type: ignore[no-any-return]
    if format == "openvino":
        compiled = openvino.Core().compile_model(
            folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return lambda images: np.asarray(compiled({"images": images.numpy()})["logits"])
    if format == "timm":
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        return lambda images: model(images).detach().numpy()  # type: ignore[no-any-return]
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]  # type: ignore[no-any-return]


def network(name: str, size: int, config: ExitConfig | None = None, **args: Any) -> MultiExit:
    torch.manual_seed(0)
    model = build_backbone(BackboneSpec(library="timm", name=name, args=args, num_classes=3)).eval()
    with torch.no_grad():  # statistics and weights of an untrained network say too little
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
        if hasattr(model, "pos_embed"):  # a trained one's states are that large, see docs/exporting.md
            model.pos_embed.normal_()
    return MultiExit(Trunk(model, image_size=size), config).eval()


RESNET = {"layers": [2, 2, 1, 1], "channels": [8, 16, 16, 24]}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}


# --- the same answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino"])
def test_files_answer_as_the_model_at_any_batch_size(
    run: Run, exports: Callable[[str], Path], format: str
) -> None:
    model, answer = run.truncate(depth=run.exits_[1]["units"]), opened(exports(format), format)
    for size in (1, 2, 7, 33):
        images = some_images(size, 1, 12, 12)
        with torch.no_grad():
            assert difference(answer(images), model(images)) <= WITHIN[format]


@pytest.mark.parametrize(
    ("name", "size", "config", "args"),
    [
        ("resnet18", 16, ExitConfig(head="grid", args={"grid": 2, "rank": 4, "hidden": 8}), RESNET),
        ("resnet18", 16, ExitConfig(plan="thin"), RESNET),
        ("vit_tiny_patch16_224", 32, ExitConfig(head="attention"), VIT),
    ],
    ids=["grid", "thin", "attention"],
)
def test_other_heads_and_thin_networks(
    name: str, size: int, config: ExitConfig, args: dict[str, Any], tmp_path: Path
) -> None:
    model = truncate(network(name, size, config, **args), 2).eval()
    folder = odn.export(model, tmp_path / "out")
    images = some_images(5, 3, size, size)
    with torch.no_grad():
        assert difference(opened(folder, "onnx")(images), model(images)) <= 1e-5


def test_a_folded_model_is_exported_as_it_is(tmp_path: Path) -> None:
    model = truncate(network("resnet18", 16, **RESNET), 3, fold=True).eval()
    folder = odn.export(model, tmp_path / "out", "pt2")
    images = some_images(5, 3, 16, 16)
    with torch.no_grad():
        assert difference(opened(folder, "pt2")(images), model(images)) <= 1e-5
    assert manifest(folder)["units"] == 3


def test_inputs_that_do_not_grow_with_the_batch(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return tensors[0] * tensors[1]

    write_onnx(
        Scaled(),
        (torch.rand(2, 3), torch.rand(1, 3)),
        tmp_path / "scaled.onnx",
        input_names=["x", "table"],
        output_names=["y"],
        batched=[True, False],
    )
    session = onnxruntime.InferenceSession(tmp_path / "scaled.onnx", providers=["CPUExecutionProvider"])
    x, table = np.ones((5, 3), np.float32), np.full((1, 3), 2, np.float32)
    assert np.array_equal(session.run(None, {"x": x, "table": table})[0], 2 * x)


# --- what is said of it -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino", "onnx-int8"])
def test_the_manifest_says_what_was_exported(run: Run, exports: Callable[[str], Path], format: str) -> None:
    folder, row = exports(format), run.exits_[1]
    said = manifest(folder)
    assert (said["schema"], said["format"], said["kind"]) == (1, format, "static")
    assert (said["exit"], said["units"], said["classes"]) == (2, row["units"], 3)
    assert said["image_shape"] == [1, 12, 12]
    assert said["preprocess"] == run.transform.to_dict()
    assert said["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {file["file"] for file in said["files"]} == {path.name for path in folder.iterdir()} - {
        "export.json"
    }
    for file in said["files"]:
        content = (folder / file["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    if format != "onnx-int8":
        assert said["accuracy"] == row["accuracy"]
        assert said["checked"]["batches"] == [1, 3, 16]
        assert 0 <= said["checked"]["difference"] <= WITHIN[format]


def test_the_accuracy_of_eight_bits_is_measured(run: Run, exports: Callable[[str], Path]) -> None:
    folder = exports("onnx-int8")
    said, answer = manifest(folder), opened(folder, "onnx")
    run.use_data(None)
    assert run.data is not None
    assert said["calibration"]["digest"] == run.data.splits["calibration"].digest
    for name in ("selection", "test"):
        split = run.data.splits[name]
        got = np.concatenate(
            [answer(x).argmax(1) for x, _, _ in make_loader(split, run.transform, batch_size=50)]
        )
        found = said["accuracy"][name]
        assert found["value"] == pytest.approx((got == split.labels).mean())
        assert found["n"] == len(split) and found["low"] < found["value"] <= found["high"] <= 1
        assert said["accuracy_fp32"][name]["value"] == pytest.approx(run.exits_[1]["accuracy"][name]["value"])
        assert abs(found["value"] - said["accuracy_fp32"][name]["value"]) <= 1 - said["agreement"][name]


def test_weights_of_eight_bits_are(exports: Callable[[str], Path]) -> None:
    graph = onnx.load(exports("onnx-int8") / "model.onnx").graph
    weights = [value for value in graph.initializer if len(value.dims) == 4]
    assert weights and all(value.data_type == onnx.TensorProto.INT8 for value in weights)


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino", "onnx-int8"])
def test_files_name_no_path_of_this_machine(exports: Callable[[str], Path], format: str) -> None:
    for path in exports(format).iterdir():
        content = path.read_bytes()
        for place in (str(ROOT), str(Path(torch.__file__).parent), str(path.parent)):
            assert place.encode() not in content, path.name
    if format == "pt2":
        with zipfile.ZipFile(exports(format) / "model.pt2") as archive:
            assert not any(b"stack_trace" in archive.read(name) for name in archive.namelist())


def test_a_program_of_torch_holds_no_pickle(
    exports: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exports("pt2") / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (examples,) = (content for name, content in files.items() if "sample_inputs" in name)
    assert examples == b""
    (weights,) = (content for name, content in files.items() if name.endswith("weights_config.json"))
    assert {entry["use_pickle"] for entry in json.loads(weights)["config"].values()} == {False}

    def unpickles(*_: Any, **__: Any) -> None:
        raise AssertionError("something is unpickled")

    for place, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(place, name, unpickles)
    torch.export.load(path)


# --- in timm's words --------------------------------------------------------------------------------

CASES = {
    "stage": ("resnet18", 32, "prefix", 3, RESNET),
    "last stage": ("resnet18", 32, "prefix", 5, RESNET),
    "whole": ("resnet18", 32, "prefix", 6, RESNET),
    "thin": ("resnet18", 32, "thin", 1, RESNET),
    "vit": ("vit_tiny_patch16_224", 32, "prefix", 2, VIT),
    "thin vit": ("vit_tiny_patch16_224", 32, "thin", 2, VIT),
}


@pytest.mark.parametrize("case", list(CASES))
def test_timm_loads_it(case: str, tmp_path: Path) -> None:
    name, size, plan, exit, args = CASES[case]
    model = truncate(network(name, size, ExitConfig(plan=plan), **args), exit).eval()
    folder = odn.export(model, tmp_path / "timm", "timm")
    images = some_images(4, 3, size, size)
    with torch.no_grad():
        assert difference(opened(folder, "timm")(images), model(images)) <= 1e-4

    odn.save(model, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "model.json").read_text())["timm"]
    twin = timm.create_model(said["name"], **said["kwargs"]).eval()
    twin.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    with torch.no_grad():
        assert difference(twin(images).numpy(), model(images)) <= 1e-4
    ours, timms = load_file(tmp_path / "saved" / "model.safetensors"), twin.state_dict()
    for key, value in ours.items():
        start = next((start for start in said["renamed"] if key.startswith(start)), "")
        other = said["renamed"].get(start, "") + key.removeprefix(start)
        assert torch.equal(timms.pop(other), value)
    assert not timms


@pytest.mark.parametrize(
    ("config", "exit", "why"),
    [
        (ExitConfig(head="grid"), 3, "no head like the exit head 'grid'"),
        (ExitConfig(), 1, "timm cannot build it"),  # one block in all, by whose number timm divides
    ],
)
def test_what_timm_cannot_express_is_refused_by_name(
    config: ExitConfig, exit: int, why: str, tmp_path: Path
) -> None:
    model = truncate(network("resnet18", 32, config, **RESNET), exit).eval()
    with pytest.raises(ModelError, match=f"timm cannot express this model.*{why}"):
        odn.export(model, tmp_path / "timm", "timm")
    assert not (tmp_path / "timm").exists()
    odn.save(model, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "model.json").read_text())
    assert said["timm"] is None and why in said["no_timm"]


# --- what is refused --------------------------------------------------------------------------------


def small_model() -> nn.Module:
    return truncate(network("resnet18", 16, **RESNET), 2).eval()


def refused(kind: type[OdnError], match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        odn.export(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_bad_arguments(run: Run, tmp_path: Path) -> None:
    model, halting, out = small_model(), run.dynamic(certify=False), tmp_path / "out"
    refused(ConfigError, "unknown format 'tflite'; choose one of pt2, onnx", model, out, "tflite")
    refused(ConfigError, r"run\.truncate\(\)", halting, out, "onnx")
    refused(ConfigError, r"run\.dynamic\(\)", run, out, "onnx-segments")
    refused(ConfigError, r"run\.dynamic\(\)", model, out, "onnx-if")
    refused(ConfigError, "depth is for runs", model, out, depth=2)
    refused(ConfigError, "one thing at a time", run, out, exit=1, depth=2)
    refused(ConfigError, "there is no exit 9", run, out, exit=9)
    refused(ConfigError, "exit is 'two'", run, out, exit="two")
    refused(ConfigError, "cannot export a Linear", nn.Linear(2, 2), out)
    refused(ConfigError, "cannot export a dict", {}, out)
    refused(ConfigError, "export the run", model, out, "onnx-int8")
    refused(ConfigError, r"bfloat16.*model\.float\(\)", small_model().bfloat16(), out)
    assert not out.exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    refused(RunDirError, "is not empty", small_model(), tmp_path)
    refused(RunDirError, "is not empty", small_model(), tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("library", "format"),
    [("onnx", "onnx"), ("onnxscript", "onnx"), ("onnxruntime", "onnx"), ("openvino", "openvino")],
)
def test_a_missing_library_is_named(
    library: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    refused(ConfigError, rf"needs {library}.*odn-hybrid\[export\]", small_model(), tmp_path / "o", format)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino"])
def test_files_that_answer_otherwise_are_taken_away(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = static.WRITERS[format]

    def wrong(model: nn.Module, images: Tensor, folder: Path) -> Callable[[Tensor], np.ndarray]:
        run = write(model, images, folder)
        return lambda batch: run(batch) + np.float32(1e-3)

    monkeypatch.setitem(static.WRITERS, format, wrong)
    refused(ExportError, "differ from the model's by 0.001", small_model(), tmp_path / "a" / "b", format)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 8 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino", "timm"])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_refuses_leaves_nothing(format: str, tmp_path: Path) -> None:
    with pytest.raises((StorageError, ExportError)) as caught:
        odn.export(small_model(), tmp_path / "out", format)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- the command line -------------------------------------------------------------------------------


def test_odn_export(run: Run, odn: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, out, err = odn("export", str(run.path), str(tmp_path / "a"), "--depth", "2", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == manifest(tmp_path / "a")
    assert json.loads(out)["units"] == 2
    status, out, _ = odn("export", str(run.path), str(tmp_path / "b"), "--format", "pt2", "--exit", "1")
    assert status == 0
    assert re.search(r"b: pt2, 1 files?, .* MB, exit 1 \(1 units?\); logits within", out)


def test_odn_export_refuses(run: Run, odn: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    folder = str(run.path)
    for arguments, status, text in (
        (("--format", "tflite"), 2, "unknown format"),
        (("--format", "onnx-if", "--depth", "2"), 2, "--depth is for static models"),
        (("--drop", "0.1"), 2, "--drop is for dynamic models"),
        (("--depth", "77"), 1, "no exit after 77 units"),
    ):
        got = odn("export", folder, str(tmp_path / "x"), *arguments)
        assert got[0] == status and text in got[2] and got[2].count("\n") == 1
    assert not (tmp_path / "x").exists()
