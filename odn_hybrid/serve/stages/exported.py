"""An exported halting model in segments: onnxruntime's sessions and numpy, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.runner.running import SegmentsRunner
from odn_hybrid.serve.stages.measuring import measured_times
from odn_hybrid.serve.stages.protocol import Held
from odn_hybrid.serve.stages.rows import Rows, gathered, shares_of
from odn_hybrid.stopping import Looker

__all__ = ["ExportedStages"]


class ExportedStages:
    """Segments of a `SegmentsRunner`; see `Stages`.

    Args:
        runner: of an export in the format "onnx-segments".
        shares: of inputs that reach each segment; default: as if equally many stopped at each exit, which is
            all that an export tells.
    """

    def __init__(self, runner: SegmentsRunner, shares: Sequence[float] | None = None) -> None:
        manifest = runner.manifest
        self._sessions = list(runner.sessions)
        self._void = runner.void
        self.looker = Looker(manifest.policy)
        self.numbers = tuple(session.graph.look for session in self._sessions)
        self.exits, self.units = manifest.exits, manifest.units
        self.image_shape, self.classes = manifest.image_shape, manifest.classes
        self.shares = tuple(shares_of(self.numbers, None) if shares is None else shares)
        self.runtime = runner.runtime

    @property
    def certified(self) -> bool:
        """Whether the certificate was earned on this runtime, for these graphs."""
        return self._void is None

    def enter(self, images: NDArray[np.float32]) -> Held:
        """See `Stages`."""
        return [np.ascontiguousarray(images, dtype=np.float32)]

    def gather(self, parts: Sequence[tuple[Held, Rows]], segment: int) -> Held:
        """See `Stages`."""
        tensors = zip(*(arrays for arrays, _ in parts), strict=True)
        wanted = [rows for _, rows in parts]
        return [gathered(list(zip(arrays, wanted, strict=True))) for arrays in tensors]

    def step(self, segment: int, held: Held) -> tuple[Held, NDArray[np.float32]]:
        """See `Stages`."""
        logits, *after = self._sessions[segment](*held)
        return after, logits

    def measure(self, largest: int) -> SegmentTimes:
        """See `Stages`."""
        return measured_times(self, largest, "cpu")

    def close(self) -> None:
        """See `Stages`."""
        self._sessions = []
