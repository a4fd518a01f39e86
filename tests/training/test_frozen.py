"""The "frozen" regime: the backbone stays as it is to the byte; heads train on features computed once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from comparing import results
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import odn_hybrid as odn
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_macs
from odn_hybrid.errors import ConfigError, ModelError, StorageError, TrainingError
from odn_hybrid.exits import HEADS, MultiExit, build_head, register_head
from odn_hybrid.fitting import fit
from odn_hybrid.run import Run
from odn_hybrid.rundir import write_tensors
from odn_hybrid.training.frozen.classifier import OwnClassifier
from odn_hybrid.training.frozen.heads import Examples, HeadPlan, fit_head
from odn_hybrid.training.frozen.standardising import absorb, channel_axis, standard_of
from odn_hybrid.training.frozen.store import FeatureStore
from odn_hybrid.trunk import Trunk
from odn_hybrid.trunk.layout import Layout

CLASSIFIER = ("fc.weight", "fc.bias")
LAYOUTS = {
    "map": Layout("NCHW", 8, 6, 5),
    "map, channels last": Layout("NHWC", 8, 6, 5),
    "tokens": Layout("NLC", 8, 3, 3, 2, 11),
}
HEAD_CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("grid", {"grid": 2}),
    ("grid", {"grid": 2, "rank": 3}),
    ("grid", {"grid": 2, "hidden": 5}),
    ("attention", {"heads": 2}),
]


def activation(layout: Layout, n: int = 3) -> Tensor:
    if layout.kind == "NLC":
        return torch.randn(n, layout.tokens, layout.channels)
    plane = (layout.height, layout.width)
    return torch.randn(
        n, *((layout.channels, *plane) if layout.kind == "NCHW" else (*plane, layout.channels))
    )


# --- heads in two parts -----------------------------------------------------------------------------


def trained_head(name: str, layout: Layout, args: dict[str, Any]) -> Any:
    """A head none of whose weights and statistics is a 0 or a 1 that it began with."""
    torch.manual_seed(0)
    head: Any = build_head(name, layout, 7, **args)
    with torch.no_grad():
        for value in head.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand_like(value) + 0.5)
    return head.eval()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("name", "args"), HEAD_CHOICES)
@torch.no_grad()
def test_the_two_parts_of_a_head_are_its_forward(layout: Layout, name: str, args: dict[str, Any]) -> None:
    head, x = trained_head(name, layout, args), activation(layout)
    features = head.features(x)
    torch.testing.assert_close(head.classify(features), head(x))
    for parameter in head.parameters():  # the first part has none
        parameter.fill_(float("nan"))
    assert torch.equal(head.features(x), features)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("name", "args"), HEAD_CHOICES)
@torch.no_grad()
def test_a_head_takes_in_mean_and_deviation(layout: Layout, name: str, args: dict[str, Any]) -> None:
    head = trained_head(name, layout, args)
    features = head.features(3 * activation(layout, 50) + 2) * torch.linspace(0.1, 5, 8).view(
        [
            -1 if axis == channel_axis(head) else 1
            for axis in range(2 + 2 * (name == "grid") + (name == "attention"))
        ]
    )
    axis = channel_axis(head)
    assert axis is not None
    standard = standard_of(features, axis)
    standardised = standard(features).movedim(axis, -1).flatten(0, -2)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.std(0, correction=0), torch.ones(8))
    wanted = head.classify(standard(features))
    absorb(head, standard)
    torch.testing.assert_close(head.classify(features), wanted, rtol=1e-3, atol=1e-3)


# --- features on disk -------------------------------------------------------------------------------


@given(st.floats(-30, 30), st.integers(0, 2**31 - 1))
def test_features_of_any_scale_come_back_with_eleven_bits(scale: float, seed: int) -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed)) * 2.0**scale
    with FeatureStore({3: (5,)}, 8, Path("/tmp")) as store:
        store.write(3, 0, values[:4])
        store.write(3, 4, values[4:])
        back = store.held(3)[:6].float() * store.factors[3]
    assert float((back - values).abs().max()) <= 2.0**-11 * float(values.abs().max()) * 1.001


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_features_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    with FeatureStore({1: (2,)}, 4, tmp_path) as store:
        store.write(1, 0, torch.ones(2, 2))
        with pytest.raises(TrainingError, match="exit 1 are not finite"):
            store.write(1, 2, torch.tensor([[1.0, bad], [1.0, 1.0]]))


def test_features_have_no_name_on_the_disk(tmp_path: Path) -> None:
    with FeatureStore({1: (1000,), 2: (10,)}, 50, tmp_path) as store:
        store.write(1, 0, torch.ones(50, 1000))
        assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


# --- one head ---------------------------------------------------------------------------------------


def test_a_head_learns_what_can_be_learnt_and_keeps_its_best() -> None:
    """Two features of very different scale and offset decide; the loss comes near that of the true rule."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(4000, 2, generator=random)
    labels = (hidden[:, 0] - hidden[:, 1] + torch.randn(4000, generator=random) * 0.3 > 0).long()
    features = hidden * torch.tensor([1e-2, 10.0]) + torch.tensor([1.0, -300.0])
    torch.manual_seed(0)
    head = build_head("linear", Layout("NCHW", 2, 1, 1), 2)
    examples = Examples(features, 1.0, labels, 3000, torch.device("cpu"))
    found = fit_head(head, examples, HeadPlan(epochs=30, seed=0), 1)
    best = ((hidden[3000:, 0] > hidden[3000:, 1]).long() == labels[3000:]).float().mean()
    assert found.accuracy > float(best) - 0.01
    with torch.no_grad():
        logits = head.classify(features[3000:])  # type: ignore[operator]
    loss = nn.functional.cross_entropy(logits, labels[3000:])
    assert float(loss) == pytest.approx(found.loss, rel=1e-2)


