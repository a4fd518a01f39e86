"""`odn`: data on stdout, everything else on stderr, exit statuses, help, and what a person sees meanwhile."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from odn_hybrid._version import __version__
from odn_hybrid.cli import cli
from odn_hybrid.cli.progress import watching

Call = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[1]
VERBS = sorted(cli.commands)


@pytest.fixture(scope="module")
def fitted(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from odn_hybrid.fitting import fit

    path = tmp_path_factory.mktemp("runs") / "run"
    overrides = {**tiny["overrides"], "expansion.max_looks": 12}  # enough to reach the last exit
    fit(**{**tiny, "overrides": overrides}, out=path)
    return path


@pytest.fixture
def run(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "run"))


# --- help -------------------------------------------------------------------------------------------


def test_help(odn: Call) -> None:
    status, out, err = odn("--help")
    assert status == 0 and err == ""
    assert "Example: odn fit" in out
    assert all(verb in out for verb in VERBS)
    assert {"fit", "report", "truncate", "compare"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_verb_has_help_with_an_example(odn: Call, verb: str, flag: str) -> None:
    status, out, err = odn(verb, flag)
    assert status == 0 and err == ""
    assert out.startswith(f"Usage: odn {verb}")
    assert f"Example: odn {verb}" in out


def test_help_needs_no_network_library() -> None:
    code = (
        "import sys; from odn_hybrid.cli import main; status = main(['fit', '--help']);"
        "sys.exit(status or bool({'torch', 'timm', 'accelerate'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_version(odn: Call) -> None:
    assert odn("--version") == (0, f"odn, version {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["fit", "--nonsense"], ["report"], ["truncate", "x"], ["fit", "--seed", "x"]]
)
def test_bad_usage_is_one_line_and_status_2(odn: Call, arguments: list[str]) -> None:
    status, out, err = odn(*arguments)
    assert status == 2 and out == ""
    assert err.startswith("odn: ") and err.count("\n") == 1


# --- fit --------------------------------------------------------------------------------------------


def test_fit_prints_the_table_and_says_where(odn: Call, tiny_arguments: list[str], tmp_path: Path) -> None:
    out_dir = tmp_path / "deep" / "run"
    status, out, err = odn(*tiny_arguments, "--out", out_dir)
    assert status == 0
    assert "Exits of resnet18" in out and "Static choice" in out and "epoch" not in out.split("Exits")[0]
    lines = err.splitlines()
    assert lines[-1] == f"saved in {out_dir}"
    assert all(line.startswith("epoch") for line in lines[:-1]) and len(lines) > 2
    assert (out_dir / "report.json").is_file()
    again = odn("report", out_dir)
    assert again == (0, out, "")


def test_fit_json_is_the_report(odn: Call, tiny_arguments: list[str], tmp_path: Path) -> None:
    status, out, _ = odn(*tiny_arguments, "--out", tmp_path / "run", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "run" / "report.json").read_text())


def test_fit_options_become_the_recipe(odn: Call, tiny_arguments: list[str], tmp_path: Path) -> None:
    status, *_ = odn(
        *tiny_arguments, "--out", tmp_path / "run", "--loss", "joint", "--head", "grid", "--target", "0.6",
        "--tolerance", "0.05", "--seed", "3", "--device", "cpu", "--precision", "fp32",
        "--set", "optim.lr=1e-2", "--set", "exits.args={grid: 2}",
    )  # fmt: skip
    assert status == 0
    recipe = json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]
    assert recipe["objective"]["name"] == "joint"
    assert (recipe["exits"]["head"], recipe["exits"]["args"]) == ("grid", {"grid": 2})
    assert (recipe["choice"]["target_accuracy"], recipe["choice"]["tolerance"]) == (0.6, 0.05)
    assert (recipe["seed"], recipe["device"], recipe["precision"]) == (3, "cpu", "fp32")
    assert recipe["optim"]["lr"] == 0.01


def test_fit_goes_to_runs_by_default(
    odn: Call, tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = odn(*tiny_arguments)
    assert status == 0 and err.endswith(f"saved in {Path('runs', 'resnet18')}\n")
    status, out, err = odn(*tiny_arguments)
    assert status == 1 and out == "" and "holds a finished run" in err
    status, out, err = odn("fit", "--resume", "--out", "runs/resnet18")
    assert status == 0 and "Exits of resnet18" in out and err == "saved in runs/resnet18\n"


# --- the other verbs --------------------------------------------------------------------------------


def test_report_json(odn: Call, run: Path) -> None:
    status, out, err = odn("report", run, "--json")
    assert status == 0 and err == ""
    assert json.loads(out) == json.loads((run / "report.json").read_text())


def test_truncate(odn: Call, run: Path, tmp_path: Path) -> None:
    import odn_hybrid

    status, out, err = odn("truncate", run, "--out", tmp_path / "small", "--depth", "1")
    assert status == 0 and err == ""
    assert out.startswith(f"{tmp_path / 'small'}: exit 1, 1 units, ")
    assert odn_hybrid.load(tmp_path / "small").transform.channels == 1
    status, out, err = odn("truncate", run, "--out", tmp_path / "least", "--max-macs", "1e12", "--json")
    assert status == 0 and err == ""
    assert json.loads(out)["path"] == str(tmp_path / "least") and json.loads(out)["exit"] >= 1
    status, out, err = odn("truncate", run, "--out", tmp_path / "quick", "--fold")
    assert status == 0 and err == ""
    assert out.strip().endswith("batch normalisations folded")
    kept = odn_hybrid.load(tmp_path / "quick").state_dict()
    assert not any(key.endswith("running_mean") for key in kept)


def test_report_of_all_policies(odn: Call, run: Path) -> None:
    status, out, err = odn("report", run, "--curves")
    assert status == 0 and err == ""
    assert all(name in out for name in ("snell", "confidence", "patience", "hindsight"))
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps({**report, "curves": None}))
    status, out, err = odn("report", run, "--curves")
    assert status == 2 and out == "" and "no curves of halting policies" in err


def test_certify(odn: Call, run: Path, tmp_path: Path) -> None:
    import odn_hybrid

    status, out, err = odn("certify", run, "--drop", "0.5", "--policy", "margin", "--out", tmp_path / "fast")
    assert status == 0 and out.startswith("Certified: accuracy drop against exit 4 is at most 50 points")
    assert "Policy: margin" in out and "eager fp32 folded cpu" in out and "saved in" in err
    assert odn_hybrid.load(tmp_path / "fast").void is None
    status, out, err = odn("certify", run, "--drop", "0.5", "--policy", "margin", "--json")
    assert status == 0 and err == "" and json.loads(out)["attempt"] == 2  # the fit's own was the first
    status, out, err = odn("certify", run, "--drop", "0.0001")
    assert status == 1 and out == "" and "not shown with confidence" in err
    status, out, err = odn("certify", run, "--drop", "0.0001", "--json")
    assert status == 1 and json.loads(out)["certified"] is False
    for wrong in (("--policy", "luck"), ("--by", "camera"), ("--measure", "speed"), ("--drop", "2")):
        status, out, err = odn("certify", run, *wrong)
        assert status == 2 and out == "" and wrong[1] in err


def test_compare(odn: Call, run: Path) -> None:
    status, out, err = odn("compare", run, "--batch", "2,4", "--json")
    assert status == 0 and err == ""
    found = json.loads(out)
    assert found["batch_sizes"] == [2, 4]
    assert json.loads((run / "report.json").read_text())["comparison"] == found
    status, out, err = odn("report", run)
    assert status == 0 and found["recommendation"]["choice"] in out
    status, out, err = odn("compare", run, "--batch", "2", "--seconds", "0.1", "--threads", "1")
    assert status == 0 and err == "" and "static" in out and "images" in out


def test_compare_draws_and_takes_other_models(odn: Call, run: Path, tmp_path: Path) -> None:
    from PIL import Image

    assert odn("truncate", run, "--out", tmp_path / "small", "--depth", "1")[0] == 0
    quick = ("compare", run, "--batch", "1,4", "--seconds", "0.1", "--rounds", "2")
    picture, small = tmp_path / "times.png", tmp_path / "small"
    status, out, err = odn(*quick, "--picture", picture, "--against", small)
    assert status == 0 and "drawn in" in err and "small" in out and "little" in out  # of 2 rounds
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 1000
    weights = f"resnet18={small / 'model.safetensors'}"
    refusals = {
        ("--picture", tmp_path / "times.jpg"): "must end in one of .png, .svg, .pdf",
        ("--picture", tmp_path / "missing" / "times.png"): "there is no folder",
        ("--against", "resnet18"): "published weights are for 1000 classes, not 3",
        ("--against", "nosuchnet"): "nosuchnet",
        ("--against", weights): "does not fit ResNet",
        ("--against", "resnet18=none.safetensors"): "none.safetensors",
        ("--against", "torchvision/resnet18"): "or a name of timm's",
        ("--threads", "0"): "--threads is 0",
        ("--rounds", "0"): "rounds is 0",
        ("--seconds", "-1"): "seconds is -1",
        ("--batch", "4,4"): "each once",
        ("--precision", "fp8"): "precision is 'fp8'",
        ("--device", "tpu"): "device 'tpu' cannot be used",
    }
    for extra, says in refusals.items():
        status, out, err = odn(*quick, *extra)
        assert status in (1, 2) and says in err and err.count("\n") == 1, (extra, err)


# --- pipes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--json", None])
def test_a_reader_that_leaves_early_is_no_error(run: Path, flag: str | None) -> None:
    code = "import sys; from odn_hybrid.cli import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(run), *([flag] if flag else [])],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=100, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_output_that_cannot_be_written_is_one_line(run: Path, start_odn: Any) -> None:
    status, _, err = start_odn("report", str(run), stdout=Path("/dev/full")).wait()
    assert status == 1
    assert err == "odn: cannot write the output: No space left on device\n"


# --- progress ---------------------------------------------------------------------------------------


def row(epoch: int, selection: list[float] | None) -> dict[str, Any]:
    return {
        "epoch": epoch, "phase": "expand", "current": 1, "active": 2, "images": 256, "loss": 0.5,
        "lr": 0.1, "selection": selection, "train_macs": 1.5e12, "seconds": 3.2, "next": "expand",
    }  # fmt: skip


def test_without_a_terminal_each_look_is_a_plain_line() -> None:
    text = io.StringIO()
    with watching(Console(file=text, width=40)) as listener:
        listener(row(1, None))
        listener(row(2, [0.5, 0.75]))
    assert text.getvalue().count("\n") == 1
    assert "\x1b" not in text.getvalue()
    assert text.getvalue().startswith("epoch   2  expanding, exits 1-2  loss 0.5")
    assert text.getvalue().rstrip().endswith("selection 50.0 75.0 %")


@pytest.mark.parametrize("width", [60, 200])
def test_on_a_terminal_the_display_is_live_and_goes_away(width: int) -> None:
    text = io.StringIO()
    with watching(Console(file=text, width=width, force_terminal=True)) as listener:
        listener(row(1, None))
        listener(row(2, [0.5, 0.75]))
        listener(row(3, None))
    shown = text.getvalue()
    assert "epoch" in shown and "50.0" in shown and "75.0" in shown
    assert shown.endswith("\x1b[2K") or "\x1b[2K" in shown[-40:]  # the last thing is to erase itself
