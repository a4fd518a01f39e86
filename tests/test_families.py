"""Twenty families of timm: wrapped, trained two steps, cut, saved, loaded in a fresh process, tuned on."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from odn_hybrid import MultiExit, Trunk, count_costs, load, save
from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.training.objectives import ExitOutputs, build_objective

_TOKENS = {"img_size": 64, "depth": 4}
_SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [2, 2, 2], "num_heads": [2, 2, 2]}
_BEIT = {**_TOKENS, "embed_dim": 48, "num_heads": 3}
_DENSE = {"growth_rate": 8, "block_config": [2, 2, 2, 2]}

#: family (timm's module) -> model, its arguments, and the exit that is cut at.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet": ("test_resnet", {}, 2),
    "vision_transformer": ("test_vit", {"img_size": 64}, 3),
    "deit": ("deit_tiny_distilled_patch16_224", _TOKENS, 2),
    "swin_transformer": ("swin_tiny_patch4_window7_224", _SWIN, 3),
    "beit": ("beit_base_patch16_224", _BEIT, 2),
    "eva": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 4}, 2),
    "xcit": ("xcit_nano_12_p16_224", {"depth": 4}, 2),
    "cait": ("cait_xxs24_224", _TOKENS, 2),
    "pit": ("pit_ti_224", {"img_size": 64}, 3),
    "convnext": ("test_convnext", {}, 5),
    "nfnet": ("test_nfnet", {}, 2),
    "mambaout": ("test_mambaout", {}, 4),
    "byobnet": ("test_byobnet", {}, 2),
    "regnet": ("regnetx_002", {}, 3),
    "mobilenetv3": ("mobilenetv3_small_050", {}, 4),
    "densenet": ("densenet121", _DENSE, 3),
    "ghostnet": ("ghostnet_050", {}, 4),
    "edgenext": ("edgenext_xx_small", {}, 3),
    "pvt_v2": ("pvt_v2_b0", {}, 3),
    "dla": ("dla46_c", {}, 2),
}


@dataclass
class Kept:
    """A cut model after two steps of training, where it was saved, and what a fresh process made of that."""

    network: MultiExit
    model: nn.Module
    path: Path
    losses: list[float]
    logits: Tensor
    again: Tensor


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kept]:
    folder = tmp_path_factory.mktemp("cut")
    made: dict[str, Any] = {}
    for family, (name, args, number) in FAMILIES.items():
        torch.manual_seed(0)
        spec = BackboneSpec(library="timm", name=name, args=args, num_classes=2)
        network = MultiExit(Trunk(build_backbone(spec), image_size=args.get("img_size", 64)))
        losses = _two_steps(network)
        model = truncate(network.eval(), number)
        path = save(model, folder / family)
        with torch.no_grad():
            made[family] = (network, model, path, losses, model(_images(model)))
    fresh = _in_a_fresh_process(folder)
    return {family: Kept(*found, fresh[family]) for family, found in made.items()}


def _two_steps(network: MultiExit) -> list[float]:
    objective = build_objective("joint", len(network))
    optimizer = torch.optim.SGD([*network.parameters(), *objective.parameters()], 0.01)
    costs = torch.tensor(count_costs(network).cumulative, dtype=torch.float32)
    labels = torch.arange(8) % 2
    images = torch.rand(8, *network.trunk.image_shape) + 0.5 * labels[:, None, None, None]
    losses = []
    for _ in range(2):
        loss = objective(ExitOutputs(network.train()(images), labels, costs / costs[-1]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _images(model: nn.Module) -> Tensor:
    shape = model.__dict__["_odn_plan"].image_shape
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def _in_a_fresh_process(folder: Path) -> dict[str, Tensor]:
    program = (
        "import sys, pathlib, torch, odn_hybrid as odn\n"
        "from safetensors.torch import save_file\n"
        "found, folder = {}, pathlib.Path(sys.argv[1])\n"
        "for path in sorted(p for p in folder.iterdir() if p.is_dir()):\n"
        "    model = odn.load(path)\n"
        "    seeded = torch.Generator().manual_seed(0)\n"
        "    images = torch.rand(2, *model._odn_plan.image_shape, generator=seeded)\n"
        "    with torch.no_grad(): found[path.name] = model(images)\n"
        "save_file(found, folder / 'logits.safetensors')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "logits.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_cut_saved_and_loaded_elsewhere(kept: dict[str, Kept], family: str) -> None:
    found = kept[family]
    assert timm.models.model_entrypoint(FAMILIES[family][0]).__module__.endswith(f".{family}")
    assert all(math.isfinite(loss) for loss in found.losses) and found.losses[0] != found.losses[1]
    assert torch.equal(found.again, found.logits)
    assert found.logits.std() > 0
    place = f"{found.network.trunk.classifier_name}."
    own = {key for key in found.model.state_dict() if not key.startswith(place)}
    assert own < set(found.network.backbone.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cut_model_is_tuned_one_step_further(kept: dict[str, Kept], family: str) -> None:
    model = load(kept[family].path).train()
    images, labels = _images(model), torch.tensor([0, 1])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(moved) > 0.5 * len(before)
