"""Thin plans from end to end: fits whose exits are thinner versions of the whole network, and their cuts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from comparing import results
from torch import nn

import odn_hybrid as odn
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs, count_macs, size_of
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.fitting import fit
from odn_hybrid.run import Run
from odn_hybrid.training import OBJECTIVES, ExitOutputs, register_objective
from odn_hybrid.trunk import DepthPlan, Trunk

ROOT = Path(__file__).resolve().parent.parent
#: Units 2 and 5 of six can be removed.
LAYERS = {"layers": [1, 2, 1, 2], "channels": [8, 8, 16, 16]}
#: It grows once, and soon: no gain is large enough to wait for.
GROWING = {"expansion.start": 2, "expansion.min_gain": 0.9, "expansion.max_looks": 6}


def thin_plan(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    more = {"model.args": LAYERS, "exits.plan": "thin"}
    return {**tiny, "overrides": {**tiny["overrides"], **more, **changes}}


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A thin fit that grows to the whole network."""
    return fit(**thin_plan(tiny, **GROWING), out=tmp_path_factory.mktemp("runs") / "run")


def images(run: Run, n: int = 6) -> torch.Tensor:
    return run.transform(np.random.default_rng(0).integers(0, 256, (n, 12, 12), dtype=np.uint8))


# --- the walk over thin networks --------------------------------------------------------------------


def resnet() -> nn.Module:
    # Two stages of three removable units: neighbours differ now in the one, now in the other.
    return timm.create_model("resnet18", num_classes=5, layers=[1, 3, 1, 3], channels=[8, 8, 16, 16])


def transformer() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=48, num_heads=3, depth=4, num_classes=5
    )


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("make", [resnet, transformer])
@torch.no_grad()
def test_a_walk_answers_like_each_network_alone_and_costs_what_is_said(
    make: Callable[[], nn.Module], every: int
) -> None:
    torch.manual_seed(0)
    network = MultiExit(Trunk(make().eval(), image_size=32), ExitConfig(plan="thin", every=every)).eval()
    batch, costs = torch.rand(2, 3, 32, 32), count_costs(network)
    ran: Counter[str] = Counter()
    for unit in network.trunk.unit_names:
        module = network.backbone.get_submodule(unit[0])
        module.register_forward_hook(lambda *call, name=unit[0]: ran.update([name]))
    alone = []
    for number in range(1, len(network) + 1):
        ran.clear()
        alone.append(network.at(batch, number))
        kept = [
            unit[0]
            for place, unit in enumerate(network.trunk.unit_names)
            if place in network.plans[number - 1].keep
        ]
        assert dict(ran) == dict.fromkeys(kept, 1)
        together = network(batch, number)
        assert len(together) == number
        assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
        assert count_macs(lambda k=number: network(batch[:1], k)) == costs.joint(number)
        assert count_macs(lambda k=number: network.at(batch[:1], k)) == costs.static(number)
    if isinstance(network.backbone, timm.models.VisionTransformer):  # its thin networks begin alike
        assert costs.joint(len(network)) == costs.static(len(network)) + sum(costs.heads[:-1])


def test_joint_costs_of_prefixes_are_the_dynamic_ones() -> None:
    costs = count_costs(MultiExit(Trunk(resnet().eval(), image_size=32)))
    assert [costs.joint(k) for k in range(1, 9)] == list(costs.cumulative)


# --- the fit ----------------------------------------------------------------------------------------


