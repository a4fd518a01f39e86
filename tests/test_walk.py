"""README.md's section "Your own images", which `make walk` types: its commands exist, with these options."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from walk.pictures import make_photo, make_pictures
from walk.told import ROOT, VERBS, Told, extras, told

from odn_hybrid.cli import cli


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
