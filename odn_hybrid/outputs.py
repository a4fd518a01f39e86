"""Recorded exit outputs: the logits of every exit on a split, and what they were recorded on.

Fitting, certifying, diagnosing and the theory pages all work from these arrays, so each network is run
over a split once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odn_hybrid.backbone import evaluating
from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit

__all__ = ["ExitRecord", "record_outputs", "runtime_on", "served", "weights_digest"]

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class ExitRecord:
    """Exit outputs on one split, in the split's order.

    Attributes:
        logits: (n, K, classes) float32.
        labels: (n,) int64.
        digest: digest of the split's images and labels.
        runtime: what computed them, see `runtime_on`.
        model: digest of the network they are of, see `weights_digest`.
    """

    logits: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    digest: str
    runtime: str = "eager fp32 cpu"
    model: str = ""

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n, K): whether each exit's most likely class is the label."""
        return self.logits.argmax(2) == self.labels[:, None]

    @property
    def outputs_digest(self) -> str:
        """Digest of logits and labels: which numbers a certificate speaks of."""
        h = hashlib.sha256(np.ascontiguousarray(self.logits).tobytes())
        h.update(np.ascontiguousarray(self.labels).tobytes())
        return h.hexdigest()

    def upto(self, exit: int) -> ExitRecord:
        """The record of exits 1..exit only."""
        return replace(self, logits=self.logits[:, :exit])

    def of(self, exits: Sequence[int]) -> ExitRecord:
        """The record of these exits only, numbered from 1."""
        return replace(self, logits=self.logits[:, [exit - 1 for exit in exits]])


class Sharing(Protocol):
    """Several processes that share a split; `training.devices.processes.Processes` is one."""

    rank: int
    count: int

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """`tensor` of process `source`, on the CPU; the others give one of its shape and dtype."""


@torch.no_grad()
def record_outputs(
    network: MultiExit,
    split: Split,
    preprocess: Preprocess,
    *,
    upto: int | None = None,
    workers: int = 0,
    sharing: Sharing | None = None,
    execution: Execution | None = None,
) -> ExitRecord:
    """Run exits 1..`upto` (default: all) over a split in evaluation mode.

    `execution` (default: eager, fp32) is how: `network` is as `served` gives it for that.

    With `sharing` each process runs some of the batches, and all get the whole record: batches are those of
    one process, so that nothing is padded, doubled or left out.
    """
    device = next(network.parameters()).device
    execution = execution or Execution()
    if execution.compile:
        raise ConfigError("outputs are recorded eagerly; compiled networks have last digits of their own")
    maps = network.trunk.layout(1).kind == "NCHW"
    rank, count = (0, 1) if sharing is None else (sharing.rank, sharing.count)
    exits = len(network) if upto is None else upto
    logits = np.empty((len(split), exits, network.trunk.num_classes), np.float32)
    starts = _starts(len(split), count)
    mine = replace(split, indices=split.indices[starts[rank] : starts[rank + 1]])
    done, size = starts[rank], EVALUATION_BATCH
    with evaluating(network), execution.casting(device):
        for images, _, _ in make_loader(mine, preprocess, batch_size=EVALUATION_BATCH, workers=workers):
            if maps:
                images = images.contiguous(memory_format=torch.channels_last)
            found, size = _in_parts(network, images.to(device), exits, size)
            logits[done : done + len(images)] = found
            done += len(images)
    if sharing is not None and count > 1:
        _exchange(logits, starts, sharing)
    return ExitRecord(
        logits,
        split.labels.astype(np.int64),
        split.digest,
        execution.name(device),
        weights_digest(network),
    )


def _in_parts(
    network: MultiExit, images: Tensor, exits: int, size: int
) -> tuple[npt.NDArray[np.float32], int]:
    """Logits (n, exits, classes) of a batch, `size` images at a time or what memory allows, and that size."""
    while True:
        try:
            parts = [network(part, exits) for part in images.split(size)]
            found = torch.cat([torch.stack([z.float() for z in part], dim=1) for part in parts])
            return found.cpu().numpy(), size
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2


def served(network: MultiExit, execution: Execution) -> MultiExit:
    """The network as `execution` runs it: itself, or a copy with batch normalisation folded."""
    if not execution.fold or network.folds:
        return network
    return network.copy().eval().fold()


def _starts(size: int, count: int) -> list[int]:
    """Where the part of each of `count` processes begins, in whole batches, and where the last one ends."""
    batches = -(-size // EVALUATION_BATCH)
    return [min(size, EVALUATION_BATCH * (rank * batches // count)) for rank in range(count + 1)]


def _exchange(logits: npt.NDArray[np.float32], starts: list[int], sharing: Sharing) -> None:
    """Fill in the rows of the other processes, a batch at a time."""
    for source in range(sharing.count):
        for start in range(starts[source], starts[source + 1], EVALUATION_BATCH):
            rows = logits[start : min(start + EVALUATION_BATCH, starts[source + 1])]
            rows[:] = sharing.broadcast(torch.from_numpy(rows), source).numpy()


def weights_digest(network: MultiExit) -> str:
    """sha256 over weights, their names, and the modules' classes and settings as they print them."""
    h = hashlib.sha256(f"{network.backbone!r}{network.heads!r}".encode())
    for name, value in sorted(network.state_dict().items()):
        h.update(name.encode())
        h.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()


def runtime_on(device: torch.device) -> str:
    """What computes in evaluation on `device`: a certificate speaks of one such runtime and precision."""
    return Execution().name(device)