def test_a_head_that_stops_gaining_is_done_early() -> None:
    """Labels that features say nothing about: each further epoch only learns them by heart."""
    random = torch.Generator().manual_seed(0)
    features, labels = torch.randn(400, 64, generator=random), torch.randint(0, 2, (400,), generator=random)
    head = build_head("linear", Layout("NCHW", 64, 1, 1), 2)
    found = fit_head(head, Examples(features, 1.0, labels, 300, torch.device("cpu")), HeadPlan(100, 0), 1)
    assert found.epochs < 30
    assert found.images == found.epochs * 288  # whole batches of 32


# --- the fit ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny: dict[str, Any]) -> Run:
    """A backbone that can tell the classes of the tiny data set, trained without exits."""
    return fit(**tiny, loss="cross_entropy")


def frozen(tiny: dict[str, Any], trained: Run, **changes: Any) -> dict[str, Any]:
    """Arguments of a frozen fit of the trained backbone."""
    overrides = {"data.image_size": 12, "data.normalise": "data", **changes}
    return {
        "model": trained.network.backbone,
        "data": tiny["data"],
        "regime": "frozen",
        "overrides": overrides,
    }


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any], trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(**frozen(tiny, trained), out=tmp_path_factory.mktemp("frozen") / "run")


def test_the_backbone_stays_to_the_byte(trained: Run, run: Run) -> None:
    wanted, found = trained.network.backbone.state_dict(), run.network.backbone.state_dict()
    assert list(wanted) == list(found)
    assert any("running_var" in name for name in wanted)
    assert all(wanted[name].numpy().tobytes() == found[name].numpy().tobytes() for name in wanted)
    assert run.path is not None
    stored = load_file(run.path / "model.safetensors")
    assert all(stored[name].numpy().tobytes() == wanted[name].numpy().tobytes() for name in wanted)


def test_heads_learn_and_everything_else_works_as_for_any_run(trained: Run, run: Run) -> None:
    rows = run.exits_
    assert all(row["trained"] for row in rows)
    assert rows[-1]["accuracy"] == trained.exits_[-1]["accuracy"]  # the backbone's own head
    assert rows[-2]["accuracy"]["test"]["value"] > 0.6  # of three classes
    assert run.report_["dynamic"] is not None
    assert run.path is not None
    images = run.transform(np.random.default_rng(0).integers(0, 256, (4, 12, 12), dtype=np.uint8))
    with torch.no_grad():
        for row in rows:
            small = run.truncate(depth=row["units"])
            torch.testing.assert_close(small(images), run.network(images)[row["exit"] - 1])
        loaded = odn.load(run.path)
        torch.testing.assert_close(loaded.network(images), run.network(images))
    assert run.dynamic(certify=False)(images).logits.shape == (4, 3)


