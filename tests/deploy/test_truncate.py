"""A cut model is plain: the logits of its exit, the backbone's own keys, nothing of what it does not run."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid import MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs, size_of
from odn_hybrid.deploy.truncation.truncate import CutPlan, build_cut, compiled, truncate
from odn_hybrid.errors import ConfigError, InputError, ModelError

ROOT = Path(__file__).resolve().parents[2]

Make = Callable[[], nn.Module]
_named = partial(timm.create_model, num_classes=10)
_little = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 3}
_vision_vit = partial(
    torchvision.models.VisionTransformer,
    image_size=32, patch_size=8, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10,
)  # fmt: skip

#: The networks of the promise at full width, images of 64 pixels, few exits where there are many blocks.
FULL: dict[str, tuple[Make, int | None, int]] = {
    "resnet18": (partial(_named, "resnet18"), 64, 2),
    "resnet50": (partial(_named, "resnet50"), 64, 5),
    "vit_tiny": (partial(_named, "vit_tiny_patch16_224", img_size=64), None, 5),
    "deit_tiny_distilled": (partial(_named, "deit_tiny_distilled_patch16_224", img_size=64), None, 5),
}
#: Narrow ones, with an exit after every unit.
LITTLE: dict[str, tuple[Make, int | None, int]] = {
    "resnet": (partial(_named, "resnet18", channels=[8, 8, 16, 16]), 32, 1),
    "resnetv2": (partial(_named, "resnetv2_50", channels=[16, 16, 32, 32], layers=[1, 1, 1, 1]), 32, 1),
    "resnet, attention pool": (partial(_named, "resnet50_clip", width_factor=0.25), None, 8),
    "convnext": (partial(_named, "test_convnext2"), 64, 1),
    "mambaout": (partial(_named, "test_mambaout"), 64, 2),
    "vit": (partial(_named, "vit_tiny_patch16_224", **_little), None, 1),
    "vit, averaged": (partial(_named, "vit_tiny_patch16_224", **_little, global_pool="avg"), None, 1),
    "vit, attention pool": (partial(_named, "vit_base_patch16_siglip_224", **_little), None, 1),
    "vit, own rope": (partial(_named, "vit_small_patch16_rope_mixed_224", **_little), None, 1),
    "vit, relative positions": (partial(_named, "vit_srelpos_small_patch16_224", **_little), None, 1),
    "torchvision resnet18": (partial(torchvision.models.resnet18, num_classes=10), 32, 3),
    "torchvision vit": (_vision_vit, None, 1),
}


@cache
def make_network(name: str, head: str = "linear") -> MultiExit:
    torch.manual_seed(0)
    make, size, every = {**FULL, **LITTLE}[name]
    model = make()
    with torch.no_grad():  # fresh blocks are near-identities: a cut at the wrong place would not show
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 and not key.endswith("bias"):
                parameter.uniform_(0.3, 1.0)
    return MultiExit(Trunk(model, image_size=size), ExitConfig(head=head, every=every)).eval()


@pytest.fixture(params=[*FULL, *LITTLE])
def network(request: pytest.FixtureRequest) -> MultiExit:
    return make_network(request.param)


def some_images(network: MultiExit, n: int = 2) -> Tensor:
    return torch.rand(n, *network.trunk.image_shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(model: nn.Module, network: MultiExit, exit: int) -> None:
    images = some_images(network)
    wanted = network.at(images, exit)
    difference = float((model(images) - wanted).abs().max())
    assert difference <= 1e-5 * max(1.0, float(wanted.abs().max()))


# --- what a cut model is ----------------------------------------------------------------------------


def test_every_cut(network: MultiExit) -> None:
    backbone = network.backbone
    keys, costs = set(backbone.state_dict()), count_costs(network)
    for exit in range(1, len(network) + 1):
        model = truncate(network, exit)
        assert_same_logits(model, network, exit)
        assert isinstance(model, type(backbone))
        assert size_of([model]) == (costs.params[exit - 1], costs.bytes[exit - 1])
        place = f"{network.trunk.classifier_name}."
        own = {key for key in model.state_dict() if not key.startswith(place)}
        assert own < keys
        gone = {n for unit in network.trunk.unit_names[network.units[exit - 1] :] for n in unit}
        left = {type(module) for name, module in model.named_modules() if name in gone}
        assert left <= {nn.Identity}  # where other code calls a unit by its name
        assert not model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_last_exit_is_the_backbone(network: MultiExit) -> None:
    model = truncate(network, len(network))
    mine, own = model.state_dict(), network.backbone.state_dict()
    assert list(mine) == list(own)
    assert all(torch.equal(value, own[key]) for key, value in mine.items())
    assert type(model) is type(network.backbone)


@pytest.mark.parametrize("head", ["grid", "attention"])
@pytest.mark.parametrize("name", ["resnet", "vit", "torchvision vit"])
def test_other_heads(name: str, head: str) -> None:
    network = make_network(name, head)
    for exit in (1, 2):
        assert_same_logits(truncate(network, exit), network, exit)


@pytest.mark.parametrize("exit", [0, -1, 9])
def test_exits_that_do_not_exist(exit: int) -> None:
    with pytest.raises(ConfigError, match=f"there is no exit {exit}; exits are numbered 1 to 8"):
        truncate(make_network("resnet"), exit)


# --- what can be done with one ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet", "vit, own rope", "torchvision vit"])
def test_training_a_cut_leaves_the_network_alone(name: str) -> None:
    network = make_network(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    model = truncate(network, 2).train()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(some_images(network, 4)), torch.arange(4)).backward()
    heads = [
        k
        for k, p in model.named_parameters()
        if k.startswith(network.trunk.classifier_name) and p.grad is None
    ]
    assert not heads
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert_same_logits(twin.eval(), network, 2) if name != "resnet" else None  # batch norm saw a batch
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def test_modes_are_those_of_the_network() -> None:
    network = copy.deepcopy(make_network("resnet")).train()
    network.backbone.bn1.eval()  # type: ignore[union-attr]
    model = truncate(network, 2)
    assert [name for name, m in model.named_modules() if not m.training] == ["bn1"]
    assert [name for name, m in network.named_modules() if not m.training] == ["backbone.bn1"]


@pytest.mark.parametrize("name", ["resnet", "vit", "vit, own rope", "torchvision resnet18"])
def test_exporting(name: str) -> None:
    network = make_network(name)
    model, images = truncate(network, 2), some_images(network)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},)).module()
    more = some_images(network, 5)
    with torch.no_grad():
        torch.testing.assert_close(exported(more), model(more), rtol=1e-4, atol=1e-5)


# --- to disk and back -------------------------------------------------------------------------------

FRESH = """
import pickle, sys
from pathlib import Path
import torch, odn_hybrid.artifacts
from safetensors.torch import load_file, save_file

