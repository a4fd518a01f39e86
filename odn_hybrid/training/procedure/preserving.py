"""Units that start as the identity, so that going deeper starts from what is known already.

Many of timm's networks are built so: in its ResNets the last norm of every residual branch starts at a scale
of zero, in ConvNeXt and DeiT-III a layer scale starts at nearly zero, and the shortcut is all there is.
Plain vision Transformers and MobileNets are not. For these `start_as_identity` looks for the parameters that
close a unit's residual branches, and verifies on random images that the state after the unit is the state
before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import State, Trunk

__all__ = ["identity_units", "start_as_identity"]

CLOSE = 1e-5  # largest change of a state, relative to its largest value where that exceeds 1
#: Names of the last layer of a residual branch, in timm's blocks and in those modelled on them.
BRANCH_ENDS = ("attn.proj", "mlp.fc2", "conv3", "conv2", "conv_pwl")


@torch.no_grad()
def identity_units(trunk: Trunk) -> list[int]:
    """Numbers (from 0) of the units that leave the state of random images as it is."""
    found = []
    with evaluating(trunk.model):
        state = trunk.stem(_images(trunk))
        for unit in range(len(trunk)):
            after = trunk.run(state, unit, unit + 1)
            if trunk.preserving[unit] and _same(state, after):
                found.append(unit)
            state = after
    return found


@torch.no_grad()
def start_as_identity(network: MultiExit) -> list[int]:
    """Close the residual branches of units that keep their state's shape, where that makes them the identity.

    For fresh weights only: it sets parameters to zero. Transitions, units without a shortcut, and those of
    unknown make stay as they are. Returns the numbers of the units that are the identity now.
    """
    trunk, found = network.trunk, []
    with evaluating(trunk.model):
        state = trunk.stem(_images(trunk))
        for unit in range(len(trunk)):
            if trunk.preserving[unit] and _close(trunk, unit, state):
                found.append(unit)
            state = trunk.run(state, unit, unit + 1)
    return found


def _close(trunk: Trunk, unit: int, state: State) -> bool:
    for parameters in _endings(trunk, unit):
        before = [parameter.clone() for parameter in parameters]
        for parameter in parameters:
            parameter.zero_()
        if _same(state, trunk.run(state, unit, unit + 1)):
            return True
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    return False


def _endings(trunk: Trunk, unit: int) -> Iterator[list[nn.Parameter]]:
    """Sets of parameters that may close the unit's branches, the mildest first."""
    yield []  # as it is
    modules = [(name, trunk.model.get_submodule(name)) for name in trunk.unit_names[unit]]
    named = [(f"{at}.{name}", p) for at, module in modules for name, p in module.named_parameters()]
    yield [p for name, p in named if name.endswith("gamma")]  # layer scale
    norms = [m for _, module in modules for m in module.modules() if _is_norm(m)]
    yield list(norms[-1].parameters()) if norms else []
    inside = [(f"{at}.{name}", m) for at, module in modules for name, m in module.named_modules()]
    yield [p for name, m in inside if name.endswith(BRANCH_ENDS) for p in m.parameters()]


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1


def _images(trunk: Trunk) -> Tensor:
    like = next(trunk.model.parameters())
    images = torch.rand(2, *trunk.image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(device=like.device, dtype=like.dtype)


def _same(before: State, after: State) -> bool:
    if before.x.shape != after.x.shape:
        return False
    allowed = CLOSE * max(1.0, float(before.x.abs().max()))
    return float((before.x - after.x).abs().max()) <= allowed
