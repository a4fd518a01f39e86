"""What can be served of a folder, and that nothing is served which its user did not ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exporting
import numpy as np
import pytest
import torch
from hosting import unpack_shared
from safetensors.torch import load_file, save_file
from staging import through

import odn_hybrid as odn
from odn_hybrid.deploy.export.halting import export_halting
from odn_hybrid.errors import ConfigError, ModelError, RunDirError
from odn_hybrid.run import Run
from odn_hybrid.runner.running import IfRunner
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.hosting.opening import open_path
from odn_hybrid.serve.hosting.runs import dynamic_of_run
from odn_hybrid.serve.refusals import Unknown
from odn_hybrid.serve.scheduling import Engine
from odn_hybrid.serve.settings import LaneSettings, ServeSettings

SETTINGS = ServeSettings(lane=LaneSettings(max_batch=4, queue=64))
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_shared(tmp_path_factory.mktemp("shared") / "run")


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return odn.load(folder)  # type: ignore[no-any-return]


@pytest.fixture
def host() -> Iterator[Host]:
    engine = Engine()
    engine.start()
    yield Host(engine, SETTINGS)
    engine.close()


def changed(folder: Path, to: Path, value: float) -> Path:
    """A copy of a run in which one weight is another."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    name = next(name for name, tensor in sorted(weights.items()) if tensor.dim() == 4)
    weights[name].view(-1)[0] = value
    save_file(weights, to / "model.safetensors")
    return to


# --- runs ----------------------------------------------------------------------------------------------


def test_a_run_is_served_with_the_promise_that_it_has(folder: Path, run: Run, host: Host) -> None:
    before = (folder / "policy.json").read_bytes()
    hosted = host.load("small", folder)
    assert (folder / "policy.json").read_bytes() == before  # no attempt was spent
    assert hosted.void is None and hosted.certificate is not None and hosted.certificate["certified"]
    assert hosted.labels == json.loads((folder / "config.json").read_text())["data"]["classes"]
    assert hosted.transform is not None and hosted.drift is not None and host.ready
    assert len(hosted.version) == 12 and int(hosted.version, 16) >= 0
    images = hosted.transform(list(PIXELS))
    np.testing.assert_array_equal(images, run.transform(list(PIXELS)).numpy())
    found = host.submit("small", images, Options()).result(60)
    wanted = dynamic_of_run(run)(run.transform(list(PIXELS)))
    np.testing.assert_array_equal(found.exit, wanted.exit.numpy())
    np.testing.assert_allclose(found.logits, wanted.logits.numpy(), atol=1e-4)
    assert found.certified and wanted.certified


def test_shares_and_monitor_are_of_the_certification_images(folder: Path, run: Run) -> None:
    stages = open_path(folder).stages
    exits = run.parts.records["certification"]
    taken, _ = dynamic_of_run(run).policy.decide(exits.logits)
    for segment, before in enumerate((0, *stages.numbers[:-1])):
        assert stages.shares[segment] == pytest.approx((taken > before).mean())
    assert stages.shares[-1] < 0.5


def test_the_version_tells_of_weights_and_policy(folder: Path, tmp_path: Path) -> None:
    one, again = open_path(folder), open_path(folder)
    other = open_path(changed(folder, tmp_path / "other", 0.5), uncertified=True)
    full, static = open_path(folder, "full"), open_path(folder, "static")
    assert one.digest == again.digest
    assert len({one.digest, other.digest, full.digest, static.digest}) == 4


def test_without_a_promise_it_must_be_asked_for(folder: Path, tmp_path: Path) -> None:
    other = changed(folder, tmp_path / "other", 0.5)
    with pytest.raises(
        ConfigError, match=r"the model is another.*uncertified.*'full' or 'static'"
    ) as refused:
        open_path(other)
    assert "\n" not in str(refused.value)
    opened = open_path(other, uncertified=True)
    assert opened.void is not None and opened.drift is None  # what was recorded is of other weights
    assert not through(opened.stages, np.zeros((2, 3, 32, 32), dtype=np.float32)).certified


def test_a_certificate_ends_with_the_weights_that_it_speaks_of(folder: Path) -> None:
    stages: Any = open_path(folder).stages
    images = np.zeros((2, 3, 32, 32), dtype=np.float32)
    assert through(stages, images).certified
    with torch.no_grad():
        next(iter(stages._standing.network.parameters())).add_(0.01)
    assert not through(stages, images).certified


@pytest.mark.parametrize("kind", ["full", "static"])
def test_plain_kinds_answer_as_the_cut_model(folder: Path, run: Run, kind: str) -> None:
    opened = open_path(folder, kind)
    exit = run.report_["reference"]["exit"] if kind == "full" else run.depth_["exit"]
    images = run.transform(list(PIXELS))
    found = through(opened.stages, images.numpy())
    with torch.no_grad():
        wanted = run.network.at(images, exit)
    np.testing.assert_allclose(found.logits, wanted.numpy(), atol=1e-3)
    assert set(found.exit.tolist()) == {exit} and not found.certified
    assert set(found.units_run.tolist()) == {run.network.units[exit - 1]}
    table = dynamic_of_run(run).policy  # the run's own calibration
    with torch.no_grad():
        every = torch.stack(run.network(images), 1).numpy()
    sure = table.confidence(every, np.full(len(images), exit))
    np.testing.assert_allclose(found.confidence, sure, atol=1e-3)
    assert opened.labels and opened.transform and opened.certificate is None


