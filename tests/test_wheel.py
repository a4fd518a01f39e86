"""What is installed is what the repository holds: every file of the package, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the files in a wheel that the build back end makes now."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-W", "error", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _tracked(folder: str) -> set[str]:
    """Files of the checkout that git knows, or would take."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder]
    names = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout
    return {name for name in names.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_has_every_file_of_the_package_and_of_the_recipes(packed: set[str]) -> None:
    inside = {name for name in packed if ".dist-info/" not in name}
    wanted = _tracked("odn_hybrid") | {f"odn_hybrid/{name}" for name in _tracked("configs")}
    assert {name for name in wanted if not name.endswith(".py")}  # pages and recipes among them
    assert inside == wanted


def test_the_wheel_has_license_and_command(packed: set[str]) -> None:
    ends = {name.partition(".dist-info/")[2] for name in packed if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "entry_points.txt", "licenses/LICENSE"} <= ends