def test_rows_tell_which_units_each_network_keeps(run: Run) -> None:
    rows = run.exits_
    assert [row["keep"] for row in rows] == [[0, 1, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert [row["units"] for row in rows] == [4, 5, 6]
    assert {row["plan"] for row in rows} == {"thin"}
    assert all(row["macs_dynamic"] == row["macs_static"] for row in rows)
    assert all(rows[i]["macs_static"] < rows[i + 1]["macs_static"] for i in range(2))
    assert all(row["trained"] and row["accuracy"]["test"]["n"] == 90 for row in rows)
    assert rows[0]["accuracy"]["selection"]["value"] > 0.6  # of three classes: it has learnt
    static = rows[run.depth_["exit"] - 1]
    assert run.depth_["units"] == static["units"] == len(static["keep"])


def test_search_costs_are_those_of_what_ran(run: Run) -> None:
    macs = {row["exit"]: row["macs_joint"] for row in run.exits_}
    spent = sum(3 * macs[row["active"]] * row["images"] for row in run.history_)
    assert run.report_["search"]["train_macs"] == pytest.approx(spent, rel=1e-12)
    assert sum(row["macs_static"] for row in run.exits_) > macs[3] > macs[1] == run.exits_[0]["macs_static"]


def test_nothing_halts_and_the_reader_is_told_why(run: Run) -> None:
    report = run.report_
    assert report["dynamic"] is None and "no exit goes on from the one before" in report["no_dynamic"]
    for certify in (True, False):
        with pytest.raises(ConfigError, match="inputs cannot halt in a network of thin plans"):
            run.dynamic(certify=certify)
    assert run.parts.policy["ledger"] == []


@torch.no_grad()
def test_what_the_table_says_is_what_the_cut_model_does(run: Run) -> None:
    assert run.data is not None
    record, batch = run.parts.records["test"], images(run)
    for row in run.exits_:
        small = run.truncate(depth=row["units"])
        torch.testing.assert_close(small(batch), run.network(batch)[row["exit"] - 1], rtol=1e-5, atol=1e-5)
        assert size_of([small]) == (row["params"], row["bytes"])
        assert count_macs(lambda model=small: model(batch[:1])) == row["macs_static"]
        right = record.correct[:, row["exit"] - 1]
        assert row["accuracy"]["test"]["value"] == pytest.approx(right.mean())
        own, cut = run.network.backbone.state_dict(), small.state_dict()
        assert set(cut) <= set(own)
        strange = [name for name in cut if not torch.equal(cut[name], own[name])]
        assert all("running" in name or "num_batches" in name for name in strange)
        assert bool(strange) == (row["exit"] == 1)  # no norm comes after what the second lacks


@pytest.mark.parametrize(
    ("wish", "column"), [("max_macs", "macs_static"), ("max_params", "params"), ("max_bytes", "bytes")]
)
def test_truncate_within_a_budget(run: Run, wish: str, column: str) -> None:
    for limit in (row[column] for row in run.exits_):
        fitting = [row for row in run.exits_ if row[column] <= limit]
        best = max(fitting, key=lambda row: (row["accuracy"]["selection"]["value"], -row["exit"]))
        assert run.truncate(**{wish: limit}).__dict__["_odn_plan"].keep == tuple(best["keep"])


def test_a_depth_that_no_thin_network_has(run: Run) -> None:
    with pytest.raises(ModelError, match=r"no exit has 1 units; the thin networks have \[4, 5, 6\] units"):
        run.truncate(depth=1)


@pytest.mark.parametrize("loss", ["joint", "depth_reg"])
def test_with_a_target_the_search_stops_at_a_thin_network(tiny: dict[str, Any], loss: str) -> None:
    found = fit(**thin_plan(tiny), loss=loss, target_accuracy=0.5)
    assert found.depth_["exit"] == found.report_["reference"]["exit"] == 1
    assert [row["trained"] for row in found.exits_] == [True, False, False]
    assert found.exits_[2]["accuracy"] == {"selection": None, "test": None}
    with pytest.warns(UserWarning, match="exit 3 was never trained"):
        found.truncate(depth=6)


def test_a_users_own_loss_trains_thin_networks_from_one_to_all(tiny: dict[str, Any]) -> None:
    seen: set[tuple[int, ...]] = set()

    @register_objective("mine")
    def mine(outputs: ExitOutputs, *, power: float = 1.0) -> torch.Tensor:
        seen.add((len(outputs.logits), len(outputs.costs), *outputs.losses().shape[:1]))
        return outputs.losses().pow(power).mean()

    growing = {**GROWING, "expansion.start": 1, "expansion.look_ahead": 0, "objective.args": {"power": 1.5}}
    try:
        found = fit(**thin_plan(tiny, **growing), loss="mine")
    finally:
        del OBJECTIVES["mine"]
    assert seen == {(m, m, m) for m in (1, 2, 3)}
    assert all(row["trained"] for row in found.exits_[:2])


def test_plain_training_is_the_same_whatever_the_plan(tiny: dict[str, Any]) -> None:
    """It runs the whole network only: no thinner one enters its statistics, or its costs."""
    thin, plain = (
        fit(**thin_plan(tiny, **{"exits.plan": plan}), loss="cross_entropy") for plan in ("thin", "prefix")
    )
    wanted = plain.network.backbone.state_dict()
    assert all(value.equal(wanted[name]) for name, value in thin.network.backbone.state_dict().items())
    seen = sum(row["images"] for row in thin.history_)
    assert thin.report_["search"]["train_macs"] == 3 * thin.exits_[-1]["macs_static"] * seen
    assert [row["trained"] for row in thin.exits_] == [False, False, True]
    assert "thin plans" in thin.report_["no_dynamic"]
    assert plain.report_["no_dynamic"] == "the objective trains one exit only"


def test_a_transformer_too(tiny: dict[str, Any]) -> None:
    args = {"img_size": 12, "patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 2}
    changes = {"model.args": args, "model.stem": "native"}
    found = fit(**{**thin_plan(tiny, **changes), "model": "vit_tiny_patch16_224"})
    assert [row["keep"] for row in found.exits_] == [[0], [0, 1], [0, 1, 2]]
    depth = found.depth_["units"]
    assert len(found.truncate(depth=depth).blocks) == depth  # type: ignore[arg-type]


def test_networks_without_a_removable_unit_are_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"no unit of this network can be removed.*use prefix plans"):
        fit(**tiny, plan="thin")
    with pytest.raises(ConfigError, match=r"exits\.plan is 'fat'; choose one of prefix, thin"):
        fit(**tiny, plan="fat")


# --- kept, resumed, loaded --------------------------------------------------------------------------


def test_resumed_is_uninterrupted(tiny: dict[str, Any], run: Run, tmp_path: Path) -> None:
    assert run.path is not None
    left = iter((4, 7))

    class Killed(BaseException):
        """Stands for a process that ends between two lines of Python."""

    for last in left:

        def listener(row: dict[str, Any], last: int = last) -> None:
            if row["epoch"] == last:
                raise Killed

        with pytest.raises(Killed):
            fit(**thin_plan(tiny, **GROWING), out=tmp_path / "run", resume=True, listener=listener)
    fit(out=tmp_path / "run", resume=True)
    found, wanted = results(tmp_path / "run"), results(run.path)
    for part in wanted:
        assert found[part] == wanted[part], part


def test_a_run_of_before_networks_had_statistics_of_their_own(tiny: dict[str, Any], tmp_path: Path) -> None:
    """It has none in its files and does not speak of them; it answers with the backbone's, as it did."""
    old = fit(**thin_plan(tiny, **{"exits.norms": "shared"}), out=tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    stored = json.loads(config.read_text())
    del stored["recipe"]["exits"]["norms"]
    config.write_text(json.dumps(stored))
    loaded = odn.load(tmp_path / "run")
    with torch.no_grad():
        for number, wanted in enumerate(old.network(images(old)), start=1):
            torch.testing.assert_close(loaded.network.at(images(old), number), wanted, rtol=1e-5, atol=1e-5)


def test_a_run_of_before_there_were_plans_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = fit(**tiny, out=tmp_path / "run").path / "config.json"  # type: ignore[operator]
    stored = json.loads(config.read_text())
    del stored["recipe"]["exits"]["plan"]
    config.write_text(json.dumps(stored))
    assert fit(**tiny, out=tmp_path / "run", resume=True).exits_ == odn.load(tmp_path / "run").exits_
    assert fit(out=tmp_path / "run", resume=True).network.shares_prefix


@torch.no_grad()
def test_a_loaded_run_is_the_run(run: Run, tmp_path: Path) -> None:
    assert run.path is not None
    odn.save(run, tmp_path / "again")
    for loaded in (odn.load(run.path), odn.load(tmp_path / "again")):
        assert loaded.report_ == run.report_ and loaded.network.plans == run.network.plans
        for a, b in zip(loaded.network(images(run)), run.network(images(run)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


IN_A_FRESH_PROCESS = """
import sys, torch, odn_hybrid as odn
from safetensors.torch import load_file
for number in range(len(sys.argv) // 2):
    folder, known = sys.argv[2 * number + 1 : 2 * number + 3]
    known = load_file(known)
    model = odn.load(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(known["images"]), known["logits"], rtol=1e-5, atol=1e-5)
    labels = torch.arange(len(known["images"])) % known["logits"].shape[1]
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        losses.append(torch.nn.functional.cross_entropy(model(known["images"]), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[2] < losses[0], losses
    odn.save(model.eval(), folder + "-tuned")
    with torch.no_grad():
        torch.testing.assert_close(odn.load(folder + "-tuned")(known["images"]), model(known["images"]))
"""


@pytest.mark.long
def test_saved_loaded_in_a_fresh_process_and_tuned_further(run: Run, tmp_path: Path) -> None:
    """What `run.truncate` and `cut` give is a plain model: its answers travel, and it goes on learning."""
    from safetensors.torch import save_file

    pretrained = odn.Trunk(timm.create_model("test_vit", num_classes=5))
    given = {"truncated": run.truncate(depth=4), "cut": odn.cut(pretrained, odn.thin(0.5, pretrained)).eval()}
    arguments = []
    for name, model in given.items():
        batch = images(run) if name == "truncated" else torch.rand(6, 3, 160, 160)
        odn.save(model, tmp_path / name)
        with torch.no_grad():
            save_file({"images": batch, "logits": model(batch)}, tmp_path / f"{name}.known")
        arguments += [str(tmp_path / name), str(tmp_path / f"{name}.known")]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# --- cut without a fit ------------------------------------------------------------------------------


@torch.no_grad()
def test_cut_is_what_a_fit_would_cut() -> None:
    torch.manual_seed(0)
    model = resnet().eval()
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(plan="thin"))
    batch = torch.rand(2, 3, 32, 32)
    for number, plan in enumerate(network.plans, start=1):
        small = odn.cut(network.trunk, plan)
        assert torch.equal(small(batch), truncate(network, number)(batch))
    assert type(odn.cut(network.trunk, network.plans[0])) is type(model)
    assert small.fc.weight is not model.fc.weight  # type: ignore[union-attr]


@torch.no_grad()
def test_a_cut_model_of_another_library_is_a_shallower_one_of_its_class() -> None:
    model = torchvision.models.resnet18(num_classes=5).eval()
    trunk = odn.Trunk(model, image_size=32)
    small, plan = odn.cut(trunk, odn.thin(1, trunk)), odn.thin(1, trunk)
    assert type(small) is type(model) and len(small.layer3) == 1  # type: ignore[arg-type]
    for size in (32, 48):
        batch = torch.rand(2, 3, size, size)
        torch.testing.assert_close(small(batch), trunk.tail(trunk.follow(trunk.stem(batch), plan)))


def test_cut_keeps_mode_and_keys_and_leaves_the_model_alone() -> None:
    model = resnet().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trunk = odn.Trunk(model, image_size=32)
    small = odn.cut(trunk, DepthPlan("thin", (0, 1, 3, 4, 5, 7)))
    assert small.training and all(module.training for module in small.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert set(small.state_dict()) == {n for n in before if not n.startswith(("layer2.1.", "layer4.1."))}


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (
            DepthPlan("thin", (0, 2, 3, 4)),
            r"unit 1 \(layer2.0\) changes the shape of what it gets: it must stay",
        ),
        (DepthPlan("thin", ()), r"the plan keeps \(\); give units 0 to 7 in ascending order"),
        (DepthPlan("thin", (1, 0)), "in ascending order"),
        (DepthPlan("thin", (0, 9)), "in ascending order"),
        (
            DepthPlan("prefix", (0, 1)),
            r"cut takes thin plans, not a prefix of 2 units: .* run.truncate\(depth",
        ),
        ((0, 1), "cut takes a Trunk and a DepthPlan, not a Trunk and a tuple; see odn.Trunk and odn.thin"),
    ],
)
def test_plans_that_cannot_be_cut(plan: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        odn.cut(odn.Trunk(resnet(), image_size=32), plan)


def test_the_whole_network_may_be_cut() -> None:
    trunk = odn.Trunk(resnet(), image_size=32)
    for plan in (odn.prefix(8, trunk), odn.thin(0, trunk)):
        assert set(odn.cut(trunk, plan).state_dict()) == set(trunk.model.state_dict())


# --- the command line -------------------------------------------------------------------------------


@pytest.mark.long
def test_command_line(
    tiny_arguments: list[str], run: Run, tmp_path: Path, odn: Callable[..., tuple[int, str, str]]
) -> None:
    settings = [
        "--set",
        f"model.args={json.dumps(LAYERS)}",
        *(f"--set={name}={value}" for name, value in GROWING.items()),
    ]
    status, out, err = odn(*tiny_arguments, *settings, "--plan", "thin", "--out", tmp_path / "run")
    assert status == 0, err
    assert odn("report", tmp_path / "run") == (0, out, "")
    words = " ".join(out.split())
    for text in ("exit units kept", "0-1 3-4", "0-4", "kept: units of the thin network, from 0"):
        assert text in words
    assert "Dynamic halting: none; inputs cannot halt in a network of thin plans" in words
    assert "dyn." not in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert run.parts.config["recipe"] == config["recipe"]

    status, out, _ = odn("truncate", tmp_path / "run", "--out", tmp_path / "small", "--depth", "4")
    assert status == 0 and "exit 1, 4 units (0-1 3-4)" in out
    status, out, _ = odn("compare", tmp_path / "run", "--batch", "4", "--json")
    found = json.loads(out)
    assert status == 0 and [row["name"] for row in found["rows"]] == ["full", "static"]
    assert odn("report", tmp_path / "run")[1].count("there is no dynamic model") >= 1
