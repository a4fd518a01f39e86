"""Who wants to know what the engine does."""

from __future__ import annotations

from typing import Protocol

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.refusals import Refusal

__all__ = ["Observer", "Silent"]


class Observer(Protocol):
    """Told on the device thread or a submitter's: what it does must be quick, and never raise."""

    def stepped(self, model: str, segment: int, batch: int, seconds: float) -> None:
        """A segment (from 0) ran on `batch` inputs."""

    def answered(self, model: str, output: RunnerOutput, seconds: float) -> None:
        """A request has its answer, `seconds` after it arrived."""

    def refused(self, model: str, why: type[Refusal]) -> None:
        """A request gets none."""


class Silent:
    """Tells nobody."""

    def stepped(self, model: str, segment: int, batch: int, seconds: float) -> None:
        """See `Observer`."""

    def answered(self, model: str, output: RunnerOutput, seconds: float) -> None:
        """See `Observer`."""

    def refused(self, model: str, why: type[Refusal]) -> None:
        """See `Observer`."""
