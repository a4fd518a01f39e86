"""What practitioners expect of training: each choice of a recipe does what it says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import ExitConfig, FitConfig, replace_fields
from odn_hybrid.errors import ConfigError, TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.fitting import fit
from odn_hybrid.training import OBJECTIVES, ExitOutputs, build_objective, register_objective
from odn_hybrid.training.devices.compiling import check_compiler
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.devices.repeatable import WORKSPACE, deterministic_algorithms
from odn_hybrid.training.procedure.expansion import Expansion
from odn_hybrid.training.procedure.progress import Look, Progress
from odn_hybrid.training.steps import stepping
from odn_hybrid.training.steps.optimizing import make_optimizer
from odn_hybrid.training.steps.stepping import Stepper
from odn_hybrid.training.steps.targets import Mixing, class_weights
from odn_hybrid.trunk import Trunk

CPU = torch.device("cpu")


def make_network() -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model(
        "resnet18", layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], num_classes=3, in_chans=1
    )
    return MultiExit(Trunk(with_small_stem(model), image_size=(12, 12)), ExitConfig())


def make_token_network(depth: int = 3) -> MultiExit:
    """Without batch normalisation: what an input gets does not depend on the others."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=12, patch_size=4, depth=depth, embed_dim=24, num_heads=2,
        num_classes=3, in_chans=1,
    )  # fmt: skip
    return MultiExit(Trunk(model, image_size=(12, 12)), ExitConfig())


def make_stepper(network: MultiExit, average_steps: float | None = None, **changes: Any) -> Stepper:
    changes = {"precision": "fp32", "objective.name": "joint", "optim.batch_size": 32, **changes}
    config = replace_fields(FitConfig(), changes)
    torch.manual_seed(1)
    return Stepper(
        network,
        build_objective(config.objective.name, len(network), **config.objective.args),
        config=config,
        cost_shares=[k / len(network) for k in range(1, len(network) + 1)],
        accelerator=accelerator_on("cpu"),
        average_steps=average_steps,
    )


