"""The shared small network as a run directory, for tests of what is served of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def unpack_shared(folder: Path) -> Path:
    """The pack of benchmarks/assets/cifar10_small as a run directory: certified, eight exits, CIFAR-10."""
    path = ROOT / "benchmarks" / "cifar10_small.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        spec = importlib.util.spec_from_file_location("cifar10_small", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.unpack(folder)
    return folder
