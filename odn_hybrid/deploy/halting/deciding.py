"""A halting table on the device: scores, edges and decisions as tensors, no copy to the host.

The same numbers as `stopping.HaltingTable.decide`: in float64, as policies are chosen, because float32 cannot
tell 1 - 1e-9 from 1, where confident networks live, and would halt other inputs than the certificate
speaks of. Some devices have float32 only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from odn_hybrid.stopping import HaltingTable

__all__ = ["Decider", "Memory"]


@dataclass(frozen=True)
class Memory:
    """What a policy remembers of the inputs still running, (batch,) each unless said otherwise.

    Attributes:
        logits: (batch, classes) of the answer so far; `exit`: whose it is; `confidence`: its calibrated
            probability.
        said: the latest exit's answer; `streak`: exits in a row that gave it.
        score: readiness to stop.
    """

    logits: Tensor
    exit: Tensor
    confidence: Tensor
    said: Tensor
    streak: Tensor
    score: Tensor

    def select(self, rows: Tensor) -> Memory:
        """Of some of the inputs."""
        return Memory(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class _Tensors:
    edges: Tensor  # (K, 2, E), filled up with infinity
    stops: Tensor  # (K, 2, E + 1)
    scales: Tensor  # (K, C) or (K, 1)
    shifts: Tensor


class Decider:
    """Looks at one exit after another and says which inputs stop there."""

    def __init__(self, table: HaltingTable) -> None:
        self.table = table
        self._on: dict[torch.device, _Tensors] = {}

    def look(self, number: int, answers: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Exit `number` (from 1, in order) gave logits `answers` (batch, classes): who stops, and memory."""
        held = self._tensors(answers.device)
        exact = answers.to(held.scales.dtype)
        said = answers.argmax(1)
        same = torch.zeros_like(said) if memory is None else (said == memory.said).long()
        streak = torch.ones_like(said) if memory is None else torch.where(same.bool(), memory.streak + 1, 1)
        share = (exact * held.scales[number - 1] + held.shifts[number - 1]).softmax(1)
        sure = share.gather(1, said[:, None])[:, 0]
        score = self._score(share, sure, said, streak)
        place = torch.full_like(said, number)
        now = Memory(answers, place, sure, said, streak, score)
        if self.table.recall is not None and memory is not None:
            now = _recalled(memory, now, self.table.recall[number - 1])
        edges, stops = held.edges[number - 1][same], held.stops[number - 1][same]
        interval = (now.score[:, None] >= edges).sum(1, keepdim=True)
        return stops.gather(1, interval)[:, 0], now

    def _score(self, share: Tensor, sure: Tensor, said: Tensor, streak: Tensor) -> Tensor:
        kind, classes = self.table.score, share.shape[1]
        if kind == "confidence":
            return sure
        if kind == "streak":
            return streak.to(sure.dtype)
        if classes == 1:
            return torch.ones_like(sure)
        if kind == "margin":
            return sure - share.scatter(1, said[:, None], 0.0).amax(1)
        return 1 - torch.special.entr(share).sum(1) / math.log(classes)

    def _tensors(self, device: torch.device) -> _Tensors:
        if device not in self._on:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            most = max(len(edges) for row in self.table.rows for edges, _ in row)
            edges = np.full((len(self.table), 2, most), np.inf)
            stops = np.zeros((len(self.table), 2, most + 1), dtype=bool)
            for exit, row in enumerate(self.table.rows):
                for group, (values, decisions) in enumerate(row):
                    edges[exit, group, : len(values)] = values
                    stops[exit, group, : len(decisions)] = decisions
            calibration = self.table.calibration
            self._on[device] = _Tensors(
                torch.tensor(edges, dtype=dtype, device=device),
                torch.tensor(stops, device=device),
                torch.tensor(calibration.scales, dtype=dtype, device=device),
                torch.tensor(calibration.shifts, dtype=dtype, device=device),
            )
        return self._on[device]

    def __deepcopy__(self, memo: object) -> Decider:
        return Decider(self.table)  # tensors are made again where they are needed


def _recalled(before: Memory, now: Memory, handicap: float) -> Memory:
    keeps = before.confidence - now.confidence >= handicap
    return replace(
        now,
        logits=torch.where(keeps[:, None], before.logits, now.logits),
        exit=torch.where(keeps, before.exit, now.exit),
        confidence=torch.where(keeps, before.confidence, now.confidence),
        score=torch.where(keeps, before.score, now.score),
    )