def batch(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(size, 1, 12, 12, generator=generator), torch.arange(size) % 3


def gradients(stepper: Stepper) -> torch.Tensor:
    trained = [*stepper.network.parameters(), *stepper.objective.parameters()]
    return torch.cat([p.grad.flatten() for p in trained if p.grad is not None])


# --- accumulation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "accumulate"), [(32, 2), (32, 3), (32, 16), (7, 3)])
def test_the_gradient_of_several_forwards_is_that_of_one(size: int, accumulate: int) -> None:
    images, labels = batch(size)
    one = make_stepper(make_token_network())
    more = make_stepper(make_token_network(), **{"optim.accumulate": accumulate})
    seen: list[int] = []
    more.network.heads[0].register_forward_hook(lambda *call: seen.append(len(call[2])))
    loss = one.step(images, labels, 3), more.step(images, labels, 3)
    torch.testing.assert_close(loss[1], loss[0])
    torch.testing.assert_close(gradients(more), gradients(one), rtol=1e-4, atol=1e-6)
    assert len(seen) == accumulate and sum(seen) == size
    assert max(seen) - min(seen) <= 1 and min(seen) >= 2


def test_accumulation_changes_neither_steps_nor_looks_nor_macs(tiny: dict[str, Any]) -> None:
    def rows(accumulate: int) -> list[tuple[Any, ...]]:
        overrides = {**tiny["overrides"], "optim.accumulate": accumulate, "expansion.max_looks": 1}
        overrides["optim.batch_size"] = 16
        # A level that no look reaches: what is decided does not depend on rounding.
        overrides["choice.target_accuracy"] = 1.0
        overrides["choice.tolerance"] = 0.0
        history = fit(**{**tiny, "overrides": overrides}).history_
        keys = ("epoch", "phase", "active", "images", "lr", "train_macs")
        return [(*(row[key] for key in keys), row["selection"] is None) for row in history]

    assert rows(1) == rows(2)


def test_average_precision_and_memory_format_are_those_of_a_step() -> None:
    images, labels = batch()
    changes = {"precision": "bf16", "optim.accumulate": 4}
    stepper = make_stepper(make_network(), average_steps=10.0, **changes)
    assert stepper.ema is not None
    seen: list[tuple[int, bool, torch.dtype]] = []

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        last = out.is_contiguous(memory_format=torch.channels_last)
        if module.training:  # before the first step the trunk looks at two images
            seen.append((len(inputs[0]), last, out.dtype))

    stepper.network.backbone.layer1[0].conv1.register_forward_hook(look)
    for steps in range(1, 4):
        stepper.step(images, labels, 4)
        assert stepper.ema.steps == steps  # once for each optimizer step
    assert seen == [(8, True, torch.bfloat16)] * 12


def test_a_forward_needs_two_images() -> None:
    with pytest.raises(ConfigError, match="accumulate is 17; it must be 1 to 16"):
        make_stepper(make_network(), **{"optim.accumulate": 17})


# --- clipping, rates --------------------------------------------------------------------------------


def test_clipping_covers_all_that_trains() -> None:
    images, labels = batch()
    free = make_stepper(make_network(), **{"objective.name": "depth_reg"})
    free.step(images, labels, 4)
    assert gradients(free).norm() > 0.1
    clipped = make_stepper(make_network(), **{"objective.name": "depth_reg", "optim.clip_grad": 0.01})
    clipped.step(images, labels, 4)
    assert gradients(clipped).norm() == pytest.approx(0.01, rel=1e-3)
    assert all(p.grad is not None for p in clipped.objective.parameters())


def make_rules(schedule: str, **changes: Any) -> Expansion:
    config = replace_fields(FitConfig(), changes)
    return Expansion(
        config.expansion, config.choice, exits=4, steps_per_epoch=50, epoch_macs=[1.0, 2.0, 3.0, 4.0],
        schedule=schedule,
    )  # fmt: skip


@given(at=st.integers(0, 9), inside=st.floats(0, 1))
def test_the_rate_falls_to_zero_as_a_line_or_a_cosine(at: int, inside: float) -> None:
    progress = Progress(phase="cooldown", current=4, phase_epochs=at, cooldown_epochs=10)
    part = (at + inside) / 10
    assert make_rules("linear").rate(progress, inside) == pytest.approx(1 - part, abs=1e-12)
    wanted = (1 + math.cos(math.pi * part)) / 2
    assert make_rules("cosine").rate(progress, inside) == pytest.approx(wanted, abs=1e-12)
    for phase in ("expand", "settle"):
        assert make_rules("cosine").rate(Progress(phase=phase, current=2), inside) == 1.0


@pytest.mark.parametrize("make", [make_network, make_token_network])
def test_rates_fall_from_unit_to_unit_towards_the_stem(make: Any) -> None:
    network = make()
    recipe = replace_fields(FitConfig(), {"optim.layer_decay": 0.5, "optim.lr": 0.08})
    optimizer, base = make_optimizer(network, build_objective("depth_reg", len(network)), recipe, True)
    assert base == [group["lr"] for group in optimizer.param_groups] and base[0] == 0.08
    rate, decay = {}, {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in rate  # each once
            rate[id(parameter)], decay[id(parameter)] = group["lr"], group["weight_decay"]
    named = dict(network.named_parameters())
    assert {id(p) for p in named.values()} <= set(rate)
    for name, parameter in named.items():
        spared = name.endswith((".bias", "cls_token", "pos_embed"))  # the last two by the model's own word
        assert (decay[id(parameter)] > 0) == (parameter.ndim > 1 and not spared)

    def of(module: torch.nn.Module) -> set[float]:
        return {round(rate[id(p)], 12) for p in module.parameters()}

    trunk, last = network.trunk, len(network.trunk)
    for head in [*network.heads, *(trunk.model.get_submodule(name) for name in trunk.after_names)]:
        assert of(head) <= {0.08}
    for unit, names in enumerate(trunk.unit_names):
        for name in names:
            assert of(trunk.model.get_submodule(name)) <= {round(0.08 * 0.5 ** (last - unit), 12)}
    below = round(0.08 * 0.5 ** (last + 1), 12)
    for name in trunk.stem_names:
        assert of(trunk.model.get_submodule(name)) <= {below}
    embeddings = [p for name, p in named.items() if name.endswith(("cls_token", "pos_embed"))]
    assert all(round(rate[id(p)], 12) == below for p in embeddings)


def test_without_layer_decay_all_have_one_rate() -> None:
    optimizer, _ = make_optimizer(make_network(), build_objective("joint", 4), FitConfig(), True)
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", ["sgd", "SGD", "lookahead_sgd", "nesterov", "sgdw"])
def test_sgd_by_any_of_its_names_has_its_own_rate_decay_and_momentum(name: str) -> None:
    recipe = replace_fields(FitConfig(), {"optim.name": name, "optim.momentum": 0.5})
    optimizer, base = make_optimizer(make_network(), build_objective("joint", 4), recipe, True)
    assert base[0] == pytest.approx(0.1) and optimizer.param_groups[0]["momentum"] == 0.5
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-4}


def test_options_of_the_optimizers_own() -> None:
    objective = build_objective("joint", 4)
    recipe = replace_fields(
        FitConfig(), {"optim.name": "adamw", "optim.args": {"betas": [0.8, 0.95], "eps": 1e-6}}
    )
    group = make_optimizer(make_network(), objective, recipe, True)[0].param_groups[0]
    assert tuple(group["betas"]) == (0.8, 0.95) and group["eps"] == 1e-6
    for args, says in (
        ({"lr": 1.0}, r"optim\.args has 'lr': set optim\.lr"),
        ({"opt": "sgd"}, r"set optim\.name"),
        ({"param_group_fn": None}, "which the fit decides"),
        ({"nonsense": 1}, "optimizer 'adamw' cannot be made: .*nonsense"),
    ):
        asked = replace_fields(recipe, {"optim.args": args})
        with pytest.raises(ConfigError, match=says):
            make_optimizer(make_network(), objective, asked, True)


def test_the_rate_follows_the_images_of_a_real_batch() -> None:
    objective = build_objective("joint", 4)
    recipe = replace_fields(FitConfig(), {"optim.batch_size": 4096})
    assert make_optimizer(make_network(), objective, recipe, True, 640)[1][0] == pytest.approx(0.5)
    assert make_optimizer(make_network(), objective, recipe, True)[1][0] == pytest.approx(3.2)


def test_position_embeddings_are_not_decayed() -> None:
    network = make_token_network()
    optimizer, _ = make_optimizer(network, build_objective("joint", 4), FitConfig(), False)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in decayed}
    assert "backbone.patch_embed.proj.weight" in names
    assert not names & {"backbone.pos_embed", "backbone.cls_token"}


