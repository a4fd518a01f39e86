"""A fit in several processes (gloo, on the CPU) is the fit of one process, and they end together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import serving
from torch import distributed

from odn_hybrid.config import FitConfig, from_dict
from odn_hybrid.data import load_data, make_loader
from odn_hybrid.data.preprocess import Preprocess
from odn_hybrid.errors import ConfigError
from odn_hybrid.training.devices.device import shards_weights
from odn_hybrid.training.devices.processes import together
from odn_hybrid.training.devices.sharing import check_batch, rows_of, shared_loader

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.timeout(300)

#: Layer norm only, so that no statistics depend on how a batch is shared out.
NORMALISED_BY_IMAGE = {
    "model": "vit_tiny_patch16_224",
    "overrides": {
        "model.args": {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 4, "img_size": 12},
        "data.image_size": 12,
        "data.mixup": 0.2,
        "optim.batch_size": 33,  # 17 and 16 images
        "optim.clip_grad": 1.0,
        "expansion.max_looks": 2,
        "precision": "fp32",
    },
}


class Group:
    """Processes of one fit; `wait` gives their statuses, stdouts and stderrs."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, order: dict[str, Any]) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.server, self.folder, self.count = server, folder, order["count"]
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pids: list[int] = json.loads(server.stdout.readline())

    def wait(self) -> tuple[list[int], list[str], list[str]]:
        assert self.server.stdout is not None
        statuses = json.loads(self.server.stdout.readline())
        texts = [[(self.folder / f"{name}.{rank}").read_text() for rank in range(self.count)]
                 for name in ("stdout", "stderr")]  # fmt: skip
        return statuses, texts[0], texts[1]

    def found(self) -> list[dict[str, Any]]:
        """What each process wrote down about itself; all must have ended well."""
        statuses, _, err = self.wait()
        assert statuses == [0] * self.count, err
        return [json.loads((self.folder / f"found.{rank}").read_text()) for rank in range(self.count)]


Start = Callable[..., Group]


@pytest.fixture(scope="module")
def _server() -> Iterator[subprocess.Popen[str]]:
    yield from serving("launching.py", OMP_NUM_THREADS="1")


@pytest.fixture
def start(_server: subprocess.Popen[str], tmp_path: Path) -> Start:
    """`start(work, arguments, count=2)` starts work of `launching.py`, one group at a time."""

    def begin(work: str, arguments: Any, *, count: int = 2, **more: Any) -> Group:
        folder = tmp_path / f"group-{time.monotonic_ns()}"
        folder.mkdir()
        order = {"work": work, "arguments": arguments, "count": count, "folder": str(folder), **more}
        return Group(_server, folder, order)

    return begin


@pytest.fixture(scope="module")
def by_image(tiny_npz: Path) -> dict[str, Any]:
    return {**NORMALISED_BY_IMAGE, "data": str(tiny_npz), "device": "cpu"}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def accuracies(folder: Path) -> list[Any]:
    return [row["accuracy"] for row in json.loads((folder / "report.json").read_text())["exits"]]


def check_whole(folder: Path) -> None:
    """A finished run: one report, every epoch once, nothing temporary."""
    epochs = [row["epoch"] for row in rows(folder)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert json.loads((folder / "report.json").read_text())["search"]["epochs"] == len(epochs)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "exits.safetensors", "history.jsonl", "model.safetensors",
                     "outputs.safetensors", "policy.json", "report.json"]  # fmt: skip


# --- how a batch is shared out ----------------------------------------------------------------------


@given(size=st.integers(0, 300), count=st.integers(1, 9))
def test_every_image_goes_to_one_process_and_mixed_pairs_stay_together(size: int, count: int) -> None:
    shares = [rows_of(size, rank, count) for rank in range(count)]
    assert sorted(row for share in shares for row in share) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 3
    for share in shares:
        even = len(share) // 2 * 2
        for row, partner in zip(share[:even], share[:even][::-1], strict=True):
            assert row + partner == size // 2 * 2 - 1


@pytest.mark.parametrize("size", [4, 12, 13])
def test_a_batch_that_is_large_enough_gives_every_forward_two_images(size: int) -> None:
    config = from_dict(FitConfig, {"optim": {"batch_size": size, "accumulate": 2}})
    for count in (1, 2, 3):
        if size < 4 * count:
            if count > 1:
                with pytest.raises(ConfigError, match=f"at least {4 * count}"):
                    check_batch(config, 1000, count)
            continue
        check_batch(config, 1000, count)
        parts = [torch.tensor(rows_of(size, rank, count)).tensor_split(2) for rank in range(count)]
        assert min(len(part) for share in parts for part in share) >= 2


