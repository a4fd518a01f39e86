"""Every input gets the logits of the exit it took, whatever its batch; no unit runs for one that has left."""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.promising.promise import policy_digest
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.outputs import weights_digest
from odn_hybrid.stopping import (
    FAMILIES,
    NEVER,
    Calibration,
    HaltingTable,
    certify_sequence,
    fit_calibration,
    policy_path,
)

Gather = Literal["always", "auto"]

# Kernels are chosen by batch size, so a sub-batch's logits may differ in their last digits, and with them a
# confidence that lies on its threshold. Closer than this an input may take the next exit.
NEAR = 1e-5


def at(thresholds: Any, temperature: float = 1.0) -> HaltingTable:
    """Stop at the first exit whose confidence reaches its threshold."""
    levels = [float(t) for t in thresholds]
    return HaltingTable.of_thresholds(levels, Calibration.of_temperatures([temperature] * len(levels)))


@contextmanager
def rows_seen(network: MultiExit) -> Iterator[Counter[int]]:
    """Rows that went through each unit."""
    seen: Counter[int] = Counter()
    hooks = [
        network.backbone.get_submodule(unit[0]).register_forward_hook(
            lambda _m, inputs, _o, number=number: seen.update({number: len(inputs[0])})
        )
        for number, unit in enumerate(network.trunk.unit_names, start=1)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- made-up halting: the image says where it wants to leave ----------------------------------------


class Still(nn.Module):
    """A block that changes nothing, so that the image's number arrives at every exit."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Wishes(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.stem.weight)
        nn.init.zeros_(self.stem.bias)  # type: ignore[arg-type]
        self.blocks = nn.Sequential(*(Still() for _ in range(units)))
        self.fc = nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


class Wish(nn.Module):
    """Confident in class (number mod 3) from the wished exit on; the first logit says which exit spoke."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: Tensor) -> Tensor:
        sure = (x.mean((1, 2, 3)) <= self.number + 0.5).float()
        return torch.stack([self.number + 20 * sure, torch.zeros_like(sure), torch.zeros_like(sure)], 1)


@cache
def wishing(every: int, gather: Gather) -> HaltingModel:
    network = MultiExit(Trunk(Wishes(5), image_size=2), ExitConfig(every=every))
    for number in range(1, len(network)):
        network.heads[number - 1] = Wish(number)
    exits = len(network)
    policy = at([0.9999] * exits)
    return HaltingModel(network, policy, gather=gather)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=24),
    st.sampled_from([1, 2]),
    st.sampled_from(["always", "auto"]),
)
def test_any_pattern_of_halting(wishes: list[int], every: int, gather: Gather) -> None:
    model = wishing(every, gather)
    network, last = model.network, len(model.network)
    images = torch.tensor(wishes, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)
    expected = [min(wish, last) for wish in wishes]
    with rows_seen(network) as seen:
        out = model(images)
    assert out.exit.tolist() == expected
    assert out.units_run.tolist() == [network.units[k - 1] for k in expected]
    early = [i for i, k in enumerate(expected) if k < last]
    assert out.logits[early, 0].tolist() == [20 + expected[i] for i in early]
    assert bool((out.confidence[early] > 0.9999).all())
    deepest = network.units[max(expected) - 1]
    assert all(seen[unit] == 0 for unit in range(deepest + 1, 6))
    needed = {unit: sum(network.units[k - 1] >= unit for k in expected) for unit in range(1, deepest + 1)}
    if gather == "always":
        assert {unit: seen[unit] for unit in needed} == needed
    else:
        assert all(seen[unit] >= needed[unit] for unit in needed)


def test_auto_waits_until_a_tenth_has_left() -> None:
    wishes = [1] + [2] * 9 + [5] * 10  # 5 % leave at exit 1, half of all by exit 2
    images = torch.tensor(wishes, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)
    with rows_seen(wishing(1, "auto").network) as seen:
        out = wishing(1, "auto")(images)
    assert out.exit.tolist() == wishes
    assert [seen[unit] for unit in range(1, 6)] == [20, 20, 10, 10, 10]


# --- real networks ----------------------------------------------------------------------------------


@cache
def real(name: str) -> tuple[MultiExit, Tensor, Tensor]:
    """A network of several exits, 64 images, and the logits of all exits on them at once."""
    torch.manual_seed(0)
    little = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 4, "num_classes": 6}
    if name == "resnet":
        model = timm.create_model("resnet18", num_classes=6, channels=[8, 8, 16, 16])
    else:
        model = timm.create_model(name, **little)
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(every=2 if name == "resnet" else 1)).eval()
    with torch.no_grad():
        for head in network.heads:
            head.fc.weight.mul_(8)  # type: ignore[union-attr, operator]
        images = torch.rand(64, 3, 32, 32) * torch.rand(64, 3, 1, 1)
        return network, images, torch.stack(network(images), 1)


