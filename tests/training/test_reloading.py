"""`expansion: reload`: the published procedure, by its authors' logs, on a network, killed and replayed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odn_hybrid.config import (
    ChoiceConfig,
    ExpansionConfig,
    FitConfig,
    ReloadConfig,
    from_dict,
    replace_fields,
)
from odn_hybrid.errors import ConfigError
from odn_hybrid.fitting import fit
from odn_hybrid.run import Run
from odn_hybrid.training.procedure.progress import BEST, RELOAD, START, Look, Progress
from odn_hybrid.training.procedure.reloading import Reloading
from odn_hybrid.training.steps.stepping import Stepper

ROOT = Path(__file__).resolve().parents[2]
LOGS = json.loads((Path(__file__).parent / "published_logs.json").read_text())


class Killed(BaseException):
    """Stands for a process that ends between two lines of Python."""


def rules(
    target: float = 0.9, exits: int = 3, start: int = 1, limit: int | None = None, **options: Any
) -> Reloading:
    return Reloading(
        ExpansionConfig(procedure="reload", start=start, max_epochs=limit, reload=ReloadConfig(**options)),
        ChoiceConfig(target_accuracy=target, tolerance=0.005),
        exits=exits,
        steps_per_epoch=100,
        epoch_macs=[10.0 * m for m in range(1, exits + 1)],
        alone_macs=[9.0 * m for m in range(1, exits + 1)],
    )


def look(depth: int, accuracy: float) -> Look:
    return Look.plain([0.0] * (depth - 1) + [accuracy])


def step(procedure: Reloading, progress: Progress, accuracy: float) -> Progress:
    done = procedure.count(progress, procedure.share(progress), 1.0)
    return procedure.observe(done, look(procedure.active(progress), accuracy))


# --- the rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOGS)
def test_the_authors_logs_epoch_by_epoch(name: str) -> None:
    """Fed with the published validation accuracies, the rules do what the authors' program logged."""
    log = LOGS[name]
    procedure = rules(log["target_accuracy"], log["exits"], warmup_epochs=0, carry_best=True)
    progress, epoch = procedure.first(), 0
    found: dict[str, list[int]] = {"best": [], "steps": [], "deeper": []}
    for depth, accuracies in enumerate(log["validation"], 1):
        for accuracy in accuracies:
            assert (progress.current, progress.phase == "done") == (depth, False), epoch
            before, progress = progress, step(procedure, progress, accuracy / 100)
            if progress.then == BEST:
                found["best"].append(epoch)
            elif progress.then == RELOAD:
                found["deeper"].append(epoch)
            elif progress.rate < before.rate:
                found["steps"].append(epoch)
            epoch += 1
    assert progress.phase == "done" and epoch == log["end"]
    assert found == {kind: log[kind] for kind in found}


def test_a_depth_is_judged_by_its_own_best_unless_told_otherwise() -> None:
    for carry, gains in ((False, True), (True, False)):
        procedure = rules(patience=2, carry_best=carry, warmup_epochs=0)
        progress = procedure.first()
        for accuracy in (0.8, 0.7, 0.7):
            progress = step(procedure, progress, accuracy)
        assert (progress.current, progress.then) == (2, RELOAD)
        assert (step(procedure, progress, 0.75).then == BEST) is gains


def test_warm_up_trains_all_depths_then_one_alone() -> None:
    procedure = rules(warmup_epochs=2.5)
    progress, shares, rates = procedure.first(), [], []
    while progress.phase == "warmup":
        assert procedure.active(progress) == 3 and not procedure.alone(progress)
        shares.append(procedure.share(progress))
        rates.append(procedure.rate(progress, 0.7))
        done = procedure.count(progress, shares[-1], 1.0)
        progress = procedure.observe(done, look(3, 0.1)) if procedure.looks(done) else done
    assert shares == [1.0, 1.0, 0.5]
    assert rates[0] == pytest.approx(0.1) and rates == sorted(rates, reverse=True)
    assert progress.then == START and progress.train_macs == pytest.approx(2.5 * 30)
    assert procedure.active(progress) == 1 and procedure.alone(progress)
    assert procedure.count(progress, 1.0, 1.0).train_macs == pytest.approx(2.5 * 30 + 9)


