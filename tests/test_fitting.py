"""`fit`: what it takes, what it leaves alone, what it writes, and that its figures agree with each other."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import odn_hybrid as odn
from odn_hybrid.asking import asked_recipe
from odn_hybrid.config import FitConfig, ModelConfig, load_recipe, replace_fields, to_dict
from odn_hybrid.data import load_data
from odn_hybrid.errors import ConfigError, DataError, ModelError
from odn_hybrid.fitting import fit
from odn_hybrid.report import explain
from odn_hybrid.run import Run
from odn_hybrid.training import OBJECTIVES, register_objective

#: `tiny` without what belongs to a model's name.
MODULE = ("model.args", "model.stem")


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that grows to the whole network."""
    longer = {**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 12}}
    return fit(**longer, out=tmp_path_factory.mktemp("runs") / "run")


def module(**changes: Any) -> nn.Module:
    torch.manual_seed(1)
    options = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "num_classes": 3, "in_chans": 1, **changes}
    return timm.create_model("resnet18", **options)


def for_module(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    overrides = {name: value for name, value in tiny["overrides"].items() if name not in MODULE}
    return {"data": tiny["data"], "overrides": {**overrides, **changes}}


def with_changes(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return {**tiny, "overrides": {**tiny["overrides"], **dotted}}


# --- report.json ------------------------------------------------------------------------------------


def read(run: Run, name: str) -> dict[str, Any]:
    assert run.path is not None
    return json.loads((run.path / name).read_text())  # type: ignore[no-any-return]


def test_the_directory_holds_what_the_contract_says(run: Run) -> None:
    assert run.path is not None
    found = {path.name for path in run.path.iterdir()}
    assert found >= {
        "config.json", "model.safetensors", "exits.safetensors", "policy.json", "report.json",
        "history.jsonl",
    }  # fmt: skip
    assert "checkpoint" not in found
    config = read(run, "config.json")
    assert set(config["preprocess"]) >= {"size", "mean", "std", "channels", "interpolation"}
    assert set(config["data"]["splits"]) == {"train", "selection", "calibration", "certification", "test"}
    assert config["recipe"]["seed"] == 0
    assert set(config["environment"]) >= {"python", "torch", "timm", "odn_hybrid"}
    assert set(read(run, "policy.json")) >= {"policy", "continuation_values", "certificate", "ledger"}


def test_report_has_every_field_of_the_contract(run: Run) -> None:
    report = read(run, "report.json")
    assert report == json.loads(json.dumps(run.report_))
    assert set(report) >= {
        "schema", "model", "data", "reference", "exits", "static", "dynamic", "search", "environment",
    }  # fmt: skip
    assert report["schema"] == 1
    assert set(report["static"]) >= {"exit", "units", "reason"}
    assert set(report["dynamic"]) >= {
        "policy", "accuracy", "mean_macs", "mean_units", "halting", "certificate",
    }  # fmt: skip
    assert set(report["search"]) >= {"epochs", "train_macs", "seconds", "by_depth"}
    for row in report["exits"]:
        assert set(row) >= {
            "exit", "units", "trained", "macs_static", "macs_dynamic", "params", "bytes", "accuracy",
            "plan", "keep", "macs_joint",
        }  # fmt: skip
        assert (row["plan"], row["keep"]) == ("prefix", list(range(row["units"])))
        assert row["macs_joint"] == row["macs_dynamic"]
    assert report["no_dynamic"] is None


def test_figures_agree_with_each_other(run: Run) -> None:
    report, splits = run.report_, read(run, "config.json")["data"]["splits"]
    rows = report["exits"]
    assert [row["exit"] for row in rows] == list(range(1, len(rows) + 1))
    for name in ("units", "macs_static", "macs_dynamic"):
        assert all(a[name] < b[name] for a, b in itertools.pairwise(rows))
    for row in rows:
        assert row["macs_dynamic"] >= row["macs_static"] > 0
        assert row["bytes"] >= 4 * row["params"] > 0
        for split, accuracy in row["accuracy"].items():
            assert (accuracy is None) is not row["trained"]
            if accuracy is not None:
                assert accuracy["n"] == splits[split]["size"]
                assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    assert rows[0]["macs_dynamic"] == rows[0]["macs_static"]
    assert rows[-1]["params"] == sum(p.numel() for p in run.network.backbone.parameters())
    static = rows[report["static"]["exit"] - 1]
    assert static["trained"] and static["units"] == report["static"]["units"]


def test_dynamic_figures_agree_with_the_table(run: Run) -> None:
    report = run.report_
    dynamic, reference = report["dynamic"], report["reference"]["exit"]
    costs = [row["macs_dynamic"] for row in report["exits"][:reference]]
    units = [row["units"] for row in report["exits"][:reference]]
    halting = np.array(dynamic["halting"])
    assert len(halting) == reference and halting.sum() == pytest.approx(1) and (halting >= 0).all()
    assert dynamic["mean_macs"] == pytest.approx(float(halting @ costs))
    assert dynamic["mean_units"] == pytest.approx(float(halting @ units))
    assert dynamic["accuracy"]["test"]["n"] == len(run.parts.records["test"].labels)


def test_search_costs_are_recomputed_from_the_history(run: Run) -> None:
    search, rows, history = run.report_["search"], run.report_["exits"], run.history_
    assert search["epochs"] == len(history) == history[-1]["epoch"]
    macs = sum(3 * rows[row["active"] - 1]["macs_dynamic"] * row["images"] for row in history)
    assert search["train_macs"] == macs
    assert set(search["by_depth"]) == {str(row["active"]) for row in history}
    assert search["seconds"] > 0
    assert run.path is not None
    assert history == [json.loads(line) for line in (run.path / "history.jsonl").read_text().splitlines()]


def test_without_a_target_the_whole_network_is_the_reference(run: Run) -> None:
    report = run.report_
    assert report["reference"] == {"exit": 4, "units": 4, "full": True, "chance": pytest.approx(1 / 3)}
    assert all(row["trained"] for row in report["exits"])
    assert report["static"]["rule"] == "non-inferior"


def test_the_same_seed_gives_the_same_run(tiny: dict[str, Any]) -> None:
    first, second = fit(**tiny), fit(**tiny)
    assert first.exits_ == second.exits_ and first.depth_ == second.depth_
    other = fit(**tiny, seed=1)
    assert other.history_[0]["loss"] != first.history_[0]["loss"]


# --- the target rule --------------------------------------------------------------------------------


def test_target_reached_stops_growth(tiny: dict[str, Any]) -> None:
    run = fit(**with_changes(tiny, expansion__max_looks=20), target_accuracy=0.7, tolerance=0.05)
    static = run.depth_
    assert static["rule"] == "target" and static["reached"] is True
    chosen = run.exits_[static["exit"] - 1]["accuracy"]["selection"]["value"]
    assert chosen >= 0.65
    shallower = run.exits_[: static["exit"] - 1]
    assert all(row["accuracy"]["selection"]["value"] < 0.65 for row in shallower)
    reference = run.report_["reference"]
    assert not reference["full"]
    deeper = run.exits_[reference["exit"] :]
    assert deeper and not any(row["trained"] for row in deeper)
    assert all(row["accuracy"] == {"selection": None, "test": None} for row in deeper)
    assert "70.00%" in static["reason"]


def test_target_out_of_reach_is_said(tiny: dict[str, Any]) -> None:
    run = fit(**tiny, target_accuracy=1.0, tolerance=0.0, loss="joint", seed=2)
    static = run.depth_
    if run.exits_[static["exit"] - 1]["accuracy"]["selection"]["value"] < 1.0:
        assert static["reached"] is False
        assert static["exit"] == run.report_["reference"]["exit"]
        assert "no exit reached 100.00%" in static["reason"]
    assert run.report_["search"]["stopped_by"] in ("budget", "rule")


# --- objectives -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["joint", "depth_reg"])
def test_objectives_of_all_exits(tiny: dict[str, Any], loss: str) -> None:
    run = fit(**tiny, loss=loss)
    reference = run.report_["reference"]["exit"]
    assert [row["trained"] for row in run.exits_] == [row["exit"] <= reference for row in run.exits_]
    assert run.exits_[reference - 1]["accuracy"]["test"]["value"] > 0.5


def test_cross_entropy_trains_the_reference_only(tiny: dict[str, Any]) -> None:
    run = fit(**tiny, loss="cross_entropy")
    assert [row["trained"] for row in run.exits_] == [False, False, False, True]
    assert run.report_["dynamic"] is None
    assert run.depth_["exit"] == 4
    assert run.exits_[0]["accuracy"] == {"selection": None, "test": None}
    assert run.exits_[3]["accuracy"]["test"]["value"] > 0.5


def test_an_objective_of_the_users_own(tiny: dict[str, Any]) -> None:
    seen: list[int] = []

    @register_objective("mine")
    def mine(outputs: Any, *, power: float = 1.0) -> torch.Tensor:
        seen.append(len(outputs.logits))
        return outputs.losses().mean() ** power

    try:
        run = fit(**with_changes(tiny, objective__args={"power": 1.5}), loss="mine")
        assert run.exits_[0]["accuracy"]["test"]["value"] > 0.5
        assert set(seen) == {row["active"] for row in run.history_}
        with pytest.raises(ConfigError, match=r"objective 'mine'.*strength"):
            fit(**with_changes(tiny, objective__args={"strength": 1}), loss="mine")
    finally:
        del OBJECTIVES["mine"]


def test_a_training_that_failed_is_said(tiny: dict[str, Any]) -> None:
    """All exits answer one class: within the tolerance of one another, and worth nothing."""
    run = fit(**{**tiny, "overrides": {**tiny["overrides"], "optim.lr": 1e-9, "optim.clip_grad": 1e-9}})
    assert run.report_["reference"]["chance"] == pytest.approx(1 / 3, abs=0.02)
    said = explain(run.report_)
    assert "is not shown to be better than always answering the most frequent class (33" in said
    assert "training has probably failed" in said


def test_a_picture_cut_short_shows_before_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Which split it falls into is not known to who runs into it: all are read before the first epoch."""
    random_numbers = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for k in range(40):
            pixels = random_numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{k:02}.png")
    data = load_data(tmp_path / "pets")
    split = data.splits["certification"]
    file = Path(split.items.name(int(split.indices[-1])))
    file.write_bytes(file.read_bytes()[:200])
    rows: list[Any] = []
    changes = {**tiny["overrides"], "expansion.max_looks": 1}
    with pytest.raises(DataError, match=file.name):
        fit("resnet18", tmp_path / "pets", out=tmp_path / "run", overrides=changes, listener=rows.append)
    assert rows == [] and not (tmp_path / "run").exists()


# --- models -----------------------------------------------------------------------------------------


def test_a_module_is_copied(tiny: dict[str, Any]) -> None:
    model = module().train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    random_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    run = odn.fit(model, loss="depth_reg", **for_module(tiny))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in model.modules()] == modes
    assert not model.conv1.weight.requires_grad and model.fc.weight.requires_grad
    assert torch.random.get_rng_state().equal(random_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert set(run.network.backbone.state_dict()) == set(before)
    assert "ResNet" in run.report_["model"]  # of these widths no name builds it
    assert run.exits_[run.report_["reference"]["exit"] - 1]["accuracy"]["test"]["value"] > 0.4


@pytest.mark.parametrize(
    "changes",
    [{"model.checkpoint": "w.safetensors"}, {"model.stem": "small"}, {"model.pretrained": True}],
)
def test_what_is_asked_of_a_model_by_name_is_refused_for_a_module(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} is for models by name, and a module"):
        fit(module(), overrides=changes)


def test_a_module_is_in_the_place_of_a_recipes_model(tiny: dict[str, Any]) -> None:
    given = for_module(tiny)
    config = replace_fields(FitConfig(), {"model.name": "resnet50", "model.args": {"depth": 9}})
    asked, found = asked_recipe(module(), given["data"], config, {})
    assert isinstance(found, nn.Module) and asked.model == ModelConfig()


def test_inplace_trains_the_users_module(tiny: dict[str, Any]) -> None:
    model = module()
    before = copy.deepcopy(model.state_dict())
    run = fit(model, inplace=True, **for_module(tiny))
    assert run.network.backbone is model
    assert not model.conv1.weight.equal(before["conv1.weight"])
    assert list(model.state_dict()) == list(before)


def test_a_module_fits_on_the_embedded_data() -> None:
    run = odn.fit(
        module(num_classes=10, in_chans=3),
        loss="depth_reg",
        overrides={"expansion.max_looks": 3, "data.image_size": 8, "exits.head": "linear"},
    )
    assert run.report_["data"]["name"] == "digits"
    assert run.exits_[0]["accuracy"]["test"]["n"] == 299


def test_class_count(tiny: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="the model has 7 classes, the data 3; build it with num_classes=3"):
        fit(module(num_classes=7), **for_module(tiny))
    assert fit(**tiny).network.trunk.num_classes == 3


def test_what_is_no_model() -> None:
    with pytest.raises(ConfigError, match="model is a int"):
        fit(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no model: pass a module"):
        fit(config=FitConfig())
    with pytest.raises(ConfigError, match=r"a recipe or config=, not both"):
        fit("recipe.yaml", config=FitConfig())


# --- recipes ----------------------------------------------------------------------------------------


def test_recipe_config_and_overrides_are_the_same_thing(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = replace_fields(
        FitConfig(), {"model.name": "resnet18", "data.source": tiny["data"], **tiny["overrides"]}
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(to_dict(config)))
    assert load_recipe(recipe) == config
    runs = [fit(recipe), fit(str(recipe)), fit(config=config), fit(**tiny)]
    assert all(run.parts.config["recipe"] == to_dict(config) for run in runs)
    assert all(run.exits_ == runs[0].exits_ for run in runs)
    changed = fit(recipe, overrides={"choice.tolerance": 0.5}, seed=4)
    assert changed.parts.config["recipe"]["choice"]["tolerance"] == 0.5
    assert changed.parts.config["recipe"]["seed"] == 4


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"nonsense": 1}, "unknown field 'nonsense'"),
        ({"optim.rate": 1}, r"unknown field 'optim\.rate'"),
        ({"optimiser.lr": 1}, "no section 'optimiser'"),
        ({"seed.lr": 1}, "no section 'seed'"),
        ({"optim.lr.x": 1}, "no section 'lr'"),
        ({"": 1}, "unknown field ''"),
        ({"optim.lr": "fast"}, r"optim\.lr is 'fast'; expected a number"),
        ({"optim": 3}, "optim must be a mapping"),
    ],
)
def test_overrides_that_do_not_exist(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fit("resnet18", overrides=overrides)


def test_options_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="fit has no option 'epochs'; short options: loss"):
        fit("resnet18", epochs=3)


# --- data -------------------------------------------------------------------------------------------


def own_data(tiny_npz: Path) -> tuple[TensorDataset, TensorDataset]:
    arrays = np.load(tiny_npz)
    images = torch.from_numpy(arrays["x_train"])[:, None].float() / 255
    labels = torch.from_numpy(arrays["y_train"])
    return TensorDataset(images[:300], labels[:300]), TensorDataset(images[300:], labels[300:])


def test_own_datasets(tiny: dict[str, Any], tiny_npz: Path, tmp_path: Path) -> None:
    overrides = {k: v for k, v in tiny["overrides"].items() if k != "data.image_size"}
    train, val = own_data(tiny_npz)
    run = fit("resnet18", (train, val), overrides=overrides, out=tmp_path / "run")
    sizes = {name: split["size"] for name, split in run.report_["data"]["splits"].items()}
    assert sizes == {"train": 300, "selection": 45, "calibration": 15, "certification": 45, "test": 45}
    assert run.parts.config["recipe"]["data"]["source"] == "own"
    again = odn.load(tmp_path / "run")
    with pytest.raises(ConfigError, match="pass them again as data="):
        again.compare(batch_sizes=[4], rounds=2)
    assert again.compare(batch_sizes=[4], rounds=2, data=(train, val))["rows"]
    with pytest.raises(DataError, match="not the data of the fit"):
        odn.load(tmp_path / "run").compare(batch_sizes=[4], rounds=2, data=(val, train))


def test_listener_sees_every_epoch(tiny: dict[str, Any]) -> None:
    rows: list[dict[str, Any]] = []
    run = fit(**tiny, listener=rows.append)
    assert rows == run.history_
    assert set(rows[0]) >= {
        "epoch",
        "phase",
        "current",
        "active",
        "loss",
        "selection",
        "train_macs",
        "seconds",
    }


def test_nothing_is_written_without_out(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(**tiny).path is None
    assert list(tmp_path.iterdir()) == []