NETWORKS = (
    "resnet",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "vit_small_patch16_rope_mixed_224",
)


def policy_at(logits: Tensor, levels: list[float], temperature: float = 1.0) -> HaltingTable:
    """Thresholds at these quantiles of each exit's own confidences; above 1: never."""
    exits = logits.shape[1]
    scores = at([1.0] * exits, temperature).scores(logits.numpy())
    limits = [
        NEVER if level > 1 else float(np.quantile(scores[:, k], level)) + 1e-4
        for k, level in enumerate([*levels, 0.0][:exits])
    ]
    return at(limits, temperature)


def near_an_edge(table: HaltingTable, logits: Tensor) -> np.ndarray:
    """(n,): whether some score lies where a last digit decides."""
    scores = table.scores(logits.numpy())
    near = np.zeros(len(scores), dtype=bool)
    for exit, row in enumerate(table.rows[:-1]):
        for edges, _ in row:
            for edge in edges:
                near |= np.abs(scores[:, exit] - edge) < NEAR
    return near


def check_answers(model: HaltingModel, images: Tensor, logits: Tensor) -> None:
    out = model(images)
    rows = torch.arange(len(images))
    given = logits[rows, out.answered - 1]
    assert float((out.logits - given).abs().max()) <= 1e-5 * max(1.0, float(given.abs().max()))
    wanted, answered = model.policy.decide(logits.numpy())
    near = near_an_edge(model.policy, logits)
    assert ((out.exit.numpy() == wanted) | near).all()
    assert ((out.answered.numpy() == answered) | near).all()
    assert out.units_run.tolist() == [model.network.units[k - 1] for k in out.exit.tolist()]
    sure = model.policy.confidence(logits.numpy(), out.answered.numpy())
    assert np.allclose(out.confidence.numpy(), sure, atol=1e-5)
    assert (out.logits.dtype, out.confidence.dtype, out.exit.dtype) == (
        torch.float32,
        torch.float32,
        torch.int64,
    )


@pytest.mark.parametrize("scaling", ["temperature", "vector"])
@pytest.mark.parametrize("recall", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_decides_as_the_table_does(family: str, recall: bool, scaling: str) -> None:
    network, images, logits = real("resnet")
    labels = np.random.default_rng(0).integers(0, 6, 64)
    labels[::2] = logits[::2, -1].argmax(1)  # so that deeper exits are worth something
    calibration = fit_calibration(logits.numpy(), labels, scaling)
    costs = np.arange(1.0, len(network) + 1)
    path = policy_path(family, logits.numpy(), labels, costs, calibration=calibration, recall=recall, count=9)
    for member in path[1::3]:
        for gather in ("always", "auto"):
            check_answers(HaltingModel(network, member.table, gather=gather), images, logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("gather", ["always", "auto"])
@pytest.mark.parametrize("name", NETWORKS)
def test_batches_of_any_size_give_the_same_answers(name: str, gather: Gather) -> None:
    network, images, logits = real(name)
    model = HaltingModel(network, policy_at(logits, [0.7, 0.6, 0.5]), gather=gather)
    assert len(set(model(images).exit.tolist())) == len(network)  # inputs leave at every exit
    for size in (1, 7, 64):
        for start in range(0, 64 if size > 1 else 8, size):
            part = slice(start, start + size)
            check_answers(model, images[part], logits[part])


@given(
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0, 2.0]), min_size=3, max_size=3),
    st.sampled_from([1, 7, 64]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=25)
def test_any_thresholds_and_any_batch(
    levels: list[float], size: int, temperature: float, random: Any
) -> None:
    network, images, logits = real("resnet")
    rows = random.sample(range(64), size)
    model = HaltingModel(network, policy_at(logits, levels, temperature), gather="always")
    with rows_seen(network) as seen:
        check_answers(model, images[rows], logits[rows])
        seen.clear()
        run = model(images[rows]).units_run
    assert [seen[unit] for unit in range(1, 9)] == [int((run >= unit).sum()) for unit in range(1, 9)]


