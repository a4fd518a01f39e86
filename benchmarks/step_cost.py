"""What the exits cost in training: one step with all exits against the step of the plain network.

    python benchmarks/step_cost.py

Steps take turns in one process (plain, exits, plain, exits, ...), so the ratio is free of drift. The step is
forward, loss, backward and optimizer; `joint` over all exits against cross-entropy of the plain model.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import timm
import torch
from record import write_record
from torch import Tensor, nn
from torch.nn import functional as F

import odn_hybrid as odn
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import measure
from odn_hybrid.training.devices.precision import resolve_precision
from odn_hybrid.training.objectives import ExitOutputs, build_objective

CASES = {"resnet18": (224, 16), "vit_tiny_patch16_224": (224, 16)}


def plain_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The step of the network as it is."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def exits_step(
    network: odn.MultiExit, objective: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype
) -> Callable[[], None]:
    """The step with an exit after every unit, under a training objective."""
    parameters = [*network.parameters(), *objective.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.01, momentum=0.9)
    shares = torch.tensor([c / 1.0 for c in odn.count_costs(network).cumulative], device=images.device)
    shares = shares / shares[-1]

    def step() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            logits = network(images)
        optimizer.zero_grad(set_to_none=True)
        objective(ExitOutputs(logits, labels, shares)).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure both networks with both objectives and heads; write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = resolve_precision("auto", device)
    results = {}
    for name, (side, batch) in CASES.items():
        torch.manual_seed(0)
        plain = timm.create_model(name, num_classes=10).to(device).train()
        images = torch.rand(batch, 3, side, side, device=device)
        labels = torch.randint(0, 10, (batch,), device=device)
        if name.startswith("resnet"):
            plain = plain.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        steps = {"plain": plain_step(plain, images, labels, dtype)}
        for head in ("linear", "grid"):
            for loss in ("joint", "depth_reg"):
                trunk = odn.Trunk(copy.deepcopy(plain), image_size=side)
                network = odn.MultiExit(trunk, ExitConfig(head=head)).to(device).train()
                objective = build_objective(loss, len(network)).to(device)
                steps[f"exits, {head}, {loss}"] = exits_step(network, objective, images, labels, dtype)
        timings = measure(steps, rounds=args.rounds, device=device.type)
        results[name] = {
            "batch": batch,
            "side": side,
            "exits": len(network),
            "ratios": {
                key: {"median": t.ratio, "low": t.ratio_low, "high": t.ratio_high}
                for key, t in timings.items()
            },
            "seconds": {key: list(t.seconds) for key, t in timings.items()},
        }
        print(name, {key: round(t.ratio, 3) for key, t in timings.items()}, flush=True)
    kind = "cuda" if device.type == "cuda" else "cpu"
    claim = "a training step with all exits costs at most 1.15 x the step of the network without exits"
    print(write_record(f"step_cost_{kind}", claim, {"dtype": str(dtype), "results": results}))


if __name__ == "__main__":
    main()
