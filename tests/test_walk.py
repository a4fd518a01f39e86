"""README.md's section "Your own images", which `make walk` types: its commands exist, with these options."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from walk.pictures import make_photo, make_pictures
from walk.told import ROOT, VERBS, Told, extras, told

from odn_hybrid.cli import cli
from odn_hybrid.data.splits import pool_sizes
from odn_hybrid.stopping import look_level, smallest_drop

WALK = ROOT / "tests" / "walk" / "walk.py"


def test_the_readme_tells_every_step_in_order() -> None:
    commands = told()
    assert tuple(command.verb for command in commands) == VERBS
    serve, curl = commands[-2:]
    (url,) = serve.prints
    assert any(word.startswith(f"{url}/") for word in curl.words)


def test_the_commands_of_the_readme_are_ones_that_the_command_line_takes() -> None:
    for command in told():
        if command.words[0] == "odn":
            cli.commands[command.verb].make_context(command.verb, command.words[2:]).close()


def test_what_the_readme_tells_besides_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb, option in (("export", "--no-certify"), ("serve", "--uncertified"), ("serve", "--kind")):
        assert re.search(rf"`odn {verb} [^`]*{option}", text)
        assert any(option in one.opts for one in cli.commands[verb].params)
    besides = ["--set data.image_size=64", "--set expansion.max_minutes=10"]
    besides += ["--regime frozen --set model.checkpoint=weights.safetensors"]
    for said in besides:
        assert f"`{said}`" in text
    words = [*told()[1].words[2:], *shlex.split(" ".join(besides))]
    cli.commands["fit"].make_context("fit", words).close()


def test_the_readme_says_how_many_images_a_promise_needs_at_least() -> None:
    """Of 2 points, as the fit's own attempt, where halting changes no answer."""
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    found = re.search(r"fewer than about ([\d,]+) training images, 2 points are mostly refused", text)
    assert found
    said, level = int(found[1].replace(",", "")), look_level(0.05, 1)
    assert smallest_drop(pool_sizes(said - 50)["certification"], level) > 0.02
    assert smallest_drop(pool_sizes(said + 50)["certification"], level) < 0.02


def test_the_extras_of_the_readme_are_in_the_wheel_s_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = extras(told())
    assert named and set(named) <= set(project["optional-dependencies"])


def test_blocks_are_read_as_a_shell_reads_them() -> None:
    text = "## Your own images\n```console\n$ odn serve a \\\n  --port 1  # why\nhttp://x\n```\n"
    text += "## Next\n```console\n$ rm\n```\n"
    assert told(text) == [Told("odn serve a    --port 1  # why", ("http://x",))]
    assert told(text)[0].words == ["odn", "serve", "a", "--port", "1"]
    with pytest.raises(ValueError, match="no section"):
        told("# Another page\n")


def test_pictures_lie_in_class_folders(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": array
        for part in ("train", "test")
        for kind, array in (
            ("x", random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)),
            ("y", np.arange(60) % 3),
        )
    }
    np.savez(tmp_path / "data.npz", classes=np.array(["ant", "bee", "cat"]), **arrays)
    make_pictures(tmp_path / "data.npz", tmp_path / "photos", ["ant", "cat"], per_class=12)
    counts = {
        f"{path.parent.name}/{path.name}": len(list(path.glob("*.png")))
        for path in (tmp_path / "photos").glob("*/*")
    }
    assert counts == {"train/ant": 12, "train/cat": 12, "test/ant": 2, "test/cat": 2}
    with Image.open(tmp_path / "photos" / "train" / "cat" / "00002.png") as image:
        assert np.array_equal(np.asarray(image), arrays["x_train"][2])
    assert make_photo(tmp_path / "photos", tmp_path / "photo.jpg") == "ant"
    with Image.open(tmp_path / "photo.jpg") as image:
        assert image.format == "JPEG"


def test_a_comparison_has_to_say_what_it_recommends(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(WALK.parent))
    checks = importlib.import_module("walk.checks")
    found = {
        "choice": "static",
        "reason": "static (exit 1) runs 3.00 x as fast as the full network at batch 1",
    }
    report = {"comparison": {"recommendation": found}}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text(json.dumps(report), encoding="utf-8")
    compare = Told("odn compare mine", ())
    done = subprocess.CompletedProcess(
        [], 0, "Static (exit 1) runs 3.00 x as\nfast as the full network.\n", ""
    )
    checks.compared(compare, done, tmp_path, "")
    done.stdout = "a table\n"
    with pytest.raises(checks.Broken, match="does not say what it recommends"):
        checks.compared(compare, done, tmp_path, "")


def test_a_walk_without_data_or_wheel_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "data.npz").touch()
    for given, said in (
        ([], "no data; it needs CIFAR-10"),
        (["--data", str(tmp_path / "none.npz")], "none.npz is no file; it needs CIFAR-10"),
        (["--data", str(tmp_path / "data.npz"), "--wheel", str(tmp_path)], "is no wheel"),
    ):
        done = subprocess.run([sys.executable, WALK, *given], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (subprocess.TimeoutExpired(["bash"], 3.0), "TimeoutExpired: "),
        (json.JSONDecodeError("no JSON", "x", 0), "JSONDecodeError: no JSON"),
        (KeyError("graphs"), "KeyError: 'graphs'"),
        (FileNotFoundError("report.json"), "FileNotFoundError: report.json"),
    ],
)
def test_whatever_a_step_comes_to_is_a_stumble(tmp_path, monkeypatch, capsys, raised, said) -> None:
    monkeypatch.syspath_prepend(str(WALK.parent))
    module = importlib.import_module("walk.walk")
    (tmp_path / "data.npz").touch()
    (tmp_path / "odn.whl").touch()
    given = ["--data", str(tmp_path / "data.npz"), "--wheel", str(tmp_path / "odn.whl")]

    def install(walk, names):
        assert walk.wheel == (tmp_path / "odn.whl").resolve()  # it is not built
        raise raised

    monkeypatch.setattr(module.Walk, "install", install)
    monkeypatch.setattr(module, "free", lambda commands: None)
    monkeypatch.setattr(sys, "argv", ["walk.py", *given, "--keep", str(tmp_path / "kept")])
    assert module.main() == 1
    printed = capsys.readouterr()
    assert "build the wheel" not in printed.out
    assert printed.err.startswith(f"walk: stumbled at install it into an empty environment: {said}")
