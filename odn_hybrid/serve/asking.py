"""What may be asked of one request."""

from __future__ import annotations

import math
from dataclasses import dataclass

from odn_hybrid.serve.refusals import BadRequest

__all__ = ["Options"]

LONGEST = 3_600_000.0  # milliseconds


@dataclass(frozen=True, kw_only=True)
class Options:
    """A request's own wishes; an answer on which one of them had an influence is not certified.

    Attributes:
        max_depth: units to run at most: the deepest exit within them answers, if no earlier one does.
        min_confidence: calibrated probability (0 to 1) below which an answer is not final: the input goes on,
            to the last exit if need be, where it gets the answer there is.
        deadline_ms: milliseconds from the request's arrival after which the answer is of no use. An input
            that has passed an exit by then gets that exit's answer; one that has not is refused.

    Raises:
        BadRequest: out of range.
    """

    max_depth: int | None = None
    min_confidence: float | None = None
    deadline_ms: float | None = None

    def __post_init__(self) -> None:
        depth, sure, late = self.max_depth, self.min_confidence, self.deadline_ms
        if depth is not None and (type(depth) is not int or depth < 1):
            raise BadRequest(f"max_depth is {depth!r}; it must be a whole number of units from 1")
        if sure is not None and not (_number(sure) and 0 <= sure <= 1):
            raise BadRequest(f"min_confidence is {sure!r}; it must be from 0 to 1")
        if late is not None and not (_number(late) and 0 < late <= LONGEST):
            raise BadRequest(f"deadline_ms is {late!r}; it must be above 0 and at most {LONGEST:g}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
