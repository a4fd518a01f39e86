"""The numerical check of one model: what a trace promises, seen in real numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from odn_hybrid.errors import ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import Trunk

__all__ = ["PART", "RESUMED", "Evidence", "enliven", "examine"]

#: What the resumed run and a part of the batch may differ by, relative to max(1, largest logit).
RESUMED = 1e-5
PART = 1e-4
#: What logits of different images must differ by at least: with less, the check would see little.
SPREAD = 1e-2


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the numerical check of one model measured.

    Attributes:
        resumed: largest difference of the logits between a run that stops after every unit and the forward.
        part: the same between images run without the others (rows [1] and [0, 2] of 3) and the forward.
        unreached: units with parameters to which the exits' logits gave no finite gradient other than zero.
        spread: largest difference of a logit between two images; at least 100 tolerances, or the numbers
            above say little.

    Differences are relative to max(1, largest logit).
    """

    resumed: float
    part: float
    unreached: tuple[str, ...]
    spread: float

    @property
    def failure(self) -> str:
        """What is wrong, in words; empty if nothing is."""
        if not self.resumed <= RESUMED:
            return f"the resumed run differs from the forward by {self.resumed:.1e} (at most {RESUMED:.0e})"
        if not self.part <= PART:
            return f"a part of the batch differs from the whole by {self.part:.1e} (at most {PART:.0e})"
        if not self.spread >= SPREAD:
            return f"not proved: all images get the same logits (within {self.spread:.1e})"
        if self.unreached:
            return f"no gradient reaches {len(self.unreached)} units, the first is {self.unreached[0]!r}"
        return ""


@torch.no_grad()
def enliven(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give a fresh model, in place, weights with which every unit changes the logits.

    Fresh networks are near-identities: last norms are zero, layer scales 1e-6, so that a wrong resumed run
    would hardly show. Scales are drawn from [0.3, 1); everything else is moved by 0.02 of noise.
    """
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() <= 1 and not name.endswith("bias"):
            parameter.uniform_(0.3, 1.0, generator=random)
        else:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    return model


def examine(model: nn.Module, image_size: tuple[int, int]) -> Evidence:
    """Run the check on a model with random weights; they are changed (`enliven`).

    Raises `ModelError` where `Trunk` refuses, or where the numbers are not finite.
    """
    enliven(model.eval())
    trunk = Trunk(model, image_size=image_size)
    images = _images(trunk.image_shape)
    _settle_norms(model, images)
    with torch.no_grad():
        whole = model(images)
        if not bool(whole.isfinite().all()):
            raise ModelError(f"{type(model).__name__} with random weights gives logits that are not finite")
        resumed = _distance(_resumed(trunk, images), whole, whole)
        parts = [torch.tensor([1]), torch.tensor([0, 2])]
        part = max(_distance(_resumed(trunk, images, rows), whole[rows], whole) for rows in parts)
    return Evidence(
        resumed=resumed,
        part=part,
        unreached=_unreached(trunk, images[:2]),
        spread=_distance(whole[:1].expand_as(whole), whole, whole),
    )


def _images(shape: tuple[int, int, int]) -> Tensor:
    """Three images (3, channels, height, width) that differ in colour too: noise alone averages out."""
    random = torch.Generator().manual_seed(0)
    colour = torch.randn(3, shape[0], 1, 1, generator=random)
    return colour + torch.randn(3, *shape, generator=random)


@torch.no_grad()
def _settle_norms(model: nn.Module, images: Tensor) -> None:
    """Take batch norms' statistics from `images`: with fresh ones a deep network's numbers grow or vanish."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()


def _resumed(trunk: Trunk, images: Tensor, rows: Tensor | None = None) -> Tensor:
    """Logits of a run stopped and resumed after every unit; of some rows, chosen after the stem, if given."""
    state = trunk.stem(images)
    state = state if rows is None else state.select(rows)
    for depth in range(len(trunk)):
        state = trunk.run(state, depth, depth + 1)
    return trunk.tail(state)


def _distance(left: Tensor, right: Tensor, scale: Tensor) -> float:
    return float((left - right).abs().max()) / max(1.0, float(scale.abs().max()))


def _unreached(trunk: Trunk, images: Tensor) -> tuple[str, ...]:
    network = MultiExit(trunk).eval()
    loss = sum((logits.square().sum() for logits in network(images)), torch.zeros(()))
    loss.backward()
    missed = []
    for unit in trunk.unit_names:
        parameters = [p for name in unit for p in trunk.model.get_submodule(name).parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if parameters and not any(bool(g.isfinite().all()) and bool(g.any()) for g in gradients):
            missed.append(unit[0])
    return tuple(missed)