# --- targets ----------------------------------------------------------------------------------------


def outputs(labels: torch.Tensor, **options: Any) -> ExitOutputs:
    generator = torch.Generator().manual_seed(4)
    logits = [torch.randn(len(labels), 5, generator=generator).requires_grad_() for _ in range(3)]
    return ExitOutputs(logits, labels, torch.tensor([0.2, 0.5, 1.0]), **options)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_gets_the_recipes_targets(name: str) -> None:
    """Smoothing is a soft target; weights weigh; soft targets of one class are that class."""
    labels = torch.tensor([0, 3, 1, 4, 4, 2])
    hard, soft = F.one_hot(labels, 5).float(), 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25])

    def loss(target: torch.Tensor, **options: Any) -> float:
        objective = build_objective(name, 3)  # new each time: it may learn from what it sees
        return float(objective(outputs(target, **options)).detach())

    plain = loss(labels)
    assert loss(hard) == pytest.approx(plain, rel=1e-6)
    assert loss(labels, smoothing=0.1) == pytest.approx(loss(soft), rel=1e-6)
    assert loss(labels, smoothing=0.1) != pytest.approx(plain, rel=1e-4)
    assert loss(labels, class_weights=torch.ones(5)) == pytest.approx(plain, rel=1e-6)
    assert loss(labels, class_weights=weights) != pytest.approx(plain, rel=1e-4)


