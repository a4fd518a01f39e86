"""What a user keeps comes back as it was, or says in one line why it does not."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid import HaltingModel, MultiExit, Run, Trunk
from odn_hybrid.errors import ConfigError, ModelError, OdnError, RunDirError, StorageError
from odn_hybrid.fitting import fit
from odn_hybrid.stopping import Calibration, HaltingTable

MODEL, WEIGHTS, EXITS = "model.json", "model.safetensors", "exits.safetensors"
SAME: dict[str, float] = {"rtol": 1e-5, "atol": 1e-5}  # the memory format, and so the kernels, may differ


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    overrides = {**tiny["overrides"], "expansion.max_looks": 12}
    return fit(**{**tiny, "overrides": overrides}, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def images(run: Run) -> Tensor:
    return run.transform(np.random.default_rng(0).integers(0, 256, (9, 12, 12), dtype=np.uint8))


@pytest.fixture(scope="module")
def saved(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each kind, not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    assert run.path is not None
    return {
        "run": run.path,
        "static": odn.save(run.truncate(depth=2), folder / "static"),
        "halting": odn.save(run.dynamic(certify=False, gather="always"), folder / "halting"),
    }


@pytest.fixture
def damaged(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a directory, to be damaged."""

    def make(kind: str) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / kind))

    return make


# --- round trips ------------------------------------------------------------------------------------


