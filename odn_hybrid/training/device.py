"""The device of a fit, as an `Accelerator`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from odn_hybrid.errors import ConfigError

__all__ = ["accelerator_on"]


def accelerator_on(device: str | None) -> Accelerator:
    """An accelerator on "cpu" or "cuda"; None is the best device there is.

    Raises `ConfigError` for another name, or for "cuda" where there is none.
    """
    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; choose cpu or cuda, or leave it out for the best there is")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' cannot be used: torch finds no CUDA device here; choose cpu")
    # accelerate keeps one device per process; an earlier fit, on another, must not decide for this one.
    held = PartialState._shared_state.get("device")
    wanted = "cpu" if device == "cpu" else ("cuda" if torch.cuda.is_available() else None)
    if held is not None and wanted is not None and held.type != wanted:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu")
