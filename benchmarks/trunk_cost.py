"""What a trunk costs: wrapping against one forward; a resumed run against the model's own forward.

    python benchmarks/trunk_cost.py

Wrapping is making the model's trunk with the numerical self-check, on real-size images; building the model is
not counted. Forwards have two images, as the self-check's. All that is compared takes turns in one process.
"""

from __future__ import annotations

import argparse
from typing import Any

import timm
import torch
from record import write_record

import odn_hybrid as odn
from odn_hybrid.cost import Timing, measure

WRAPPED = ("resnet50", "vit_base_patch16_224")
RESUMED = (
    "resnet18", "resnet50", "vit_tiny_patch16_224", "vit_base_patch16_224", "convnext_atto",
    "swin_tiny_patch4_window7_224", "efficientnet_b0", "deit_tiny_distilled_patch16_224",
)  # fmt: skip


def told(timing: Timing) -> dict[str, Any]:
    """The ratio with its interval, and the raw seconds."""
    return {
        "ratio": timing.ratio,
        "low": timing.ratio_low,
        "high": timing.ratio_high,
        "seconds": list(timing.seconds),
    }


@torch.no_grad()
def wrapping(name: str, rounds: int, device: str) -> dict[str, Any]:
    """One forward at batch 2 against wrapping, self-check included."""
    model = timm.create_model(name).eval().to(device)
    images = torch.rand(2, *odn.Trunk(model).image_shape, device=device)
    things = {"forward": lambda: model(images), "wrap": lambda: odn.Trunk(model)}
    return told(measure(things, rounds=rounds, device=device)["wrap"])


@torch.no_grad()
def resuming(name: str, rounds: int, device: str) -> dict[str, Any]:
    """The model's forward against stem, every unit in a call of its own, and tail."""
    model = timm.create_model(name).eval().to(device)
    trunk = odn.Trunk(model)
    images = torch.rand(2, *trunk.image_shape, device=device)

    def resumed() -> torch.Tensor:
        state = trunk.stem(images)
        for unit in range(len(trunk)):
            state = trunk.run(state, unit, unit + 1)
        return trunk.tail(state)

    exact = bool(torch.equal(resumed(), model(images)))
    timings = measure({"forward": lambda: model(images), "resumed": resumed}, rounds=rounds, device=device)
    return {"exact": exact, **told(timings["resumed"])}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    wrapped = {name: wrapping(name, max(5, args.rounds // 3), args.device) for name in WRAPPED}
    print("wrap / forward", {name: round(found["ratio"], 2) for name, found in wrapped.items()}, flush=True)
    resumed = {name: resuming(name, args.rounds, args.device) for name in RESUMED}
    for name, found in resumed.items():
        print(f"{name}: resumed / forward {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    kind = "cuda" if args.device.startswith("cuda") else "cpu"
    claim = "wrapping takes at most 6 x one forward at batch 2; a resumed run at most 1.05 x the forward"
    print(write_record(f"trunk_cost_{kind}", claim, {"batch": 2, "wrapped": wrapped, "resumed": resumed}))


if __name__ == "__main__":
    main()
