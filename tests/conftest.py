"""What every test gets: fixed seeds, few threads, no network; and the way to the real data."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before numpy or torch start their thread pools, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest
from serving import serving

ROOT = Path(__file__).resolve().parent.parent

# The same examples in every run; no time limit, because a loaded machine is not a broken law.
hypothesis.settings.register_profile(
    "odn", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("odn")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # a test of plain arrays must not pay for importing it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets: ODN_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("ODN_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set ODN_DATA to the folder that holds mnist.npz and others")
    return folder


# --- a fit that takes about a second ----------------------------------------------------------------

TINY_RECIPE = {
    "model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "model.stem": "small",
    "data.image_size": 12,
    "optim.batch_size": 32,
    "expansion.max_looks": 4,
}


@pytest.fixture(scope="session")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """450 + 90 grey images of 12x12 pixels: horizontal, vertical or diagonal stripes in noise."""
    random_numbers = np.random.default_rng(0)
    rows, columns = np.indices((12, 12))
    stripes = np.stack([(rows // 2) % 2, (columns // 2) % 2, ((rows + columns) // 2) % 2])

    def make(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 3
        noise = random_numbers.integers(0, 190, (n, 12, 12))
        return (65 * stripes[labels] + noise).astype(np.uint8), labels

    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    (x_train, y_train), (x_test, y_test) = make(450), make(90)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def tiny(tiny_npz: Path) -> dict[str, Any]:
    """Keyword arguments of `fit` for a fit of about a second: a ResNet of 4 units on `tiny_npz`."""
    return {"model": "resnet18", "data": str(tiny_npz), "overrides": dict(TINY_RECIPE)}


@pytest.fixture(scope="session")
def tiny_arguments(tiny_npz: Path) -> list[str]:
    """The same for the command line."""
    settings = [f"--set={name}={json.dumps(value)}" for name, value in TINY_RECIPE.items()]
    return ["fit", "resnet18", "--data", str(tiny_npz), *settings]


class Odn:
    """A running `odn`; `wait` gives exit status (below 0: the signal that ended it), stdout and stderr."""

    def __init__(
        self,
        server: subprocess.Popen[str],
        folder: Path,
        arguments: list[str],
        die: tuple[str, int] | None,
        stdout: Path | None,
    ) -> None:
        assert server.stdin is not None and server.stdout is not None
        self.server, self.out, self.err = server, stdout or folder / "stdout", folder / "stderr"
        order = {"arguments": arguments, "stdout": str(self.out), "stderr": str(self.err), "die": die}
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def wait(self) -> tuple[int, str, str]:
        assert self.server.stdout is not None
        status = int(self.server.stdout.readline())
        return status, self.out.read_text() if self.out.is_file() else "", self.err.read_text()


@pytest.fixture(scope="session")
def _odn_server() -> Iterator[subprocess.Popen[str]]:
    yield from serving("processes.py")


@pytest.fixture
def start_odn(_odn_server: subprocess.Popen[str], tmp_path: Path) -> Callable[..., Odn]:
    """`start_odn("fit", ...)` starts `odn` as a process, one at a time.

    `die` (name, number): it kills itself when a file of that name is put in its place for that many-th time.
    `stdout`: where that goes, if not into a file.
    """

    def start(*arguments: str, die: tuple[str, int] | None = None, stdout: Path | None = None) -> Odn:
        return Odn(_odn_server, tmp_path, list(arguments), die, stdout)

    return start


@pytest.fixture
def odn(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`odn("fit", ...)` runs the command line in this process: exit status, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        from odn_hybrid.cli import main

        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return call
