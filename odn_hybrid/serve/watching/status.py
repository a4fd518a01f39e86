"""What the status page shows, as data for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from odn_hybrid._version import __version__
from odn_hybrid.serve.watching.gauges import certificate_state
from odn_hybrid.serve.watching.metrics import resident_bytes
from odn_hybrid.serve.watching.rolling import SECONDS
from odn_hybrid.serve.watching.watch import Watch

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["status"]


def status(watch: Watch) -> dict[str, Any]:
    """The server and its models; rates, latencies, exits and refusals are those of the last minute."""
    queues = watch.queues()
    return {
        "version": __version__,
        "ready": watch.ready,
        "uptime_s": round(watch.clock() - watch.begun, 1),
        "window_s": SECONDS,
        "rss_bytes": resident_bytes(watch.metrics),
        "log_lines_lost": sum(watch.lost.values()),
        "models": [_model(watch, hosted, queues) for hosted in watch.models()],
    }


def _model(watch: Watch, hosted: Hosted, queues: dict[tuple[str, int], int]) -> dict[str, Any]:
    last, stages = watch.last(hosted.name), hosted.stages
    units = dict(zip(stages.exits, stages.units, strict=True))
    return {
        "name": hosted.name,
        "version": hosted.version,
        "kind": hosted.kind,
        "runtime": stages.runtime,
        "certificate": _certificate(hosted),
        "drift": _drift(watch, hosted),
        "requests_per_s": round(last.requests / last.seconds, 2),
        "images_per_s": round(last.images / last.seconds, 2),
        "requests": last.requests,
        "images": last.images,
        "certified_images": last.certified,
        "p50_ms": _ms(last.percentile(0.5)),
        "p99_ms": _ms(last.percentile(0.99)),
        "mean_units": round(last.units / last.images, 2) if last.images else None,
        "most_units": stages.units[-1],
        # Exits of a version that was replaced within this minute stay visible, without their units.
        "exits": [
            {"exit": exit, "units": units.get(exit), "images": last.exits.get(exit, 0)}
            for exit in sorted({*units, *last.exits})
        ],
        "queue": [
            {
                "segment": place,
                "exit": stages.exits[number - 1],
                "images": queues.get((hosted.name, place), 0),
            }
            for place, number in enumerate(stages.numbers)
        ],
        "refused": dict(sorted(last.refused.items())),
    }


def _certificate(hosted: Hosted) -> dict[str, Any]:
    found = hosted.certificate or {}
    state = certificate_state(hosted)
    return {
        "state": state,
        "statement": found.get("statement"),
        "why": None if state == "speaks" else hosted.void or "there is no certificate",
        "drop": found.get("drop"),
        "delta": found.get("delta"),
    }


def _drift(watch: Watch, hosted: Hosted) -> dict[str, Any]:
    state = watch.drifting.state(hosted)
    if state is None:
        why = (
            "there is no promise that drift could break"
            if certificate_state(hosted) != "speaks"
            else "the model was saved without the statistics of its certification images"
        )
        return {"state": "unwatched", "sentence": why}
    return {
        "state": "alarm" if state.alarm else "watching",
        "sentence": state.sentence,
        "seen": state.seen,
        "evidence": state.statistic,
        "limit": state.limit,
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{1e3 * seconds:.3g}")
