"""Full, static and dynamic beside each other, and which of them is recommended."""

from typing import Any

import numpy as np
import pytest
import timm
import torch

from odn_hybrid import HaltingModel, MultiExit, Trunk
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import count_costs
from odn_hybrid.deploy.comparing.comparison import compare_models, recommend
from odn_hybrid.deploy.truncation.choice import choose_exit
from odn_hybrid.errors import BudgetError, ConfigError, ModelError
from odn_hybrid.stopping import Calibration, HaltingTable

ACCURACY = {"value": 0.9, "n": 100, "low": 0.85, "high": 0.95}


def made_report(
    costs: Any = None, *, static: int = 2, reference: int = 4, full: bool = True
) -> dict[str, Any]:
    rows = [
        {
            "exit": k, "units": k, "trained": k <= reference,
            "accuracy": {"selection": {**ACCURACY, "value": 0.8 + 0.01 * min(k, 3)}, "test": ACCURACY}
            if k <= reference else {"selection": None, "test": None},
            "macs_static": costs.static(k) if costs else k, "params": costs.params[k - 1] if costs else k,
            "bytes": costs.bytes[k - 1] if costs else k,
        }
        for k in range(1, 5)
    ]  # fmt: skip
    return {
        "exits": rows, "static": {"exit": static}, "reference": {"exit": reference, "full": full},
        "dynamic": {
            "accuracy": {"selection": None, "test": ACCURACY}, "mean_macs": 2.5, "params": 7, "bytes": 28,
            "certificate": None,
        },
    }  # fmt: skip


# --- the recommendation -----------------------------------------------------------------------------


def rows(static: float, dynamic: float | None, *, certified: bool = True, spread: float = 0.02) -> list[Any]:
    speeds = {"full": 1.0, "static": static, "dynamic": dynamic}
    return [
        {
            "name": name,
            "certified": certified if name == "dynamic" else None,
            "speedup": {"64": {"median": s, "low": s - spread, "high": s + spread}},
        }
        for name, s in speeds.items()
        if s is not None
    ]


@pytest.mark.parametrize(
    ("measured", "static", "choice", "says"),
    [
        (rows(2.0, 1.5), 2, "static", "static runs 2.00 x as fast as the full network at batch 64"),
        (rows(1.5, 2.0), 2, "dynamic", r"dynamic runs 2.00 x .* \(95 % interval 1.98 to 2.02\)"),
        (rows(2.0, 2.0), 4, "dynamic", "no shallower depth was shown to be good enough"),
        (rows(1.5, 2.0, certified=False), 2, "static", "dynamic halting has no certificate"),
        (rows(1.5, None), 2, "static", "there is no dynamic model"),
        (rows(1.0, 2.0, certified=False), 4, "full", "keep the full network: nothing else is clearly faster"),
        (rows(1.06, 1.04), 2, "full", "keep the full network"),  # 1.06 may well be 1.04
        (rows(0.8, 0.9), 2, "full", "keep the full network"),
        (rows(3.0, 2.0, spread=2.5), 2, "full", "keep the full network"),
    ],
)
def test_what_is_recommended(measured: list[Any], static: int, choice: str, says: str) -> None:
    import re

    found = recommend(measured, made_report(static=static), "64")
    assert found["choice"] == choice
    assert re.search(says, found["reason"]), found["reason"]


def test_the_reference_is_named_where_the_network_was_not_trained_to_its_end() -> None:
    found = recommend(rows(2.0, None), made_report(static=1, reference=3, full=False), "64")
    assert "as fast as the reference at batch 64" in found["reason"]


# --- measured ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> MultiExit:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4, channels=[8, 8, 8, 8])
    return MultiExit(Trunk(model, image_size=32), ExitConfig(every=2)).eval()


IMAGES = torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_comparing(network: MultiExit) -> None:
    costs = count_costs(network)
    report = made_report(costs)
    halting = HaltingModel(
        network, HaltingTable.of_thresholds([0.3] * 4, Calibration.of_temperatures([1.0] * 4))
    )
    found = compare_models(network, report, halting, IMAGES, batch_sizes=(4, 16), rounds=2)
    assert [row["name"] for row in found["rows"]] == ["full", "static", "dynamic"]
    assert found["batch_sizes"] == [4, 16]
    assert found["device"].startswith("cpu")
    full, static, dynamic = found["rows"]
    assert (full["mean_macs"], full["params"]) == (costs.static(4), costs.params[3])
    assert (static["mean_macs"], static["bytes"]) == (costs.static(2), costs.bytes[1])
    assert (dynamic["mean_macs"], dynamic["certified"]) == (2.5, False)
    assert full["speedup"]["16"] == {"median": 1, "low": 1, "high": 1}
    for row in found["rows"]:
        for size in ("4", "16"):
            taken = row["ms_per_image"][size]
            assert 0 < taken["low"] <= taken["median"] <= taken["high"]
            assert (
                row["speedup"][size]["low"] <= row["speedup"][size]["median"] <= row["speedup"][size]["high"]
            )
    assert found["recommendation"]["choice"] in ("full", "static")
    without = compare_models(network, report, None, IMAGES, batch_sizes=[64], rounds=1)
    assert [row["name"] for row in without["rows"]] == ["full", "static"]


@pytest.mark.parametrize("sizes", [[], [0], [2.5], [-1]])
def test_batch_sizes_that_make_no_sense(network: MultiExit, sizes: list[Any]) -> None:
    with pytest.raises(ConfigError, match="give whole numbers of 1 or more"):
        compare_models(network, made_report(), None, IMAGES, batch_sizes=sizes)


def test_nothing_to_compare_on(network: MultiExit) -> None:
    with pytest.raises(ConfigError, match="no images"):
        compare_models(network, made_report(), None, IMAGES[:0])
    with pytest.raises(ConfigError, match="rounds is 0"):
        compare_models(network, made_report(), None, IMAGES, rounds=0)


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
