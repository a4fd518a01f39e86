"""Everything that needs a GPU, in one command of at most 20 minutes: `make gpu GPU_DATA=FOLDER`.

    python benchmarks/gpu.py --data FOLDER        # with fashion_mnist.npz and cifar10.npz

Parts run one after another, each in a process and within a time of its own; a part that fails or runs out of
time is reported and the others go on. Each writes its record; a record that is not there reads "not measured"
in the documentation. `--plan` only prints what would run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """A command and the seconds it may take."""

    name: str
    command: list[str]
    seconds: int


def parts(data: Path, device: str) -> list[Part]:
    """The rows of training and of the runtime, the quickest first."""

    def program(name: str, *arguments: str) -> list[str]:
        return [PYTHON, str(ROOT / "benchmarks" / name), *arguments]

    tests = [PYTHON, "-m", "pytest", "-q", "-n0", str(ROOT / "tests" / "deploy" / "test_graphs.py")]
    lengths = ["--rounds", "15", "--seconds", "2"]  # twenty minutes for everything
    runtime = program("halting_cost.py", "--device", device, "--batches", "1,64,256", *lengths)
    fashion = ["--data", str(data / "fashion_mnist.npz"), "--minutes", "6", "--device", device]
    cifar = ["--data", str(data / "cifar10.npz"), "--minutes", "7", "--device", device]
    return [
        Part("CUDA graphs give the CPU's answers", tests, 120),
        Part("halting against its ideal", runtime, 240),
        Part("Fashion-MNIST, ResNet-34", program("training_row.py", "fashion_resnet34", *fashion), 400),
        Part("CIFAR-10, ResNet-50", program("training_row.py", "cifar10_resnet50", *cifar), 440),
    ]


def run(part: Part) -> str:
    """What became of it, in words."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(part.command, cwd=ROOT, env=environment, timeout=part.seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {part.seconds} s: not measured"
    seconds = time.monotonic() - started
    return f"done in {seconds:.0f} s" if done.returncode == 0 else f"failed ({done.returncode}): not measured"


def main() -> int:
    """Run all parts; 0 if all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the .npz files")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--plan", action="store_true", help="print what would run")
    args = parser.parse_args()
    planned = parts(args.data, args.device)
    if args.plan:
        for part in planned:
            print(f"{part.name} (at most {part.seconds} s): {' '.join(part.command)}")
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    found = {part.name: run(part) for part in planned}
    for name, what in found.items():
        print(f"{name}: {what}")
    return int(any("not measured" in what for what in found.values()))


if __name__ == "__main__":
    sys.exit(main())
