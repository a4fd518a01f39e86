"""Backbones by name, and the names of backbones."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from odn_hybrid.backbone import (
    BackboneSpec,
    build_backbone,
    default_image_size,
    evaluating,
    fixed_image_size,
    input_channels,
    load_checkpoint,
    parse_name,
    published_config,
    spec_of,
)
from odn_hybrid.errors import ModelError


def spec(name: str, library: str = "timm", **more: Any) -> BackboneSpec:
    return BackboneSpec(library=library, name=name, **{"num_classes": 7, **more})


SMALL = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}


# --- building ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("resnet18", ("timm", "resnet18")),
        ("timm/resnet18", ("timm", "resnet18")),
        ("torchvision/vit_b_16", ("torchvision", "vit_b_16")),
    ],
)
def test_names(text: str, parsed: tuple[str, str]) -> None:
    assert parse_name(text) == parsed


def test_building() -> None:
    model = build_backbone(spec("resnet18", args=SMALL, in_chans=1, stem="small"))
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 7)
    assert (model.conv1.kernel_size, model.conv1.stride) == ((3, 3), (1, 1))
    with torch.device("meta"):
        assert build_backbone(spec("resnet18", "torchvision")).fc.out_features == 7


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_16", "mobilenet_v3_small", "swin_t"])
def test_published_weights_of_torchvision_for_other_classes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the last layer is the weights'; they can be asked for with their own classes only."""
    make, asked = torchvision.models.get_model, []

    def get_model(name: str, *, weights: Any = None, **options: Any) -> nn.Module:
        asked.append((weights, options))
        return make(name, weights=None, **options)  # nothing is downloaded here

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    with torch.device("meta"):
        model = build_backbone(spec(name, "torchvision"), pretrained=True)
        whole, fresh = make(name), make(name, num_classes=7)
    assert asked == [("DEFAULT", {})]
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [
        (k, v.shape) for k, v in fresh.state_dict().items()
    ]
    others = [k for k, v in model.state_dict().items() if v.shape != whole.state_dict()[k].shape]
    assert len(others) == 2  # weight and bias
    known = published_config(model)
    assert known["num_classes"] == 1000 and known["interpolation"] in ("bilinear", "bicubic")
    assert known["mean"] == pytest.approx((0.485, 0.456, 0.406)) and len(known["std"]) == 3
    assert published_config(fresh) == {}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (spec("resnet81"), "unknown timm model 'resnet81'; close names: .*resnet18"),
        (spec("resnet81", "torchvision"), "unknown torchvision model 'resnet81'; close names"),
        (spec("hf-hub:a/b"), "unknown timm model 'hf-hub:a/b'"),
        (spec("fasterrcnn_resnet50_fpn", "torchvision"), "unknown torchvision model"),
        (spec("resnet18", "elsewhere"), "unknown library 'elsewhere'"),
        (spec("resnet18", args={"no_such": 1}), "cannot build timm model 'resnet18'"),
        (spec("vit_tiny_patch16_224", stem="small"), "stem='small' needs a ResNet"),
        (spec("mine.Net", "module"), r"odn_hybrid.load\(path, backbone=MODULE\)"),
    ],
)
def test_what_cannot_be_built(wrong: BackboneSpec, says: str) -> None:
    with torch.device("meta"), pytest.raises(ModelError, match=says) as caught:
        build_backbone(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained", "weights"],
)
def test_arguments_that_would_read_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"model argument '{name}' is not taken"):
        build_backbone(spec("resnet18", args={**SMALL, name: str(tmp_path / "evil.pth")}))


# --- what a model takes -----------------------------------------------------------------------------


def test_sizes_and_channels() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), depth=1, in_chans=1)
    free = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True)
    with torch.device("meta"):
        resnet, big = timm.create_model("resnet18"), timm.create_model("vit_giant_patch14_dinov2")
        clip = timm.create_model("resnet50_clip")
        other = torchvision.models.vit_b_16()
    assert [fixed_image_size(m) for m in (vit, free, resnet, other)] == [(32, 64), None, None, (224, 224)]
    assert fixed_image_size(clip) == (224, 224)
    assert (default_image_size(resnet), default_image_size(big), default_image_size(other)) == (224, 518, 224)
    assert (input_channels(vit), input_channels(resnet), input_channels(nn.Linear(2, 2))) == (1, 3, 3)