def test_the_search_says_what_it_cost(run: Run) -> None:
    search, (features, heads) = run.report_["search"], run.history_
    assert search["epochs"] == 1 and search["by_depth"] == {"4": 1.0}
    images = features["images"]
    with torch.no_grad():
        batch = torch.zeros(1, *run.network.trunk.image_shape)
        forward = count_macs(lambda: run.network.at(batch, 4))
    assert features["train_macs"] == forward * images
    batches = images // 32 * 32
    trained = sum(
        3 * run.parts.costs.heads[k] * epochs * batches for k, epochs in enumerate(heads["head_epochs"])
    )
    assert search["train_macs"] == forward * images + trained
    assert heads["head_epochs"][-1] == 0 and heads["classifier"] == "kept"
    assert len(heads["selection"]) == 4
    assert search["seconds"] > 0 and search["stopped_by"] == "rule"


@pytest.mark.parametrize("loss", ["joint", "cross_entropy"])
def test_the_objective_makes_no_difference(tiny: dict[str, Any], trained: Run, run: Run, loss: str) -> None:
    other = fit(**frozen(tiny, trained), loss=loss)
    assert [row["trained"] for row in other.exits_] == [True] * 4
    wanted = run.network.heads.state_dict()
    assert all(value.equal(wanted[name]) for name, value in other.network.heads.state_dict().items())


@pytest.mark.parametrize(("head", "args"), [("grid", {"grid": 2, "hidden": 8}), ("attention", {"heads": 2})])
def test_other_heads(tiny: dict[str, Any], trained: Run, head: str, args: dict[str, Any]) -> None:
    found = fit(**frozen(tiny, trained, **{"exits.args": args, "exits.every": 2}), head=head)
    assert found.exits_[0]["accuracy"]["selection"]["value"] > 0.6


@pytest.fixture
def corner_head() -> Iterator[str]:
    @register_head("corner")
    class Corner(nn.Module):
        """A head of a user's, that does not say which part of it is fixed."""

        def __init__(self, layout: Layout, num_classes: int) -> None:
            super().__init__()
            self.fc = nn.Linear(layout.channels * 9, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x[:, :, :3, :3].flatten(1))  # type: ignore[no-any-return]

    yield "corner"
    del HEADS["corner"]


def test_a_head_of_the_users_own(tiny: dict[str, Any], trained: Run, corner_head: str) -> None:
    found = fit(**frozen(tiny, trained, **{"exits.every": 3}), head=corner_head)
    assert found.history_[-1]["selection"][0] == pytest.approx(
        found.exits_[0]["accuracy"]["selection"]["value"], abs=0.03
    )


