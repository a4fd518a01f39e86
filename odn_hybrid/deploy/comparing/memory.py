"""How much memory one call of a model takes at its peak, beyond what was held before it.

On CUDA torch counts what its tensors take. On Linux the kernel keeps the largest resident set of the process
and can be told to start anew (`/proc/self/clear_refs`, see `man 5 proc`); memory that was freed is given back
first, since a heap that is already large would hide what a call needs. Elsewhere nothing is said.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

__all__ = ["held_by", "peak_growth"]

PROCESS = Path("/proc/self")
REPEATS = 3


def peak_growth(call: Callable[[], object], device: torch.device) -> tuple[int | None, str]:
    """Bytes that `call()` adds at its peak (the median of three), and how that was found or why not."""
    found = []
    for _ in range(REPEATS):
        grown, how = _on_cuda(call, device) if device.type == "cuda" else _resident(call, device)
        if grown is None:
            return None, how
        found.append(grown)
    return int(statistics.median(found)), how


def _on_cuda(call: Callable[[], object], device: torch.device) -> tuple[int | None, str]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before), "torch.cuda.max_memory_allocated"


def _resident(call: Callable[[], object], device: torch.device) -> tuple[int | None, str]:
    if device.type != "cpu":
        return None, f"no memory counter for {device.type}"
    with suppress(OSError, AttributeError):  # not the GNU C library: what was freed may stay resident
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before), "growth of the process's peak resident set"
    except (OSError, KeyError, ValueError):
        return None, "this system does not let a process reset its peak resident set"


def _status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = (PROCESS / "status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return 1024 * int(values[name].split()[0])


def held_by(prepare: Callable[[], object], device: torch.device) -> int:
    """Bytes of CUDA memory that `prepare()` takes and keeps: buffers, and what graphs have for themselves."""
    if device.type != "cuda":
        prepare()
        return 0
    before = torch.cuda.memory_allocated(device) + _of_graphs()
    prepare()
    torch.cuda.synchronize(device)
    gc.collect()
    return max(0, torch.cuda.memory_allocated(device) + _of_graphs() - before)


def _of_graphs() -> int:
    """Bytes reserved for graphs; torch counts them as allocated while something in them is in use."""
    pools = [
        segment for segment in torch.cuda.memory_snapshot() if tuple(segment["segment_pool_id"]) != (0, 0)
    ]
    return sum(int(segment["total_size"]) - int(segment["allocated_size"]) for segment in pools)
