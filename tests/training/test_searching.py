"""Where a search starts and ends: the mixed regime, the depth of another run, budgets of the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from odn_hybrid.backbone import with_small_stem
from odn_hybrid.config import FitConfig, replace_fields
from odn_hybrid.errors import BudgetError, ConfigError, RunDirError
from odn_hybrid.fitting import fit
from odn_hybrid.run import Run
from odn_hybrid.training.engine import Engine
from odn_hybrid.training.procedure.progress import Look
from odn_hybrid.training.procedure.rules import make_rules
from odn_hybrid.training.procedure.seeding import find_seed


def changed(tiny: dict[str, Any], **changes: Any) -> dict[str, Any]:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return {**tiny, "overrides": {**tiny["overrides"], **dotted}}


class Units:
    """As much of a network as the search asks about: exits and the units before each."""

    shares_prefix = True

    def __init__(self, units: int, every: int = 1) -> None:
        self.trunk = range(units)
        self.units = (*range(every, units, every), units)

    def __len__(self) -> int:
        return len(self.units)


class Prices:
    """Costs of an exit: so many MACs as its number."""

    def static(self, exit: int) -> int:
        return exit

    joint = static


def rules_of(deepest: int = 4, start: int | None = None, **changes: Any) -> Any:
    config = replace_fields(FitConfig(), {name.replace("__", "."): value for name, value in changes.items()})
    return make_rules(config, Units(4), Prices(), 1000, deepest=deepest, start=start)  # type: ignore[arg-type]


# --- the mixed regime -------------------------------------------------------------------------------


def test_fine_tuning_trains_the_backbone_first_and_scratch_does_not() -> None:
    assert rules_of().first().phase == "warmup"
    tuned = rules_of(regime="finetune")
    first = tuned.first()
    assert (first.phase, tuned.active(first), tuned.alone(first)) == ("backbone", 4, True)
    assert rules_of(regime="finetune", expansion__backbone_epochs=0.0).first().phase == "warmup"
    assert rules_of(regime="finetune", objective__name="cross_entropy").first().phase == "warmup"


def play(rules: Any, accuracies: list[float], looks: int = 60) -> list[tuple[str, int]]:
    """Phases and active exits of a fit whose exits have these accuracies throughout."""
    progress, seen = rules.first(), []
    while progress.phase != "done":
        active = rules.active(progress)
        seen.append((progress.phase, active))
        assert len(seen) < looks
        progress = rules.count(progress, rules.share(progress), 1.0)
        if rules.looks(progress):
            progress = rules.observe(progress, Look.plain(accuracies[:active]))
    return seen


def test_after_the_backbone_all_exits_train_together() -> None:
    rules = rules_of(regime="finetune", expansion__backbone_epochs=1.5, optim__batch_size=10)
    seen = play(rules, [0.8, 0.85, 0.9, 0.95])
    assert seen[:3] == [("backbone", 4), ("backbone", 4), ("warmup", 4)]
    assert {active for _, active in seen} == {4}
    assert [rules.share(rules.first())] == [1.0]


def test_with_a_target_it_goes_back_to_the_shallowest_exit_that_reaches_it() -> None:
    rules = rules_of(regime="finetune", choice__target_accuracy=0.9, optim__batch_size=10)
    seen = play(rules, [0.8, 0.91, 0.92, 0.95])
    assert [active for phase, active in seen if phase in ("settle", "cooldown")] == [2] * len(
        [phase for phase, _ in seen if phase in ("settle", "cooldown")]
    )


def test_exit_heads_stand_still_while_the_backbone_trains_and_then_move(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[str, bool, bool]] = []
    epoch = Engine._epoch

    def watched(self: Engine) -> None:
        before = {name: value.clone() for name, value in self.network.named_parameters()}
        phase = self.progress.phase
        epoch(self)
        now = dict(self.network.named_parameters())
        heads, rest = [], []
        for name, value in before.items():
            (heads if name.startswith("heads.") else rest).append(not torch.equal(now[name], value))
        moved.append((phase, any(heads), all(rest)))

    monkeypatch.setattr(Engine, "_epoch", watched)
    run = fit(**changed(tiny, expansion__backbone_epochs=2.0, optim__weight_decay=0.1))
    assert moved[:2] == [("backbone", False, True)] * 2
    assert moved[2] == ("warmup", True, True)
    costs = run.parts.costs
    first = run.history_[0]
    assert first["train_macs"] == 3 * costs.static(4) * first["images"]
    assert len(first["selection"] or ()) in (0, 4)


# --- the depth of another run -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that kept some depth."""
    shallow = changed(tiny, choice__target_accuracy=0.5, expansion__max_looks=3)
    return fit(**shallow, out=tmp_path_factory.mktemp("runs") / "similar")


def write(folder: Path, report: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"schema": 1}))
    (folder / "report.json").write_text(json.dumps(report))
    return folder