def test_shares_are_the_batches_of_one_process(tiny_npz: Path) -> None:
    split = load_data(str(tiny_npz), root=None, seed=0).splits["train"]
    preprocess = Preprocess(size=(12, 12), mean=(0.5,), std=(0.5,), channels=1)

    def loader() -> Any:
        return make_loader(split, preprocess, batch_size=32, augment="shift", shuffle=True, seed=1, epoch=3)

    shares = [list(shared_loader(loader(), rank, 3)) for rank in range(3)]
    for number, (images, labels, indices) in enumerate(loader()):
        for rank in range(3):
            kept = list(rows_of(len(labels), rank, 3))
            wanted = (images[kept], labels[kept], indices[kept])
            for mine, whole in zip(shares[rank][number], wanted, strict=True):
                assert torch.equal(mine, whole)
    assert [len(share) for share in shares] == [len(loader())] * 3


# --- two processes are one --------------------------------------------------------------------------


def test_two_processes_train_as_one(by_image: dict[str, Any], start: Start, tmp_path: Path) -> None:
    (one,) = start("fit", {**by_image, "out": str(tmp_path / "one")}, count=1).found()
    two = start("fit", {**by_image, "out": str(tmp_path / "two")}).found()
    for row, wanted in zip(two[0]["history"], one["history"], strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], abs=2e-5)
        for name in ("phase", "active", "images", "train_macs", "selection"):
            assert row[name] == wanted[name]
    first, second = two
    for name in ("weights", "outputs", "report", "history"):
        assert first[name] == second[name], name
    assert (first["path"], second["path"]) == (str(tmp_path / "two"), "None")
    assert (first["told"], second["told"]) == (len(first["history"]), 0)
    assert accuracies(tmp_path / "two") == accuracies(tmp_path / "one")
    check_whole(tmp_path / "two")


def test_outputs_are_recorded_exactly_on_uneven_batches(tiny_npz: Path, start: Start) -> None:
    for found in start("record", {"data": str(tiny_npz), "batches": [256, 100, 37]}).found():
        assert found["images"] % 256 and found["images"] % 100 and found["images"] % 37
        assert found["same"] == {"256": True, "100": True, "37": True}


def test_processes_agree_though_they_start_from_other_weights(tiny: dict[str, Any], start: Start) -> None:
    overrides = {key: value for key, value in tiny["overrides"].items() if not key.startswith("model")}
    arguments = {"data": tiny["data"], "overrides": {**overrides, "data.image_size": 32}, "device": "cpu"}
    arguments["overrides"]["expansion.max_looks"] = 1
    first, second = start("own_start", arguments).found()
    assert first["weights"] == second["weights"]
    assert first["outputs"] == second["outputs"]


# --- ending together --------------------------------------------------------------------------------