def refuse(*args, **kwargs):
    raise SystemExit("something was unpickled")

pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
logits = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    images = load_file(Path(sys.argv[2]) / "images.safetensors")[folder.name]
    model = odn_hybrid.load(folder)
    assert not model.training
    with torch.no_grad():
        logits[folder.name] = model(images)
save_file(logits, Path(sys.argv[2]) / "logits.safetensors")
"""


@pytest.mark.long
def test_a_fresh_process_gives_the_same_logits(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    images, wanted = {}, {}
    for name in ("resnet18", "vit_tiny", "torchvision resnet18"):
        network = make_network(name)
        for exit in (1, len(network)):
            key = f"{name}, exit {exit}".replace(" ", "-")
            model = truncate(network, exit)
            odn.save(model, tmp_path / "models" / key)
            images[key] = some_images(network)
            with torch.no_grad():
                wanted[key] = model(images[key])
    save_file(images, tmp_path / "images.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "models"), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    got = load_file(tmp_path / "logits.safetensors")
    assert set(got) == set(wanted)
    for key, logits in wanted.items():
        torch.testing.assert_close(got[key], logits, rtol=1e-5, atol=1e-5)
    kinds = {path.suffix for path in (tmp_path / "models").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["resnet", "vit, own rope", "torchvision vit"])
def test_a_module_without_a_name_is_filled_into_one(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    model = truncate(network, 2)
    odn.save(model, tmp_path / "cut")
    with pytest.raises(ModelError, match=r"pass a freshly built one: odn_hybrid.load\(path, backbone=MODULE"):
        odn.load(tmp_path / "cut")
    fresh = LITTLE[name][0]()
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    for _ in range(2):  # the module handed over stays whole
        assert_same_logits(odn.load(tmp_path / "cut", backbone=fresh), network, 2)
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    for other in (timm.create_model("resnet26", channels=[8, 8, 8, 8]), nn.Linear(2, 2)):
        with pytest.raises(ModelError):
            odn.load(tmp_path / "cut", backbone=other)


def test_a_plan_is_plain_data(network: MultiExit) -> None:
    plan = truncate(network, 1).__dict__["_odn_plan"]
    again = CutPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan


@pytest.mark.parametrize("lost", ["spec", "layout", "units", "remove"])
def test_a_damaged_plan(lost: str) -> None:
    values = truncate(make_network("resnet"), 1).__dict__["_odn_plan"].to_dict()
    with pytest.raises(ModelError, match="description of the saved model is damaged"):
        CutPlan.from_dict({k: v for k, v in values.items() if k != lost})
    with pytest.raises(ModelError, match="description of the saved model is damaged"):
        CutPlan.from_dict({**values, lost: 3})
    if lost == "layout":
        with pytest.raises(ModelError, match="its head has no layout"):
            build_cut(CutPlan.from_dict({**values, "layout": None}), LITTLE["resnet"][0]())


# --- folded ------------------------------------------------------------------------------------------

FOLDED: dict[str, tuple[Make, int | None, int]] = {
    "efficientnet": (partial(_named, "efficientnet_b0"), 32, 8),
    "levit": (partial(_named, "levit_128s"), 224, 3),
    "densenet": (partial(_named, "densenet121", growth_rate=8, block_config=(2, 2, 2, 2)), 32, 1),
}


def statistics_in(model: nn.Module) -> int:
    return sum(key.endswith("running_mean") for key in model.state_dict())


@torch.no_grad()
def seasoned(network: MultiExit) -> MultiExit:
    """With normalisations that are not near identities."""
    for key, buffer in network.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.2, 1.2)
    return network


@cache
def folded_network(name: str) -> MultiExit:
    torch.manual_seed(0)
    if name in LITTLE:
        return seasoned(make_network(name).copy())
    make, size, every = FOLDED[name]
    return seasoned(MultiExit(Trunk(make(), image_size=size), ExitConfig(every=every)).eval())


def assert_near(model: nn.Module, wanted: Tensor, images: Tensor) -> None:
    with torch.no_grad():
        difference = float((model(images) - wanted).abs().max())
    assert difference <= 1e-4 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("resnet", 0),
        ("torchvision resnet18", 0),
        ("efficientnet", 0),
        ("levit", None),
        ("densenet", None),
        ("convnext", None),
        ("vit", None),
    ],
)
def test_folded_cuts(name: str, left: int | None, tmp_path: Path) -> None:
    network = folded_network(name)
    before, images = copy.deepcopy(network.state_dict()), some_images(network)
    for exit in (1, len(network)):
        plain, model = truncate(network, exit), truncate(network, exit, fold=True)
        with torch.no_grad():
            wanted = network.at(images, exit)
        assert_near(model, wanted, images)
        plan = model.__dict__["_odn_plan"]
        assert statistics_in(model) == statistics_in(plain) - len(plan.folded)
        assert left is None or (statistics_in(model) == left and statistics_in(plain) > 0)
        assert isinstance(model, type(network.backbone))
        maps = network.trunk.layout(1).kind == "NCHW"
        assert plan.channels_last == maps
        again = CutPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
        assert again == plan
        rebuilt = build_cut(again, None if plan.spec.library != "module" else copy.deepcopy(network.backbone))
        rebuilt.load_state_dict(model.state_dict())
        for twin in (model, rebuilt):
            convs = [m.weight for m in twin.modules() if isinstance(m, nn.Conv2d)]
            lies = [w.is_contiguous(memory_format=torch.channels_last) for w in convs if min(w.shape[1:]) > 1]
            assert all(lies) if maps else not any(lies)
        if plan.spec.library != "module":
            assert_near(odn.load(odn.save(model, tmp_path / str(exit))), wanted, images)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_folded_thin_networks() -> None:
    network = MultiExit(
        Trunk(LITTLE["resnet"][0](), image_size=32), ExitConfig(plan="thin", norms="affine")
    ).eval()
    seasoned(network)
    images = some_images(network)
    for exit in (1, len(network)):
        with torch.no_grad():
            wanted = network.at(images, exit)
        model = truncate(network, exit, fold=True)
        assert_near(model, wanted, images)
        assert statistics_in(model) == 0
    plan = odn.thin(0.5, network.trunk)
    plain, model = odn.cut(network.trunk, plan), odn.cut(network.trunk, plan, fold=True)
    with torch.no_grad():
        assert_near(model, plain.eval()(images), images)
    assert statistics_in(model) == 0 < statistics_in(plain)


def test_descriptions_from_before_folding() -> None:
    plan = truncate(make_network("resnet"), 1).__dict__["_odn_plan"]
    older = {k: v for k, v in plan.to_dict().items() if k not in ("folded", "channels_last")}
    assert CutPlan.from_dict(older) == plan


@pytest.mark.parametrize(
    "damage", [{"folded": 3}, {"folded": ["conv1"]}, {"folded": [["conv1", 3]]}, {"channels_last": "yes"}]
)
def test_a_damaged_fold(damage: dict[str, object]) -> None:
    values = truncate(make_network("resnet"), 1).__dict__["_odn_plan"].to_dict()
    with pytest.raises(ModelError, match="description of the saved model is damaged"):
        CutPlan.from_dict({**values, **damage})


@pytest.mark.parametrize("pair", [("conv1", "bn9"), ("bn1", "conv1"), ("layer1.0.conv1", "fc")])
def test_a_fold_of_another_model(pair: tuple[str, str]) -> None:
    values = truncate(make_network("resnet"), 1).__dict__["_odn_plan"].to_dict()
    with pytest.raises(ModelError, match="fold"):
        build_cut(CutPlan.from_dict({**values, "folded": [pair]}), LITTLE["resnet"][0]())


def test_a_compiled_cut_is_saved_as_what_is_inside(tmp_path: Path) -> None:
    network = make_network("resnet18")
    model = truncate(network, 1, fold=True)
    odn.save(compiled(model), tmp_path / "cut")
    loaded = odn.load(tmp_path / "cut")
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert loaded.__dict__["_odn_plan"].folded == model.__dict__["_odn_plan"].folded != ()
    images = some_images(network)
    with torch.no_grad():
        assert_near(loaded, network.at(images, 1), images)


@pytest.mark.long
def test_a_compiled_cut() -> None:
    network = make_network("resnet18")
    model = compiled(truncate(network, 1, fold=True))
    for n in (1, 3, 5):
        images = some_images(network, n)
        with torch.no_grad():
            assert_near(model, network.at(images, 1), images)


# --- networks of one's own ---------------------------------------------------------------------------


class TableBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x + self.conv(x) * table


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.blocks = nn.ModuleList(TableBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        table, x = torch.linspace(0, 1, x.shape[-1]), self.stem(x)
        for block in self.blocks:
            x = block(x, table)
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_blocks_that_share_a_table_of_the_roots_own() -> None:
    network = MultiExit(Trunk(Tables(), image_size=8)).eval()
    for exit in (1, 2, 3):
        model = truncate(network, exit)
        assert_same_logits(model, network, exit)
        assert list(model.blocks._modules) == [str(unit) for unit in range(exit)]  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"shape \(3, 9, 9\); this cut model takes \(3, 8, 8\)"):
        truncate(network, 1)(torch.zeros(1, 3, 9, 9))


class SequenceFirst(nn.Module):
    """`nn.TransformerEncoder` as it comes: (length, batch, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))  # type: ignore[no-any-return]


class Pairs(nn.Module):
    """Blocks without a module of their own: members of a list, added up in the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)]) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for spatial, channels in self.layers:  # type: ignore[attr-defined, misc]
            x = spatial(x).relu() + x
            x = channels(x).relu() + x
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("plan", ["prefix", "thin"])
@pytest.mark.parametrize("make", [SequenceFirst, Pairs])
def test_own_networks_are_cut_and_exported(make: Make, plan: Literal["prefix", "thin"]) -> None:
    network = MultiExit(Trunk(make(), image_size=16), ExitConfig(plan=plan)).eval()
    assert network.units == (1, 2, 3)
    keys = set(network.backbone.state_dict())
    for exit in (1, 2, 3):
        model = truncate(network, exit)
        assert_same_logits(model, network, exit)
        assert {key for key in model.state_dict() if not key.startswith("fc.")} < keys
    model, images = truncate(network, 1), some_images(network)
    exported = torch.export.export(
        model, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=9)},)
    )
    more = some_images(network, 5)
    torch.testing.assert_close(exported.module()(more), model(more), rtol=1e-4, atol=1e-5)