def test_rates_fall_at_plateaus_and_later_depths_start_lower() -> None:
    procedure = rules(patience=5, rate_patience=2, rate_factor=0.5, warmup_epochs=0)
    progress, rates = procedure.first(), []
    assert progress.then == START
    for accuracy in (0.5, 0.4, 0.4, 0.6, 0.4, 0.4, 0.4, 0.4):
        rates.append(procedure.rate(progress, 0.5))
        progress = step(procedure, progress, accuracy)
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    progress = step(procedure, progress, 0.4)
    assert progress.then == RELOAD and procedure.rate(progress, 0.5) == 0.5
    assert (progress.stale, progress.phase_epochs, progress.current) == (0, 0, 2)


def test_gains_are_tenths_of_a_point_before_the_goal_and_hundredths_after() -> None:
    procedure = rules(0.9, warmup_epochs=0)
    progress = step(procedure, procedure.first(), 0.8001)
    assert step(procedure, progress, 0.8004).then is None
    reached = step(procedure, progress, 0.8949)  # 89.5 %, the goal, when rounded
    assert reached.phase == "settle" and reached.then == BEST
    assert step(procedure, reached, 0.8951).then == BEST


def test_the_last_depth_is_fine_tuned_whatever_it_reaches() -> None:
    procedure = rules(exits=2, patience=2, warmup_epochs=0)
    progress, trained = procedure.first(), []
    while progress.phase != "done":
        trained.append((progress.current, progress.phase))
        progress = step(procedure, progress, 0.5)
    assert trained == [(1, "expand")] * 3 + [(2, "settle")] * 3


def test_what_an_epoch_draws_does_not_depend_on_the_depths_before() -> None:
    procedure = rules(warmup_epochs=2)
    late = Progress(phase="settle", current=2, epoch=77, phase_epochs=4)
    early = Progress(phase="expand", current=2, epoch=11, phase_epochs=4)
    assert procedure.draw(late) == procedure.draw(early)
    places = [
        Progress(phase=phase, current=k, phase_epochs=e)
        for phase, depths in (("warmup", [1]), ("expand", [1, 2, 3]))
        for k in depths
        for e in range(40)
    ]
    assert len({procedure.draw(place) for place in places}) == len(places)


def test_a_budget_ends_it() -> None:
    procedure = rules(warmup_epochs=0, limit=7)
    progress = procedure.first()
    for number in range(7):
        assert progress.phase != "done"
        progress = step(procedure, progress, 0.1 + number / 100)
    assert (progress.phase, progress.stopped_by) == ("done", "budget")


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="target_accuracy is None; it must be given for expansion: reload"):
        from_dict(FitConfig, {"expansion": "reload"})
    with pytest.raises(ConfigError, match="regime is 'frozen'"):
        replace_fields(
            FitConfig(),
            {"expansion.procedure": "reload", "choice.target_accuracy": 0.9, "regime": "frozen"},
        )
    with pytest.raises(ConfigError, match=r"expansion\.reload\.patience is 0"):
        replace_fields(FitConfig(), {"expansion.reload.patience": 0})
    short = from_dict(FitConfig, {"expansion": "reload", "choice": {"target_accuracy": 0.9}}).expansion
    assert (short.procedure, short.reload.patience, short.reload.warmup_epochs) == ("reload", 23, 3.0)


# --- on a network -----------------------------------------------------------------------------------


