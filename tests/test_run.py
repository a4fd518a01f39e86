"""`Run`: the handle a user holds after a fit."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import odn_hybrid as odn
from odn_hybrid.errors import (
    BudgetError,
    CertificateError,
    ConfigError,
    DataError,
    ModelError,
    RunDirError,
)
from odn_hybrid.execution import Execution
from odn_hybrid.fitting import fit
from odn_hybrid.run import Run
from odn_hybrid.stopping import FAMILIES, look_level


@pytest.fixture(scope="module")
def folder(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    fit(**{**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 12}}, out=path)
    return path


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """The run in a directory of this test's own."""
    shutil.copytree(folder, tmp_path / "run")
    loaded = odn.load(tmp_path / "run")
    assert isinstance(loaded, Run)
    return loaded


def images(run: Run, n: int = 6) -> torch.Tensor:
    raw = np.random.default_rng(0).integers(0, 256, (n, 12, 12), dtype=np.uint8)
    return run.transform(raw)


def read(run: Run, name: str) -> dict[str, Any]:
    assert run.path is not None
    return json.loads((run.path / name).read_text())  # type: ignore[no-any-return]


# --- what it shows ----------------------------------------------------------------------------------


def test_attributes(run: Run) -> None:
    assert [row["exit"] for row in run.exits_] == [1, 2, 3, 4]
    assert set(run.depth_) >= {"exit", "units", "reason"}
    assert run.report_ == read(run, "report.json")
    assert len(run.history_) == run.report_["search"]["epochs"]
    assert repr(run) == f"Run(resnet18, 4 exits, static depth {run.depth_['units']} units)"


def test_what_is_handed_out_is_a_copy(run: Run) -> None:
    run.exits_.clear()
    run.depth_["exit"] = 99
    run.history_.clear()
    assert len(run.exits_) == 4 and run.depth_["exit"] != 99 and run.history_


def test_transform_takes_images_as_files_hold_them(run: Run) -> None:
    batch = images(run)
    assert batch.shape == (6, 1, 12, 12) and batch.dtype == torch.float32
    assert run.transform(np.zeros((20, 30), np.uint8)).shape == (1, 1, 12, 12)
    assert len(run.network(batch)) == 4


def test_a_loaded_run_gives_the_answers_of_the_fit(tiny: dict[str, Any], tmp_path: Path) -> None:
    fitted = fit(**tiny, out=tmp_path / "run")
    loaded = odn.load(tmp_path / "run")
    for a, b in zip(fitted.network(images(fitted)), loaded.network(images(loaded)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert loaded.exits_ == fitted.exits_


def test_device_that_is_not_there(run: Run) -> None:
    assert run.to("cpu") is run
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda' cannot be used"):
            run.to("cuda")
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        run.to("nonsense")


# --- truncate ---------------------------------------------------------------------------------------


def logits_of(run: Run, model: torch.nn.Module, exit: int) -> None:
    batch = images(run)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), run.network(batch)[exit - 1], rtol=1e-5, atol=1e-5)


def test_truncate_is_the_static_choice(run: Run) -> None:
    small = run.truncate()
    assert not small.training
    logits_of(run, small, run.depth_["exit"])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_truncate_at_a_depth(run: Run, depth: int) -> None:
    logits_of(run, run.truncate(depth=depth), depth)


def best_of(run: Run, name: str, limit: float) -> int:
    rows = [row for row in run.exits_ if row["trained"] and row[name] <= limit]
    return max(rows, key=lambda row: (row["accuracy"]["selection"]["value"], -row["exit"]))["exit"]


@pytest.mark.parametrize(
    ("wish", "column"), [("max_macs", "macs_static"), ("max_params", "params"), ("max_bytes", "bytes")]
)
def test_truncate_within_a_budget(run: Run, wish: str, column: str) -> None:
    for row in run.exits_:
        model = run.truncate(**{wish: row[column]})
        logits_of(run, model, best_of(run, column, row[column]))
    least = run.exits_[0][column]
    with pytest.raises(BudgetError, match=f"no trained exit has {wish} <= .*; the least is .* at exit 1"):
        run.truncate(**{wish: least - 1})


def test_truncate_within_a_latency(run: Run) -> None:
    exits = [k for k in range(1, 5) if run.exits_[k - 1]["accuracy"]["selection"]["value"]]
    best = max(exits, key=lambda k: (run.exits_[k - 1]["accuracy"]["selection"]["value"], -k))
    logits_of(run, run.truncate(max_latency_ms=1e6), best)
    with pytest.raises(BudgetError, match="no trained exit has max_latency_ms"):
        run.truncate(max_latency_ms=1e-9)