def test_confident_networks_halt_as_the_policy_was_chosen() -> None:
    """Confidences within 1e-8 of 1, which float32 cannot tell apart, on either side of the threshold."""
    network, images, logits = real("resnet")
    network = network.copy()
    with torch.no_grad():
        head = network.heads[0].fc
        for parameter in head.parameters():  # type: ignore[union-attr]
            parameter.mul_(400 / float((logits[:, 0].amax(1) - logits[:, 0].amin(1)).median()))
        sharp = torch.stack(network(images), 1)
    exits = len(network)
    scores = at([1.0] * exits).scores(sharp.numpy())[:, 0]
    crowded = np.sort(scores[(scores > 1 - 1e-7) & (scores < 1)])
    assert len(crowded) >= 2
    threshold = float(crowded[len(crowded) // 2])
    policy = at([threshold] + [NEVER] * (exits - 1))
    out = HaltingModel(network, policy)(images)
    assert (out.exit.numpy() == 1).tolist() == (scores >= threshold).tolist()


def test_a_policy_of_fewer_exits_never_goes_deeper() -> None:
    network, images, _ = real("resnet")
    model = HaltingModel(network, at([NEVER] * 2), gather="always")
    with rows_seen(network) as seen:
        out = model(images)
    assert set(out.exit.tolist()) == {2}
    assert sorted(seen) == [1, 2, 3, 4]


def test_a_policy_of_more_exits_is_refused() -> None:
    network, _, _ = real("resnet")
    with pytest.raises(ConfigError, match="the policy has 5 exits, the network 4"):
        HaltingModel(network, at([1.0] * 5))
    with pytest.raises(ConfigError, match="gather is 'never'; choose 'always' or 'auto'"):
        HaltingModel(network, at([1.0] * 4), gather="never")  # type: ignore[arg-type]


def test_a_network_of_thin_plans_is_refused() -> None:
    model = timm.create_model("resnet18", num_classes=6, channels=[8, 8, 16, 16])
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(plan="thin"))
    with pytest.raises(ConfigError, match=r"inputs cannot halt in a network of thin plans.*or truncate it"):
        HaltingModel(network, at([1.0] * len(network)))


def test_a_copy_is_independent() -> None:
    network, images, logits = real("resnet")
    model = HaltingModel(network.copy(), policy_at(logits, [0.5] * 3))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    check_answers(twin, images, logits)


# --- wrong input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), "must be a tensor, not ndarray"),
        ([1, 2], "must be a tensor, not list"),
        (torch.zeros(3, 32, 32), r"shape \(3, 32, 32\); expected \(batch, 3, 32, 32\)"),
        (torch.zeros(2, 1, 32, 32), r"shape \(2, 1, 32, 32\); expected"),
        (torch.zeros(2, 3, 31, 32), r"shape \(2, 3, 31, 32\); expected"),
        (torch.zeros(0, 3, 32, 32), "the batch is empty"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            "images are torch.uint8 on cpu; the model is torch.float32",
        ),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), "images are torch.float64"),
        (torch.zeros(2, 3, 32, 32, device="meta"), "on meta; the model is torch.float32 on cpu"),
        (torch.full((2, 3, 32, 32), torch.nan), "hold NaN or infinite values"),
        (torch.full((2, 3, 32, 32), -torch.inf), "hold NaN or infinite values"),
    ],
)
def test_images_it_cannot_take(images: Any, says: str) -> None:
    network, good, logits = real("resnet")
    model = HaltingModel(network, policy_at(logits, [0.5] * 3))
    with pytest.raises(InputError, match=says) as caught:
        model(images)
    assert "\n" not in str(caught.value)
    check_answers(model, good[:3], logits[:3])  # and it goes on working


# --- what the certificate speaks of -----------------------------------------------------------------


def test_a_certificate_is_void_for_other_exits_and_for_weights_that_were_rounded() -> None:
    network, images, logits = real("resnet")
    some = policy_at(logits[:, [2, 3]], [0.5])
    certificate = {**earned(network, some), "exits": [3, 4]}
    assert HaltingModel(network.copy(), some, exits=(3, 4), certificate=certificate).void is None
    for other in ((1, 2), (1, 4), None):
        model = HaltingModel(network.copy(), some, exits=other, certificate=certificate)
        assert model.void == "it was earned for other exits" and not model(images).certified
    policy = policy_at(logits, [0.5] * 3)
    model = HaltingModel(network.copy(), policy, certificate=earned(network, policy))
    assert model(images).certified
    model.half().float()
    assert model.void == "the model is another than it was earned with" and not model(images).certified
    model = HaltingModel(network.copy(), policy, certificate=earned(network, policy))
    assert model(images).certified
    model.double().float()  # nothing is lost, but all tensors are others now
    assert model(images).certified
    next(model.network.backbone.buffers()).add_(3)
    assert not model(images).certified


def test_what_answers_depend_on_is_fixed_and_survives_copies() -> None:
    network, images, logits = real("resnet")
    policy = policy_at(logits, [0.5] * 3)
    model = HaltingModel(network.copy(), policy, certificate=earned(network, policy))
    for name in ("policy", "network", "exits", "execution", "gather"):
        with pytest.raises(AttributeError, match=f"{name} of a halting model is fixed"):
            setattr(model, name, None)
    model.note = "kept"  # type: ignore[assignment]
    times = model.warm_up((4,), rounds=1)
    twin = copy.deepcopy(model)
    assert twin.times == times and twin.note == "kept" and twin(images).certified  # type: ignore[comparison-overlap]


