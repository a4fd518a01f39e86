"""Is a model fit to serve? It is measured, and asked once, before anybody else may ask it."""

from __future__ import annotations

import numpy as np

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.errors import ModelError, OdnError
from odn_hybrid.serve.stages.protocol import Stages
from odn_hybrid.stopping import Seen

__all__ = ["made_ready"]


def made_ready(stages: Stages, largest: int) -> SegmentTimes:
    """Warm up and measure `stages` for batches up to `largest`, and run two images to the last exit.

    Raises `ModelError`, or the model's own `OdnError`, for one that fails or gives no numbers; it is closed.
    """
    try:
        times = stages.measure(largest)
        _try(stages, min(2, largest))
        return times
    except BaseException as error:
        stages.close()
        if isinstance(error, OdnError) or not isinstance(error, Exception):
            raise
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"the model cannot be run: {what}") from error


def _try(stages: Stages, count: int) -> None:
    held = stages.enter(np.zeros((count, *stages.image_shape), dtype=np.float32))
    held = stages.gather([(held, np.arange(count, dtype=np.intp))], 0)
    seen: Seen | None = None
    for segment, number in enumerate(stages.numbers):
        held, logits = stages.step(segment, held)
        if logits.shape != (count, stages.classes) or logits.dtype != np.float32:
            raise ModelError(
                f"exit {stages.exits[number - 1]} gives {logits.dtype} of shape {logits.shape}; expected "
                f"float32 ({count}, {stages.classes})"
            )
        if not np.isfinite(logits).all():
            raise ModelError(
                f"exit {stages.exits[number - 1]} gives NaN or infinite logits for a black image"
            )
        _, seen = stages.looker.look(number, logits, seen)
