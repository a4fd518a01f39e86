"""What folding and channels-last bring a static model: time relative to the plain cut, and how logits differ.

    python benchmarks/static_speed.py [--compile] [--threads 2] [--networks resnet18,resnet50]

Forms of one model take turns in one process: as it was cut, its channels last in memory, folded, both
(`fold=True`), and both compiled (`--compile`). The whole network is cut: nothing but the form differs.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from record import write_record
from torch import nn

from odn_hybrid import MultiExit, Trunk
from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.cost import measure
from odn_hybrid.deploy.truncation.truncate import compiled, truncate

#: Name -> stem, side of the images. The first is a network for CIFAR-10.
NETWORKS = {
    "resnet18": ("small", 32),
    "resnet50": ("native", 224),
    "mobilenetv3_large_100": ("native", 224),
    "convnext_atto": ("native", 224),
}


def forms_of(name: str, device: str, compile: bool) -> tuple[dict[str, nn.Module], int]:
    """The model in each form, plain first, with how many pairs were folded."""
    stem, side = NETWORKS[name]
    model = build_backbone(BackboneSpec(library="timm", name=name, stem=stem, num_classes=10))
    _season(model)
    network = MultiExit(Trunk(model.to(device), image_size=side)).eval()
    plain = truncate(network, len(network)).eval()
    both = truncate(network, len(network), fold=True).eval()
    forms = {
        "plain": plain,
        "channels_last": copy.deepcopy(plain).to(memory_format=torch.channels_last),
        "folded": copy.deepcopy(both).to(memory_format=torch.contiguous_format),
        "both": both,
    }
    if compile:
        forms["both, compiled"] = compiled(copy.deepcopy(both))
    return forms, len(both.__dict__["_odn_plan"].folded)


@torch.no_grad()
def _season(model: nn.Module) -> None:
    """Statistics as training leaves them: fresh ones hide what folding rounds."""
    generator = torch.Generator().manual_seed(0)
    for key, buffer in model.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(0, 0.2, generator=generator)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)


@torch.no_grad()
def timed(name: str, batches: list[int], rounds: int, device: str, compile: bool) -> dict[str, Any]:
    """Per batch size and form: ratio to the plain form with its interval, and raw seconds."""
    forms, folded = forms_of(name, device, compile)
    side, found = NETWORKS[name][1], {}
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(max(batches), 3, side, side, generator=generator).to(device)
    wanted = forms["plain"](images)
    apart = float((forms["both"](images) - wanted).abs().max() / wanted.abs().max())
    for batch in batches:
        calls: dict[str, Callable[[], object]] = {
            form: partial(model, images[:batch]) for form, model in forms.items()
        }
        timings = measure(calls, rounds=rounds, warmup=3, device=device)
        found[str(batch)] = {
            form: {"ratio": t.ratio, "low": t.ratio_low, "high": t.ratio_high, "seconds": list(t.seconds)}
            for form, t in timings.items()
        }
        shown = ", ".join(f"{form} {t.ratio:.2f}" for form, t in timings.items() if form != "plain")
        print(
            f"{name} {side} px, batch {batch}: {1000 * timings['plain'].median:.1f} ms; {shown}", flush=True
        )
    return {"side": side, "folded": folded, "relative_difference": apart, "batches": found}


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--threads", type=int, help="Threads on a CPU [default: torch's].")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batches = [int(size) for size in args.batches.split(",")]
    data = {
        "seed": 0,
        "threads": torch.get_num_threads(),
        "networks": {
            name: timed(name, batches, args.rounds, args.device, args.compile)
            for name in args.networks.split(",")
        },
    }
    kind = "cuda" if args.device.startswith("cuda") else "cpu"
    claim = "a folded model with channels last gives the plain cut's logits to 1e-4, sooner"
    print(write_record(f"static_speed_{kind}", claim, data))


if __name__ == "__main__":
    main()