def test_static_models(run: Run, images: Tensor, saved: dict[str, Path]) -> None:
    before, after = run.truncate(depth=2), odn.load(saved["static"])
    assert isinstance(after, timm.models.ResNet)
    assert not after.training
    assert list(after.state_dict()) == list(before.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(after(images), before(images), **SAME)
    assert after.transform == run.transform


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_comes_back_in_the_precision_that_it_was_saved_in(
    run: Run, images: Tensor, dtype: torch.dtype, tmp_path: Path
) -> None:
    before = run.truncate(depth=2).to(dtype)
    odn.save(before, tmp_path / "saved")
    after = odn.load(tmp_path / "saved")
    assert isinstance(after, nn.Module)
    assert {v.dtype for v in after.parameters()} == {dtype}
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(after(images.to(dtype)), before(images.to(dtype)), rtol=1e-2, atol=1e-2)


def test_halting_models(run: Run, images: Tensor, saved: dict[str, Path]) -> None:
    before, after = run.dynamic(certify=False, gather="always"), odn.load(saved["halting"])
    assert isinstance(after, HaltingModel)
    assert (after.policy, after.gather, after.certificate) == (before.policy, "always", before.certificate)
    one, two = before(images), after(images)
    torch.testing.assert_close(one.logits, two.logits, **SAME)
    assert torch.equal(one.exit, two.exit)
    assert after.transform == run.transform
    assert after.reference is not None and before.reference is not None
    assert all((a == b).all() for a, b in zip(after.reference, before.reference, strict=True))


def test_a_certificate_is_void_for_other_weights_or_another_table(
    run: Run, images: Tensor, tmp_path: Path
) -> None:
    fast = run.dynamic(drop=0.5, delta=0.2)
    path = odn.save(fast, tmp_path / "certified")
    assert odn.load(path)(images).certified is True
    description = json.loads((path / MODEL).read_text())
    description["policy"]["rows"] = [[{"edges": [0.123], "stops": [False, True]}] * 2] * 4
    (path / MODEL).write_text(json.dumps(description))
    with pytest.warns(UserWarning, match="the certificate is void: the policy is another than it was earned"):
        loaded = odn.load(path)
    assert loaded(images).certified is False
    path = odn.save(fast, tmp_path / "weights")
    weights = load_file(path / WEIGHTS)
    weights["conv1.weight"] = weights["conv1.weight"] + 1e-4
    save_file(weights, path / WEIGHTS)
    with pytest.warns(UserWarning, match="the certificate is void: the model is another than it was earned"):
        assert odn.load(path)(images).certified is False


def test_runs(run: Run, images: Tensor, tmp_path: Path) -> None:
    assert run.path is not None
    odn.save(run, tmp_path / "copy")
    for path in (run.path, tmp_path / "copy"):
        after = odn.load(path)
        assert isinstance(after, Run)
        assert after.report_ == run.report_
        assert after.parts.spec == run.parts.spec
        assert after.parts.costs == run.parts.costs
        assert set(after.parts.records) == set(run.parts.records)
        for name, record in after.parts.records.items():
            assert record.outputs_digest == run.parts.records[name].outputs_digest
            assert record.digest == run.parts.records[name].digest
        with torch.no_grad():
            torch.testing.assert_close(after.network(images), run.network(images), **SAME)


def test_saving_again_what_was_loaded(images: Tensor, saved: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("static", "halting"):
        again = odn.save(odn.load(saved[kind]), tmp_path / kind)
        for name in (path.name for path in saved[kind].iterdir()):
            assert (again / name).read_bytes() == (saved[kind] / name).read_bytes()


def test_a_name_with_arguments_is_enough_to_load(saved: dict[str, Path]) -> None:
    for kind, place in (("static", ("plan", "spec")), ("halting", ("backbone",))):
        spec: Any = json.loads((saved[kind] / MODEL).read_text())
        for key in place:
            spec = spec[key]
        assert (spec["library"], spec["name"], spec["stem"]) == ("timm", "resnet18", "small")
        assert spec["args"] == {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}


def test_a_module_of_the_users_own_is_needed_again(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def make() -> nn.Module:
        return timm.create_model("resnet18", num_classes=3, channels=[8, 8, 8, 8])

    network = MultiExit(Trunk(make(), image_size=32)).eval()
    model = HaltingModel(
        network, HaltingTable.of_thresholds([0.4] * 8, Calibration.of_temperatures([1.0] * 8))
    )
    odn.save(model, tmp_path / "halting")
    with pytest.raises(ModelError, match=r"class timm.models.resnet.ResNet .*load\(path, backbone=MODULE\)"):
        odn.load(tmp_path / "halting")
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(odn.load(tmp_path / "halting", backbone=make())(images).logits, model(images).logits)
    with pytest.raises(ModelError, match="do not fit the backbone"):
        odn.load(tmp_path / "halting", backbone=timm.create_model("resnet18", num_classes=3))


# --- saving that cannot be --------------------------------------------------------------------------


def test_places_that_are_taken(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    for thing in (run.truncate(), run.dynamic(certify=False)):
        for name in ("file", "full"):
            with pytest.raises(RunDirError, match="exists and is not empty; choose another directory"):
                odn.save(thing, tmp_path / name)
        with pytest.raises(StorageError):
            odn.save(thing, tmp_path / "file" / "below")
    for name in ("file", "full"):
        with pytest.raises(OdnError):
            odn.save(run, tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "notes"]
    (tmp_path / "empty").mkdir()
    odn.save(run.truncate(), tmp_path / "empty")  # an empty directory is free


@pytest.mark.parametrize("thing", [nn.Linear(2, 2), {"a": 1}, None])
def test_things_that_are_not_ours(thing: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"save takes a run, run.truncate\(\), run.dynamic\(\) or cut\(\)"):
        odn.save(thing, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_model_changed_in_secret_is_not_saved(run: Run, tmp_path: Path) -> None:
    model = run.truncate(depth=2)
    model.conv1.register_forward_hook(lambda _m, _i, out: out * 2)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="timm model 'resnet18', built again, gives other logits"):
        odn.save(model, tmp_path / "x")
    model = run.truncate(depth=2)
    model.layer1.add_module("more", nn.Conv2d(8, 8, 1))  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="saved weights do not fit"):
        odn.save(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fails", ["write_tensors", "write_json"])
def test_a_write_that_fails_leaves_nothing(
    run: Run, tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: Any) -> None:
        raise StorageError(f"cannot write {path}: the disk is full")

    monkeypatch.setattr(f"odn_hybrid.artifacts.saving.{fails}", full)
    with pytest.raises(StorageError, match="the disk is full"):
        odn.save(run.truncate(), tmp_path / "deep" / "er")
    assert list(tmp_path.iterdir()) == []


# --- loading that cannot be -------------------------------------------------------------------------


def test_what_is_no_directory_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name, says in (
        ("file", "not a directory"),
        ("none", "not a directory"),
        ("folder", "no config.json"),
    ):
        with pytest.raises(RunDirError, match=says):
            odn.load(tmp_path / name)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    path.write_bytes(b"\x00garbage{" * 9)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b"") and None,
    "cut short": cut_short,
    "garbled": garbled,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("static", MODEL),
        ("static", WEIGHTS),
        ("halting", MODEL),
        ("halting", WEIGHTS),
        ("halting", EXITS),
        ("halting", "reference.safetensors"),
        ("run", "config.json"),
        ("run", "policy.json"),
        ("run", "report.json"),
        ("run", WEIGHTS),
        ("run", EXITS),
        ("run", "outputs.safetensors"),
    ],
)
def test_damaged_files(damaged: Callable[[str], Path], kind: str, name: str, damage: str) -> None:
    path = damaged(kind)
    DAMAGE[damage](path / name)
    if (name, damage) == ("reference.safetensors", "missing"):
        assert odn.load(path).reference is None  # only the drift monitor needs it
        return
    if (name, damage) == ("outputs.safetensors", "missing"):
        assert odn.load(path).parts.records == {}  # may be left out: they are made again when needed
        return
    with pytest.raises((RunDirError, ModelError)) as caught:
        odn.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name"), [("static", MODEL), ("halting", MODEL), ("run", "config.json"), ("run", "report.json")]
)
@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_unknown_schemas(damaged: Callable[[str], Path], kind: str, name: str, schema: Any) -> None:
    path = damaged(kind)
    values = json.loads((path / name).read_text())
    (path / name).write_text(json.dumps({**values, "schema": schema}))
    with pytest.raises(RunDirError, match=f"has schema {schema!r}, this release reads 1"):
        odn.load(path)


