"""A fit's figures for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from odn_hybrid.errors import ConfigError
from odn_hybrid.fitting import fit
from odn_hybrid.training.boards import BoardWriter


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def wanted(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    columns = {"train/loss": "loss", "train/lr": "lr", "train/macs": "train_macs", "train/active": "active"}
    found = {tag: [(row["epoch"], row[key]) for row in rows] for tag, key in columns.items()}
    for row in rows:
        for number, accuracy in enumerate(row["selection"] or [], start=1):
            found.setdefault(f"selection/exit_{number}", []).append((row["epoch"], accuracy))
    return found


def check(folder: Path, rows: list[dict[str, Any]]) -> None:
    found = scalars(folder)
    del found["train/seconds"]
    expected = wanted(rows)
    assert set(found) == set(expected)
    for tag, points in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in points]
        assert [v for _, v in found[tag]] == pytest.approx([v for _, v in points], rel=1e-6)


def test_a_fit_writes_its_history_and_a_resumed_one_goes_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny = {**tiny, "overrides": {**tiny["overrides"], "expansion.max_looks": 1}}
    out, board = tmp_path / "run", tmp_path / "board"
    told: list[int] = []

    def listener(row: dict[str, Any]) -> None:
        told.append(row["epoch"])
        if row["epoch"] == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(**tiny, out=out, tensorboard=board, listener=listener)
    assert told == list(range(1, 11))
    run = fit(out=out, resume=True, tensorboard=board)
    assert len(run.history_) > 10
    check(board, run.history_)  # epochs trained again after the last checkpoint are there once


def test_without_tensorboard_it_says_what_to_install(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'odn-hybrid\[tensorboard\]'"):
        fit(**tiny, out=tmp_path / "run", tensorboard=tmp_path / "board")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_before_the_first_row(tmp_path: Path) -> None:
    board = BoardWriter(tmp_path / "board")
    assert not (tmp_path / "board").exists()
    board.close()
