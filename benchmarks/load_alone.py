"""What the runtime alone reaches, without a server: full model against halting model, side by side.

    python benchmarks/load_alone.py --run RUN [--dynamic FOLDER] --images images.npy --sizes 1,4 --rounds 5

Prints JSON: by model and batch size, milliseconds an image in every round. Batches are of random images, the
same for both, as the servers are asked; one thread, one process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import odn_hybrid as odn
from odn_hybrid.deploy.comparing.turns import batches_of, take_turns, waiter
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.serve.hosting.runs import dynamic_of_run


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """By model and batch size."""
    torch.set_num_threads(1)
    run = odn.load(args.run)
    exit = run.report_["reference"]["exit"]
    full = truncate(run.network, exit, run.parts.spec, fold=run.execution_.fold).eval()
    dynamic = odn.load(args.dynamic) if args.dynamic else dynamic_of_run(run)
    sizes = [int(size) for size in args.sizes.split(",")]
    dynamic.warm_up(sizes)
    images = torch.from_numpy(np.load(args.images))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    images = images[order].contiguous(memory_format=torch.channels_last)
    models = {"full": full, "dynamic": dynamic}
    found: dict[str, Any] = {name: {} for name in models}
    for size in sizes:
        batches = batches_of(images, size, len(images) // size)
        with torch.inference_mode():
            for model in models.values():
                model(batches[0])
        clocked = take_turns(
            models, dict.fromkeys(models, batches), rounds=args.rounds, wait=waiter(images.device)
        )
        for name, one in clocked.items():
            found[name][str(size)] = (1000 * one.rounds / one.images).tolist()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--dynamic", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measured(parser.parse_args())))


if __name__ == "__main__":
    main()
