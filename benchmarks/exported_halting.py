"""An exported halting model beside the model it was made from: answers, exits taken, throughput.

    python benchmarks/exported_halting.py --data cifar10.npz --run RUN

RUN is a run directory (`python benchmarks/cifar10_small.py --unpack RUN` makes that of the shared network).
The certified dynamic model is exported as a graph per segment and as one graph with `If`. The test images
go through torch, through the runner (onnxruntime), and one by one through the graph with `If` in onnxruntime
and in OpenVINO. Logits are compared where both took the same exit and gave the answer of the same one; where
exits differ, the distance to the nearest threshold is told. Times are of the same images in the same order,
in turns, with the same number of threads.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from record import write_record
from torch import Tensor

import odn_hybrid as odn
from odn_hybrid.cost import measure
from odn_hybrid.deploy.export.halting import export_halting
from odn_hybrid.deploy.export.halting_checking import distances, exit_logits
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.execution import Execution
from odn_hybrid.runner import HaltingRunner, RunnerOutput, load

BATCHES = (1, 16, 64, 256)
TIMED = 256  # images of a round, in batches
AT_ONCE = 256  # images given at once where only answers count
ALLOWED = {"runner": 1e-5, "if": 1e-4, "openvino if": 1e-4}
SAME_EXITS = 0.999


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="of the test split, from the first on")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--name", default="exported_halting")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        # Attempts at a certificate are entered in a run's ledger: in that of a copy.
        run = odn.load(shutil.copytree(arguments.run, Path(folder) / "run"))
        run.use_data(arguments.data)
        # The torch runtime at its best: folded, looking only at exits that pay.
        model = run.dynamic(drop=0.01, optimise_for="throughput", execution=Execution(fold=True))
        split = run.data.splits["test"]
        images, labels = _images(split, run.transform, arguments.images)
        segments, one = Path(folder) / "segments", Path(folder) / "one"
        export_halting(model, segments, images=images[:64])
        export_halting(model, one, format="onnx-if", images=images[:64])
        found = _measured(model, segments, one, images, labels, arguments)
    write_record(
        arguments.name,
        "exported, a halting model gives the same logits and takes the same exits as in torch, as fast or "
        "faster",
        {"images": len(images), "threads": arguments.threads, **_told(model), **found},
    )


def _images(split: Any, transform: Any, count: int) -> tuple[Tensor, NDArray[np.int64]]:
    from odn_hybrid.data import make_loader

    found: list[Tensor] = []
    for batch in make_loader(split, transform, batch_size=AT_ONCE):
        found.append(batch[0])
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count].contiguous(), split.labels[:count].astype(np.int64)


def _told(model: HaltingModel) -> dict[str, Any]:
    certificate = model.certificate or {}
    return {
        "exits": list(model.exits),
        "looked": list(model.looked),
        "units": [model.network.units[exit - 1] for exit in model.exits],
        "policy": certificate.get("policy"),
        "statement": certificate.get("statement"),
        "torch_runtime": model.execution.name(torch.device("cpu")),
    }


def _measured(
    model: HaltingModel, segments: Path, one: Path, images: Tensor, labels: NDArray[np.int64], arguments: Any
) -> dict[str, Any]:
    threads = arguments.threads
    runner, alone = load(segments, threads=threads), load(one, threads=threads)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(one / "halting.onnx", "CPU", settings)
    model.warm_up(BATCHES)

    def vino(rows: NDArray[np.float32]) -> RunnerOutput:
        return _vino(compiled, alone, rows)

    wanted = _answers(lambda rows: _as_arrays(model(torch.from_numpy(rows))), images)
    runtimes = {"runner": runner, "if": alone, "openvino if": vino}
    agreement = {
        name: _agreement(model, runner, wanted, _answers(runtime, images), images, labels, ALLOWED[name])
        for name, runtime in runtimes.items()
    }
    return {
        "halting": {str(exit): float((wanted.exit == exit).mean()) for exit in model.exits},
        "torch_correct": int((wanted.logits.argmax(1) == labels).sum()),
        "agreement": agreement,
        "modules_of_other_rooms": _foreign(segments),
        "times": _times(model, runner, alone, vino, images, arguments.rounds),
        "files_bytes": {p.name: p.stat().st_size for folder in (segments, one) for p in folder.iterdir()},
    }


# --- answers ------------------------------------------------------------------------------------------


def _as_arrays(out: Any) -> RunnerOutput:
    return RunnerOutput(
        out.logits.numpy(), out.exit.numpy(), out.units_run.numpy(), out.confidence.numpy(), out.certified,
        out.answered.numpy(),
    )  # fmt: skip


def _vino(compiled: Any, alone: HaltingRunner, rows: NDArray[np.float32]) -> RunnerOutput:
    """The one graph in OpenVINO, image by image."""
    parts: list[dict[str, Any]] = []
    for row in range(len(rows)):
        found = compiled({"images": rows[row : row + 1]})
        parts.append({name: found[name].copy() for name in ("logits", "exit", "confidence", "answered")})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    units = np.array(alone.manifest.units)[np.searchsorted(alone.manifest.exits, joined["exit"])]
    return RunnerOutput(
        joined["logits"], joined["exit"], units, joined["confidence"], False, joined["answered"]
    )


def _answers(runtime: Callable[[NDArray[np.float32]], RunnerOutput], images: Tensor) -> RunnerOutput:
    parts = [runtime(batch.numpy()) for batch in images.split(AT_ONCE)]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("logits", "exit", "units_run", "confidence", "answered")
    }
    return RunnerOutput(**joined, certified=all(part.certified for part in parts))


def _agreement(
    model: HaltingModel, runner: HaltingRunner, wanted: RunnerOutput, found: RunnerOutput,
    images: Tensor, labels: NDArray[np.int64], allowed: float,
) -> dict[str, Any]:  # fmt: skip
    alike = (wanted.exit == found.exit) & (wanted.answered == found.answered)
    parted = np.flatnonzero(~alike)
    apart = np.abs(found.logits[alike] - wanted.logits[alike]).max(axis=1)
    size = np.maximum(1.0, np.abs(wanted.logits[alike]).max(axis=1))
    numbers = [np.searchsorted(model.exits, out.exit[parted]) + 1 for out in (wanted, found)]
    gaps = np.empty(0)
    if parted.size:
        logits = exit_logits(model.network, runner, images[torch.from_numpy(parted)])
        gaps = distances(model.policy, logits, *numbers)
    relative, share = float((apart / size).max()), float(alike.mean())
    return {
        "largest_difference": float(apart.max()),
        "largest_difference_relative": relative,
        "largest_logit": float(np.abs(wanted.logits).max()),
        "allowed_difference": allowed,
        "same_exits": share,
        "parted": [
            {
                "image": int(row),
                "exits": [int(wanted.exit[row]), int(found.exit[row])],
                "distance_to_threshold": float(gap),
            }
            for row, gap in zip(parted, gaps, strict=True)
        ],
        "largest_difference_of_confidence": float(np.abs(found.confidence - wanted.confidence)[alike].max()),
        "correct": int((found.logits.argmax(1) == labels).sum()),
        "certified": found.certified,
        "holds": relative <= allowed and share >= SAME_EXITS,
    }


def _foreign(folder: Path) -> list[str]:
    """What a process that only runs an export has loaded of what it should not need."""
    code = (
        "import sys, numpy as np; from odn_hybrid.runner import load; runner = load(sys.argv[1]); "
        "runner(np.ones((2, *runner.manifest.image_shape), dtype=np.float32)); "
        "print(*sorted({'torch', 'torchvision', 'timm', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


# --- times --------------------------------------------------------------------------------------------


def _times(
    model: HaltingModel, runner: HaltingRunner, alone: HaltingRunner, vino: Callable[..., Any],
    images: Tensor, rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Per batch size: seconds for the same images in each runtime, and times the torch model's throughput."""
    found = {}
    for size in BATCHES:
        tensors = [part.contiguous() for part in images[:TIMED].split(size)]
        arrays = [part.numpy() for part in tensors]
        things: dict[str, Callable[[], object]] = {
            "torch": lambda given=tensors: [model(part) for part in given],  # type: ignore[misc]
            "runner": lambda given=arrays: [runner(part) for part in given],  # type: ignore[misc]
        }
        if size == 1:
            things["if"] = lambda given=arrays: [alone(part) for part in given]  # type: ignore[misc]
            things["openvino if"] = lambda given=arrays: [vino(part) for part in given]  # type: ignore[misc]
        timings = measure(things, rounds=rounds)
        found[str(size)] = {
            name: {
                "images": sum(map(len, tensors)),
                "seconds": list(timing.seconds),
                "throughput_to_torch": [1 / timing.ratio, 1 / timing.ratio_high, 1 / timing.ratio_low],
            }
            for name, timing in timings.items()
        }
        print(size, {name: round(row["throughput_to_torch"][0], 2) for name, row in found[str(size)].items()})
    return found


if __name__ == "__main__":
    main()