def test_modes_come_back_module_by_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(m.training for m in model.modules())
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == [True, True, False]


# --- which name rebuilds a module -------------------------------------------------------------------


def timms(name: str, **more: Any) -> Any:
    return lambda: timm.create_model(name, num_classes=7, **more)


def visions(name: str, **more: Any) -> Any:
    return lambda: torchvision.models.get_model(name, num_classes=7, weights=None, **more)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (timms("resnet18"), spec("resnet18")),
        (timms("resnet18", in_chans=1), spec("resnet18", in_chans=1)),
        (timms("vit_tiny_patch16_224"), spec("vit_tiny_patch16_224")),
        (
            timms("vit_tiny_patch16_224", img_size=(32, 64)),
            spec("vit_tiny_patch16_224", args={"img_size": [32, 64]}),
        ),
        (timms("deit_tiny_distilled_patch16_224"), spec("deit_tiny_distilled_patch16_224")),
        (visions("resnet18"), spec("resnet18", "torchvision")),
        (visions("resnet50"), spec("resnet50", "torchvision")),
        (visions("wide_resnet50_2"), spec("wide_resnet50_2", "torchvision")),
        (visions("vit_b_32"), spec("vit_b_32", "torchvision")),
        (visions("vit_b_16", image_size=64), spec("vit_b_16", "torchvision", args={"image_size": 64})),
        (lambda: build_backbone(spec("resnet18", args=SMALL)), spec("resnet18", args=SMALL)),
        (
            lambda: copy.deepcopy(build_backbone(spec("resnet18", args=SMALL, stem="small"))),
            spec("resnet18", args=SMALL, stem="small"),
        ),
    ],
)
def test_spec_rebuilds_the_module(make: Any, found: BackboneSpec) -> None:
    with torch.device("meta"):
        model = make()
        assert spec_of(model, 7) == found
        twin = build_backbone(found)
    assert {k: v.shape for k, v in twin.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


class Mine(timm.models.ResNet):
    pass


Mine.__name__ = Mine.__qualname__ = "ResNet"  # as a person might who overrides one method


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 7)),
        timms("resnet18", channels=[8, 8, 8, 8]),  # built by timm itself: its arguments are not recorded
        timms("resnet18", output_stride=8),
        visions("vit_b_16", dropout=0.5),
        lambda: Mine(timm.models.resnet.BasicBlock, (2, 2, 2, 2), num_classes=7),
    ],
)
def test_a_module_without_a_name_says_so(make: Any) -> None:
    with torch.device("meta"):
        found = spec_of(make(), 7)
    assert (found.library, found.num_classes) == ("module", 7)


def test_changes_after_building_are_seen() -> None:
    model = build_backbone(spec("resnet18", args=SMALL))
    model.reset_classifier(3)
    assert spec_of(model, 3) == spec("resnet18", args=SMALL, num_classes=3)
    model.layer1 = nn.Identity()
    assert spec_of(model, 3).library == "module"


# --- local weights ----------------------------------------------------------------------------------


def test_checkpoint_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = timm.create_model("resnet18", num_classes=3, **SMALL)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    model = timm.create_model("resnet18", num_classes=7, **SMALL)
    head = model.fc.weight.clone()
    load_checkpoint(model, tmp_path / "w.safetensors")
    assert torch.equal(model.fc.weight, head)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items() if "fc" not in k)


def test_checkpoints_that_cannot_be_used(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=7, **SMALL)
    weights = model.state_dict()
    (tmp_path / "cut.safetensors").write_bytes(b"\0" * 20)
    save_file({**weights, "conv1.weight": torch.zeros(8, 1, 7, 7)}, tmp_path / "shape.safetensors")
    save_file({k: v for k, v in weights.items() if k != "bn1.bias"}, tmp_path / "less.safetensors")
    for name, says in {
        "none.safetensors": "cannot read the weights",
        "cut.safetensors": "cannot read the weights",
        "w.pth": "not a .safetensors file; pickled weights are not read",
        "shape.safetensors": "does not fit ResNet: conv1.weight",
        "less.safetensors": "does not fit ResNet: bn1.bias",
    }.items():
        with pytest.raises(ModelError, match=says):
            load_checkpoint(model, tmp_path / name)
