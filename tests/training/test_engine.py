"""The training loop: what it trains, what it leaves alone, what it keeps, what it counts."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.utils import ModelEmaV3

from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import ExitConfig, FitConfig, replace_fields
from odn_hybrid.cost import count_costs
from odn_hybrid.data import Data, channel_stats, choose_preprocess, load_data
from odn_hybrid.errors import ConfigError, TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.training import OBJECTIVES, build_objective, register_objective
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.devices.precision import misread_convolutions, resolve_precision
from odn_hybrid.training.engine import Engine, own_randomness, train_macs_per_image
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.steps.averaging import WeightAverage, idle_prefixes
from odn_hybrid.training.steps.stepping import Stepper
from odn_hybrid.trunk import Trunk

CPU = torch.device("cpu")


def make_network(side: int = 12, *, small_stem: bool = True) -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], num_classes=3, in_chans=1
    )
    model = with_small_stem(model) if small_stem else model
    return MultiExit(Trunk(model, image_size=(side, side)), ExitConfig())


def make_thin_network() -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", layers=[1, 2, 1, 2], channels=[8, 8, 16, 16], num_classes=3, in_chans=1
    )
    trunk = Trunk(with_small_stem(model), image_size=(12, 12))
    return MultiExit(trunk, ExitConfig(plan="thin"))


def make_token_network() -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=12, patch_size=4, depth=3, embed_dim=24, num_heads=2,
        num_classes=3, in_chans=1,
    )  # fmt: skip
    return MultiExit(Trunk(model, image_size=(12, 12)), ExitConfig())


@pytest.fixture(scope="module")
def data(tiny_npz: Path) -> Data:
    return load_data(str(tiny_npz))


def make_engine(data: Data, network: MultiExit | None = None, **changes: Any) -> Engine:
    config = replace_fields(FitConfig(), {"optim.batch_size": 32, "expansion.max_looks": 4, **changes})
    network = network or make_network()
    costs = count_costs(network)
    train = data.splits["train"]
    preprocess = choose_preprocess(
        data, image_size=12, fixed_size=None, default_size=None, channels=1, mean_std=channel_stats(train)
    )
    rules = Expansion(
        config.expansion,
        config.choice,
        exits=len(network),
        steps_per_epoch=len(train) // config.optim.batch_size,
        epoch_macs=[train_macs_per_image(costs, m) * len(train) for m in range(1, len(network) + 1)],
    )
    return Engine(
        network,
        build_objective(config.objective.name, len(network), **config.objective.args),
        rules,
        train=train,
        selection=data.splits["selection"],
        preprocess=preprocess,
        config=config,
        costs=costs,
        accelerator=accelerator_on("cpu"),
    )


def weights(network: MultiExit) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def perturb(network: MultiExit) -> None:
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(torch.randn_like(value) if value.is_floating_point() else 1)


# --- the average ------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [4.0, 1000.0])
def test_average_is_timms_with_warm_up(horizon: float) -> None:
    network = make_network()
    ours = WeightAverage(network, horizon)
    timms = ModelEmaV3(network, decay=1 - 1 / horizon, use_warmup=True, warmup_power=2 / 3)
    for step in range(1, 12):
        perturb(network)
        ours.update(network, len(network))
        timms.update(network, step=step + 1)  # timm's warm-up counts from 0 at its second step
    wanted = timms.module.state_dict()
    for name, value in ours.network.state_dict().items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-6, atol=1e-6, msg=name)


def test_average_leaves_idle_parts_alone() -> None:
    network = make_network()
    average = WeightAverage(network, 10)
    before = weights(average.network)
    perturb(network)
    average.update(network, 2)
    idle = idle_prefixes(network, 2)
    moved = {name for name, value in average.network.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name in before if not name.startswith(idle)}
    assert any(name.startswith("heads.0.") for name in moved)
    assert not any(name.startswith(("heads.2.", "backbone.layer3.", "backbone.fc.")) for name in moved)


def test_average_of_one_step_is_nearly_the_step() -> None:
    network = make_network()
    average = WeightAverage(network, 1.0)  # a horizon of one step: no memory
    perturb(network)
    average.update(network, len(network))
    for name, value in network.state_dict().items():
        torch.testing.assert_close(average.network.state_dict()[name], value)


def test_average_is_a_network_of_its_own_for_evaluation() -> None:
    network = make_network().train()
    average = WeightAverage(network, 10)
    assert not any(module.training for module in average.network.modules())
    assert all(value.dtype == torch.float32 for value in average.network.parameters())
    mine = {value.data_ptr() for value in average.network.state_dict().values()}
    assert not mine & {value.data_ptr() for value in network.state_dict().values()}
    assert network.training


# --- the loop ---------------------------------------------------------------------------------------


def test_what_is_idle_of_thin_networks_is_what_they_leave_out() -> None:
    network = make_thin_network()
    assert idle_prefixes(network, 1) == ("backbone.layer2.1.", "backbone.layer4.1.")
    assert idle_prefixes(network, 2) == ("backbone.layer4.1.",)
    assert idle_prefixes(network, 3) == ()


@pytest.mark.parametrize("make", [make_network, make_token_network, make_thin_network])
def test_idle_exits_do_not_move(data: Data, make: Any) -> None:
    engine = make_engine(data, make(), **{"optim.weight_decay": 0.5})
    engine._epoch()  # all exits: momentum has built up everywhere
    active = engine.rules.active(engine.progress)
    assert active == 2
    before, kept = weights(engine.network), weights(engine.evaluated)
    engine._epoch()
    idle = idle_prefixes(engine.network, active)
    for now, then in ((engine.network, before), (engine.evaluated, kept)):
        moved = {name for name, value in now.state_dict().items() if not value.equal(then[name])}
        assert moved and not any(name.startswith(idle) for name in moved)


def test_what_was_evaluated_is_what_is_kept(data: Data) -> None:
    engine = make_engine(data)
    engine.run()
    kept = engine.evaluated.state_dict()
    assert all(value.equal(kept[name]) for name, value in engine.network.state_dict().items())
    assert engine.history[-1]["selection"] == list(engine._look(engine.history[-1]["active"]).accuracies)


def test_without_average_the_network_itself_is_evaluated(data: Data) -> None:
    engine = make_engine(data, **{"optim.ema_epochs": 0})
    assert engine.evaluated is engine.network
    engine.run()
    assert engine.history[-1]["selection"][-1] > 0.6


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_looks_are_in_fp32_whatever_trains(data: Data, precision: str) -> None:
    engine = make_engine(data, precision=precision)
    seen: list[torch.dtype] = []
    engine.evaluated.heads[0].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    engine._epoch()
    assert seen and set(seen) == {torch.float32}
    assert {value.dtype for value in engine.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("make", [make_network, make_thin_network])
def test_training_macs_are_three_forwards_of_the_images_seen(data: Data, make: Any) -> None:
    engine = make_engine(data, make())
    engine.run()
    total = 0.0
    for row in engine.history:
        total += 3 * engine.costs.joint(row["active"]) * row["images"]
        assert row["train_macs"] == total
    assert engine.progress.train_macs == total
    batch, images = 32, len(data.splits["train"])
    assert engine.history[1]["images"] == images // batch * batch


def test_same_seed_same_fit_and_another_seed_another(data: Data) -> None:
    def losses(seed: int) -> list[float]:
        engine = make_engine(data, seed=seed)
        for _ in range(2):
            engine._epoch()
        return [row["loss"] for row in engine.history]

    assert losses(3) == losses(3) != losses(4)


def test_history_is_plain_and_tells_the_listener(data: Data) -> None:
    engine = make_engine(data)
    rows: list[dict[str, Any]] = []
    engine.listener = rows.append
    engine.run()
    assert rows == engine.history
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows[0]["phase"] == "warmup" and rows[-1]["phase"] == "cooldown" and rows[-1]["next"] == "done"
    assert rows[-1]["lr"] == 0.0
    for row in rows:
        assert row["selection"] is None or len(row["selection"]) == row["active"]


# --- what goes wrong --------------------------------------------------------------------------------


def test_divergence_is_said_with_the_rate(data: Data) -> None:
    engine = make_engine(data, **{"optim.lr": 1e6})
    with pytest.raises(TrainingError, match=r"diverged; use a lower learning rate than 1e\+06 \(optim\.lr\)"):
        engine.run()


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (lambda outputs: outputs.losses(), r"a tensor of shape \(4, 32\)"),
        (lambda outputs: outputs.losses().mean().detach(), r"a tensor of shape \(\) without gradient"),
        (lambda outputs: None, "a NoneType"),
    ],
)
def test_an_objective_that_gives_no_number(data: Data, returns: Any, says: str) -> None:
    register_objective("odd")(returns)
    try:
        with pytest.raises(TrainingError, match=f"objective 'odd' gave {says}"):
            make_engine(data, **{"objective.name": "odd"}).run()
    finally:
        del OBJECTIVES["odd"]


def test_too_little_memory_is_said_with_the_batch(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate much")

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(TrainingError, match=r"too small for batches of 32 images; lower optim\.batch_size"):
        make_engine(data).run()


def test_an_evaluation_takes_as_many_images_at_once_as_memory_allows(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sizes = make_engine(data), []
    asked = (engine.network, data.splits["train"], engine.preprocess)
    wanted = record_outputs(*asked)
    forward = MultiExit.forward

    def narrow(network: MultiExit, images: torch.Tensor, upto: int | None = None) -> list[torch.Tensor]:
        sizes.append(len(images))
        if len(images) > 40:
            raise torch.OutOfMemoryError("tried to allocate much")
        return forward(network, images, upto)

    monkeypatch.setattr(MultiExit, "forward", narrow)
    found = record_outputs(*asked)
    np.testing.assert_allclose(found.logits, wanted.logits, atol=1e-5)
    assert max(sizes) > 40 and max(sizes[-3:]) <= 40


def test_unknown_optimizer(data: Data) -> None:
    with pytest.raises(ConfigError, match="optimizer 'nonsense' cannot be made"):
        make_engine(data, **{"optim.name": "nonsense"})


def test_default_rates_follow_batch_and_kind(data: Data) -> None:
    maps, tokens = make_engine(data), make_engine(data, make_token_network())
    assert maps.stepper.base_rates[0] == pytest.approx(0.1 * 32 / 128)
    assert tokens.stepper.base_rates[0] == pytest.approx(1e-3 * 32 / 128)
    assert make_engine(data, **{"optim.lr": 0.02}).stepper.base_rates[0] == 0.02


# --- device and randomness --------------------------------------------------------------------------


def test_precision_by_device() -> None:
    network = make_network()
    assert resolve_precision("fp32", CPU, network) == torch.float32
    assert resolve_precision("bf16", CPU, network) == torch.bfloat16
    assert resolve_precision("auto", CPU, network) in (torch.float32, torch.bfloat16)


def test_auto_takes_bf16_where_it_is_native_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated it is slower than fp32: on GPUs before Ampere, and wherever a CPU has AVX-512 alone."""

    def cuda(*, including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", cuda)
    assert resolve_precision("auto", torch.device("cuda")) == torch.float32
    assert resolve_precision("bf16", torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert resolve_precision("auto", CPU) == torch.float32
    assert resolve_precision("bf16", CPU) == torch.bfloat16


def test_bf16_is_not_used_where_its_gradients_are_wrong() -> None:
    """Strided convolutions of one pixel: parts of their bf16 weight gradient are left unwritten on CPUs."""
    network = make_network(12, small_stem=False)  # 12, 6, 3, 2, 1 and then a stride of 2
    modes = [module.training for module in network.modules()]
    assert misread_convolutions(network) == ["backbone.layer4.0.conv1"]
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert resolve_precision("auto", CPU, network) == torch.float32
    with pytest.raises(ConfigError, match=r"bf16 gives wrong gradients for backbone\.layer4\.0\.conv1"):
        resolve_precision("bf16", CPU, network)
    assert resolve_precision("bf16", torch.device("meta"), network) == torch.bfloat16
    assert misread_convolutions(make_network(32, small_stem=False)) == []
    assert misread_convolutions(make_token_network()) == []


@pytest.mark.parametrize(("side", "small_stem"), [(12, True), (12, False), (32, False), (16, True)])
def test_gradients_in_the_chosen_precision_are_right(side: int, small_stem: bool) -> None:
    network = make_network(side, small_stem=small_stem).to(memory_format=torch.channels_last).eval()
    images = torch.rand(32, 1, side, side)
    dtype = resolve_precision("auto", CPU, network)
    found = []
    for use in (torch.float32, dtype):
        junk = [torch.full((n,), float("nan"), dtype=use) for n in (576, 1152, 2304, 4608) * 4]
        del junk  # what unwritten memory is likely to hold
        network.zero_grad()
        with torch.autocast("cpu", use, enabled=use != torch.float32):
            logits = network(images)
        sum(z.float().square().mean() for z in logits).backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() < 0.3 * found[0].norm()


def test_devices() -> None:
    assert accelerator_on("cpu").device.type == "cpu"
    with pytest.raises(ConfigError, match="device is 'tpu'; choose cpu or cuda"):
        accelerator_on("tpu")
    if not torch.cuda.is_available():
        assert accelerator_on(None).device.type in ("cpu", "mps", "xpu")
        with pytest.raises(ConfigError, match="'cuda' cannot be used"):
            accelerator_on("cuda")


def test_randomness_is_given_back() -> None:
    before = torch.random.get_rng_state()
    with own_randomness(5):
        first = torch.rand(3)
    assert torch.random.get_rng_state().equal(before)
    with own_randomness(5):
        assert torch.rand(3).equal(first)
