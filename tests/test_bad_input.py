"""Everything a user can get wrong: one line on stderr, exit status 1 or 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Call = Callable[..., tuple[int, str, str]]
Arrays = Callable[..., Path]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(odn: Call, tmp_path: Path) -> Callable[..., None]:
    """`refused(arguments, says, status)`: and the folder `tmp_path` is as it was."""

    def check(arguments: list[str], says: str, status: int = 1) -> None:
        before = tree(tmp_path)
        found, out, err = odn(*arguments)
        assert (found, out) == (status, ""), err
        assert err.startswith("odn: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert re.search(says, err), err
        assert tree(tmp_path) == before

    return check


@pytest.fixture
def npz(tiny_npz: Path, tmp_path: Path) -> Arrays:
    """The tiny data set with arrays changed, or left out (None)."""

    def write(**changes: Any) -> Path:
        arrays: dict[str, Any] = {**np.load(tiny_npz), **changes}
        np.savez(tmp_path / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
        return tmp_path / "data.npz"

    return write


@pytest.fixture(scope="module")
def finished(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from odn_hybrid.fitting import fit

    path = tmp_path_factory.mktemp("runs") / "run"
    fit(**tiny, out=path)
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- choices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says", "status"),
    [
        (["--loss", "nonsense"], "unknown objective 'nonsense'; known objectives: cross_entropy", 2),
        (["--head", "nonsense"], "unknown exit head 'nonsense'; known heads: attention, grid, linear", 2),
        (["--set", "exits.args={size: 3}"], "exit head 'linear'", 2),
        (["--set", "objective.args={size: 3}"], "objective 'depth_reg'", 2),
        (["--set", "objective.args={lam: -1}"], "lam is -1", 2),
        (["--target", "1.5"], "target_accuracy is 1.5; it must be a fraction above 0 and at most 1", 2),
        (["--tolerance", "-1"], "tolerance is -1.0", 2),
        (["--seed", "-1"], "seed is -1", 2),
        (["--precision", "fp8"], "precision is 'fp8'; choose one of auto, fp32, bf16", 2),
        (["--device", "tpu"], "device is 'tpu'; choose cpu or cuda", 2),
        (["--set", "nonsense=1"], "unknown field 'nonsense'", 2),
        (["--set", "optim.rate=1"], r"unknown field 'optim.rate'", 2),
        (["--set", "optimiser.lr=1"], "no section 'optimiser'", 2),
        (["--set", "seed.x=1"], "no section 'seed'", 2),
        (["--set", "optim.lr"], "write FIELD=VALUE", 2),
        (["--set", "optim.lr={"], "not valid YAML", 2),
        (["--set", "optim.lr=fast"], "optim.lr is 'fast'; expected a number", 2),
        (["--set", "optim.lr=.nan"], "optim.lr is nan; expected a finite number", 2),
        (["--set", "optim.batch_size=1.5"], "optim.batch_size is 1.5; expected int", 2),
        (["--set", "optim.name=nonsense"], "optimizer 'nonsense' cannot be made", 2),
        (["--set", "data.augment=mixup"], "data.augment is 'mixup'; choose one of", 2),
        (["--set", "model.args={nonsense: 1}"], "cannot build timm model 'resnet18'", 1),
        (["--set", "model.checkpoint=missing.safetensors"], "missing.safetensors", 1),
        (["--set", "version=99"], "the recipe says version 99", 2),
    ],
)  # fmt: skip
def test_choices(
    refused: Callable[..., None], tiny_arguments: list[str], tmp_path: Path, more: list[str], says: str,
    status: int,
) -> None:  # fmt: skip
    refused([*tiny_arguments, "--out", tmp_path / "out", *more], says, status)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda(refused: Callable[..., None], tiny_arguments: list[str], run: Path, tmp_path: Path) -> None:
    refused(
        [*tiny_arguments, "--out", tmp_path / "out", "--device", "cuda"], "device 'cuda' cannot be used", 2
    )
    refused(["compare", run, "--device", "cuda"], "device 'cuda' cannot be used", 2)


@pytest.mark.parametrize(
    ("model", "says", "status"),
    [
        ("resnet81", "unknown timm model 'resnet81'; close names: resnet", 1),
        ("torchvision/resnet81", "unknown torchvision model 'resnet81'", 1),
        ("missing.yaml", "no recipe at missing.yaml", 2),
    ],
)
def test_unknown_models(
    refused: Callable[..., None], tmp_path: Path, model: str, says: str, status: int
) -> None:
    refused(["fit", model, "--out", tmp_path / "out"], says, status)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: {name: resnet18", "is not valid YAML"),
        ("- resnet18", "must be a mapping"),
        ("modle: {name: resnet18}", "unknown field 'modle'; did you mean 'model'"),
        ("model: {nmae: resnet18}", r"unknown field 'model\.nmae'; did you mean 'name'"),
        ("seed: one", "seed is 'one'; expected int"),
        ("version: 2", "the recipe says version 2"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("{}", "no model: pass a module"),
        (b"\xff\xfe\x00", "cannot read the recipe"),
    ],
)
def test_bad_recipes(refused: Callable[..., None], tmp_path: Path, text: str | bytes, says: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(text.encode() if isinstance(text, str) else text)
    refused(["fit", recipe, "--out", tmp_path / "out"], says, 2)


# --- data -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("missing.npz", "no file or folder at missing.npz"),
        ("missing/folder", "no file or folder at missing/folder"),
        (__file__, "neither a folder nor an .npz file"),
    ],
)
def test_unknown_data(refused: Callable[..., None], tmp_path: Path, data: str, says: str) -> None:
    refused(["fit", "--data", data, "--out", tmp_path / "out"], says)


LABELS = np.arange(450) % 3
PIXELS = np.zeros((450, 12, 12), np.uint8)


def with_nan() -> np.ndarray:
    images = np.zeros((450, 12, 12), np.float32)
    images[7, 3, 3] = np.nan
    return images


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_test": None, "y_test": None}, "lacks x_test, y_test"),
        ({"y_train": LABELS - 1}, "has the label -1; class numbers start at 0"),
        ({"classes": np.array(["a", "b"])}, "has the label 2, out of range for 2 classes"),
        ({"y_train": LABELS * 0, "y_test": np.zeros(90, int)}, "images of one class only"),
        ({"y_train": LABELS + 0.5}, "has the label 0.5"),
        ({"y_train": LABELS[:-1]}, "450 images but 449 labels"),
        ({"y_test": np.arange(90) % 4}, "class 3 has images in test but none to train on"),
        ({"x_train": PIXELS.reshape(450, 144)}, "give NxHxW or NxHxWxC"),
        ({"x_train": PIXELS[:, None].repeat(3, 1)}, "it looks channels first"),
        ({"x_train": PIXELS.astype(np.int64)}, "has dtype int64; give uint8"),
        ({"x_train": PIXELS + 2.0}, "scale them to 0..1"),
        ({"x_train": with_nan()}, "NaN or infinite pixels .first in image 7"),
        ({"x_train": PIXELS[:0], "y_train": LABELS[:0]}, "empty"),
        ({"x_test": np.zeros((90, 10, 10), np.uint8)}, "both must agree"),
        ({"x_train": PIXELS[:2], "y_train": np.array([0, 5])}, "2 training images for 6 classes"),
    ],
)
def test_bad_arrays(
    refused: Callable[..., None], npz: Arrays, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    refused(["fit", "resnet18", "--data", npz(**changes), "--out", tmp_path / "out"], says)


def test_a_file_that_is_no_archive(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"nonsense")
    refused(["fit", "--data", tmp_path / "data.npz", "--out", tmp_path / "out"], "cannot read .* as .npz")


def test_objects_are_not_unpickled(refused: Callable[..., None], npz: Arrays, tmp_path: Path) -> None:
    data = npz(x_train=np.array([{}] * 450, dtype=object))
    refused(["fit", "--data", data, "--out", tmp_path / "out"], "has dtype object")


# --- run directories --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [["report"], ["compare"], ["truncate", "--out", "small"]])
def test_what_is_no_run(refused: Callable[..., None], tmp_path: Path, verb: list[str]) -> None:
    verb = [str(tmp_path / word) if word == "small" else word for word in verb]
    refused([*verb, tmp_path / "missing"], "there is no run directory at")
    (tmp_path / "empty").mkdir()
    refused([*verb, tmp_path / "empty"], "is no run directory")
    (tmp_path / "file").touch()
    refused([*verb, tmp_path / "file"], "is not a directory")


@pytest.mark.parametrize("verb", [["report"], ["compare"], ["truncate", "--out", "small"]])
def test_unknown_schema(refused: Callable[..., None], run: Path, tmp_path: Path, verb: list[str]) -> None:
    verb = [str(tmp_path / word) if word == "small" else word for word in verb]
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "schema": 99}))
    refused([*verb, run], "has schema 99, this release reads 1")


def test_a_damaged_report(refused: Callable[..., None], run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    del report["exits"]
    (run / "report.json").write_text(json.dumps(report))
    refused(["report", run], "report.json is damaged")
    (run / "report.json").write_text("{")
    refused(["report", run], "report.json is damaged")


def test_places_that_are_taken(
    refused: Callable[..., None], tiny_arguments: list[str], run: Path, tmp_path: Path
) -> None:
    refused([*tiny_arguments, "--out", run], "holds a finished run")
    refused([*tiny_arguments, "--out", run, "--resume", "--seed", "5"], "seed was 0, is now 5")
    refused(["truncate", run, "--out", run], "exists and is not empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    refused([*tiny_arguments, "--out", tmp_path / "mine"], "holds files but no run")
    refused([*tiny_arguments, "--out", tmp_path / "mine", "--resume"], "holds files but no run")
    refused([*tiny_arguments, "--out", tmp_path / "mine" / "letter.txt" / "run"], "cannot be a folder")


def test_wishes_that_cannot_be_met(refused: Callable[..., None], run: Path, tmp_path: Path) -> None:
    small = ["truncate", run, "--out", tmp_path / "small"]
    refused([*small, "--depth", "9"], "no exit after 9 units")
    refused([*small, "--max-macs", "1"], "no trained exit has max_macs <= 1")
    refused([*small, "--depth", "1", "--max-macs", "1e9"], "one thing at a time", 2)
    refused(["compare", run, "--batch", "0"], "batch sizes are", 2)
    refused(["compare", run, "--batch", "a,b"], "give whole numbers separated by commas", 2)
    refused(["compare", run, "--data", "digits"], "not the data of the fit")


# --- while it runs ----------------------------------------------------------------------------------


def only_progress(err: str) -> str:
    """The last line of stderr; those before it are progress."""
    *before, last = err.splitlines()
    assert all(line.startswith("epoch") for line in before), err
    return last


def test_divergence(odn: Call, tiny_arguments: list[str], tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    status, out, err = odn(*tiny_arguments, "--out", out_dir, "--set", "optim.lr=1e6")
    assert status == 1 and out == ""
    assert "training has diverged; use a lower learning rate than 1e+06" in only_progress(err)
    assert not (out_dir / "report.json").exists()
    status, out, err = odn("report", out_dir)
    assert status == 1 and "holds an interrupted run" in err


def test_ctrl_c_elsewhere(odn: Call, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odn_hybrid.rundir.RunDir.open", interrupt)
    assert odn("report", run) == (1, "", "odn: interrupted\n")


@pytest.mark.parametrize("file", ["config.json", "state.safetensors", "report.json"])
def test_a_write_that_fails(
    odn: Call, tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The disk is full when the first, a middle or the last file is put in its place."""
    real = os.replace

    def replace(source: Any, target: Any, **more: Any) -> None:
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **more)

    out_dir = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        status, out, err = odn(*tiny_arguments, "--out", out_dir)
    assert status == 1 and out == ""
    assert re.search(f"cannot write .*{file}: the disk is full.*--resume", only_progress(err))
    assert out_dir.exists() == (file != "config.json")
    assert not [name for name in tree(tmp_path) if ".odn-" in name]
    status, out, err = odn(*tiny_arguments, "--out", out_dir, "--resume")
    assert status == 0 and "Static choice" in out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True, capture_output=True, timeout=20)


def test_a_full_disk(
    odn: Call, tiny_arguments: list[str], small_disk: Path, finished: Path, tmp_path: Path
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(192 << 10))
    status, out, err = odn(*tiny_arguments, "--out", small_disk / "run")
    assert status == 1 and out == "" and "the disk is full" in only_progress(err)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]

    filler.write_bytes(bytes(64 << 10))  # room to begin, none for the checkpoint
    status, out, err = odn(*tiny_arguments, "--out", small_disk / "run")
    assert status == 1 and out == "" and "the disk is full" in only_progress(err)
    assert not [name for name in tree(small_disk) if ".odn-" in name]

    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True, timeout=20)
    assert odn("fit", "--out", small_disk / "run", "--resume")[0] == 0
    for name in ("model.safetensors", "exits.safetensors", "outputs.safetensors"):
        assert (small_disk / "run" / name).read_bytes() == (finished / name).read_bytes()


def test_a_full_disk_while_a_model_is_saved(odn: Call, run: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(180 << 10))
    status, out, err = odn("truncate", run, "--out", small_disk / "small")
    assert status == 1 and out == "" and err.count("\n") == 1 and "the disk is full" in err
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
