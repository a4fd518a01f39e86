"""A small network of random weights with exits, policies that part its inputs, and its export."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.exits import MultiExit
from odn_hybrid.stopping import Calibration, HaltingTable
from odn_hybrid.trunk import Trunk

SHAPE, CLASSES, EXITS = (3, 8, 8), 5, 3
#: Inputs this near to a threshold may be decided otherwise by another runtime.
NEAR = 1e-4


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm(self.conv(x))).relu()


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block() for _ in range(EXITS)))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


@cache
def network() -> MultiExit:
    """Three units, an exit after each; images of 3 x 8 x 8, five classes."""
    torch.manual_seed(0)
    found = MultiExit(Trunk(_Small(), image_size=SHAPE[1]))
    with torch.no_grad():
        for name, value in found.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.2)
            elif "fc" in name or "heads" in name:
                value.normal_(0.0, 0.8)
    return found.eval()


@cache
def images() -> Tensor:
    """Sixty-four images of different contrast."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(64, *SHAPE, generator=random) * torch.linspace(0.2, 3.0, 64)[:, None, None, None]


@cache
def logits() -> Any:
    """Of every exit, (64, 3, 5)."""
    with torch.no_grad():
        return torch.stack(network()(images()), dim=1).numpy()


def policy(
    score: str = "confidence", *, vector: bool = False, recall: bool = False, agree: bool = False
) -> HaltingTable:
    """A third of the inputs stop at each exit, more or less; with `agree`, sooner where the answer stays."""
    scale = Calibration.of_temperatures([1.0, 1.3, 0.8])
    if vector:
        random = np.random.default_rng(2)
        scale = Calibration(
            "vector", random.uniform(0.5, 1.5, (EXITS, CLASSES)), random.normal(0, 0.3, (EXITS, CLASSES))
        )
    kept = (0.0, -0.3, -0.2) if recall else None
    if score == "streak":
        return HaltingTable.of_thresholds([1.5] * EXITS, scale, score)
    plain = HaltingTable.of_thresholds([0.5] * EXITS, scale, score, recall=kept)
    edges = np.quantile(plain.scores(logits()), 0.66, axis=0)
    rows = tuple(
        (((float(edge),), (False, True)), ((float(edge) - (0.1 if agree else 0.0),), (False, True)))
        for edge in edges
    )
    return plain.replaced(rows=rows)


POLICIES: dict[str, dict[str, Any]] = {
    "confidence": {},
    "margin, vector": {"score": "margin", "vector": True},
    "entropy, agreement": {"score": "entropy", "agree": True},
    "streak": {"score": "streak"},
    "recall": {"score": "margin", "recall": True},
}


def model(**settings: Any) -> HaltingModel:
    """The network with `policy(**settings)`."""
    return HaltingModel(network(), policy(**settings))


def check_same(out: Any, wanted: Any) -> None:
    """A runner's answers against a model's."""
    np.testing.assert_array_equal(out.exit, wanted.exit.numpy())
    np.testing.assert_array_equal(out.answered, wanted.answered.numpy())
    np.testing.assert_array_equal(out.units_run, wanted.units_run.numpy())
    np.testing.assert_allclose(out.logits, wanted.logits.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(out.confidence, wanted.confidence.numpy(), rtol=0, atol=1e-5)


def copied(source: Path, target: Path) -> Path:
    """A copy of an export to spoil."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