def test_losses_are_weighted_by_the_class_of_the_label() -> None:
    labels = torch.tensor([0, 3, 1, 4])
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25])
    found = outputs(labels, class_weights=weights).losses()
    torch.testing.assert_close(found, outputs(labels).losses() * weights[labels])
    for options in ({}, {"class_weights": weights, "smoothing": 0.1}):
        deepest = outputs(labels, **options).deepest_loss()
        torch.testing.assert_close(deepest, outputs(labels, **options).losses()[-1].mean())


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40))
def test_balanced_weights_give_each_class_the_same_say(labels: list[int]) -> None:
    weights = class_weights(np.array(labels), 6)
    assert float(weights[torch.tensor(labels)].mean()) == pytest.approx(1.0, rel=1e-5)
    counts = np.bincount(labels, minlength=6)
    says = [float(weights[k]) * counts[k] for k in range(6) if counts[k]]
    assert says == pytest.approx([says[0]] * len(says), rel=1e-5)
    assert all(weights[k] == 1 for k in range(6) if not counts[k])


@pytest.mark.parametrize(("choice", "rare"), [("none", 0.1), ("balanced", 0.5)])
def test_balanced_classes_are_learnt_as_if_equally_frequent(tmp_path: Path, choice: str, rare: float) -> None:
    """Images that say nothing: the answer is how often a class seems to occur, one in ten here."""
    generator = np.random.default_rng(0)
    x, y = generator.integers(100, 104, (600, 12, 12), dtype=np.uint8), (np.arange(600) % 10 == 0).astype(int)
    np.savez(tmp_path / "rare.npz", x_train=x[:500], y_train=y[:500], x_test=x[500:], y_test=y[500:])
    run = fit(
        "resnet18",
        str(tmp_path / "rare.npz"),
        loss="joint",
        overrides={
            "model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
            "model.stem": "small",
            "data.image_size": 12,
            "expansion.max_looks": 2,
            "optim.batch_size": 64,
            "optim.class_weights": choice,
        },
    )
    said = torch.from_numpy(run.parts.records["calibration"].logits[:, -1]).softmax(1)[:, 1].median()
    assert abs(float(said) - rare) < 0.15


# --- mixing -----------------------------------------------------------------------------------------


def mixed(size: int = 8, *, seed: int = 0, epoch: int = 3, step: int = 5, **alphas: float) -> Any:
    config = replace_fields(FitConfig(), {f"data.{name}": value for name, value in alphas.items()}).data
    images, labels = batch(size)
    return Mixing(config, 3, seed)(images.clone(), labels, epoch=epoch, step=step)


@pytest.mark.parametrize("size", [8, 7])
def test_mixup_is_a_convex_combination_and_the_target_says_which(size: int) -> None:
    images, labels = batch(size)
    hard = F.one_hot(labels, 3).float()
    found, targets = mixed(size, mixup=1.0)
    even = size // 2 * 2
    other = hard[:even].flip(0)
    row = int((hard[:even] != other).any(1).nonzero()[0])  # one that met another class
    share = float(targets[row] @ hard[row])
    assert 0 < share < 1
    torch.testing.assert_close(targets[:even], share * hard[:even] + (1 - share) * other)
    torch.testing.assert_close(found[:even], share * images[:even] + (1 - share) * images[:even].flip(0))
    assert torch.equal(found[even:], images[even:]) and torch.equal(targets[even:], hard[even:])


