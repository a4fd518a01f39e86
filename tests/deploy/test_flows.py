"""However a batch is run (host, device, fixed buffers), every input gets the answer that it gets alone."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.halting.deviceflow import DeviceFlow
from odn_hybrid.deploy.halting.graphflow import GraphFlow, buckets_upto
from odn_hybrid.deploy.halting.hostflow import HostFlow
from odn_hybrid.deploy.halting.profit import Gathering, SegmentTimes
from odn_hybrid.deploy.halting.segments import segments_of
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.execution import Execution
from odn_hybrid.stopping import (
    FAMILIES,
    NEVER,
    Calibration,
    HaltingTable,
    Looker,
    fit_calibration,
    policy_path,
)

CPU = torch.device("cpu")
NEAR = 1e-5  # kernels are chosen by batch size, which moves last digits


@cache
def little() -> tuple[MultiExit, Tensor, Tensor]:
    """A residual network of four exits, 64 images, the logits of all exits on each of them alone."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=6, channels=[4, 8, 8, 12])
    network = MultiExit(Trunk(model, image_size=32), ExitConfig(every=2)).eval()
    with torch.no_grad():
        for head in network.heads:
            head.fc.weight.mul_(8)  # type: ignore[union-attr, operator]
        images = torch.rand(64, 3, 32, 32) * torch.rand(64, 3, 1, 1)
        return network, images, torch.cat([torch.stack(network(image[None]), 1) for image in images])


def thresholds(logits: Tensor, levels: list[float]) -> HaltingTable:
    """Stop where the confidence reaches the quantile `level` of an exit's own; above 1: never."""
    exits = logits.shape[1]
    flat = Calibration.of_temperatures([1.0] * exits)
    scores = HaltingTable.of_thresholds([1.0] * exits, flat).scores(logits.numpy())
    limits = [
        NEVER if level > 1 else float(np.quantile(scores[:, k], level)) + 1e-4
        for k, level in enumerate([*levels, 0.0][:exits])
    ]
    return HaltingTable.of_thresholds(limits, flat)


def flow_of(kind: str, network: MultiExit, table: HaltingTable, gather: str = "auto") -> Any:
    """A flow of that kind on the CPU."""
    segments = segments_of(network, table.needed)
    steps = [segment.run for segment in segments]
    if kind == "host":
        return HostFlow(steps, table.needed, table, Gathering(gather))
    if kind == "device":
        return DeviceFlow(steps, table.needed, Decider(table), Gathering(gather))
    return GraphFlow(segments, steps, table.needed, Decider(table), Gathering(gather), device=CPU)


def near_an_edge(table: HaltingTable, logits: Tensor) -> np.ndarray:
    """(n,): whether a last digit decides."""
    scores = table.scores(logits.numpy())
    edges = [np.array([e for part in row for e in part[0]]) for row in table.rows]
    return np.array(
        [any((np.abs(edges[k] - s[k]) < NEAR).any() for k in range(len(edges) - 1)) for s in scores]
    )


def check(found: Any, table: HaltingTable, logits: Tensor) -> None:
    """Answers are those of the table on logits of every input alone."""
    taken, answered = table.decide(logits.numpy())
    near = near_an_edge(table, logits)
    assert ((found.taken.numpy() == taken) | near).all()
    by = found.taken if found.answered is None else found.answered
    assert ((by.numpy() == answered) | near).all()
    given = logits[torch.arange(len(logits)), by - 1]
    assert float((found.logits - given).abs().max()) <= 1e-5 * max(1.0, float(given.abs().max()))
    sure = table.confidence(logits.numpy(), by.numpy())
    assert np.allclose(found.confidence.numpy(), sure, atol=1e-5)


FLOWS = ("host", "device", "buffers")