def test_a_run_without_halting_says_what_can_be_served(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "policy.json"
    told = {"schema": json.loads(path.read_text())["schema"], "policy": None, "ledger": []}
    path.write_text(json.dumps({**told, "reason": "no dynamic halting: one exit only"}))
    with pytest.raises(ConfigError, match=r"no dynamic halting: one exit only; serve it as kind 'full'"):
        open_path(tmp_path / "run")
    full = open_path(tmp_path / "run", "full")
    assert full.stages.exits == (8,)


# --- saved and exported models ------------------------------------------------------------------------


def test_a_saved_halting_model(run: Run, tmp_path: Path) -> None:
    model = dynamic_of_run(run)
    model.__dict__["transform"] = run.transform
    odn.save(model, tmp_path / "halting")
    opened = open_path(tmp_path / "halting")
    images = run.transform(list(PIXELS))
    found, wanted = through(opened.stages, images.numpy()), model(images)
    np.testing.assert_array_equal(found.exit, wanted.exit.numpy())
    assert found.certified and opened.void is None and opened.drift is not None and opened.labels is None
    assert opened.transform is not None and opened.transform(PIXELS).shape == (12, 3, 32, 32)
    full = open_path(tmp_path / "halting", "full")
    with torch.no_grad():
        deepest = model.network.at(images, model.last)
    np.testing.assert_allclose(through(full.stages, images.numpy()).logits, deepest.numpy(), atol=1e-4)
    with pytest.raises(ConfigError, match="no static choice"):
        open_path(tmp_path / "halting", "static")


def test_a_saved_static_model(run: Run, tmp_path: Path) -> None:
    model = run.truncate(depth=3, fold=True)
    odn.save(model, tmp_path / "static")
    opened = open_path(tmp_path / "static", "static")
    images = run.transform(list(PIXELS))
    with torch.no_grad():
        wanted = model(images)
    found = through(opened.stages, images.numpy())
    np.testing.assert_allclose(found.logits, wanted.numpy(), atol=1e-4)
    assert opened.stages.exits == (3,) and opened.stages.units == (3,) and opened.transform is not None
    with pytest.raises(ConfigError, match="serve it as kind 'static'"):
        open_path(tmp_path / "static")


def test_exports(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export_halting(exporting.model(), tmp_path / "segments", format="onnx-segments")
    with pytest.raises(ConfigError, match=r"there is no certificate.*uncertified"):
        open_path(tmp_path / "segments")
    opened = open_path(tmp_path / "segments", uncertified=True, threads=1)
    wanted = exporting.model()(exporting.images())
    found = through(opened.stages, exporting.images().numpy())
    np.testing.assert_array_equal(found.exit, wanted.exit.numpy())
    assert opened.stages.shares == pytest.approx((1, 2 / 3, 1 / 3)) and opened.transform is None
    sessions = open_path(tmp_path / "segments", uncertified=True, threads=3).stages._sessions  # type: ignore[attr-defined]
    assert {one._session.get_session_options().intra_op_num_threads for one in sessions} == {3}
    for options, message in (
        ({"kind": "full"}, "as dynamic only"),
        ({"device": "cuda"}, "exports run on the CPU"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_path(tmp_path / "segments", **options)  # type: ignore[arg-type]


def test_a_graph_that_decides_by_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    runner = object.__new__(IfRunner)  # to write one takes half a minute
    monkeypatch.setattr("odn_hybrid.serve.hosting.opening.load_export", lambda path, threads: runner)
    with pytest.raises(ConfigError, match="onnx-segments"):
        open_path(tmp_path, uncertified=True)


def test_what_cannot_be_served(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kind is 'half'"):
        open_path(folder, "half")
    with pytest.raises(RunDirError, match="not a directory"):
        open_path(tmp_path / "none")
    with pytest.raises(RunDirError):
        open_path(tmp_path)
    with pytest.raises(ConfigError, match="device 'nonsense'"):
        open_path(folder, device="nonsense")
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(ConfigError, match="other runtimes"):
        open_path(tmp_path)


# --- a server of folders -------------------------------------------------------------------------------


def test_a_broken_folder_leaves_the_old_model(folder: Path, tmp_path: Path, host: Host) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(folder, mine)
    old = host.load("small", mine)
    images = np.zeros((2, 3, 32, 32), dtype=np.float32)
    nan = changed(folder, tmp_path / "nan", float("nan"))
    whole = (mine / "model.safetensors").read_bytes()
    (mine / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunDirError):
        host.reload("small")
    with pytest.raises(ConfigError, match="no certificate"):
        host.reload("small", nan)
    with pytest.raises(Unknown):
        host.reload("other")
    assert host.model("small") is old and host.ready
    assert host.submit("small", images, Options()).result(60).certified
    (mine / "model.safetensors").write_bytes(whole)
    again = host.reload("small")
    assert again is not old and again.version == old.version and host.models() == [again]


def test_a_model_that_gives_no_numbers_is_not_opened(folder: Path, tmp_path: Path, host: Host) -> None:
    nan = changed(folder, tmp_path / "nan", float("nan"))
    with pytest.raises(ModelError, match="NaN or infinite logits"):
        host.load("small", nan, uncertified=True)
    assert host.models() == [] and not host.ready
    host.load("small", folder, "full")  # the name is free