def test_cutmix_pastes_a_box_of_the_share_that_the_target_says() -> None:
    images, labels = batch()
    hard = F.one_hot(labels, 3).float()
    found, targets = mixed(32, cutmix=1.0, step=1)
    pasted = (found == images.flip(0)) & (found != images)
    assert bool(((found == images) | pasted).all())
    assert 0 < float(pasted[0].float().mean()) < 1
    share = 1 - float(pasted[0].float().mean())
    torch.testing.assert_close(targets, share * hard + (1 - share) * hard.flip(0))


def test_mixing_is_a_function_of_seed_epoch_and_step() -> None:
    np.random.seed(7)
    state = np.random.get_state()[1].copy()  # type: ignore[index]
    first = mixed(mixup=0.4, cutmix=1.0)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # type: ignore[index]
    np.random.seed(8)
    again = mixed(mixup=0.4, cutmix=1.0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for change in ({"seed": 1}, {"epoch": 4}, {"step": 6}):
        assert not torch.equal(first[0], mixed(mixup=0.4, cutmix=1.0, **change)[0])  # type: ignore[arg-type]


def test_with_everything_on_a_resumed_fit_ends_with_the_same_digits(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    overrides = {
        **tiny["overrides"], "expansion.max_looks": 1, "optim.batch_size": 8,
        "data.mixup": 0.2, "data.cutmix": 1.0, "data.rand_augment": "rand-m5-mstd0.5-inc1", "data.erase": 0.3,
        "optim.accumulate": 2, "optim.clip_grad": 1.0, "optim.schedule": "cosine", "optim.layer_decay": 0.8,
        "optim.label_smoothing": 0.1, "optim.class_weights": "balanced", "deterministic": True,
    }  # fmt: skip
    whole = fit(**{**tiny, "overrides": overrides})

    rates = [row["lr"] for row in whole.history_ if row["phase"] == "cooldown"]
    curve = [whole.history_[-1 - len(rates)]["lr"] * (1 + math.cos(math.pi * k / len(rates))) / 2
             for k in range(1, len(rates) + 1)]  # fmt: skip
    assert rates == pytest.approx(curve)

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == len(whole.history_) // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(**{**tiny, "overrides": overrides}, out=tmp_path / "run", listener=stop)
    resumed = fit(out=tmp_path / "run", resume=True)

    def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert told(resumed.history_) == told(whole.history_)
    mine = resumed.network.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in whole.network.state_dict().items())


# --- compiling --------------------------------------------------------------------------------------


def can_compile() -> bool:
    try:
        check_compiler(CPU)
    except ConfigError:
        return False
    return True


NEEDS_COMPILER = pytest.mark.skipif(not can_compile(), reason="torch.compile needs a C++ compiler on a CPU")


@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # what is compiled, without the compiler
        pytest.param("inductor", marks=[pytest.mark.long, NEEDS_COMPILER]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of torch's compiler, in its own code
def test_a_compiled_step_is_the_same_step(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch(8)
    monkeypatch.setattr(stepping, "check_compiler", lambda device: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain, compiled = (make_stepper(make_token_network(2), compile=value) for value in (False, True))
    names = list(plain.network.state_dict())
    torch._dynamo.utils.counters.clear()
    losses = plain.step(images, labels, 1), compiled.step(images, labels, 1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # one whole graph, and it was used
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients(compiled), gradients(plain), rtol=1e-3, atol=1e-5)
    assert list(compiled.network.state_dict()) == names


def test_a_missing_compiler_is_said_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler on a CPU .*; install g\+\+"):
        make_stepper(make_network(), compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="no-such-compiler"):
        make_stepper(make_network(), compile=True)


@NEEDS_COMPILER
def test_what_torch_cannot_compile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    def refuse(*_: Any, **__: Any) -> Any:
        raise Unsupported("an odd\noperation", "unsupported")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    with pytest.raises(TrainingError, match=r"torch\.compile failed .*an odd operation.*leave compile out"):
        make_stepper(make_network(), compile=True).step(*batch(4), 1)


# --- determinism ------------------------------------------------------------------------------------


def switches() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        os.environ.get(WORKSPACE),
    )


@contextmanager
def unusual_switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv(WORKSPACE, ":0:0")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("unusual", [False, True])
def test_determinism_is_for_the_fit_only(
    tiny: dict[str, Any], unusual: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, ...]] = []

    def look(row: dict[str, Any]) -> None:
        seen.append(switches())
        raise KeyboardInterrupt

    with unusual_switches(monkeypatch) if unusual else contextmanager(lambda: iter([None]))():
        before = switches()
        for asked in (True, False):
            overrides = {**tiny["overrides"], "deterministic": asked}
            with pytest.raises(KeyboardInterrupt):
                fit(**{**tiny, "overrides": overrides}, listener=look)
            assert switches() == before
        assert seen == [(True, False, False, True, ":4096:8"), before]


def test_an_operation_that_cannot_repeat_is_named(tiny: dict[str, Any]) -> None:
    @register_objective("scattering")
    def scattering(outputs: ExitOutputs) -> torch.Tensor:
        loss = outputs.losses().mean()
        torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
        return loss

    before = switches()
    try:
        with pytest.raises(
            TrainingError, match=r"put_ does not have a deterministic .*leave deterministic out"
        ):
            overrides = {**tiny["overrides"], "deterministic": True}
            fit(**{**tiny, "overrides": overrides}, loss="scattering")
    finally:
        del OBJECTIVES["scattering"]
    assert switches() == before


def test_other_errors_pass_through_deterministic_training() -> None:
    before = switches()
    with pytest.raises(RuntimeError, match="something else"), deterministic_algorithms(True):
        raise RuntimeError("something else")
    assert switches() == before


# --- budgets ----------------------------------------------------------------------------------------


MIN_EPOCHS = 6  # a warm-up, a look, a cooldown of two looks, and the warm-up's fraction as an epoch
LIMITS = {"max_epochs": 1.0, "max_train_macs": 4.0, "max_minutes": 4.0 / 60}  # what one epoch costs at most


@given(
    name=st.sampled_from(sorted(LIMITS)),
    epochs=st.floats(MIN_EPOCHS, 80),
    target=st.sampled_from([None, 1.0]),
    slope=st.sampled_from([0.0, 0.001, 0.01]),
)
def test_a_budget_bounds_the_whole_search(
    name: str, epochs: float, target: float | None, slope: float
) -> None:
    """Cooldown included; an epoch takes as many seconds here as MACs."""
    limit = epochs * LIMITS[name]
    rules = make_rules(
        "linear",
        **{f"expansion.{name}": limit, "choice.target_accuracy": target, "choice.tolerance": 0.0},
        **{"expansion.max_looks": 10_000},
    )
    progress = rules.first()
    while progress.phase != "done":
        active = rules.active(progress)
        before = progress.train_macs
        progress = rules.count(progress, rules.share(progress), 0.0)
        progress = replace(progress, seconds=progress.seconds + progress.train_macs - before)
        if rules.looks(progress):
            rising = min(0.9, 0.5 + slope * progress.epoch)
            progress = rules.observe(progress, Look.plain([rising + 0.001 * k for k in range(active)]))
    spent = {
        "max_epochs": progress.epoch,
        "max_train_macs": progress.train_macs,
        "max_minutes": progress.seconds / 60,
    }
    assert spent[name] <= limit
    if progress.stopped_by == "budget":
        assert spent[name] > 0.5 * limit or epochs < 3 * MIN_EPOCHS
    else:
        assert progress.stopped_by is None


def test_the_report_says_what_ended_a_search(tiny: dict[str, Any]) -> None:
    overrides = {**tiny["overrides"], "expansion.max_looks": 60, "expansion.max_epochs": 30}
    overrides |= {"choice.target_accuracy": 1.0, "choice.tolerance": 0.0}  # a search that has no other end
    search = fit(**{**tiny, "overrides": overrides}).report_["search"]
    assert search["stopped_by"] == "budget"
    assert 15 < search["epochs"] <= 30
