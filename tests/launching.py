"""A fit in several processes, as torchrun starts them but forked from one that has imported torch already.

Run as a program by `tests/training/test_devices.py`. Reads one JSON object a line from stdin: `work` (a
function of this file), its `arguments`, `count`, the `folder` for the processes' stdout and stderr, `die`
[rank, name, number] (see `processes.py`) and more `environment`. Answers with the processes' numbers, waits
for all of them, and answers with their statuses. Unlike torchrun it ends none: that they end is tested.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from processes import be_odn, die_while_writing


def odn(folder: Path, rank: int, arguments: list[str]) -> None:
    be_odn({"arguments": arguments, "stdout": f"{folder}/stdout.{rank}", "stderr": f"{folder}/stderr.{rank}"})


def fit(folder: Path, rank: int, arguments: dict[str, Any]) -> None:
    """Fit, and say what this process holds afterwards."""
    from odn_hybrid import fitting
    from odn_hybrid.outputs import weights_digest

    rows: list[Any] = []
    run = fitting.fit(**arguments, listener=rows.append)
    found = {
        "path": str(run.path),
        "weights": weights_digest(run.network),
        "report": run.report_,
        "outputs": {name: record.outputs_digest for name, record in run.parts.records.items()},
        "history": run.history_,
        "told": len(rows),
    }
    (folder / f"found.{rank}").write_text(json.dumps(found))


def own_start(folder: Path, rank: int, arguments: dict[str, Any]) -> None:
    """A module whose first weights are different in each process, handed over by the user."""
    import timm
    import torch

    torch.manual_seed(100 + rank)
    model = timm.create_model("resnet18", num_classes=3, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
    fit(folder, rank, {**arguments, "model": model})


def record(folder: Path, rank: int, arguments: dict[str, Any]) -> None:
    """Record a split alone and shared with the other processes; are the digits those of one process?"""
    import numpy as np
    import torch

    from odn_hybrid import outputs
    from odn_hybrid.config import ExitConfig
    from odn_hybrid.data import choose_preprocess, load_data
    from odn_hybrid.exits import MultiExit
    from odn_hybrid.training.devices.device import accelerator_on
    from odn_hybrid.training.devices.processes import Processes
    from odn_hybrid.trunk import Trunk

    torch.manual_seed(0)
    import timm

    model = timm.create_model(
        "resnet18", num_classes=3, in_chans=1, layers=[1, 1, 1, 1], channels=[8, 8, 16, 16]
    )
    network = MultiExit(Trunk(model, image_size=32), ExitConfig())
    data = load_data(arguments["data"], root=None, seed=0)
    preprocess = choose_preprocess(
        data, image_size=32, fixed_size=None, default_size=32, channels=1, mean_std=((0.5,), (0.5,))
    )
    processes = Processes(accelerator_on("cpu"))
    split, found = data.splits["train"], {}
    for size in arguments["batches"]:
        outputs.EVALUATION_BATCH = size
        alone = outputs.record_outputs(network, split, preprocess)
        shared = outputs.record_outputs(network, split, preprocess, sharing=processes)
        found[size] = bool(
            np.array_equal(alone.logits, shared.logits) and np.array_equal(alone.labels, shared.labels)
        )
    (folder / f"found.{rank}").write_text(json.dumps({"same": found, "images": len(split)}))


def fails(folder: Path, rank: int, arguments: dict[str, Any]) -> None:
    """A fit in which process number `rank` cannot read the images that are its to train on."""
    from odn_hybrid.cli import main
    from odn_hybrid.errors import DataError
    from odn_hybrid.training import engine

    if rank == arguments["rank"]:

        def broken(*_: Any, **__: Any) -> None:
            raise DataError("image 7 cannot be read")

        engine.shared_loader = broken  # type: ignore[assignment]
    redirect(folder, rank)
    os._exit(main(arguments["arguments"]))


def other_recipes(folder: Path, rank: int, arguments: dict[str, Any]) -> None:
    fit(folder, rank, {**arguments, "seed": rank})


WORK = {
    "odn": odn, "fit": fit, "own_start": own_start, "record": record, "fails": fails,
    "other_recipes": other_recipes,
}  # fmt: skip


def redirect(folder: Path, rank: int) -> None:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)


def be(order: dict[str, Any], rank: int, port: int) -> None:
    folder, count = Path(order["folder"]), str(order["count"])
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=count, LOCAL_WORLD_SIZE=count,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
        **order.get("environment", {}),
    )  # fmt: skip
    warnings.simplefilter("error")
    redirect(folder, rank)
    if order.get("die") and order["die"][0] == rank:
        die_while_writing(*order["die"][1:])
    WORK[order["work"]](folder, rank, order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def keep_store(port: int) -> int:
    """A process that holds what the others leave word in, as torchrun itself does; its number."""
    process = os.fork()
    if process == 0:
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        signal.pause()
        del store
        os._exit(0)
    return process


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def serve() -> None:
    import sklearn.datasets  # noqa: F401

    import odn_hybrid.fitting  # noqa: F401

    for line in sys.stdin:
        order, port, started = json.loads(line), free_port(), []
        keeper = keep_store(port)
        for rank in range(order["count"]):
            process = os.fork()
            if process == 0:
                try:
                    be(order, rank, port)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                    sys.stderr.flush()
                    os._exit(99)
            started.append(process)
        print(json.dumps(started), flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
        os.kill(keeper, signal.SIGKILL)
        os.waitpid(keeper, 0)
        print(json.dumps(statuses), flush=True)


if __name__ == "__main__":
    serve()
