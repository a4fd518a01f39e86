"""Energy counters: NVML's of an NVIDIA GPU, RAPL's of Intel and AMD processors under Linux.

Both count what the whole device used, idle power and other programs included.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

__all__ = ["Meter", "joules", "meter_of"]

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """An energy counter."""

    name: str
    seconds: float  # how long one reading must last, since the counter moves in steps

    def used(self, call: Callable[[], object]) -> float:
        """Joules used while `call()` runs."""


class Rapl:
    """The sum over processor packages; microjoules that wrap at a known value."""

    seconds = 0.5

    def __init__(self, packages: list[Path]) -> None:
        self.packages = packages
        self.ranges = [int((p / "max_energy_range_uj").read_text()) for p in packages]
        self.name = f"RAPL, {len(packages)} processor package{'s' if len(packages) > 1 else ''}"
        self._read()

    def _read(self) -> list[int]:
        return [int((package / "energy_uj").read_text()) for package in self.packages]

    def used(self, call: Callable[[], object]) -> float:
        """See `Meter`."""
        before = self._read()
        call()
        pairs = zip(self._read(), before, self.ranges, strict=True)
        return sum((after - first) % (most + 1) for after, first, most in pairs) / 1e6


class Nvml:
    """One GPU's counter since its driver was loaded, in millijoules; it moves about ten times a second."""

    seconds = 2.0

    def __init__(self, device: torch.device) -> None:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        self._nvml, self._device = pynvml, device
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        self.name = "NVML, the whole GPU"
        self._read()

    def _read(self) -> int:
        torch.cuda.synchronize(self._device)
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def used(self, call: Callable[[], object]) -> float:
        """See `Meter`."""
        before = self._read()
        call()
        return (self._read() - before) / 1e3


def meter_of(device: torch.device) -> tuple[Meter | None, str]:
    """The device's energy counter and its name; without one None and why."""
    if device.type == "cuda":
        return _nvml(device)
    if device.type != "cpu":
        return None, f"no energy counter is known for {device.type}"
    packages = sorted(p for p in POWERCAP.glob("*-rapl:*") if _is_package(p)) if POWERCAP.is_dir() else []
    if not packages:
        return None, f"no RAPL counters under {POWERCAP}"
    try:
        meter = Rapl(packages)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        return None, f"RAPL's counters cannot be read ({why}); they usually need root"
    return meter, meter.name


def _is_package(folder: Path) -> bool:
    try:
        return (folder / "name").read_text().startswith("package")
    except OSError:
        return False


def _nvml(device: torch.device) -> tuple[Meter | None, str]:
    try:
        meter = Nvml(device)
    except ImportError:
        return None, "nvidia-ml-py is not installed: pip install 'odn-hybrid[energy]'"
    except Exception as error:  # NVMLError is made at run time, one class per code: driver, MIG, old GPU
        return None, f"NVML gives no energy here ({' '.join(str(error).split())[:100]})"
    return meter, meter.name


def joules(meter: Meter, turns: dict[str, tuple[Callable[[], object], int]]) -> dict[str, float]:
    """Joules per image of each of `turns` (a pass, and how many images it takes).

    Each is repeated for `meter.seconds`, first in this order and then in reverse, so that a device that
    warms up treats all alike.
    """
    used, images = dict.fromkeys(turns, 0.0), dict.fromkeys(turns, 0)

    def repeat(call: Callable[[], object], done: list[Any]) -> None:
        until = time.perf_counter() + meter.seconds
        while not done or time.perf_counter() < until:
            call()
            done.append(None)

    for name in [*turns, *reversed(turns)]:
        call, size = turns[name]
        done: list[Any] = []
        used[name] += meter.used(lambda c=call, d=done: repeat(c, d))  # type: ignore[misc]
        images[name] += size * len(done)
    return {name: used[name] / images[name] for name in turns}
