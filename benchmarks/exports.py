"""Static models in other runtimes: how far their logits are from torch's, file sizes, eight bits, speed.

    python benchmarks/exports.py --data cifar10.npz           # some ten minutes on one core

Cuts of untrained timm models are exported in every static format. Of the shared small network the static
choice is exported in eight bits too, its accuracy measured beside fp32's, and the runtimes take turns on real
images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import cifar10_small
import torch
from record import write_record

import odn_hybrid as odn
from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.config import ExitConfig
from odn_hybrid.cost import measure
from odn_hybrid.data import make_loader
from odn_hybrid.deploy.export.graphs import onnx_session
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import OdnError

FORMATS = ("pt2", "onnx", "openvino", "timm")
IMAGES = 128  # a turn
#: Model, image size, kind of plan, exit.
CUTS = (
    ("resnet18", 224, "prefix", 5),
    ("resnet50", 224, "prefix", 8),
    ("resnet50", 224, "thin", 4),
    ("vit_tiny_patch16_224", 224, "prefix", 6),
    ("vit_tiny_patch16_224", 224, "thin", 6),
    ("convnext_atto", 224, "prefix", 7),
)


def tried(thing: Any, folder: Path, format: str) -> dict[str, Any]:
    """What an export says of itself, or why there is none."""
    try:
        odn.export(thing, folder, format)
    except OdnError as error:
        return {"format": format, "refused": str(error)}
    said = json.loads((folder / "export.json").read_text())
    size = sum(file["bytes"] for file in said["files"])
    return {"format": format, "difference": said["checked"]["difference"], "bytes": size}


def cuts(scratch: Path) -> list[dict[str, Any]]:
    rows = []
    for name, size, plan, exit in CUTS:
        torch.manual_seed(0)
        model = build_backbone(BackboneSpec(library="timm", name=name, num_classes=10)).eval()
        network = odn.MultiExit(odn.Trunk(model, image_size=size), ExitConfig(plan=plan)).eval()
        small = truncate(network, exit).eval()
        which = {"model": name, "image_size": size, "plan": plan, "exit": exit, "exits": len(network)}
        for format in FORMATS:
            rows.append({**which, **tried(small, scratch / f"{name}-{plan}-{format}", format)})
            print(rows[-1])
    return rows


def quantised(run: odn.Run, scratch: Path, rounds: int, batches: list[int]) -> dict[str, Any]:
    """Accuracy of the static choice in eight bits beside fp32's, and speed: ratios to torch eager, folded."""
    for format in ("onnx", "onnx-int8", "openvino"):
        odn.export(run, scratch / format, format)
    said = json.loads((scratch / "onnx-int8" / "export.json").read_text())
    sizes = {
        format: sum(path.stat().st_size for path in (scratch / format).iterdir() if path.suffix != ".json")
        for format in ("onnx", "onnx-int8", "openvino")
    }
    return {
        "exit": said["exit"],
        "bytes": sizes,
        "accuracy": said["accuracy"],
        "accuracy_fp32": said["accuracy_fp32"],
        "agreement": said["agreement"],
        "calibration": said["calibration"],
        "speed": {str(size): speeds(run, scratch, rounds, size) for size in batches},
    }


@torch.no_grad()
def speeds(run: odn.Run, scratch: Path, rounds: int, size: int) -> dict[str, Any]:
    """Seconds in turn for the same real images, `size` at once; ratios are to fp32 in onnxruntime."""
    import openvino

    assert run.data is not None
    images = next(iter(make_loader(run.data.splits["test"], run.transform, batch_size=max(size, IMAGES))))[0]
    arrays, threads = images.numpy(), torch.get_num_threads()
    sessions = {
        name: onnx_session(scratch / name / "model.onnx", threads=threads) for name in ("onnx", "onnx-int8")
    }
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(scratch / "openvino" / "model.xml", "CPU", options)
    model = run.truncate(fold=True)
    feeds = [{"images": arrays[start : start + size]} for start in range(0, len(arrays), size)]
    found = measure(
        {
            "onnx": lambda: [sessions["onnx"].run(None, feed) for feed in feeds],
            "onnx-int8": lambda: [sessions["onnx-int8"].run(None, feed) for feed in feeds],
            "openvino": lambda: [compiled(feed) for feed in feeds],
            "torch, folded": lambda: [model(part) for part in images.split(size)],
        },
        rounds=rounds,
    )
    return {
        name: {
            "speedup": 1 / t.ratio,
            "low": 1 / t.ratio_high,
            "high": 1 / t.ratio_low,
            "seconds": list(t.seconds),
        }
        for name, t in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--only-int8", action="store_true", help="leave the cuts out, write no record")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run = cifar10_small.unpack(folder / "run")
        run.use_data(options.data)
        sizes = [int(size) for size in options.batches.split(",")]
        small = quantised(run, folder, options.rounds, sizes)
        print(json.dumps({k: v for k, v in small.items() if k != "speed"}))
        for size, rows in small["speed"].items():
            print(size, {name: round(row["speedup"], 3) for name, row in rows.items()})
        if options.only_int8:
            return
        data = {"threads": torch.get_num_threads(), "cuts": cuts(folder), "shared_network": small}
    claim = "Exported static models answer as in torch; int8 of the shared network beside fp32, measured"
    print(write_record("exports", claim, data))


if __name__ == "__main__":
    main()
