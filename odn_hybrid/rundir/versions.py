"""What a result was computed with: versions and kind of machine, and nothing that names a person or host."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import torch

__all__ = ["environment"]

LIBRARIES = ("odn-hybrid", "torch", "torchvision", "timm", "numpy")


def environment() -> dict[str, Any]:
    """Versions of Python and the libraries, machine type, CPU count, threads, and the GPU's name or None."""
    return {
        "python": platform.python_version(),
        **{name.replace("-", "_"): _version(name) for name in LIBRARIES},
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _version(distribution: str) -> str | None:
    # The metadata is asked, not the module: importing timm only for its version would cost a second.
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
