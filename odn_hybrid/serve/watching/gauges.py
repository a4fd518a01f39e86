"""What is read when Prometheus asks: queues, models, certificates, drift."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from odn_hybrid.serve.hosting.hosted import Hosted
from odn_hybrid.serve.watching.drifting import Drifting
from odn_hybrid.serve.watching.metrics import Gauge

__all__ = ["Read", "certificate_state", "gauges"]


class Read(Protocol):
    """Where gauges are read from, a `Watch`."""

    drifting: Drifting
    lost: Counter[str]

    @property
    def ready(self) -> bool:
        """Whether models are loaded and warm."""

    def models(self) -> list[Hosted]:
        """Those served."""

    def queues(self) -> dict[tuple[str, int], int]:
        """Images that wait, by model and segment."""


def gauges(watch: Read) -> Iterable[Gauge]:
    """All of them, as they are now."""
    models = watch.models()
    yield "odn_ready", "Whether models are loaded and warm.", (), [((), float(watch.ready))]
    yield (
        "odn_queue_images",
        "Images that wait before a segment (from 0).",
        ("model", "segment"),
        [((name, str(segment)), float(count)) for (name, segment), count in watch.queues().items()],
    )
    yield (
        "odn_model_info",
        "1 for each model that is served.",
        ("model", "version", "kind", "runtime"),
        [((m.name, m.version, m.kind, m.stages.runtime), 1.0) for m in models],
    )
    yield (
        "odn_certificate_speaks",
        "1 where the certificate speaks of the answers; 0: void, or none.",
        ("model", "drop", "delta"),
        [((m.name, *_promised(m)), float(certificate_state(m) == "speaks")) for m in models],
    )
    yield from _drift(watch, models)
    yield (
        "odn_log_lines_lost_total",
        "Log lines that could not be written.",
        ("why",),
        [((why,), float(count)) for why, count in list(watch.lost.items())],
    )


def _drift(watch: Read, models: list[Hosted]) -> Iterable[Gauge]:
    states = [((m.name,), state) for m in models if (state := watch.drifting.state(m)) is not None]

    def gauge(name: str, text: str, field: str) -> Gauge:
        rows = [(labels, float(getattr(state, field))) for labels, state in states]
        return f"odn_drift_{name}", text, ("model",), rows

    yield gauge("alarm", "1 from an alarm on, until the model is loaded anew.", "alarm")
    yield gauge("evidence", "Evidence of drift now; an alarm at odn_drift_limit.", "statistic")
    yield gauge("limit", "Evidence at which there is an alarm.", "limit")
    yield gauge("inputs", "Inputs that the drift monitor has seen.", "seen")


def certificate_state(hosted: Hosted) -> str:
    """One word: "speaks", "void" (there is one, of something else), "none" (also where it was refused)."""
    if hosted.certificate is None or hosted.certificate.get("certified") is not True:
        return "none"
    return "speaks" if hosted.void is None else "void"


def _promised(hosted: Hosted) -> tuple[str, str]:
    """What the certificate promises, as labels; empty where there is none."""
    if hosted.certificate is None or certificate_state(hosted) == "none":
        return "", ""
    return f"{hosted.certificate['drop']:g}", f"{hosted.certificate['delta']:g}"