def recipe(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    own = {
        "expansion.procedure": "reload",
        "expansion.reload.warmup_epochs": 1.0,
        "expansion.reload.patience": 1,
        "choice.target_accuracy": 1.0,
        "choice.tolerance": 0.0,
        "optim.lr": 0.02,
    }
    return {**tiny, "overrides": {**tiny["overrides"], **own, **changes}}


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(**recipe(tiny), out=tmp_path_factory.mktemp("reload") / "run")


def test_one_depth_trains_at_a_time_from_the_warm_ups_weights(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from odn_hybrid.training.steps.stepping import Stepper

    snapshots: list[tuple[str | None, dict[str, torch.Tensor], int]] = []
    follow = Stepper.follow

    def spy(self: Stepper, order: str | None) -> None:
        follow(self, order)
        weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        snapshots.append((order, weights, len(self.optimizer.state)))

    monkeypatch.setattr(Stepper, "follow", spy)
    run = fit(**recipe(tiny, **{"optim.lr": 1e-4}))
    history = run.history_
    assert [row["phase"] for row in history[:2]] == ["warmup", "expand"]
    start = snapshots[1]  # the first is of before the warm-up, where nothing is held
    snapshots = snapshots[1:]
    assert start[0] == START
    deeper = [number for number, one in enumerate(snapshots) if one[0] == RELOAD]
    assert len(deeper) == 3, "four exits, none of which learns anything"
    for number in deeper:
        _, weights, moments = snapshots[number]
        assert moments == 0
        assert all(value.equal(start[1][name]) for name, value in weights.items())
        trained = snapshots[number - 1][1]
        depth = history[number]["current"]
        moved = {name for name, value in trained.items() if not value.equal(start[1][name])}
        others = [f"heads.{other}." for other in range(3) if other != depth - 1]
        deep = [f"backbone.layer{unit}." for unit in range(depth + 1, 5)]
        assert any(name.startswith(f"heads.{depth - 1}.") for name in moved)
        assert not any(name.startswith((*others, *deep, "backbone.fc.")) for name in moved)


def test_the_best_weights_are_kept_and_costs_are_of_what_ran(whole: Run) -> None:
    report, history = whole.report_, whole.history_
    kept = report["reference"]["exit"]
    assert report["static"]["exit"] == kept
    assert [row["exit"] for row in report["exits"] if row["trained"]] == [kept]
    assert report["no_dynamic"]
    rows = [row for row in history if row["current"] == kept and row["phase"] != "warmup"]
    seen = [row["selection"][kept - 1] for row in rows]
    found = report["exits"][kept - 1]["accuracy"]["selection"]["value"]
    assert found == pytest.approx(max(seen), abs=0.001), "gains below the procedure's rounding are not kept"
    costs, total = whole.parts.costs, 0.0
    for row in history:
        forward = costs.joint(4) if row["phase"] == "warmup" else costs.static(row["current"])
        total += 3 * forward * row["images"]
        assert row["train_macs"] == total
    assert report["search"]["train_macs"] == total


def test_the_weights_kept_are_of_the_depth_kept(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a shallower depth's best was never passed (`carry_best`), its weights are not what is kept."""
    made_up = iter([0.5, 0.9])
    monkeypatch.setattr(Reloading, "_gained", _told(Reloading._gained, made_up))
    start: dict[str, torch.Tensor] = {}
    follow = Stepper.follow

    def following(self: Stepper, order: str | None) -> None:
        follow(self, order)
        start.update(self.held[START] if order == START else {})

    monkeypatch.setattr(Stepper, "follow", following)
    changes = {"choice.target_accuracy": 1.0, "choice.tolerance": 0.0, "expansion": "reload"}
    changes |= {"expansion.reload.carry_best": True, "expansion.reload.patience": 1}
    run = fit(**{**tiny, "overrides": {**tiny["overrides"], **changes}})
    assert run.report_["reference"]["exit"] == 4
    kept = run.network.state_dict()
    last = [name for name in kept if name.startswith("backbone.layer4") and name.endswith("weight")]
    assert any(not torch.equal(kept[name].cpu(), start[name]) for name in last)


def _told(gained: Callable[..., Progress], accuracies: Iterator[float]) -> Callable[..., Progress]:
    return lambda self, progress, accuracy: gained(self, progress, next(accuracies, 0.1))


def test_interrupted_it_ends_with_the_same_digits(tiny: dict[str, Any], whole: Run, tmp_path: Path) -> None:
    """Killed in the warm-up, in the first depth, and in the second before and after its first gain."""
    second = next(row["epoch"] for row in whole.history_ if row["current"] == 2)
    ends = [1, 2, second - 1, second, second + 2]

    def listener(row: dict[str, Any]) -> None:
        if row["epoch"] == ends[0]:
            ends.pop(0)
            raise Killed

    while ends:
        with pytest.raises(Killed):
            fit(**recipe(tiny), out=tmp_path / "run", resume=True, listener=listener)
    fit(**recipe(tiny), out=tmp_path / "run", resume=True)
    assert whole.path is not None
    for name in ("model.safetensors", "exits.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (whole.path / name).read_bytes()


# --- benchmarks/paper_procedure.py ------------------------------------------------------------------


@pytest.fixture(scope="module")
def program() -> ModuleType:
    path = ROOT / "benchmarks" / "paper_procedure.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location("paper_procedure", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(__import__("sys").modules, "paper_procedure", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("target", [1.0, 0.85, 0.7])  # reached by none, by some, early
def test_one_trace_holds_the_fit_of_every_patience(
    program: ModuleType, tiny: dict[str, Any], tmp_path: Path, target: float
) -> None:
    patiences = (1, 2, 4)
    own = recipe(tiny, **{"choice.target_accuracy": target})
    changes = {"model.name": own["model"], "data.source": own["data"], **own["overrides"]}
    config = replace_fields(FitConfig(), changes)
    tracer = program.Tracer(config, tmp_path / "trace", patiences)
    tracer.engine.listener = None
    results = {row["patience"]: row for row in tracer.run()}
    depths = set()
    for patience in patiences:
        asked = {"expansion.reload.patience": patience, "choice.target_accuracy": target}
        run = fit(**recipe(tiny, **asked))
        row, kept = results[patience], run.exits_[run.depth_["exit"] - 1]
        assert row["finished"]
        assert (row["depth"], row["train_macs"]) == (kept["exit"], run.report_["search"]["train_macs"])
        assert row["selection_accuracy"] == kept["accuracy"]["selection"]["value"]
        assert row["test_accuracy"]["value"] == kept["accuracy"]["test"]["value"]
        assert sum(row["epochs_by_depth"].values()) == run.report_["search"]["epochs"]
        depths.add(kept["exit"])
    assert len(depths) > 1 or target < 1, "patience matters on this problem"
    cheapest = program.tuned(list(results.values()))
    assert cheapest is None or cheapest["reached"]


@given(
    st.lists(st.lists(st.integers(0, 20), min_size=30, max_size=30), min_size=3, max_size=3),
    st.integers(5, 20),
)
@settings(max_examples=200)
def test_what_a_patience_keeps_is_tested_while_its_weights_are_there(
    program: ModuleType, accuracies: list[list[int]], goal: int
) -> None:
    def made(kind: type[Reloading], patience: int) -> Any:
        return kind(
            ExpansionConfig(procedure="reload", reload=ReloadConfig(warmup_epochs=0.0, patience=patience)),
            ChoiceConfig(target_accuracy=goal / 20, tolerance=0.0),
            exits=3,
            steps_per_epoch=10,
            epoch_macs=[1.0] * 3,
            alone_macs=[1.0] * 3,
        )

    history: list[dict[str, Any]] = []
    tested: set[tuple[int, int]] = set()
    trace = made(program.Tracing, program.FOREVER)
    trace.others = [made(Reloading, patience) for patience in (1, 2, 4)]
    trace.history, trace.tested = lambda: history, lambda: tested
    progress, held = trace.first(), None
    while progress.phase != "done":  # what the engine does, without weights
        before = progress
        done = replace(trace.count(before, 1.0, 0.0), train_macs=float(len(history) + 1))
        found = accuracies[done.current - 1]
        selection = [0.0] * (done.current - 1) + [found[min(done.phase_epochs, len(found)) - 1] / 20]
        progress = trace.observe(done, Look.plain(selection))
        if progress.then == BEST:
            held = (before.current, before.phase_epochs)
        elif progress.then == RELOAD:
            held = None
        row = {"phase": before.phase, "current": before.current, "selection": selection}
        history.append({**row, "train_macs": done.train_macs})
        courses = [program.replay(rules, program.placed(history)) for rules in trace.others]
        for course in courses:
            if course.finished and course.best not in tested:
                assert course.best == held
                tested.add(course.best)
    assert all(course.finished and course.best in tested for course in courses)


def test_a_trace_goes_on_where_it_was_interrupted(
    program: ModuleType, tiny: dict[str, Any], tmp_path: Path
) -> None:
    own = recipe(tiny)
    changes = {"model.name": own["model"], "data.source": own["data"], **own["overrides"]}
    config = replace_fields(FitConfig(), changes)

    def trace(name: str, cap: int, listener: Any = None) -> list[dict[str, Any]]:
        tracer = program.Tracer(config, tmp_path / name, (1, 3), cap)
        tracer.engine.listener = listener
        results: list[dict[str, Any]] = tracer.run()
        return results

    whole = trace("whole", 5)

    def kill(row: dict[str, Any]) -> None:
        if row["epoch"] % 3 == 0:
            raise Killed

    with pytest.raises(Killed):
        trace("parts", 5, kill)
    assert trace("parts", 5) == whole
    rows = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    for depth in {row["current"] for row in rows}:
        assert sum(row["current"] == depth and row["phase"] != "warmup" for row in rows) <= 5
    assert all("test_accuracy" not in row for row in whole if not row["finished"])


@pytest.mark.parametrize(("limit", "kept"), [(14, 2), (15, 3)])
def test_a_depth_is_begun_only_where_its_first_epoch_can_be_paid_for(limit: int, kept: int) -> None:
    """Two depths that stop gaining after 7 epochs each: the third would be the 15th."""
    procedure = rules(0.99, exits=4, limit=limit, warmup_epochs=0, patience=3, carry_best=False)
    progress = procedure.first()
    while progress.phase != "done":
        progress = step(procedure, progress, min(0.7, 0.4 + 0.1 * progress.phase_epochs))
    assert progress.epoch == limit and progress.current == kept and progress.stopped_by == "budget"