def test_a_transformer(tiny: dict[str, Any]) -> None:
    torch.manual_seed(0)
    args = {"img_size": 12, "patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **args)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    found = fit(model, tiny["data"], regime="frozen", overrides={"data.normalise": "data"})
    own = found.network.backbone.state_dict()
    assert all(own[name].equal(kept[name]) for name in kept if not name.startswith("head."))
    assert found.history_[-1]["selection"][0] == pytest.approx(
        found.exits_[0]["accuracy"]["selection"]["value"], abs=0.03
    )


def test_passes_are_augmented_but_the_first(tiny: dict[str, Any], trained: Run) -> None:
    one, two, plain = (
        fit(**frozen(tiny, trained, **{"frozen.passes": passes, "data.augment": augment, "exits.every": 2}))
        for passes, augment in ((1, "shift_flip"), (2, "shift_flip"), (1, "none"))
    )
    same = plain.network.heads.state_dict()
    assert all(value.equal(same[name]) for name, value in one.network.heads.state_dict().items())
    assert not all(value.equal(same[name]) for name, value in two.network.heads.state_dict().items())
    assert [row["phase"] for row in two.history_] == ["features", "features", "heads"]
    assert two.report_["search"]["epochs"] == 2


def test_exits_beyond_a_budget_are_not_looked_at(tiny: dict[str, Any], trained: Run, run: Run) -> None:
    limit = run.exits_[1]["macs_static"]
    found = fit(**frozen(tiny, trained, **{"choice.max_macs": limit}))
    assert [row["trained"] for row in found.exits_] == [True, True, False, False]
    assert found.report_["search"]["by_depth"] == {"2": 1.0}
    images, costs = found.history_[0]["images"], found.parts.costs
    assert found.history_[0]["train_macs"] == costs.prefix(2) * images  # nothing deeper ran
    for name, value in found.network.backbone.state_dict().items():
        assert value.equal(trained.network.backbone.state_dict()[name])


# --- the backbone's own classifier ------------------------------------------------------------------


def check_only_the_classifier_changed(before: dict[str, Tensor], run: Run, classes: int) -> None:
    after = run.network.backbone.state_dict()
    for name, value in after.items():
        if name in CLASSIFIER:
            assert value.shape[0] == classes
        else:
            assert value.numpy().tobytes() == before[name].numpy().tobytes(), name
    assert run.history_[-1]["classifier"] == "trained"
    assert run.exits_[-1]["accuracy"]["test"]["value"] > 0.6


def test_a_checkpoint_of_other_classes(
    tiny: dict[str, Any], trained: Run, tmp_path: Path, odn: Callable[..., tuple[int, str, str]]
) -> None:
    """Through the command line: all weights but the classifier's come from the file."""
    weights = dict(trained.network.backbone.state_dict())
    colour = {**weights, "conv1.weight": weights["conv1.weight"].expand(-1, 3, -1, -1).contiguous() / 3}
    other = {**colour, "fc.weight": torch.zeros(9, 16), "fc.bias": torch.zeros(9)}
    write_tensors(tmp_path / "weights.safetensors", other)
    given = {
        "model.checkpoint": str(tmp_path / "weights.safetensors"),
        "model.args": tiny["overrides"]["model.args"],
        "model.stem": "small",
        "data.image_size": 12,
        "data.normalise": "data",
    }
    settings = [f"--set={name}={json.dumps(value)}" for name, value in given.items()]
    out = tmp_path / "run"
    status, _, err = odn(
        "fit", "resnet18", "--regime", "frozen", "--data", tiny["data"], "--out", out, *settings
    )
    assert status == 0, err
    assert "training heads, exits 1-4" in err
    check_only_the_classifier_changed(colour, load_run(out), 3)


@pytest.mark.parametrize("regime", ["frozen", "finetune", "scratch"])
def test_weights_of_a_run_on_grey_images_serve_the_next(
    tiny: dict[str, Any], trained: Run, tmp_path: Path, regime: str
) -> None:
    """The network is built for the channels that the file's weights are for."""
    weights = dict(trained.network.backbone.state_dict())
    colour = {**weights, "conv1.weight": weights["conv1.weight"].expand(-1, 3, -1, -1).contiguous() / 3}
    for channels, held in ((1, weights), (3, colour)):
        path = tmp_path / f"{channels}.safetensors"
        write_tensors(path, held)
        given = {"model.checkpoint": str(path), "model.stem": "small", "data.normalise": "data"}
        changes = {**tiny["overrides"], **given, "expansion.max_looks": 1}
        run = fit("resnet18", tiny["data"], regime=regime, overrides=changes)
        assert run.network.trunk.image_shape[0] == run.transform.channels == channels


def load_run(path: Path) -> Run:
    found: Run = odn.load(path)
    return found


def test_a_classifier_of_other_classes_or_untrained_is_seen_by_its_skill(
    tiny: dict[str, Any], trained: Run
) -> None:
    model = trained.network.copy().backbone
    with torch.no_grad():  # the same classes in another order: right about none
        for name in CLASSIFIER:
            value = model.get_parameter(name)
            value.copy_(value.roll(1, 0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = {**frozen(tiny, trained), "model": model}
    check_only_the_classifier_changed(before, fit(**asked), 3)


def test_a_classifier_that_is_no_linear_layer(tiny: dict[str, Any]) -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 5 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    torch.manual_seed(0)
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16], "in_chans": 1}
    model: Any = timm.create_model("resnet18", num_classes=3, **args)
    model.fc = Cosine(16, 3)
    network = MultiExit(Trunk(model, image_size=12), ExitConfig()).eval()
    assert OwnClassifier(network).layer is model.fc  # it gives the logits, whatever it computes
    model.fc = nn.Sequential(nn.Linear(16, 3), nn.Softmax(1))
    with torch.no_grad():
        model.fc[0].weight.copy_(torch.eye(16)[:3])
    network = MultiExit(Trunk(model, image_size=12), ExitConfig()).eval()
    assert OwnClassifier(network).layer is None


# --- what is refused --------------------------------------------------------------------------------


def test_too_many_features_are_refused_before_the_pass(
    tiny: dict[str, Any], trained: Run, tmp_path: Path
) -> None:
    rows: list[Any] = []
    asked = frozen(tiny, trained, **{"frozen.max_bytes": 1e3, "exits.args": {"grid": 3}})
    with pytest.raises(ConfigError, match=r"features of \d+ images take .* MB .*max_bytes allows 0.001 MB"):
        fit(**asked, head="grid", out=tmp_path / "run", listener=rows.append)
    assert rows == [] and not (tmp_path / "run").exists()


def test_what_the_limit_says_is_what_is_needed(tiny: dict[str, Any], trained: Run) -> None:
    with pytest.raises(ConfigError) as refusal:
        fit(**frozen(tiny, trained, **{"frozen.max_bytes": 1}))
    count = int(str(refusal.value).split()[3])
    needed = count * (8 + 8 + 16 + 16) * 2
    assert f"{needed / 1e6:.3g} MB" in str(refusal.value)
    fit(**frozen(tiny, trained, **{"frozen.max_bytes": needed, "frozen.epochs": 1}))


def test_a_full_disk_is_refused_before_the_pass(
    tiny: dict[str, Any], trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"set frozen\.folder"):
        fit(**frozen(tiny, trained))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exits.plan": "thin"}, "the exits of thin plans have none"),
        ({"data.mixup": 0.2}, "data.mixup mixes images"),
        ({"data.rand_augment": "rand-m9"}, "augments no image of its first pass"),
        ({"data.erase": 0.5}, r"data\.erase is 0\.5, and regime frozen augments no image"),
        ({"data.rand_augment": "rnad-m9", "frozen.passes": 2}, "which timm does not know"),
        ({"compile": True}, "compile is for training the backbone"),
        ({"objective.name": "jiont"}, "unknown objective 'jiont'"),
        ({"objective.name": "distill"}, "objective distill would not be followed"),
        ({"objective.args": {"distill": 0.5}}, "objective depth_reg {'distill': 0.5} would not be followed"),
        ({"frozen.folder": "no/such/folder"}, "frozen.folder is 'no/such/folder'; give a folder that exists"),
    ],
)
def test_what_kept_features_cannot_do(
    tiny: dict[str, Any], trained: Run, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    more = (
        {"model.args": {"layers": [2, 1, 1, 1], "channels": [8, 8, 16, 16]}}
        if "exits.plan" in changes
        else {}
    )
    asked = frozen(tiny, trained, **changes)
    if more:
        asked["model"] = timm.create_model("resnet18", num_classes=3, in_chans=1, **more["model.args"])
    with pytest.raises(ConfigError, match=says):
        fit(**asked, out=tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("resnet18", {"model.stem": "small"}, "a small stem would be random ones: set model.checkpoint"),
        ("vit_giant_patch14_224", {}, "none are published for vit_giant_patch14_224: set model.checkpoint"),
    ],
)
def test_a_random_backbone_is_refused(
    tiny: dict[str, Any], name: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fit(name, tiny["data"], regime="frozen", overrides=changes)


def test_weights_that_cannot_be_had(tiny: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="resnet18"):
        fit("resnet18", tiny["data"], regime="frozen")


# --- normalisation ----------------------------------------------------------------------------------


def test_a_frozen_backbone_sees_images_as_it_did_in_training(tiny: dict[str, Any], trained: Run) -> None:
    asked = frozen(tiny, trained, **{"frozen.epochs": 1, "exits.every": 2})
    assert fit(**asked).transform == trained.transform
    model = trained.network.copy().backbone
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.25,), "std": (0.5,)}  # type: ignore[dict-item]
    for wanted in ("auto", "pretrained"):
        asked["overrides"]["data.normalise"] = wanted
        found = fit(**{**asked, "model": model}).transform
        assert (found.mean, found.std) == ((0.25,), (0.5,))
    del model.pretrained_cfg["mean"]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"data\.normalise is 'pretrained'"):
        fit(**{**asked, "model": model})