def test_truncate_refuses(run: Run) -> None:
    with pytest.raises(ModelError, match=r"no exit after 9 units; exits stand after \[1, 2, 3, 4\] units"):
        run.truncate(depth=9)
    with pytest.raises(ConfigError, match="one thing at a time, not depth and max_macs"):
        run.truncate(depth=1, max_macs=1e9)


# --- dynamic ----------------------------------------------------------------------------------------


def test_dynamic_without_a_certificate(run: Run) -> None:
    fast = run.dynamic(certify=False, drop=0.2)
    out = fast(images(run))
    assert out.logits.shape == (6, 3) and set(out.exit.tolist()) <= {1, 2, 3, 4}
    assert out.certified is False
    assert read(run, "policy.json")["ledger"] == run.parts.policy["ledger"]


def test_dynamic_with_a_certificate(run: Run) -> None:
    fast = run.dynamic(drop=0.5, delta=0.2)
    assert fast.certificate is not None and fast.certificate["certified"]
    assert fast(images(run)).certified is True


def test_a_promise_is_an_attempt_and_is_remembered(run: Run) -> None:
    before = read(run, "policy.json")["ledger"]
    assert len(before) == 1  # the fit's own
    run.dynamic(drop=0.5)
    first = read(run, "policy.json")["ledger"]
    assert first[:1] == before and len(first) == 2
    run.dynamic(drop=0.5)
    assert read(run, "policy.json")["ledger"] == first  # the same promise is no new look
    assert run.path is not None
    odn.load(run.path).dynamic(drop=0.5)
    assert read(run, "policy.json")["ledger"] == first
    run.dynamic(drop=0.4)
    entries = read(run, "policy.json")["ledger"]
    assert entries[:2] == first and len(entries) == 3
    levels = [entry["certificate"]["delta"] for entry in entries]
    assert levels == pytest.approx([look_level(0.05, attempt) for attempt in (1, 2, 3)])
    assert [entry["certificate"]["attempt"] for entry in entries] == [1, 2, 3]


def test_a_refused_promise_is_an_attempt_too(run: Run) -> None:
    with pytest.raises(CertificateError):
        run.dynamic(drop=0.0001)
    assert len(read(run, "policy.json")["ledger"]) == 2


def test_two_handles_share_one_ledger(run: Run) -> None:
    assert run.path is not None
    other = odn.load(run.path)
    run.dynamic(drop=0.5)
    other.dynamic(drop=0.4)
    assert [e["certificate"]["attempt"] for e in read(run, "policy.json")["ledger"]] == [1, 2, 3]
    run.dynamic(drop=0.3)
    assert len(read(run, "policy.json")["ledger"]) == 4