@pytest.mark.parametrize("kind", FLOWS)
@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0, 2.0]), min_size=3, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from(["always", "auto"]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_any_sequence_of_batches(
    kind: str, levels: list[float], sizes: list[int], gather: str, random: Any
) -> None:
    network, images, logits = little()
    table = thresholds(logits, levels)
    flow = flow_of(kind, network, table, gather)
    with torch.no_grad():
        for size in sizes:  # one after another: buffers must keep nothing of the batch before
            rows = [random.randrange(64) for _ in range(size)]
            check(flow(images[rows]), table, logits[rows])


@pytest.mark.parametrize("recall", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_flows_decide_as_the_table_does(family: str, recall: bool) -> None:
    network, images, logits = little()
    labels = np.random.default_rng(0).integers(0, 6, 64)
    labels[::2] = logits[::2, -1].argmax(1)
    scale = fit_calibration(logits.numpy(), labels, "vector")
    path = policy_path(
        family, logits.numpy(), labels, np.arange(1.0, 5.0), calibration=scale, recall=recall, count=7
    )
    for member in path[1::3]:
        for kind in FLOWS:
            with torch.no_grad():
                check(flow_of(kind, network, member.table)(images), member.table, logits)


@given(st.integers(0, 10_000), st.sampled_from(["confidence", "margin", "entropy", "streak"]), st.booleans())
@settings(max_examples=60)
def test_the_looker_gives_the_tables_digits(seed: int, score: str, recall: bool) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (12, 4, int(random.integers(1, 6)))).astype(np.float32)
    rows = []
    for _ in range(4):
        pair = []
        for _ in range(2):
            top = 4.5 if score == "streak" else 1.0
            edges = sorted(random.uniform(0, top, int(random.integers(0, 4))).tolist())
            pair.append((tuple(edges), tuple(bool(b) for b in random.integers(0, 2, len(edges) + 1))))
        rows.append(tuple(pair))
    handicaps = tuple(random.normal(0, 0.1, 4).tolist()) if recall else None
    temperatures = Calibration.of_temperatures(random.uniform(0.5, 2, 4).tolist())
    table = HaltingTable(score, temperatures, tuple(rows), handicaps)
    taken, answered = table.decide(logits)
    looker, seen = Looker(table), None
    stopped = np.zeros(12, dtype=bool)
    for number in range(1, 5):
        stops, seen = looker.look(number, logits[:, number - 1], seen)
        now = stops & ~stopped
        assert (taken[now] == number).all() and (stopped | now)[taken <= number].all()
        given_by = number if seen.exit is None else seen.exit[now]
        assert (answered[now] == given_by).all()
        assert (seen.confidence[now] == table.confidence(logits, np.where(now, answered, 1))[now]).all()
        stopped |= stops
    alone = int(random.integers(0, 4))  # exits that it passes in company
    for row in range(12):  # and one input at a time
        one, seen = None, None
        for number in range(1, int(taken[row]) + 1):
            if number <= alone:
                stops, seen = looker.look(number, logits[[row], number - 1], seen)
                stop, one = bool(stops[0]), seen.one(number)
                assert stop == (number == taken[row])
                continue
            stop, one = looker.look_one(number, logits[row, number - 1], one)
            assert stop == (number == taken[row])
        assert one is not None and one.exit == answered[row]
        assert one.confidence == table.confidence(logits, np.where(taken > 0, answered, 1))[row]


def test_only_heads_that_matter_are_evaluated() -> None:
    network, images, logits = little()
    table = thresholds(logits, [2.0, 0.5, 2.0])
    model = HaltingModel(network.copy(), table)
    calls = [0, 0, 0]
    for k, head in enumerate(model.network.heads):
        head.register_forward_hook(lambda *_, k=k: calls.__setitem__(k, calls[k] + 1))
    out = model(images)
    assert model.looked == (2, 4) and calls == [0, 1, 0]
    assert set(out.exit.tolist()) == {2, 4}
    streak = policy_path("patience", logits.numpy(), np.zeros(64, int), [1.0, 2, 3, 4])[0].table
    assert HaltingModel(network.copy(), streak).looked == tuple(range(1, len(streak) + 1))


def test_a_policy_for_some_of_the_exits() -> None:
    network, images, logits = little()
    some = thresholds(logits[:, [1, 3]], [0.5])
    model = HaltingModel(network.copy(), some, exits=(2, 4))
    out = model(images)
    taken, _ = some.decide(logits[:, [1, 3]].numpy())
    near = near_an_edge(some, logits[:, [1, 3]])
    assert ((out.exit.numpy() == np.array([2, 4])[taken - 1]) | near).all()
    assert out.units_run.tolist() == [network.units[e - 1] for e in out.exit.tolist()]
    for wrong in ((4, 2), (2, 2), (2,), (0, 4), (2, 5)):
        with pytest.raises(ConfigError, match="exit"):
            HaltingModel(network.copy(), some, exits=wrong)


# --- gathering --------------------------------------------------------------------------------------


def test_gathering_follows_measured_times() -> None:
    dear = SegmentTimes((1, 64), ((1e-3, 64e-3),) * 2, ((1.0, 1.0), (0.0, 0.0)), "cpu", "eager fp32 cpu")
    cheap = SegmentTimes((1, 64), ((1e-3, 64e-3),) * 2, ((0.0, 0.0), (0.0, 0.0)), "cpu", "eager fp32 cpu")
    gathers = Gathering("auto")
    assert gathers(0, 64, 57) and not gathers(0, 64, 60)  # a tenth
    gathers.times = dear
    assert not gathers(0, 64, 1)
    gathers.times = cheap
    assert gathers(0, 64, 63)
    assert Gathering("always")(0, 64, 63)
    with pytest.raises(ConfigError, match="gather is 'never'"):
        Gathering("never")


def test_times_between_and_beyond_the_sizes_measured() -> None:
    times = SegmentTimes((1, 2, 4), ((1, 2, 4), (3, 5, 9)), ((1, 1, 1), (0, 0, 0)), "cpu", "eager fp32 cpu")
    assert times.segment(0, 3) == 3 and times.segment(1, 3) == 7 and times.gather(0, 2) == 1
    assert times.segment(0, 8) == 8  # beyond what was measured: in proportion
    noisy = SegmentTimes((1, 2), ((2.0, 1.0),), ((0.0, 0.0),), "cpu", "eager fp32 cpu")
    assert noisy.segment(0, 2) == 2.0


@given(st.integers(1, 5000))
def test_buckets_waste_little(batch: int) -> None:
    sizes = buckets_upto(batch)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] >= batch
    assert sizes[-1] - batch <= max(7, batch // 8)
    assert len(sizes) <= 64


def test_answers_are_the_same_after_warming_up() -> None:
    network, images, logits = little()
    table = thresholds(logits, [0.5, 0.5, 0.5])
    model = HaltingModel(network.copy(), table)
    assert model.times is None
    times = model.warm_up((1, 16), rounds=2)
    assert model.times is times and times.sizes == (1, 2, 4, 8, 16)
    assert len(times.segments) == 4 and times.segment(0, 16) > 0
    for size in (1, 5, 64):
        found = model(images[:size])
        alone = [int(model(image[None]).exit) for image in images[:size]]
        near = near_an_edge(table, logits[:size])
        assert ((found.exit.numpy() == np.array(alone)) | near).all()
    with pytest.raises(ConfigError, match=r"batch sizes are \[0\]"):
        model.warm_up((0,))


# --- ways to compute --------------------------------------------------------------------------------


def test_a_folded_network_halts_as_the_plain_one() -> None:
    network, images, logits = little()
    table = thresholds(logits, [0.5, 0.5, 0.5])
    folded = network.copy().fold()
    assert folded.folds and not network.folds
    out = HaltingModel(folded, table, execution=Execution(fold=True))(images)
    check(_as_answers(out), table, logits)


def test_bf16_answers_are_close() -> None:
    network, images, logits = little()
    table = thresholds(logits, [2.0, 2.0, 2.0])
    out = HaltingModel(network.copy(), table, execution=Execution(precision="bf16"))(images)
    assert out.logits.dtype == torch.float32 and not out.certified
    difference = (out.logits - logits[:, -1]).abs().max()
    assert 0 < float(difference) < 0.1 * float(logits[:, -1].abs().max())


@pytest.mark.long
def test_compiled_segments_answer_alike() -> None:
    network, images, logits = little()
    table = thresholds(logits, [0.5, 0.5, 0.5])
    model = HaltingModel(network.copy(), table, execution=Execution(compile=True))
    for size in (64, 7, 1, 33):
        check(_as_answers(model(images[:size])), table, logits[:size])


def _as_answers(out: Any) -> Any:
    out.__dict__["taken"] = out.exit
    return out


def test_channels_stay_last() -> None:
    """Survivors in another layout than the batch would make every later unit convert or slow down."""
    network, images, _ = little()
    state = network.trunk.run(network.trunk.stem(images.contiguous(memory_format=torch.channels_last)), 0, 2)
    some = state.select(torch.tensor([3, 1, 60]))
    assert state.x.is_contiguous(memory_format=torch.channels_last)
    assert some.x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(some.x, state.x[[3, 1, 60]])


# --- many calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FLOWS)
def test_bad_images_leave_nothing_behind(kind: str) -> None:
    network, images, logits = little()
    table = thresholds(logits, [0.5, 0.5, 0.5])
    flow = flow_of(kind, network, table)
    spoiled = images[:9].clone()
    spoiled[8, 0, 0, 0] = torch.nan
    with torch.no_grad():
        for wrong in (spoiled, torch.full_like(spoiled, -torch.inf)):
            with pytest.raises(InputError, match="NaN or infinite"):
                flow(wrong)
            check(flow(images[:5]), table, logits[:5])
        check(flow(images * 1.0), table, logits)


@pytest.mark.parametrize("kind", FLOWS)
def test_two_threads_agree_with_one(kind: str) -> None:
    network, images, logits = little()
    table = thresholds(logits, [0.5, 0.5, 0.5])
    flow = flow_of(kind, network, table)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        with torch.no_grad():
            for _ in range(60):
                rows = random.integers(0, 64, int(random.integers(1, 24)))
                check(flow(images[rows]), table, logits[rows])

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))  # raises what a thread raised


