"""What the page "Static or dynamic?" holds is what the records hold, entry by entry."""

import pytest
from choosing_page import CIFAR, DEEP, DIGITS, PICTURED, RECORDS, record


@pytest.fixture(scope="module")
def held(maker):
    """What the page shows, by entry."""
    return {one["id"]: one for one in maker.build_data()["entries"]}


def test_figures_on_the_page_are_the_records(held):
    reports = [path.stem for path in RECORDS.glob("*.json") if record(path.stem).get("report")]
    assert {CIFAR, DIGITS, DEEP, PICTURED} <= set(reports)
    for name in reports:
        whole, page = record(name), held[name]
        report, shown = whole["report"], page["report"]
        for key in ("exits", "static", "reference", "search", "model"):
            assert shown[key] == report[key], (name, key)
        for key in ("accuracy", "mean_macs", "mean_units", "halting", "params", "bytes"):
            assert shown["dynamic"][key] == report["dynamic"][key], (name, key)
        promised = report["dynamic"]["certificate"]
        assert (shown["dynamic"]["certificate"] or {}).items() <= (promised or {}).items()
        assert bool(shown["dynamic"]["certificate"]) == bool(promised)
        families = (report.get("curves") or {"families": {}})["families"]
        assert (shown["curves"] or {"families": {}})["families"] == {
            family: points for family, points in families.items() if family in ("snell", "confidence")
        }
        assert page["tolerances"] == whole.get("tolerances") and page["stops"] == whole.get("stops")
        own = [one for one in page["timed"] if one["record"] == name]
        assert own == ([{**report["comparison"], "record": name}] if "comparison" in report else [])


def test_two_records_of_one_network_tell_the_same(held):
    same = record("cifar10_small")
    for key in ("accuracy", "mean_macs", "halting"):  # two records of one network tell the same
        assert held[CIFAR]["report"]["dynamic"][key] == same["dynamic"][key]
    for row, like in zip(held[CIFAR]["report"]["exits"], same["exits"], strict=True):
        assert row["accuracy"] == like["accuracy"] and row["macs_static"] == like["macs_static"]


def test_the_depths_on_mnist_are_the_records(held):
    shown = {name for name, one in held.items() if one["group"].startswith("MNIST")}
    for name in ("mnist_resnet18", "mnist_resnet18_again"):
        for run in record(name)["runs"]:
            entry = held[f"{name}-{run['seed']}"]
            shown.remove(entry["id"])
            report = entry["report"]
            (row,) = report["exits"]
            assert (row["exit"], row["units"]) == (run["static"]["exit"], run["static"]["units"])
            told = (row["macs_static"], row["params"], row["bytes"])
            assert told == (run["macs"], run["params"], run["bytes"])
            accuracy = {"selection": run["selection_accuracy"], "test": run["test_accuracy"]}
            assert row["accuracy"] == accuracy
            assert report["static"] == run["static"] and report["search"] == run["search"]
    assert shown == set()


def by_wilson(value, n):
    """A share of `n` images with its 95 % interval by Wilson's formula, written out once more."""
    z = 1.959963984540054
    middle, spread = value + z * z / (2 * n), z * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    low, high = ((middle + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return pytest.approx({"value": value, "n": n, "low": low, "high": high}, abs=1e-9)


def test_the_trials_are_the_records_with_wilsons_intervals(held):
    trials, sizes = record("depth_reg_trials")["trials"], record("cifar10_small")["exits"]
    by_macs = {row["macs_dynamic"]: row for row in sizes}
    for trial in trials:
        report = held[f"trial-{trial['name']}-{trial['changes']['seed']}"]["report"]
        assert len(report["exits"]) == len(trial["macs"]) == len(sizes)
        for at, (row, macs) in enumerate(zip(report["exits"], trial["macs"], strict=True)):
            like = by_macs[macs]
            for key in ("exit", "units", "macs_static", "params", "bytes"):
                assert row[key] == like[key]
            assert row["accuracy"]["test"] == by_wilson(trial["exits"]["test"][at], 10_000)
            assert row["accuracy"]["selection"] == by_wilson(trial["exits"]["selection"][at], 3_333)
        assert report["curves"]["families"].keys() == trial["curves"].keys()
        for family, points in report["curves"]["families"].items():
            told = trial["curves"][family]["test"]
            assert [one["share"] for one in points] == [share for share, _ in told]
            for one, (_, value) in zip(points, told, strict=True):
                assert one["accuracy"] == by_wilson(value, 10_000)
        assert report["search"] == trial["search"]
    assert len(trials) == sum(name.startswith("trial-") for name in held)


def test_what_halting_costs_is_the_records(maker):
    found = {one["source"]["file"]: one for one in maker.build_data()["overheads"]}
    paths = sorted(RECORDS.glob("halting_cost_*.json"))
    assert paths and set(found) == {f"benchmarks/records/{path.name}" for path in paths}
    for path in paths:
        whole, shown = record(path.stem), found[f"benchmarks/records/{path.name}"]
        for key in ("device", "execution", "threads", "met", "of"):
            assert shown[key] == whole[key]
        for row, told in zip(shown["rows"], whole["rows"], strict=True):
            for key in ("network", "batch", "pattern", "survivors", "met"):
                assert row[key] == told[key]
            assert row["ratio"] == told[row["over"]] and {row["over"]: row["limit"]} == told["limit"]
            assert (row["ratio"]["median"] <= row["limit"]) >= row["met"]
