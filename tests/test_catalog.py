"""The list of models: what is split is counted, the rest has a reason, and the check sees what is wrong."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from odn_hybrid import catalog
from odn_hybrid.catalog import Entry, Evidence, describe, enliven, names
from odn_hybrid.errors import ModelError


@pytest.fixture(scope="module")
def small() -> dict[str, Entry]:
    chosen = ("test_resnet", "test_vit", "test_convnext", "vgg11", "torchvision/resnet18")
    return {name: describe(name) for name in chosen}


# --- names ------------------------------------------------------------------------------------------


def test_names_are_chosen_by_glob_from_timm_and_torchvision() -> None:
    import timm

    assert names("resnet18") == ["resnet18"]
    assert names("timm/resnet18") == ["resnet18"]
    assert names("*/resnet18") == ["torchvision/resnet18"]
    assert "torchvision/vit_b_16" in names("torchvision/*")
    assert not [name for name in names("torchvision/*") if "rcnn" in name or "fcn" in name]
    assert names()[: len(timm.list_models())] == timm.list_models()
    assert names("no_such_*") == []


@pytest.mark.parametrize(
    ("pattern", "near"), [("resnett18", "resnet18"), ("torchvison/resnet18", "torchvision/resnet18")]
)
def test_near_names(pattern: str, near: str) -> None:
    found = catalog.near_names(pattern)
    assert near in found and len(found) <= 3


def test_an_unknown_name_is_an_error_with_near_names() -> None:
    with pytest.raises(ModelError, match=r"unknown timm model 'resnett18'.*resnet18"):
        describe("resnett18")
    with pytest.raises(ModelError, match="unknown torchvision model 'nothing'"):
        describe("torchvision/nothing")


# --- entries ----------------------------------------------------------------------------------------


def test_an_entry_agrees_with_the_model_itself(small: dict[str, Entry]) -> None:
    import timm

    from odn_hybrid import Trunk

    for name in ("test_resnet", "test_vit", "test_convnext"):
        entry, model = small[name], timm.create_model(name)
        trunk = Trunk(model, check=False)
        assert entry.supported and entry.reason == "" and entry.checked is None
        assert (entry.units, entry.exits, entry.stages) == (len(trunk), len(trunk), len(trunk.stages))
        assert entry.removable == len(trunk.removable)
        assert entry.params == sum(p.numel() for p in model.parameters())
        assert entry.image_size == trunk.image_shape[1:]


def test_macs_are_those_of_the_published_network(small: dict[str, Entry]) -> None:
    macs = small["torchvision/resnet18"].macs
    assert macs is not None and abs(macs / 1.814e9 - 1) < 1e-3
    assert describe("test_vit", macs=False).macs is None


def test_families_are_the_modules_of_the_builders(small: dict[str, Entry]) -> None:
    families = {name: entry.family for name, entry in small.items()}
    assert families["test_vit"] == "vision_transformer" and families["vgg11"] == "vgg"
    assert families["torchvision/resnet18"] == "torchvision/resnet"


def test_what_cannot_be_split_has_a_reason_on_one_line(small: dict[str, Entry]) -> None:
    entry = small["vgg11"]
    assert not entry.supported and entry.units == entry.exits == entry.stages == entry.removable == 0
    assert "VGG" in entry.reason and "\n" not in entry.reason
    assert entry.macs and entry.params  # it is a model all the same


@pytest.mark.parametrize("broken", [RuntimeError("line one\nline two"), KeyError("x"), RecursionError()])
def test_whatever_goes_wrong_becomes_the_reason(monkeypatch: pytest.MonkeyPatch, broken: Exception) -> None:
    from odn_hybrid.catalog import entries

    def trunk(*_: object, **__: object) -> None:
        raise broken

    monkeypatch.setattr(entries, "Trunk", trunk)
    entry = describe("test_vit", check=True)
    assert not entry.supported and entry.checked is None
    assert entry.reason.startswith(type(broken).__name__) and "\n" not in entry.reason
    assert entry.macs and entry.params


def test_a_model_that_cannot_be_built_without_numbers_is_still_described() -> None:
    entry = describe("torchvision/regnet_x_400mf", macs=False)
    assert entry.params == 5_495_976 and entry.units > 0


def test_another_image_size_where_the_model_takes_it() -> None:
    assert describe("test_vit", image_size=96, macs=False).image_size == (96, 96)
    assert describe("test_resnet", image_size=96, macs=False).image_size == (96, 96)


def test_the_callers_random_numbers_and_warnings_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    filters = list(warnings.filters)
    describe("test_vit", check=True)
    assert torch.equal(torch.rand(1), expected)
    assert warnings.filters == filters


def test_nothing_is_filled_on_the_meta_device_only() -> None:
    with torch.device("meta"), catalog.blank_weights():
        empty = nn.Linear(3, 3)
        real = torch.zeros(3, device="cpu").add_(1)
    assert empty.weight.is_meta and torch.equal(real, torch.ones(3))
    assert bool(nn.Linear(3, 3).weight.any())


# --- the check --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_the_check_measures_and_passes(name: str) -> None:
    entry = describe(name, check=True, macs=False)
    assert entry.checked is True and entry.reason == ""
    assert entry.evidence is not None
    assert entry.evidence.resumed <= 1e-5 and entry.evidence.part <= 1e-4
    assert entry.evidence.unreached == ()
    assert entry.evidence.spread > 0.01  # the weights matter: images get different logits
    assert describe(name, check=True, macs=False) == entry  # seeded


def test_an_enlivened_network_uses_every_unit() -> None:
    import timm

    model = enliven(timm.create_model("test_convnext")).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for number in range(2):
            block = model.stages[number].blocks[0]
            kept = block.forward
            block.forward = lambda x: x
            changed = float((model(images) - before).abs().max())
            block.forward = kept
            assert changed > 1e-3


def _evidence(**changes: object) -> Evidence:
    good: dict[str, object] = {"resumed": 0.0, "part": 1e-6, "unreached": (), "spread": 1.0}
    return Evidence(**(good | changes))  # type: ignore[arg-type]


def test_what_counts_as_a_failure() -> None:
    assert _evidence().failure == ""
    assert "resumed run" in _evidence(resumed=2e-5).failure
    assert "resumed run" in _evidence(resumed=float("nan")).failure
    assert "part of the batch" in _evidence(part=2e-4).failure
    assert "same logits" in _evidence(spread=1e-3).failure
    assert "'blocks.3'" in _evidence(unreached=("blocks.3",)).failure


def test_a_failed_check_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from odn_hybrid.catalog import entries

    monkeypatch.setattr(entries, "examine", lambda *_: _evidence(part=1.0))
    entry = describe("test_vit", check=True, macs=False)
    assert entry.supported and entry.checked is False and "part of the batch" in entry.reason


def test_a_unit_without_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    from odn_hybrid.catalog.checking import examine

    model = timm.create_model("test_vit")
    for parameter in model.blocks[2].parameters():
        parameter.requires_grad_(False)
    evidence = examine(model, (160, 160))
    assert evidence.unreached == ("blocks.2",)
    assert "no gradient" in evidence.failure


def test_what_does_not_fit_the_memory_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from odn_hybrid.catalog import entries

    monkeypatch.setattr(entries, "_memory", lambda: 1e6)
    entry = describe("test_vit", check=True, macs=False)
    assert entry.supported and entry.checked is None and "memory" in entry.reason