@pytest.mark.parametrize("kind", FLOWS)
def test_no_tensor_outlives_its_batch(kind: str) -> None:
    network, images, logits = little()
    flow = flow_of(kind, network, thresholds(logits, [0.5, 0.5, 0.5]))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    with torch.no_grad():
        for size in (64, 3, 17, 1):
            flow(images[:size])
        before = tensors()
        for size in (64, 3, 17, 1) * 5:
            flow(images[:size])
        assert tensors() == before


# --- at length --------------------------------------------------------------------------------------


def resident() -> int:
    """Bytes of this process in memory; skips where the system doesn't say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("this system does not tell the size of a process")


@pytest.mark.long
@pytest.mark.parametrize("kind", FLOWS)
def test_ten_thousand_batches(kind: str) -> None:
    """Random sizes and halting patterns: every answer is the one from running alone; memory stays flat."""
    network, images, logits = little()
    random = np.random.default_rng(0)
    patterns = [
        thresholds(logits, random.choice([0.0, 0.1, 0.5, 0.9, 1.0, 2.0], 3).tolist()) for _ in range(20)
    ]
    flows = [flow_of(kind, network, table, "always" if k % 2 else "auto") for k, table in enumerate(patterns)]
    sizes: list[int] = []
    with torch.no_grad():
        for k, flow in enumerate(flows):
            check(flow(images[:32]), patterns[k], logits[:32])
        for number in range(10_000):
            k = int(random.integers(20))
            rows = random.integers(0, 64, int(random.integers(1, 33)))
            check(flows[k](images[rows]), patterns[k], logits[rows])
            if number % 500 == 499 and number >= 4999:  # after 5,000 batches to warm up
                sizes.append(resident())
    assert max(sizes) - sizes[0] <= 8 << 20  # over 5,000 batches; a leak of one batch's state would be 100 MB