# --- killed and resumed -----------------------------------------------------------------------------


def test_interrupted_after_every_row_and_resumed(
    tiny: dict[str, Any], trained: Run, run: Run, tmp_path: Path
) -> None:
    class Killed(BaseException):
        """Stands for a process that ends between two lines of Python."""

    features = tmp_path / "features"
    features.mkdir()
    assert run.path is not None
    wanted = results(run.path)
    for last in (1, 2):
        rows: list[Any] = []

        def listener(row: dict[str, Any], rows: list[Any] = rows, last: int = last) -> None:
            rows.append(row)
            if len(rows) == last:
                raise Killed

        with pytest.raises(Killed):
            fit(**frozen(tiny, trained), out=tmp_path / "run", resume=True, listener=listener)
        assert list(features.iterdir()) == []
    fit(**frozen(tiny, trained), out=tmp_path / "run", resume=True)
    found = results(tmp_path / "run")
    for part in wanted:
        assert found[part] == wanted[part], part


@pytest.mark.long
def test_kill_9_leaves_no_features(
    tiny: dict[str, Any], trained: Run, tmp_path: Path, start_odn: Callable[..., Any]
) -> None:
    weights = dict(trained.network.backbone.state_dict())
    weights["conv1.weight"] = weights["conv1.weight"].expand(-1, 3, -1, -1).contiguous() / 3
    write_tensors(tmp_path / "weights.safetensors", weights)
    (tmp_path / "features").mkdir()
    given = {
        "model.checkpoint": str(tmp_path / "weights.safetensors"),
        "model.args": tiny["overrides"]["model.args"],
        "model.stem": "small",
        "data.image_size": 12,
        "frozen.folder": str(tmp_path / "features"),
    }
    settings = [f"--set={name}={json.dumps(value)}" for name, value in given.items()]
    asked = ["fit", "resnet18", "--regime=frozen", "--data", tiny["data"], *settings, "--out"]
    process = start_odn(*asked, str(tmp_path / "run"), die=("exits.safetensors", 1))
    assert process.wait()[0] == -signal.SIGKILL
    assert os.listdir(tmp_path / "features") == []
    fit(out=tmp_path / "run", resume=True)
    fit("resnet18", tiny["data"], regime="frozen", overrides=given, out=tmp_path / "whole")
    found, wanted = results(tmp_path / "run"), results(tmp_path / "whole")
    for part in wanted:
        assert found[part] == wanted[part], part


