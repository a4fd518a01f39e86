"""One model as a server has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.deploy.halting.profit import SegmentTimes
from odn_hybrid.serve.scheduling import Lane
from odn_hybrid.serve.stages.protocol import Stages
from odn_hybrid.stopping import DriftMonitor

__all__ = ["KINDS", "Hosted", "Opened", "Transform"]

#: What can be served of a run: inputs halt; the reference for all; the static choice for all.
KINDS = ("dynamic", "full", "static")
#: Images as files hold them (uint8, height x width x channels, one or several) -> float32 (n, C, H, W).
Transform = Callable[[Any], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a folder holds, on the device, before it is measured.

    Attributes:
        kind: one of `KINDS`.
        digest: sha256 of what answers depend on: weights and policy.
        transform, labels: of the data that the model was fitted on, as far as they are known.
        certificate: what is promised; `void`: why it does not speak of these answers.
        drift: compares answers with those on the certification images.
    """

    stages: Stages
    kind: str
    digest: str
    transform: Transform | None = None
    labels: list[str] | None = None
    certificate: dict[str, Any] | None = None
    void: str | None = "there is no certificate"
    drift: DriftMonitor | None = None


@dataclass(eq=False)
class Hosted:
    """A model that is served.

    Attributes:
        version: 12 hexadecimal digits of the digest of weights and policy.
        times: as measured before it was opened.
        lane: where its requests go.
        transform, labels, certificate, void, drift: see `Opened`.
        path, how: what it was loaded from, and with which options, for loading it again.
    """

    name: str
    version: str
    kind: str
    stages: Stages
    times: SegmentTimes
    lane: Lane | None
    transform: Transform | None = None
    labels: list[str] | None = None
    certificate: dict[str, Any] | None = None
    void: str | None = "there is no certificate"
    drift: DriftMonitor | None = None
    path: Path | None = None
    how: dict[str, Any] = field(default_factory=dict)
