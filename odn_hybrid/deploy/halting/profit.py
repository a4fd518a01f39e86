"""Whether gathering the survivors pays: copying them costs time, and a smaller batch saves some.

Once segment times are measured on the device at hand, the answer is a comparison of times; before that,
survivors are gathered when a tenth of the batch has left. A profit test like that of DREX (2025).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from odn_hybrid.errors import ConfigError

__all__ = ["Gathering", "SegmentTimes"]

WORTH_GATHERING = 0.1


@dataclass(frozen=True)
class SegmentTimes:
    """Seconds by batch size on one device.

    Attributes:
        sizes: (S,) batch sizes, ascending.
        segments: (P, S) of each segment with its head and its decision.
        gathers: (P, S) of copying that many survivors after each segment; 0 after the last.
        device, form: where and how they were measured.
    """

    sizes: tuple[int, ...]
    segments: tuple[tuple[float, ...], ...]
    gathers: tuple[tuple[float, ...], ...]
    device: str
    form: str

    def __post_init__(self) -> None:
        # A larger batch never takes less: what says so is noise.
        for name in ("segments", "gathers"):
            risen = tuple(tuple(np.maximum.accumulate(row).tolist()) for row in getattr(self, name))
            object.__setattr__(self, name, risen)

    def segment(self, index: int, batch: float) -> float:
        """Seconds of segment `index` (from 0) on `batch` inputs: linear between sizes."""
        return _between(self.sizes, self.segments[index], batch)

    def gather(self, index: int, batch: float) -> float:
        """Seconds to copy `batch` survivors after segment `index`."""
        return _between(self.sizes, self.gathers[index], batch)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "sizes": list(self.sizes),
            "segments": [list(row) for row in self.segments],
            "gathers": [list(row) for row in self.gathers],
            "device": self.device,
            "form": self.form,
        }


def _between(sizes: Sequence[int], seconds: Sequence[float], batch: float) -> float:
    """Seconds at a batch size: interpolated, and in proportion beyond the sizes measured."""
    if batch >= sizes[-1]:
        return seconds[-1] * batch / sizes[-1]
    if batch <= sizes[0]:
        return seconds[0]
    above = bisect_right(sizes, batch)  # in plain numbers: asked after every segment, numpy's costs more
    share = (batch - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
    return seconds[above - 1] + share * (seconds[above] - seconds[above - 1])


class Gathering:
    """Decides whether survivors move to a smaller batch.

    Args:
        gather: "always"; or "auto": by measured times where there are any, else when a tenth has left.

    Attributes:
        times: what was measured, or None.

    Raises:
        ConfigError: another word.
    """

    def __init__(self, gather: str) -> None:
        if gather not in ("always", "auto"):
            raise ConfigError(f"gather is {gather!r}; choose 'always' or 'auto'")
        self.gather = gather
        self.times: SegmentTimes | None = None

    def __call__(self, segment: int, here: int, left: int) -> bool:
        """Whether to gather the `left` of `here` rows after segment number `segment` (from 0)."""
        if self.gather == "always":
            return True
        times = self.times
        if times is None:
            return here - left >= WORTH_GATHERING * here
        saved = times.segment(segment + 1, here) - times.segment(segment + 1, left)
        return saved > times.gather(segment, left)