def test_a_channel_that_is_silent_in_training_does_not_upset_the_head_later() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.rand(2000, 32, generator=random) * 0.3
    features[:, 5:9] = 0.0
    labels = features[:, :4].argmax(1)
    head = build_head("linear", Layout("NCHW", 32, 1, 1), 4)
    fit_head(head, Examples(features, 1.0, labels, 1500, torch.device("cpu")), HeadPlan(20, seed=0), 1)
    awake = features.clone()
    awake[:, 5:9] = 0.2
    with torch.no_grad():
        asleep, found = (head.classify(one[1500:]) for one in (features, awake))  # type: ignore[operator]
    assert (asleep.argmax(1) == labels[1500:]).float().mean() > 0.9
    torch.testing.assert_close(found, asleep)


def test_a_frozen_module_that_says_no_mean_and_deviation_is_asked_for_them(tiny: dict[str, Any]) -> None:
    model = timm.create_model("resnet18", num_classes=3, in_chans=1, **tiny["overrides"]["model.args"])
    assert isinstance(model, nn.Module)
    model.pretrained_cfg = {}  # type: ignore[assignment]
    asked = {"model": model, "data": tiny["data"], "regime": "frozen"}
    changes = {"data.image_size": 12, "frozen.epochs": 1}
    with pytest.raises(ConfigError, match=r"set data\.normalise to"):
        fit(**asked, overrides=changes)
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.25,)}  # type: ignore[assignment]
    run = fit(**asked, overrides=changes)
    assert run.transform.mean == (0.5,) and run.transform.std == (0.25,)