@pytest.mark.parametrize("kind", ["static", "halting"])
def test_weights_of_another_model(damaged: Callable[[str], Path], saved: dict[str, Path], kind: str) -> None:
    path = damaged(kind)
    shutil.copy(saved["run" if kind == "static" else "static"] / WEIGHTS, path / WEIGHTS)
    with pytest.raises(ModelError, match="weights do not fit"):
        odn.load(path)


@pytest.mark.parametrize("kind", ["static", "halting"])
def test_a_description_cannot_make_it_read_other_files(damaged: Callable[[str], Path], kind: str) -> None:
    path = damaged(kind)
    values = json.loads((path / MODEL).read_text())
    spec = values["plan"]["spec"] if kind == "static" else values["backbone"]
    spec["args"]["checkpoint_path"] = str(path / "evil.pth")
    (path / MODEL).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="model argument 'checkpoint_path' is not taken"):
        odn.load(path)


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in nested JSON data."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here] * bool(here) + [place for key, more in inside for place in places(more, (*here, key))]


ODD = st.sampled_from(
    [None, True, -1, 0, 3, 10**30, 0.5, "", "x", "blocks.0", [], [[]], {}, {"a": 1}, [1, 2, 3]]
)


# torch warns of layers without channels, which a changed description may ask for.
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op:UserWarning")
@given(st.data(), st.sampled_from(["static", "halting"]), ODD, st.booleans())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_change_of_a_description_is_survived(
    saved: dict[str, Path], tmp_path: Path, data: Any, kind: str, odd: Any, remove: bool
) -> None:
    values = json.loads((saved[kind] / MODEL).read_text())
    place = data.draw(st.sampled_from(places(values)))
    target: Any = values
    for key in place[:-1]:
        target = target[key]
    if remove:
        del target[place[-1]]
    else:
        target[place[-1]] = copy.deepcopy(odd)
    path = tmp_path / kind
    shutil.copytree(saved[kind], path, dirs_exist_ok=True)
    (path / MODEL).write_text(json.dumps(values))
    try:
        model = odn.load(path)
    except OdnError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(model, nn.Module)


@given(st.data(), st.sampled_from(["config.json", "report.json", "policy.json"]), ODD, st.booleans())
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_change_of_a_run_is_survived(
    saved: dict[str, Path], tmp_path: Path, data: Any, name: str, odd: Any, remove: bool
) -> None:
    values = json.loads((saved["run"] / name).read_text())
    shallow = [place for place in places(values) if len(place) <= 3]
    place = data.draw(st.sampled_from(shallow))
    target: Any = values
    for key in place[:-1]:
        target = target[key]
    if remove:
        del target[place[-1]]
    else:
        target[place[-1]] = copy.deepcopy(odd)
    path = tmp_path / "run"
    shutil.copytree(saved["run"], path, dirs_exist_ok=True)
    (path / name).write_text(json.dumps(values))
    try:
        loaded = odn.load(path)
    except OdnError as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(loaded, Run)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("static",), {}),
        (("static", "exit"), 99),
        (("reference",), {}),
        (("exits",), []),
        (("exits", 0, "macs_static"), None),
    ],
)
def test_a_report_that_lacks_what_is_used_is_refused(
    saved: dict[str, Path], tmp_path: Path, where: tuple[Any, ...], value: Any
) -> None:
    shutil.copytree(saved["run"], tmp_path / "run")
    file = tmp_path / "run" / "report.json"
    values = json.loads(file.read_text())
    target = values
    for key in where[:-1]:
        target = target[key]
    if value is None:
        del target[where[-1]]
    else:
        target[where[-1]] = value
    file.write_text(json.dumps(values))
    with pytest.raises(RunDirError, match=r"report\.json is damaged"):
        odn.load(tmp_path / "run")
