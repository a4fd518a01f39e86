"""What serve_load.py compares: a run's images and the servers of its models, ours and other people's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load_servers import Server
from load_simulated import Device, write_simulated
from numpy.typing import NDArray

import odn_hybrid as odn
from odn_hybrid.data import make_loader
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.outputs import record_outputs, served
from odn_hybrid.run import Run
from odn_hybrid.serve.hosting.runs import dynamic_of_run
from odn_hybrid.serve.stages.simulated import numbered_images

__all__ = ["OURS", "PEERS", "Subjects", "real_subjects", "simulated_subjects"]

HERE = Path(__file__).resolve().parent
OURS = ("full", "static", "dynamic")
PEERS = ("litserve", "ray")
NAME = "model"


@dataclass(frozen=True)
class Subjects:
    """What takes part.

    Attributes:
        servers: by name, "full" first.
        images: .npy file of what is sent.
        labels: (n,) of the images.
        told: for the record.
    """

    servers: dict[str, Server]
    images: Path
    labels: NDArray[np.int64]
    told: dict[str, Any]


def real_subjects(
    path: Path, data: str, folder: Path, count: int, peers: Sequence[str], dynamic: Path | None = None
) -> Subjects:
    """The run's own models on this machine.

    Args:
        path: a finished fit.
        data: its data set.
        folder: for files that the servers and the generator read.
        count: test images.
        peers: servers of other people, with the full model.
        dynamic: a saved halting model in place of the run's own.
    """
    run, labels, images = _images(path, data, folder, count)
    wire = {"v2": {"model": NAME, "input": "images"}}
    odn_serve = (sys.executable, "-m", "odn_hybrid.cli", "serve")
    paths = {"dynamic": dynamic or path}
    servers = {
        kind: Server(
            kind,
            (*odn_serve, f"{NAME}={paths.get(kind, path)}", "--kind", kind, "--threads", "1"),
            wire,
        )
        for kind in OURS
    }
    model = truncate(run.network, reference_of(run), run.parts.spec, fold=run.execution_.fold)
    odn.save(model, folder / "full")
    raw = {"raw": {"path": "/predict", "classes": run.network.trunk.num_classes}}
    for peer in peers:
        program = str(HERE / "load_peers.py")
        command = (sys.executable, program, peer, "--model", str(folder / "full"))
        ready = "/health" if peer == "litserve" else "/predict"
        servers[peer] = Server(peer, command, raw, ready=ready, tells=False)
    found = odn.load(dynamic) if dynamic else dynamic_of_run(run)
    certificate = found.certificate or {}
    costs = run.parts.costs
    told = {
        "fit": {key: run.report_[key] for key in ("model", "reference", "static")},
        "macs": {
            "full": costs.static(reference_of(run)),
            "static": costs.static(run.depth_["exit"]),
            "dynamic_by_exit": dict(zip(map(str, found.looked), costs.passing(found.looked), strict=True)),
        },
        "certificate": {
            name: certificate.get(name) for name in ("certified", "statement", "drop", "asked_delta", "n")
        }
        | {"void": found.void},
        "images": len(labels),
    }
    return Subjects(servers, images, labels, told)


def simulated_subjects(path: Path, data: str, folder: Path, count: int, device: Device) -> Subjects:
    """The run's recorded answers on a device whose times come from a table."""
    run, labels, _ = _images(path, data, folder, count)
    execution = run.execution_
    split = run.data.splits["test"]  # type: ignore[union-attr]
    record = record_outputs(
        served(run.network, execution), split.subset(count), run.transform, execution=execution
    )
    tables = write_simulated(run, record, device, folder)
    np.save(folder / "numbers.npy", numbered_images(range(len(labels))))
    wire = {"v2": {"model": NAME, "input": "images"}}
    program = str(HERE / "load_simulated_server.py")
    servers = {
        kind: Server(kind, (sys.executable, program, "--folder", str(folder), "--kind", kind), wire)
        for kind in OURS
    }
    told = {
        "fit": {key: run.report_[key] for key in ("model", "reference", "static")},
        "device": device.to_dict(),
        "tables": tables,
        "images": len(labels),
    }
    return Subjects(servers, folder / "numbers.npy", labels, told)


def reference_of(run: Run) -> int:
    """The exit that is the full model."""
    return int(run.report_["reference"]["exit"])


def _images(path: Path, data: str, folder: Path, count: int) -> tuple[Run, NDArray[np.int64], Path]:
    """The run, labels of its first test images, and the file where these stand as models take them."""
    run: Run = odn.load(path)
    run.use_data(data)
    assert run.data is not None
    split = run.data.splits["test"]
    found = [part[:2] for part in make_loader(split.subset(count), run.transform, batch_size=250)]
    images = np.concatenate([images.numpy() for images, _ in found])
    labels = np.concatenate([labels.numpy() for _, labels in found])
    np.save(folder / "images.npy", images)
    return run, labels, folder / "images.npy"
