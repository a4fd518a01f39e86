"""A fit that is killed and resumed ends with the digits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import results

from odn_hybrid.errors import ConfigError, RunDirError
from odn_hybrid.fitting import fit

Start = Callable[..., Any]


class Killed(BaseException):
    """Stands for a process that ends between two lines of Python."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(**tiny, out=folder)
    return folder


def check_same(folder: Path, whole: Path) -> None:
    found, wanted = results(folder), results(whole)
    assert set(found) == set(wanted)
    for part in wanted:
        assert found[part] == wanted[part], part
    assert names(folder) == names(whole)


def wait_for_rows(folder: Path, rows: int) -> None:
    end = time.monotonic() + 100
    while time.monotonic() < end:
        path = folder / "history.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= rows:
            return
        time.sleep(0.002)
    pytest.fail(f"no row {rows} in time")


# --- killed for real --------------------------------------------------------------------------------


def test_kill_9_during_an_epoch(
    tiny: dict[str, Any], tiny_arguments: list[str], whole: Path, tmp_path: Path, start_odn: Start
) -> None:
    folder = tmp_path / "run"
    process = start_odn(*tiny_arguments, "--out", str(folder))
    wait_for_rows(folder, 7)  # a row ends an epoch; the next one is under way
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    assert not (folder / "report.json").exists()
    fit(**tiny, out=folder, resume=True)
    check_same(folder, whole)


@pytest.mark.parametrize(
    "die", [("state.safetensors", 1), ("state.safetensors", 2), ("exits.safetensors", 1), ("report.json", 1)]
)
def test_kill_9_while_a_file_is_written(
    die: tuple[str, int],
    tiny: dict[str, Any],
    tiny_arguments: list[str],
    whole: Path,
    tmp_path: Path,
    start_odn: Start,
) -> None:
    folder = tmp_path / "run"
    assert start_odn(*tiny_arguments, "--out", str(folder), die=die).wait()[0] == -signal.SIGKILL
    assert not (folder / "report.json").exists()
    fit(**tiny, out=folder, resume=True)
    check_same(folder, whole)


def test_ctrl_c_is_one_line_and_resume_needs_only_the_directory(
    tiny_arguments: list[str], whole: Path, tmp_path: Path, start_odn: Start
) -> None:
    folder = tmp_path / "run"
    process = start_odn(*tiny_arguments, "--out", str(folder))
    wait_for_rows(folder, 1)  # early: the whole fit takes a second
    os.kill(process.pid, signal.SIGINT)
    status, out, err = process.wait()
    assert status == 1
    assert out == ""
    *progress, last = err.splitlines()
    assert all(line.startswith("epoch") for line in progress)
    assert last == f"odn: interrupted; go on with odn fit --resume --out {folder}"
    fit(out=folder, resume=True)
    check_same(folder, whole)


# --- killed at every row ----------------------------------------------------------------------------


def test_interrupted_after_every_row(tiny: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """Every new row is the last one its process writes; what no checkpoint holds is trained again."""
    folder, rows = tmp_path / "run", len(results(whole)["history"])
    reached = 0

    def listener(row: dict[str, Any]) -> None:
        nonlocal reached
        if row["epoch"] > reached:
            reached = row["epoch"]
            raise Killed

    for _ in range(rows):
        with pytest.raises(Killed):
            fit(**tiny, out=folder, resume=True, listener=listener)
    assert reached == rows
    fit(**tiny, out=folder, resume=True, listener=listener)
    check_same(folder, whole)


def test_killed_before_the_first_checkpoint_starts_again(
    tiny: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def listener(row: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(**tiny, out=folder, listener=listener)
    checkpoint = folder / "checkpoint"
    for path in checkpoint.iterdir():
        path.unlink()
    fit(**tiny, out=folder, resume=True)
    check_same(folder, whole)


# --- what resume means ------------------------------------------------------------------------------


def test_resume_of_what_was_never_started_starts(tiny: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    fit(**tiny, out=tmp_path / "run", resume=True)
    check_same(tmp_path / "run", whole)


def test_resume_of_nothing_is_refused_where_nothing_says_what_to_fit(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="holds no run to go on with"):
        fit(out=tmp_path / "mistyped", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_cooldown_is_not_trained_twice(tiny: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """Killed in its last epoch, it goes on from its own last checkpoint, not from its beginning."""
    rows = results(whole)["history"]
    cooling = [row["epoch"] for row in rows if row["phase"] == "cooldown"]
    every = cooling[-1] - cooling[0] + 1
    trained: list[int] = []

    def listener(row: dict[str, Any]) -> None:
        trained.append(row["epoch"])
        if row["epoch"] == cooling[-2] and len(trained) == row["epoch"]:
            raise Killed

    with pytest.raises(Killed):
        fit(**tiny, out=tmp_path / "run", listener=listener)
    fit(**tiny, out=tmp_path / "run", resume=True, listener=listener)
    again = len(trained) - len(rows)
    assert 0 <= again < every - 1
    check_same(tmp_path / "run", whole)


def test_resume_of_a_finished_run_returns_it(tiny: dict[str, Any], whole: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir()}
    rows: list[Any] = []
    run = fit(**tiny, out=whole, resume=True, listener=rows.append)
    assert rows == []
    assert run.report_ == json.loads((whole / "report.json").read_text())
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir()} == before


def test_resume_with_another_recipe_names_the_field(tiny: dict[str, Any], whole: Path) -> None:
    other = {**tiny, "overrides": {**tiny["overrides"], "optim.lr": 0.01}}
    with pytest.raises(RunDirError, match=r"optim\.lr was null, is now 0\.01"):
        fit(**other, out=whole, resume=True)
    with pytest.raises(RunDirError, match=r"seed was 0, is now 1"):
        fit(out=whole, resume=True, seed=1)


def test_without_resume_a_run_is_not_overwritten(tiny: dict[str, Any], whole: Path) -> None:
    before = results(whole)
    with pytest.raises(RunDirError, match="holds a finished run"):
        fit(**tiny, out=whole)
    assert results(whole) == before


def test_resume_needs_a_directory(tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="out=DIRECTORY"):
        fit(**tiny, resume=True)


def test_resume_with_changed_data_is_refused(tiny: dict[str, Any], tiny_npz: Path, tmp_path: Path) -> None:
    data, folder = tmp_path / "data.npz", tmp_path / "run"
    data.write_bytes(tiny_npz.read_bytes())

    def listener(row: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        fit(**{**tiny, "data": str(data)}, out=folder, listener=listener)
    arrays = dict(np.load(data))
    arrays["x_train"][0] ^= 1
    np.savez(data, **arrays)
    with pytest.raises(RunDirError, match=r"begun otherwise \(data\.splits"):
        fit(**{**tiny, "data": str(data)}, out=folder, resume=True)


def test_a_finished_run_leaves_nothing_temporary(whole: Path) -> None:
    assert not (whole / "checkpoint").exists()
    assert not [name for name in names(whole) if name.startswith(".")]
    assert os.getcwd() not in (whole / "report.json").read_text()