@pytest.mark.parametrize(
    ("units", "of", "network", "exit"),
    [(2, 8, Units(8), 2), (2, 8, Units(16), 4), (6, 16, Units(8), 3), (8, 8, Units(16), 16),
     (1, 16, Units(4), 1), (5, 8, Units(8, every=2), 2), (7, 8, Units(8, every=2), 3)],
)  # fmt: skip
def test_depths_are_scaled_by_units(tmp_path: Path, units: int, of: int, network: Any, exit: int) -> None:
    report = {"schema": 1, "static": {"units": units}, "exits": [{"units": 1}, {"units": of}]}
    config = replace_fields(FitConfig(), {"start_from": str(write(tmp_path / "other", report))})
    seed = find_seed(config, network)
    assert seed is not None
    assert (seed.run, seed.units, seed.of, seed.exit) == ("other", units, of, exit)


def test_a_search_starts_where_another_ended_and_says_so(
    tiny: dict[str, Any], found: Run, tmp_path: Path
) -> None:
    report = found.report_
    assert found.path is not None
    run = fit(**tiny, start_from=str(found.path), out=tmp_path / "run")
    seed = {
        "run": "similar",
        "units": report["static"]["units"],
        "of": 4,
        "exit": report["static"]["exit"],
    }
    assert run.report_["search"]["start_from"] == seed
    assert json.loads((tmp_path / "run" / "config.json").read_text())["start_from"] == seed
    assert str(found.path) not in (tmp_path / "run" / "report.json").read_text()
    grown = [row["current"] for row in run.history_ if row["phase"] == "expand"]
    assert not grown or grown[0] == seed["exit"]
    assert report["search"]["start_from"] is None


def test_the_seed_is_where_growth_starts_and_it_goes_back_at_the_first_look() -> None:
    rules = rules_of(start=3, choice__target_accuracy=0.9, optim__batch_size=10)
    seen = play(rules, [0.8, 0.92, 0.93, 0.95])
    assert [active for phase, active in seen if phase == "expand"] == [4], (
        "exit 3 and one look-ahead, one look"
    )
    assert {active for phase, active in seen if phase == "settle"} == {2}
    tuned = rules_of(start=3, regime="finetune")
    assert tuned.first().current == 3, "a seed says more than the regime"


def test_what_cannot_seed_a_search_is_said(tmp_path: Path) -> None:
    def ask(path: Path, **changes: Any) -> Any:
        return find_seed(replace_fields(FitConfig(), {"start_from": str(path), **changes}), Units(4))  # type: ignore[arg-type]

    with pytest.raises(RunDirError, match="there is no run directory"):
        ask(tmp_path / "nowhere")
    for number, report in enumerate(({"static": {}}, {"static": {"units": 9}, "exits": [{"units": 8}]})):
        with pytest.raises(RunDirError, match="does not say which depth was kept"):
            ask(write(tmp_path / f"bad{number}", {"schema": 1, **report}))
    with pytest.raises(
        ConfigError, match="start_from seeds a search for the depth, and objective cross_entropy"
    ):
        ask(tmp_path / "nowhere", **{"objective.name": "cross_entropy"})


def test_fine_tuning_a_checkpoint_trains_the_backbone_for_three_epochs_first(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    model = timm.create_model("resnet18", **tiny["overrides"]["model.args"], num_classes=3)
    save_file(with_small_stem(model).state_dict(), weights)
    own = {"regime": "finetune", "model__checkpoint": str(weights), "expansion__max_looks": 2}
    run = fit(**changed(tiny, **own))
    phases = [row["phase"] for row in run.history_]
    assert phases[:4] == ["backbone", "backbone", "backbone", "warmup"]
    assert {row["active"] for row in run.history_} == {4}
    assert run.report_["reference"]["full"]


# --- budgets ----------------------------------------------------------------------------------------


def test_a_budget_is_not_trained_beyond_and_the_best_within_it_is_taken(
    tiny: dict[str, Any], found: Run
) -> None:
    assert max(active for _, active in play(rules_of(deepest=2), [0.8, 0.9])) == 2
    assert max(active for _, active in play(rules_of(deepest=2, regime="finetune"), [0.8, 0.9])) == 2
    run = fit(**changed(tiny, choice__max_macs=float(found.parts.costs.static(2))))
    assert max(row["active"] for row in run.history_) == 2
    rows = {row["exit"]: row["accuracy"]["selection"] for row in run.exits_ if row["trained"]}
    assert set(rows) <= {1, 2}
    best = max(rows, key=lambda k: (rows[k]["value"], -k))
    assert (run.depth_["exit"], run.depth_["rule"]) == (best, "budget")
    assert "the most accurate exit within max_macs" in run.depth_["reason"]


def test_a_budget_that_nothing_fits_is_said_before_training(tiny: dict[str, Any]) -> None:
    rows: list[Any] = []
    with pytest.raises(BudgetError, match=r"no exit has choice\.max_macs <= 10; the least of any is \d+"):
        fit(**changed(tiny, choice__max_macs=10.0), listener=rows.append)
    with pytest.raises(BudgetError, match=r"no exit has choice\.max_latency_ms <= 1e-06; the first takes"):
        fit(**changed(tiny, choice__max_latency_ms=1e-6), listener=rows.append)
    assert not rows
    with pytest.raises(ConfigError, match=r"choice\.max_macs is 0\.0; it must be above 0"):
        replace_fields(FitConfig(), {"choice.max_macs": 0.0})
