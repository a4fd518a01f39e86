"""Full, static and dynamic beside each other, and which of them is recommended."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

import odn_hybrid as odn
from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs
from odn_hybrid.deploy.comparing.advice import recommend
from odn_hybrid.deploy.comparing.candidates import equal_exit
from odn_hybrid.deploy.comparing.comparison import Wish, compare_models, images_wanted
from odn_hybrid.deploy.comparing.ideal import exits_taken, halting_shares
from odn_hybrid.deploy.comparing.in_force import model_in_force
from odn_hybrid.deploy.comparing.turns import LEAST_CALLS, LEAST_IMAGES, batches_of
from odn_hybrid.deploy.truncation.choice import choose_exit
from odn_hybrid.errors import BudgetError, ConfigError, DataError, ModelError
from odn_hybrid.execution import Execution
from odn_hybrid.run import Run
from odn_hybrid.stopping import Calibration, HaltingTable

ACCURACY = {"value": 0.9, "n": 100, "low": 0.85, "high": 0.95}
Row = dict[str, Any]


def made_report(
    costs: Any = None, *, static: int = 2, reference: int = 4, full: bool = True
) -> dict[str, Any]:
    rows = [
        {
            "exit": k, "units": k, "trained": k <= reference,
            "accuracy": {"selection": {**ACCURACY, "value": 0.8 + 0.01 * min(k, 3)}, "test": ACCURACY}
            if k <= reference else {"selection": None, "test": None},
            "macs_static": costs.static(k) if costs else k, "params": costs.params[k - 1] if costs else k,
            "macs_dynamic": costs.dynamic(k) if costs else k, "bytes": costs.bytes[k - 1] if costs else k,
        }
        for k in range(1, 5)
    ]  # fmt: skip
    return {
        "exits": rows, "static": {"exit": static}, "reference": {"exit": reference, "full": full},
        "dynamic": {
            "accuracy": {"selection": {**ACCURACY, "value": 0.83}, "test": ACCURACY}, "mean_macs": 2.5,
            "params": 7, "bytes": 28, "certificate": None,
        },
    }  # fmt: skip


# --- the recommendation -----------------------------------------------------------------------------

NOISE = np.random.default_rng(0).uniform(0.98, 1.02, 9)


def row(name: str, speeds: list[float], *, spread: float = 0.0, **more: Any) -> Row:
    """Of a model so many times as fast as one that takes 100 ms, at batch 1, 16, 64; noise that all share."""
    own = 1 + spread * np.linspace(-1, 1, 9)
    kind = {"static_equal": "static"}.get(name, name)
    times = {str(16**k if k < 2 else 64): list(100 / s * NOISE * own) for k, s in enumerate(speeds)}
    return {
        "name": name, "kind": kind, "exit": {"full": 4, "static": 2, "static_equal": 3}.get(name),
        "accuracy": {**ACCURACY, "value": 0.9}, "certified": True if kind == "dynamic" else None,
        "note": None, "rounds_ms": times, **more,
    }  # fmt: skip


def advised(*others: Row, sizes: tuple[int, ...] = (1,), **report: Any) -> dict[str, Any]:
    rows = [row("full", [1.0] * len(sizes)), *others]
    return recommend(rows, made_report(**report), sizes)


UNSURE: dict[str, Any] = {"certified": False, "note": "the runtime is another than it was earned with"}


STATIC, DYNAMIC, EQUAL = "static", "dynamic", "static_equal"


@pytest.mark.parametrize(
    ("others", "choice", "says"),
    [
        ([row(STATIC, [2]), row(DYNAMIC, [1.5])], STATIC, "static (exit 2) runs 2.00 x as fast as the full"),
        ([row(STATIC, [1.5]), row(DYNAMIC, [2])], DYNAMIC, "and 1.33 x as fast as static (exit 2)"),
        ([row(STATIC, [2]), row(DYNAMIC, [1.5])], STATIC, "dynamic halting is slower than that: 0.75 x"),
        # As fast as static: the plain model is the better.
        ([row(STATIC, [2]), row(DYNAMIC, [2.01], spread=0.1)], STATIC, "is not clearly faster than that"),
        ([row(STATIC, [2], exit=4), row(DYNAMIC, [2])], DYNAMIC, "batch 1 (95 % interval 2.00 to 2.00)"),
        ([row(STATIC, [1.5]), row(DYNAMIC, [2], **UNSURE)], STATIC, "runs 1.50 x"),
        ([row(STATIC, [1]), row(DYNAMIC, [2], **UNSURE)], "full", "keep the full network: nothing"),
        ([row(STATIC, [1.04]), row(DYNAMIC, [1.03])], "full", "keep the full network"),
        ([row(STATIC, [1.1], spread=0.9)], "full", "keep the full network"),  # it may well be slower
        ([row(STATIC, [0.8]), row(DYNAMIC, [0.9])], "full", "keep the full network"),
        # The static model as accurate as the dynamic one counts, too.
        ([row(STATIC, [1.2]), row(EQUAL, [1.9]), row(DYNAMIC, [1.5])], STATIC, "(exit 3) runs 1.90 x"),
        # But nothing was promised of what is as accurate as an uncertified one.
        ([row(EQUAL, [1.9]), row(DYNAMIC, [1.5], **UNSURE)], "full", "keep the full network"),
    ],
)
def test_what_is_recommended(others: list[Row], choice: str, says: str) -> None:
    found = advised(*others)
    assert found["choice"] == choice and says in found["reason"], found["reason"]
    assert found["by_batch"]["1"]["choice"] == choice


def test_the_accuracy_at_which_is_said() -> None:
    lower = {**ACCURACY, "value": 0.876}
    assert "87.6 % on the test split against 90.0 %" in advised(row("static", [2], accuracy=lower))["reason"]
    assert "with 90.0 % on the test split as that has" in advised(row("static", [2]))["reason"]


def test_batch_sizes_that_want_different_models() -> None:
    static, dynamic = row("static", [1.3, 1.3, 1.3]), row("dynamic", [0.7, 1.6, 2.0])
    found = advised(static, dynamic, sizes=(1, 16, 64))
    assert {size: one["choice"] for size, one in found["by_batch"].items()} == {
        "1": "static", "16": "dynamic", "64": "dynamic",
    }  # fmt: skip
    # 0.7 x 1.6 x 2.0 = 2.24 is 1.308 cubed: not clearly above static's 1.3 everywhere.
    assert found["choice"] == "dynamic" and "over batches 1, 16 and 64 (geometric mean; " in found["reason"]
    assert "by batch size: static (exit 2) at 1; dynamic at 16 and 64" in found["reason"]
    only = advised(row("dynamic", [1.6, 0.9, 0.8]), sizes=(1, 16, 64))
    assert only["choice"] == "full" and only["by_batch"]["1"]["choice"] == "dynamic"
    assert "dynamic at 1; the full network at 16 and 64" in only["reason"]


def test_what_was_not_recommended_is_noted() -> None:
    notes = " | ".join(advised(row("static", [1], exit=4), row("dynamic", [2], **UNSURE))["notes"])
    assert "no shallower depth was shown to be good enough" in notes
    assert "no certificate here (the runtime is another" in notes and "whatever its speed, 2.00 x" in notes
    assert "there is no dynamic model" in " ".join(advised(row("static", [2]))["notes"])
    few = [{**one, "rounds_ms": {"1": [100.0]}} for one in (row("full", [1]), row("static", [2]))]
    assert "intervals of 1 round say little" in " ".join(recommend(few, made_report(), [1])["notes"])
    early = recommend([row("full", [1])], made_report(), [1], {"1": 0.8})["notes"]
    assert "20 % fewer MACs on the images timed" in " ".join(early)
    assert not any(
        "MACs" in note for note in recommend([row("full", [1])], made_report(), [1], {"1": 1.01})["notes"]
    )


def test_a_given_model_stands_beside_the_recommended_one() -> None:
    better = {**ACCURACY, "value": 0.91}
    found = advised(
        row("static", [1.5]), row("tiny", [3], kind="given", accuracy=better, note="perhaps seen")
    )
    assert found["choice"] == "static"
    (note,) = [note for note in found["notes"] if note.startswith("tiny")]
    assert (
        "tiny runs 2.00 x" in note
        and "as fast as static (exit 2) and has 1.00 points more of the 100" in note
    )
    assert "(perhaps seen)" in note


def test_the_reference_is_named_where_the_network_was_not_trained_to_its_end() -> None:
    found = advised(row("static", [2], exit=1), static=1, reference=3, full=False)
    assert "as fast as the reference at batch 1" in found["reason"]


# --- measured ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4, channels=[8, 8, 8, 8])
    return MultiExit(Trunk(model, image_size=32), ExitConfig(every=2)).eval()


IMAGES = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def halting_model(network: MultiExit) -> HaltingModel:
    """About half of the images still there stop at each exit."""
    with torch.no_grad():
        sure = [float(logits.softmax(1).amax(1).median()) for logits in network(IMAGES)]
    return HaltingModel(network, HaltingTable.of_thresholds(sure, Calibration.of_temperatures([1.0] * 4)))


def test_comparing(network: MultiExit) -> None:
    costs = count_costs(network)
    report = made_report(costs)
    wish = Wish((4, 16), rounds=2, seconds=0.2)
    found = compare_models(network, report, halting_model(network), IMAGES, wish)
    # Exit 3 is the first that has the dynamic model's 83 % on the selection split.
    assert [row["name"] for row in found["rows"]] == ["full", "static", "static_equal", "dynamic"]
    assert found["batch_sizes"] == [4, 16] and found["equal_accuracy_exit"] == 3
    assert found["device"].startswith("cpu") and found["runtime"] == "eager fp32 cpu"
    full, static, equal, dynamic = found["rows"]
    assert (full["mean_macs"], full["params"]) == (costs.static(4), costs.params[3])
    assert (static["mean_macs"], static["bytes"]) == (costs.static(2), costs.bytes[1])
    assert (equal["mean_macs"], equal["exit"]) == (costs.static(3), 3)
    assert (dynamic["mean_macs"], dynamic["certified"]) == (2.5, False)
    assert dynamic["note"] == "there is no certificate"
    assert full["speedup"]["16"] == {"median": 1, "low": 1, "high": 1}
    for one in found["rows"]:
        for size in ("4", "16"):
            taken, call, gain = (one[key][size] for key in ("ms_per_image", "ms_per_call", "speedup"))
            assert 0 < taken["low"] <= taken["median"] <= taken["high"]
            assert 0 < call["p50"] <= call["p90"] <= call["p99"]
            assert gain["low"] <= gain["median"] <= gain["high"]
            assert len(one["rounds_ms"][size]) == 2 and call["calls"] % 2 == 0
            assert one["images_per_second"][size] == pytest.approx(1000 / taken["median"])
            assert one["peak_bytes"][size] is None or one["peak_bytes"][size] > one["params"]
    assert found["recommendation"]["choice"] in ("full", "static")
    assert found["exits"] is None


def test_without_a_dynamic_model_and_with_every_exit(network: MultiExit) -> None:
    wish = Wish((2,), rounds=1, seconds=0.2, exits=True)
    found = compare_models(network, made_report(reference=3), None, IMAGES, wish)
    assert [row["name"] for row in found["rows"]] == ["full", "static"]
    assert found["halting"] == {"2": None} and found["ideal"] == {"2": None}
    assert [row["exit"] for row in found["exits"]] == [1, 2, 3]  # exit 4 is untrained
    assert found["exits"][2]["ms_per_image"] == found["rows"][0]["ms_per_image"]
    assert all(0 < row["ms_per_image"]["2"]["median"] < 1e4 for row in found["exits"])


def test_halting_is_that_of_the_images_timed(network: MultiExit) -> None:
    """Inputs enter a segment if they did not stop before it; the shares are those of these images."""
    halting = halting_model(network)
    taken = exits_taken(halting, [IMAGES[:5], IMAGES[5:]])
    assert [len(one) for one in taken] == [5, 5] and len(np.unique(np.concatenate(taken))) > 1
    wish = Wish((5,), rounds=2, seconds=5.0)
    found = compare_models(network, made_report(count_costs(network)), halting, IMAGES, wish)
    exits = np.concatenate(taken)
    assert found["halting"]["5"] == {str(k): float((exits == k).mean()) for k in np.unique(exits)}
    assert found["halting"]["5"] == halting_shares(taken)
    ideal = found["ideal"]["5"]
    assert [part["exit"] for part in ideal["segments"]] == list(halting.looked)
    starts = [0, *halting.looked[:-1]]
    entering = [part["inputs"] for part in ideal["segments"]]
    assert entering == [np.mean([(one > start).sum() for one in taken]) for start in starts]
    for part, inputs in zip(ideal["segments"], entering, strict=True):
        assert (part["share"] > 0) == (inputs > 0)
    assert ideal["speedup"]["low"] <= ideal["speedup"]["median"] <= ideal["speedup"]["high"]
    assert ideal["reached"]["median"] == pytest.approx(
        found["rows"][-1]["speedup"]["5"]["median"] / ideal["speedup"]["median"], rel=1e-6
    )


@pytest.mark.parametrize("sizes", [[], [0], [2.5], [-1], [True], [4, 4]])
def test_batch_sizes_that_make_no_sense(network: MultiExit, sizes: list[Any]) -> None:
    with pytest.raises(ConfigError, match="give whole numbers of 1 or more"):
        compare_models(network, made_report(), None, IMAGES, Wish(tuple(sizes)))


def test_nothing_to_compare_on(network: MultiExit) -> None:
    with pytest.raises(ConfigError, match="no images"):
        compare_models(network, made_report(), None, IMAGES[:0], Wish())
    for wrong in ({"rounds": 0}, {"rounds": 1.5}, {"seconds": 0}, {"seconds": float("nan")}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
            compare_models(network, made_report(), None, IMAGES, Wish((1,), **wrong))  # type: ignore[arg-type]


def test_all_models_run_in_one_way(network: MultiExit) -> None:
    folded = HaltingModel(
        network.copy().fold(),
        HaltingTable.of_thresholds([0.3] * 4, Calibration.of_temperatures([1.0] * 4)),
        execution=Execution(fold=True),
    )
    found = compare_models(network, made_report(), folded, IMAGES, Wish((2,), rounds=1, seconds=0.1))
    assert found["runtime"] == "eager fp32 folded cpu"
    lower = compare_models(
        network, made_report(), None, IMAGES, Wish((2,), rounds=1, seconds=0.1),
        execution=Execution(precision="bf16"), accuracy=lambda model: {**ACCURACY, "value": 0.5},
    )  # fmt: skip
    assert lower["runtime"] == "eager bf16 cpu"  # and accuracies are measured in it
    assert [row["accuracy"]["value"] for row in lower["rows"]] == [0.5, 0.5]


def test_batches_are_of_different_images_as_far_as_there_are() -> None:
    several = batches_of(IMAGES, 4, 9)
    assert [len(batch) for batch in several] == [4, 4]
    assert torch.equal(torch.cat(several), IMAGES[:8])
    (large,) = batches_of(IMAGES, 16, 3)
    assert torch.equal(large, torch.cat([IMAGES, IMAGES[:6]]))
    assert len(batches_of(IMAGES, 3, 1)) == 1


def test_enough_images_are_prepared() -> None:
    assert images_wanted(Wish((1, 16)), (3, 32, 32)) == LEAST_IMAGES
    assert images_wanted(Wish((64,), rounds=4), (3, 32, 32)) == 64 * LEAST_CALLS // 4
    assert images_wanted(Wish((64,), rounds=1), (3, 1000, 1000)) == 64  # half a gigabyte, but a whole batch


def test_the_static_exit_of_equal_accuracy() -> None:
    report = made_report()
    for value, exit in ((0.80, 1), (0.815, 2), (0.82, 2), (0.83, 3), (0.9, None)):
        told = {"accuracy": {"selection": {"value": value}}}
        assert equal_exit(report, told) == exit
    assert equal_exit(report, {"accuracy": {"selection": None}}) is None


# --- a run ------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"batch_sizes": [4], "rounds": 2, "seconds": 0.1}


@pytest.fixture(scope="module")
def run(tiny: dict[str, Any]) -> Run:
    overrides = {**tiny["overrides"], "expansion.max_looks": 12}  # enough to reach the last exit
    fitted: Run = odn.fit(**{**tiny, "overrides": overrides})
    return fitted


def of_row(found: dict[str, Any], name: str) -> Row:
    return next(row for row in found["rows"] if row["name"] == name)


def test_certified_is_what_holds_for_the_model_measured(run: Run) -> None:
    assert run.report_["dynamic"]["certificate"] is None  # 90 images show nothing within 1 point
    before = of_row(run.compare(**QUICK), "dynamic")
    assert before["certified"] is False and before["note"]
    told = run.certify(drop=0.6, policy="margin")
    assert told["certified"]
    after = run.compare(**QUICK)
    dynamic = of_row(after, "dynamic")
    assert dynamic["certified"] is True and dynamic["note"] is None
    # Figures are those of the policy measured, not of the report's.
    fast = run.dynamic(drop=0.6, policy="margin")
    logits, labels = run.parts.records["test"].logits, run.parts.records["test"].labels
    taken, answered = fast.policy.decide(logits)
    right = logits[np.arange(len(labels)), answered - 1].argmax(1) == labels
    assert dynamic["accuracy"]["value"] == pytest.approx(right.mean())
    assert dynamic["mean_macs"] == pytest.approx(np.asarray(run.parts.costs.cumulative)[taken - 1].mean())
    assert of_row(run.compare(**QUICK, execution=Execution()), "dynamic")["certified"] is False  # not folded
    entry = run.ledger[-1]
    report = {"dynamic": {"certificate": entry["certificate"]}}
    unfolded = model_in_force(run.network, {"policy": entry["policy"], "ledger": []}, report, Execution())
    assert unfolded is not None and "the runtime is another" in str(unfolded.void)


def test_a_dynamic_model_of_ones_own(run: Run) -> None:
    own = run.dynamic(certify=False, policy="fixed", drop=0.99)
    found = of_row(run.compare(**QUICK, dynamic=own), "dynamic")
    assert found["certified"] is False and found["mean_macs"] == run.parts.costs.cumulative[0]
    with pytest.raises(ConfigError, match="leave it out"):
        run.compare(**QUICK, dynamic=own, execution=Execution())


def test_given_models_are_measured_on_the_test_split(run: Run, tiny: dict[str, Any]) -> None:
    small = run.truncate(depth=2)
    other = odn.fit(**{**tiny, "overrides": {**tiny["overrides"], "seed": 7, "expansion.max_looks": 1}})
    found = run.compare(**QUICK, against={"small": small, "other": other})
    given = of_row(found, "small")
    exit = next(row for row in run.exits_ if row["units"] == 2)
    assert given["kind"] == "given" and given["accuracy"] == exit["accuracy"]["test"]
    assert given["mean_macs"] == exit["macs_static"] and given["params"] == exit["params"]
    assert given["note"] is None
    reference = of_row(found, "other")
    row = other.exits_[other.report_["reference"]["exit"] - 1]
    assert reference["params"] == row["params"] and reference["accuracy"]["n"] == 90
    assert any(note.startswith("small runs") for note in found["recommendation"]["notes"])


def test_models_that_cannot_be_compared(run: Run) -> None:
    wrong: dict[str, Any] = {
        "answers with": timm.create_model("resnet10t", num_classes=7, in_chans=1),
        "does not take images": nn.Linear(3, 3),
        "give a run or a plain model": run.dynamic(certify=False),
        "a str": "runs/small",
    }
    for says, model in wrong.items():
        with pytest.raises(ConfigError, match=says):
            run.compare(**QUICK, against={"mine": model})
    with pytest.raises(ConfigError, match="cannot be called 'static'"):
        run.compare(**QUICK, against={"static": run.truncate()})


def test_data_that_have_moved(tiny: dict[str, Any], tiny_npz: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copy(tiny_npz, tmp_path / "data.npz")
    odn.fit(**{**tiny, "data": str(tmp_path / "data.npz")}, out=tmp_path / "run")
    (tmp_path / "data.npz").rename(tmp_path / "moved.npz")
    again = odn.load(tmp_path / "run")
    with pytest.raises(DataError, match=r"if the fit's data have moved, say where: data= \(--data\)"):
        again.compare(**QUICK)
    assert again.compare(**QUICK, data=str(tmp_path / "moved.npz"))["rows"]


# --- which exit is meant ----------------------------------------------------------------------------


def chosen(network: MultiExit, **wish: Any) -> int:
    costs = count_costs(network)
    return choose_exit(network, costs, made_report(costs, reference=3)["exits"], 2, **wish)


def test_wishes(network: MultiExit) -> None:
    costs = count_costs(network)
    assert chosen(network) == 2
    assert chosen(network, depth=6) == 3
    assert chosen(network, max_macs=costs.static(2)) == 2
    assert chosen(network, max_params=costs.params[0]) == 1
    assert chosen(network, max_bytes=np.int64(10**9)) == 3  # exit 4 is untrained
    assert chosen(network, max_latency_ms=1e6) == 3


def test_wishes_that_cannot_be_met(network: MultiExit) -> None:
    with pytest.raises(BudgetError, match=r"no trained exit has max_macs <= 1; the least is .* at exit 1"):
        chosen(network, max_macs=1)
    with pytest.raises(ConfigError, match="ask for one thing at a time, not depth and max_macs"):
        chosen(network, depth=2, max_macs=1)
    with pytest.raises(ModelError, match="no exit after 3 units"):
        chosen(network, depth=3)
    for wish in ("1M", 0, -1, float("nan"), True):
        with pytest.raises(ConfigError, match="it must be a number above 0"):
            chosen(network, max_macs=wish)