def earned(network: MultiExit, table: HaltingTable, runtime: str = "eager fp32 cpu") -> dict[str, Any]:
    """A certificate as `run.dynamic` makes it: of evidence in which nothing changed."""
    right = np.ones(400, dtype=bool)
    found = certify_sequence(right, right[None], drop=0.05, delta=0.05)
    digests = {"model": weights_digest(network), "policy": policy_digest(table), "runtime": runtime}
    told = {"drop": found.drop, "delta": found.delta, "certified": found.certified}
    return {"kind": "sequence", **told, "digests": digests, "evidence": found.to_dict()}


def test_certified_is_said_only_within_the_certificate() -> None:
    network, images, logits = real("resnet")
    policy = policy_at(logits, [0.5] * 3)
    assert not HaltingModel(network, policy)(images).certified
    assert not HaltingModel(network, policy, certificate={"certified": True})(images).certified
    model = HaltingModel(network.copy(), policy, certificate=earned(network, policy))
    assert model.void is None and model(images).certified
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not model(images).certified
    assert model(images).certified
    assert not copy.deepcopy(model).train()(images).certified
    assert not copy.deepcopy(model).double()(images.double()).certified
    assert not copy.deepcopy(model).bfloat16()(images.bfloat16()).certified


def test_a_certificate_is_void_when_weights_policy_runtime_or_claim_change() -> None:
    network, images, logits = real("resnet")
    policy = policy_at(logits, [0.5] * 3)
    good = earned(network, policy)
    changed = HaltingModel(network.copy(), policy, certificate=good)
    assert changed(images).certified
    with torch.no_grad():
        next(changed.network.backbone.parameters()).add_(1e-3)
    assert changed.void == "the model is another than it was earned with"
    assert not changed(images).certified
    changed.network.load_state_dict(network.state_dict())
    assert changed(images).certified  # the same weights again

    def void(policy: HaltingTable = policy, **other: Any) -> str | None:
        return HaltingModel(network, policy, certificate={**good, **other}).void

    assert void() is None
    assert void(policy_at(logits, [0.4] * 3)) == "the policy is another than it was earned with"
    elsewhere = earned(network, policy, "eager fp32 cuda tf32")
    assert "eager fp32 cpu, earned with eager fp32 cuda tf32" in str(void(**elsewhere))
    assert void(certified=False) == "it was refused"
    assert void(drop=0.001) == "it claims more than its evidence gives"
    assert void(evidence=None) == "its evidence is missing"
    forged = copy.deepcopy(good["evidence"])
    forged["tested"][0]["newly_wrong"] = 300
    assert "its evidence is damaged" in str(void(evidence=forged))
    forged = copy.deepcopy(good["evidence"])
    forged["tested"][0]["n"] = 10**15  # working that out again would take all memory
    assert "its evidence is damaged" in str(void(evidence=forged))


def test_a_certificate_is_void_for_another_architecture_with_the_same_weights() -> None:
    network, images, logits = real("resnet")
    policy = policy_at(logits, [0.5] * 3)
    certificate = earned(network, policy)
    other = network.copy()
    other.backbone.layer1[0].act2 = nn.GELU()  # type: ignore[index, union-attr]
    model = HaltingModel(other, policy, certificate=certificate)
    assert model.void == "the model is another than it was earned with"
    model = HaltingModel(network.copy(), policy, certificate=certificate)
    assert model(images).certified
    certificate["drop"] = 0.0001  # what is promised can't be edited from outside
    model.certificate["drop"] = 0.0001  # type: ignore[index]
    assert model.certificate["drop"] == 0.05 and model(images).certified  # type: ignore[index]
    assert HaltingModel(network.copy(), policy, certificate=certificate).void is not None


def test_a_monitor_of_its_answers() -> None:
    network, images, logits = real("resnet")
    policy = policy_at(logits, [0.5] * 3)
    with pytest.raises(ConfigError, match="without certification statistics"):
        HaltingModel(network, policy).drift_monitor()
    taken, answered = policy.decide(logits.numpy())
    sure = policy.confidence(logits.numpy(), answered)
    model = HaltingModel(network, policy, reference=(sure, taken))
    monitor = model.drift_monitor(alpha=0.05)
    out = model(images)
    assert not monitor.update(out.confidence.numpy(), out.exit.numpy()).alarm
    faint = model(images * 0.02)
    for _ in range(10):
        state = monitor.update(faint.confidence.numpy(), faint.exit.numpy())
    assert state.alarm