def test_dynamic_refuses(run: Run) -> None:
    for drop, delta in ((-0.1, 0.05), (1.0, 0.05), (0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ConfigError, match="they must be in"):
            run.dynamic(drop=drop, delta=delta)
    with pytest.raises(ConfigError, match="a promise has no option 'speed'; its options: drop, delta"):
        run.dynamic(speed=2)
    with pytest.raises(ConfigError, match="unknown policy 'luck'"):
        run.certify(policy="luck")


@pytest.mark.parametrize("policy", ["snell", "confidence", "patience", "fixed"])
def test_any_policy_may_be_asked_for(run: Run, policy: str) -> None:
    fast = run.dynamic(drop=0.5, policy=policy, recall=True)
    assert fast.certificate is not None and fast.certificate["policy"]["family"] == policy
    assert fast.policy.recall is not None
    out = fast(images(run))
    assert out.certified is True and bool((out.answered <= out.exit).all())


def test_certify_gives_the_certificate_also_where_it_is_refused(run: Run) -> None:
    kept = run.certify(drop=0.5)
    assert kept["certified"] and kept == run.dynamic(drop=0.5).certificate
    refused = run.certify(drop=0.0001)
    assert not refused["certified"] and refused["statement"].startswith(("none of", "not certified"))
    by_class = run.certify(drop=0.6, by="class", delta=0.4)
    assert by_class["kind"] == "groups" and len(by_class["evidence"]["groups"]) == 3
    for measure in ("top-2", "brier", odn.BoundedLoss("miss", misses, 0.0, 1.0)):
        assert run.certify(drop=0.7, measure=measure)["certified"]
    assert len(read(run, "policy.json")["ledger"]) == 7


def misses(logits: Any, labels: Any) -> Any:
    return logits.argmax(1) != labels


def test_what_is_certified_is_what_the_network_does_now(run: Run) -> None:
    """Recorded outputs of other weights, or of another runtime, are not taken for the network's."""
    assert run.certify(drop=0.5)["certified"]
    with torch.no_grad():
        for parameter in run.network.parameters():
            parameter.mul_(0)
    found = run.certify(drop=0.4, policy="confidence")
    assert run._earning.record("certification").logits.std() == 0  # recorded again
    assert found["digests"]["outputs"] != run.ledger[1]["certificate"]["digests"]["outputs"]


def test_wrong_data_stay_refused(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    with np.load(tiny_npz) as file:
        held = dict(file)
    for name in ("x_train", "x_test"):
        other = tmp_path / f"{name}.npz"
        np.savez(other, **{**held, name: 255 - held[name]})
        for _ in range(2):
            with pytest.raises(DataError, match="not the data of the fit"):
                odn.load(run.path).use_data(str(other))


def test_attempts_at_the_same_time_get_numbers_of_their_own(run: Run) -> None:
    handles = [odn.load(run.path) for _ in range(3)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: pair[1].certify(drop=0.4 + 0.01 * pair[0]), enumerate(handles)))
    assert [e["certificate"]["attempt"] for e in read(run, "policy.json")["ledger"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "wrong", [{"reference": 99}, {"reference": -1}, {"reference": "4"}, {"ledger": [{}]}, {"ledger": None}]
)
def test_a_damaged_policy_file_is_a_clear_error(run: Run, wrong: dict[str, Any]) -> None:
    assert run.path is not None
    path = run.path / "policy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **wrong}))
    with pytest.raises(RunDirError, match=r"policy\.json is damaged"):
        odn.load(run.path)


def test_a_saved_copy_knows_every_attempt(run: Run, tmp_path: Path) -> None:
    other = odn.load(run.path)
    other.certify(drop=0.5)
    assert len(odn.load(odn.save(run, tmp_path / "copy")).ledger) == 2


@pytest.mark.parametrize("wrong", [{"measure": 5}, {"drop": "0.01"}, {"max_macs": "2e7"}, {"recall": "no"}])
def test_options_of_a_wrong_type(run: Run, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        run.dynamic(certify=False, **wrong)


def test_a_loss_cannot_change_what_was_recorded(run: Run) -> None:
    def rude(logits: Any, labels: Any) -> Any:
        labels[:] = 0
        return np.zeros(len(labels))

    before = run.parts.records["certification"].labels.copy()
    run.certify(drop=0.5, measure=odn.BoundedLoss("rude", rude, 0.0, 1.0))
    assert (run.parts.records["certification"].labels == before).all()


def test_a_budget_of_macs(run: Run) -> None:
    least = run.exits_[0]["macs_dynamic"]
    fast = run.dynamic(drop=0.9, max_macs=1.01 * least)
    assert fast(images(run)).exit.float().mean() < 2
    with pytest.raises(ConfigError, match="the cheapest has"):
        run.dynamic(certify=False, max_macs=0.5 * least)


def test_a_dynamic_model_has_a_monitor_of_the_certification_images(run: Run) -> None:
    fast = run.dynamic(drop=0.5)
    record = run.parts.records["certification"]
    assert fast.reference is not None and len(fast.reference[0]) == len(record.labels)
    monitor = fast.drift_monitor()
    assert not monitor.update(*fast.reference).alarm


def test_the_report_has_calibration_and_curves(run: Run) -> None:
    report = run.report_
    assert [row["exit"] for row in report["calibration"]] == [1, 2, 3, 4]
    for row in report["calibration"]:
        assert set(row["ece"]) == set(row["reliability"]) == {"none", "temperature", "vector"}
        assert all(0 <= value <= 1 for value in row["ece"].values()) and row["temperature"] > 0
    curves = report["curves"]
    full = report["exits"][-1]["accuracy"]["test"]["value"]
    assert set(curves["families"]) == set(FAMILIES)
    for rows in curves["families"].values():
        assert rows[0]["accuracy"]["value"] == full or rows[0]["share"] < 1
        for row in rows:
            above = [r for r in curves["oracle"] if r["share"] >= row["share"] - 1e-9] or curves["oracle"]
            best = max(r["accuracy"]["value"] for r in above)
            assert row["accuracy"]["low"] <= row["accuracy"]["value"] <= best + 1e-12


def test_a_plain_fit_has_no_dynamic_model(tiny: dict[str, Any]) -> None:
    plain = fit(**tiny, loss="cross_entropy")
    with pytest.raises(CertificateError, match="no dynamic halting: the objective trains one exit only"):
        plain.dynamic()


@pytest.mark.long
def test_the_embedded_set_is_too_small_for_a_tenth_of_a_point() -> None:
    overrides = {
        "dynamic.drop": 0.001,
        "model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        "data.image_size": 8,
        "expansion.max_looks": 12,
    }
    run = fit(overrides=overrides)  # the quickstart, smaller
    with pytest.raises(
        CertificateError, match=r"not certified: .*199 images.*about \d+ images would be needed"
    ):
        run.dynamic(drop=0.001, delta=0.05)
    assert run.report_["dynamic"]["certificate"] is None
    assert "images would be needed" in run.report_["dynamic"]["refusal"]
    assert run.dynamic(certify=False)(images_of_digits(run)).certified is False


def images_of_digits(run: Run) -> torch.Tensor:
    return run.transform(np.zeros((3, 8, 8), np.uint8))


def test_how_outputs_were_recorded_is_remembered(tiny: dict[str, Any]) -> None:
    for fold, runtime in ((True, "eager fp32 folded cpu"), (False, "eager fp32 cpu")):
        changes = {**tiny["overrides"], "expansion.start": 4, "dynamic.fold": fold, "dynamic.drop": 0.5}
        run = fit(**{**tiny, "overrides": changes})
        assert run.parts.policy["runtime"] == runtime
        attempts = len(run.ledger)
        assert bool(run.dynamic(drop=0.5).network.folds) is fold
        assert len(run.ledger) == attempts  # the fit's own promise again
        with pytest.raises(ConfigError, match="certify=False with compile"):
            run.dynamic(drop=0.5, execution=Execution(fold=fold, compile=True))


def test_exits_that_pay_are_chosen_before_the_promise(run: Run) -> None:
    fast = run.dynamic(drop=0.6, optimise_for="latency")
    last = run.report_["reference"]["exit"]
    assert fast.exits[-1] == last and fast.times is not None and fast.void is None
    assert fast.certificate is not None and fast.certificate["exits"] == list(fast.exits)
    assert f"exit {last}" in fast.certificate["statement"]
    attempts = len(run.ledger)
    again = run.dynamic(drop=0.6, optimise_for="latency")  # measured times are not what was promised
    assert again.exits == fast.exits and len(run.ledger) == attempts
    some = run.dynamic(drop=0.6, exits=(1, last))
    assert some.exits == (1, last) and some.void is None
    for wrong in ({"exits": (last, 1)}, {"exits": (1,)}, {"optimise_for": "speed"}, {"batch": 3}):
        with pytest.raises(ConfigError):
            run.dynamic(drop=0.6, **wrong)
    with pytest.raises(ConfigError, match="give one"):
        run.dynamic(drop=0.6, exits=(1, last), optimise_for="latency")


# --- compare ----------------------------------------------------------------------------------------


def test_compare_is_kept_in_the_report(run: Run) -> None:
    assert read(run, "report.json")["comparison"] is None
    found = odn.compare(run, batch_sizes=[1, 8], rounds=3)
    names = [row["name"] for row in found["rows"]]
    assert [name for name in names if name != "static_equal"] == ["full", "static", "dynamic"]
    for row in found["rows"]:
        assert set(row["ms_per_image"]) == {"1", "8"}
        assert all(0 < time["low"] <= time["median"] <= time["high"] for time in row["ms_per_image"].values())
    assert found["rows"][0]["speedup"]["8"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert found["recommendation"]["choice"] in ("full", "static", "dynamic")
    assert read(run, "report.json")["comparison"] == json.loads(json.dumps(found))
    assert run.report_["comparison"] == found


def test_compare_refuses(run: Run, tiny_npz: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch sizes are \[0\]"):
        run.compare(batch_sizes=[0])
    other = dict(np.load(tiny_npz))
    other["x_test"][0] ^= 1
    np.savez(tmp_path / "other.npz", **other)
    assert run.path is not None
    with pytest.raises(DataError, match="not the data of the fit"):
        odn.load(run.path).compare(data=str(tmp_path / "other.npz"))
    assert read(run, "report.json")["comparison"] is None


def test_records_too_large_to_keep_are_made_again(run: Run) -> None:
    assert run.path is not None
    wanted = run.parts.records["calibration"]
    (run.path / "outputs.safetensors").unlink()
    light = odn.load(run.path)
    assert light.parts.records == {}
    light.dynamic(drop=0.5)
    found = light.parts.records["calibration"]
    assert (found.labels == wanted.labels).all() and found.digest == wanted.digest
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_saving_a_run_made_in_memory(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = fit(**tiny)
    odn.save(run, tmp_path / "kept")
    again = odn.load(tmp_path / "kept")
    assert again.exits_ == run.exits_ and again.history_ == run.history_
    with pytest.raises(RunDirError, match="holds a finished run"):
        odn.save(run, tmp_path / "kept")


def test_an_untrained_exit_is_cut_with_a_warning(tiny: dict[str, Any]) -> None:
    run = fit(**tiny, target_accuracy=0.2)
    deepest = run.exits_[-1]
    assert not deepest["trained"]
    with pytest.warns(UserWarning, match=f"exit {deepest['exit']} was never trained"):
        run.truncate(depth=deepest["units"])
