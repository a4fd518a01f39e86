"""An exported halting model against the network that it was made from: logits, and exits taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odn_hybrid.backbone import evaluating
from odn_hybrid.deploy.export.graphs import BATCHES, difference
from odn_hybrid.errors import ExportError, InputError
from odn_hybrid.exits import MultiExit
from odn_hybrid.runner.loading import open_export
from odn_hybrid.runner.manifest import Manifest
from odn_hybrid.runner.running import HaltingRunner, SegmentsRunner
from odn_hybrid.stopping import HaltingTable

__all__ = ["NEAR", "TOLERANCE", "check_export", "distances", "exit_logits"]

#: Of logits, relative to the largest where that exceeds 1.
TOLERANCE = 1e-5
#: Nearer to a threshold than this, the last digits decide.
NEAR = 1e-4


@torch.no_grad()
def exit_logits(network: MultiExit, runner: HaltingRunner, images: Tensor) -> NDArray[np.float32]:
    """The network's logits (n, P, classes) at the policy's exits; 0 where the policy never looks."""
    manifest = runner.manifest
    found = np.zeros((len(images), len(manifest.exits), manifest.classes), dtype=np.float32)
    with evaluating(network):
        for exit, state in network.states(images, manifest.exits[-1]):
            place = manifest.exits.index(exit) if exit in manifest.exits else -1
            if place + 1 in manifest.policy.needed:
                found[:, place] = network.classify(exit, state).numpy()
    return found


def distances(
    policy: HaltingTable, logits: NDArray[Any], taken: NDArray[Any], other: NDArray[Any]
) -> NDArray[np.float64]:
    """How far inputs are from being decided otherwise where two runtimes parted, (n,).

    The distance of the score from the nearest threshold at the earlier of the exits `taken` and `other` (n,),
    numbered in the policy; or half that between the two largest logits up to there, since the answers'
    agreement, the handicaps of recall and scores that count agreeing exits may turn on that.
    """
    scores = policy.scores(logits)
    found = np.empty(len(logits))
    for row, last in enumerate(np.minimum(taken, other)):
        edges = {edge for edges, _ in policy.rows[last - 1] for edge in edges}
        gaps = [abs(float(scores[row, last - 1]) - edge) for edge in edges]
        if logits.shape[2] > 1:
            two = np.sort(logits[row, :last].astype(np.float64), axis=1)[:, -2:]
            gaps.append(float((two[:, 1] - two[:, 0]).min()) / 2)
        found[row] = min(gaps, default=np.inf)
    return found


def check_export(
    folder: Path,
    manifest: Manifest,
    network: MultiExit,
    *,
    images: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Run what was written at several batch sizes beside the network; what was found, for the manifest.

    Raises `ExportError` where logits differ by more than `tolerance`, or exits at inputs that no threshold is
    near.
    """
    runner = open_export(folder, manifest, torch.get_num_threads())
    policy, exits = runner.manifest.policy, np.array(runner.manifest.exits)
    worst, compared, moved = 0.0, 0, 0
    for given in _batches(runner, images):
        wanted, out = exit_logits(network, runner, given), runner(given.numpy())
        taken, answered = policy.decide(wanted)
        own = np.arange(len(given))
        parted = np.flatnonzero(out.exit != exits[taken - 1])
        if parted.size:
            found = np.searchsorted(exits, out.exit[parted]) + 1
            gap = float(distances(policy, wanted[parted], taken[parted], found).max())
            if not gap <= NEAR:
                raise ExportError(
                    f"not exported: an input halts at another exit than in the model, {gap:.2g} from the "
                    "nearest threshold"
                )
        moved += len(parted)
        compared += len(given)
        alike = np.setdiff1d(own, parted)
        worst = max(
            worst, difference(out.logits[alike], torch.from_numpy(wanted[alike, answered[alike] - 1]))
        )
        if isinstance(runner, SegmentsRunner):
            worst = max(worst, difference(runner.every_exit(given.numpy()), torch.from_numpy(wanted)))
        if not worst <= tolerance:
            raise ExportError(
                f"not exported: logits differ by {worst:.2g} from the model's at batch {len(given)}, "
                f"allowed are {tolerance:.2g}; a network that amplifies rounding may be given a larger "
                "tolerance="
            )
    return {"images": compared, "largest_difference": worst, "other_exits": moved}


def _batches(runner: HaltingRunner, images: Tensor | None) -> list[Tensor]:
    """The images to compare on, in batches of several sizes."""
    shape = runner.manifest.image_shape
    if images is None:
        images = torch.randn(sum(BATCHES), *shape, generator=torch.Generator().manual_seed(1))
    if (
        not isinstance(images, Tensor)
        or images.dim() != 4
        or tuple(images.shape[1:]) != shape
        or not len(images)
    ):
        raise InputError(f"images to compare on must be a tensor (n, {', '.join(map(str, shape))}), n from 1")
    found, start, sizes = [], 0, [*BATCHES]
    images = images.detach().float().cpu()
    while start < len(images):
        size = sizes.pop(0) if sizes else BATCHES[-1]
        found.append(images[start : start + size])
        start += size
    return found
