"""What every test gets: fixed seeds, few threads, no network; and the way to the real data."""

import os
import random
import sys
from pathlib import Path

# Before numpy or torch start their thread pools, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import numpy as np
import pytest

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