def test_a_killed_process_ends_the_other_and_any_number_resumes(
    tiny_arguments: list[str], start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    arguments = [*tiny_arguments, "--device", "cpu", "--out", str(folder)]
    group = start("odn", arguments)
    end = time.monotonic() + 200
    while not (folder / "history.jsonl").exists() or len(rows(folder)) < 7:
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(group.pids[1], signal.SIGKILL)
    statuses, out, err = group.wait()
    assert statuses == [1, -signal.SIGKILL]
    assert out == ["", ""]
    assert err[0].splitlines()[-1].startswith("odn: another process of this fit has ended")
    assert not (folder / "report.json").exists()
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for count in (2, 1):
        if count == 1:  # the same interrupted run again
            for path in folder.iterdir():
                path.unlink()
            (folder / "checkpoint").mkdir()
            for name, held in before.items():
                (folder / name).write_bytes(held)
        statuses, out, err = start("odn", [*arguments, "--resume", "--json"], count=count).wait()
        assert statuses == [0] * count, err
        assert json.loads(out[0]) == json.loads((folder / "report.json").read_text())
        assert out[1:] == err[1:] == [""] * (count - 1)
        check_whole(folder)


def test_a_fit_of_one_process_is_resumed_by_two(
    by_image: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    (whole,) = start("fit", {**by_image, "out": str(tmp_path / "whole")}, count=1).found()
    arguments = {**by_image, "out": str(tmp_path / "run")}
    statuses, _, _ = start("fit", arguments, count=1, die=[0, "state.safetensors", 2]).wait()
    assert statuses == [-signal.SIGKILL]
    first, second = start("fit", {**arguments, "resume": True}).found()
    assert [row["loss"] for row in first["history"]] == pytest.approx(
        [row["loss"] for row in whole["history"]], abs=2e-5
    )
    assert first["history"] == second["history"]
    check_whole(tmp_path / "run")


def test_what_the_main_process_refuses_ends_all_with_one_message(
    tiny_arguments: list[str], start: Start, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    statuses, out, err = start("odn", [*tiny_arguments, "--device", "cpu", "--out", str(taken)]).wait()
    assert statuses == [1, 1]
    assert out == ["", ""]
    assert err == [f"odn: {taken} is not a directory: choose another path\n", ""]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_meets_ends_all_with_one_message(
    rank: int, tiny_arguments: list[str], start: Start, tmp_path: Path
) -> None:
    arguments = [*tiny_arguments, "--device", "cpu", "--out", str(tmp_path / "run")]
    statuses, _, err = start("fails", {"rank": rank, "arguments": arguments}).wait()
    assert statuses == [1, 1]
    said = [line for text in err for line in text.splitlines() if line.startswith("odn: ")]
    assert said == ["odn: image 7 cannot be read"]
    assert "odn: image 7" in err[rank]


def test_recipes_that_differ_are_refused(tiny: dict[str, Any], start: Start) -> None:
    statuses, _, err = start("other_recipes", {**tiny, "device": "cpu"}).wait()
    assert statuses == [99, 99]
    assert all("process 1 of this fit has another recipe than process 0" in text for text in err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim.batch_size": 3}, "a batch of 3 images is too small for 2 processes"),
        ({"regime": "frozen"}, "trains heads in seconds and in one process; 2 were started"),
    ],
)
def test_what_cannot_be_shared_is_refused(
    options: dict[str, Any], message: str, tiny_arguments: list[str], start: Start, tmp_path: Path
) -> None:
    settings = [f"--set={name}={value}" for name, value in options.items()]
    arguments = [*tiny_arguments, "--device", "cpu", "--out", str(tmp_path / "run"), *settings]
    statuses, _, err = start("odn", arguments).wait()
    assert statuses == [2, 2]
    assert "".join(err).count("odn: ") == 1
    assert message in "".join(err)
    assert not (tmp_path / "run").exists()


# --- sharded weights --------------------------------------------------------------------------------

FSDP = {"ACCELERATE_USE_FSDP": "true"}


@pytest.mark.parametrize("name", ["compile", "expansion"])
def test_what_does_not_go_with_sharded_weights_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"compile": True, "expansion": {"procedure": "reload"}}[name]
    config = from_dict(FitConfig, {name: said, "choice": {"target_accuracy": 0.9}})
    assert not shards_weights(config, 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not shards_weights(config, 1)
    with pytest.raises(ConfigError, match=f"{name}.* does not go together with FSDP"):
        shards_weights(config, 2)


@pytest.mark.long
def test_sharded_weights_train_as_whole_ones(by_image: dict[str, Any], start: Start) -> None:
    overrides = {**by_image["overrides"], "optim.accumulate": 2, "expansion.max_looks": 1}
    arguments = {**by_image, "overrides": overrides}
    whole = start("fit", arguments).found()
    sharded = start("fit", arguments, environment=FSDP).found()
    assert sharded[0]["weights"] == sharded[1]["weights"]
    assert [row["loss"] for row in sharded[0]["history"]] == pytest.approx(
        [row["loss"] for row in whole[0]["history"]], abs=2e-5
    )
    for mine, wanted in zip(sharded[0]["report"]["exits"], whole[0]["report"]["exits"], strict=True):
        assert mine["accuracy"] == wanted["accuracy"]


@pytest.mark.long
def test_sharded_and_whole_weights_resume_each_other(
    tiny: dict[str, Any], start: Start, tmp_path: Path
) -> None:
    arguments = {**tiny, "device": "cpu"}
    whole = start("fit", arguments).found()[0]
    for ways in ((FSDP, {}), ({}, FSDP)):
        out = {**arguments, "out": str(tmp_path / f"run{len(ways[0])}")}
        statuses, _, _ = start("fit", out, die=[0, "state.safetensors", 2], environment=ways[0]).wait()
        assert statuses[0] == -signal.SIGKILL
        found = start("fit", {**out, "resume": True}, environment=ways[1]).found()[0]
        assert [row["loss"] for row in found["history"]] == pytest.approx(
            [row["loss"] for row in whole["history"]], abs=1e-3
        )
        check_whole(Path(out["out"]))


# --- the launchers themselves -----------------------------------------------------------------------


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ACCELERATE = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    *("--mixed_precision=no", "--dynamo_backend=no"),
]


@pytest.mark.long
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_started_by_a_launcher(launcher: list[str], tiny_arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    if launcher is ACCELERATE:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            launcher = [*launcher, f"--main_process_port={found.getsockname()[1]}"]
    command = [sys.executable, "-m", *launcher, "-m", "odn_hybrid.cli", *tiny_arguments]
    done = subprocess.run(
        [*command, "--device=cpu", f"--out={out}", "--json"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text())
    assert done.stderr.count("saved in") == 1
    check_whole(out)


def test_an_error_that_was_caught_is_not_raised_again_for_a_later_one() -> None:
    """Two fits in one script: word that the first left for the other processes is not the second's."""

    @together
    def fail(error: Exception) -> None:
        raise error

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match="the first") as first:
            fail(ConfigError("the first"))
        with pytest.raises(ValueError, match="the second"):
            fail(ValueError("the second"))
        with pytest.raises(ConfigError, match="the third") as third:
            fail(ConfigError("the third"))
    finally:
        distributed.destroy_process_group()
    assert not first.value.elsewhere and not third.value.elsewhere  # each is printed by somebody
