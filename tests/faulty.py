"""`odn serve` in processes of its own, forked from one that has imported torch: run as a program.

Reads one JSON object a line from stdin. To start one: `arguments` of `odn`, `folder` for its stdout and
stderr, and optionally `hold`, a file: while it exists the device does nothing (and says so in a file of the
same name with "-held"), and `clock`: the time of day jumps about. Answers with the process's number. To wait
for one: `wait`, the number; answers with its status.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any


def hold_steps(path: str) -> None:
    """Every step of the device waits until the file at `path` is gone."""
    from odn_hybrid.serve.scheduling import engine

    run_step = engine.run_step

    def held(*arguments: Any, **more: Any) -> Any:
        if os.path.exists(path):
            open(path + "-held", "w").close()
            while os.path.exists(path):
                time.sleep(0.005)
            os.remove(path + "-held")
        return run_step(*arguments, **more)

    engine.run_step = held  # type: ignore[assignment]


def jumping_clock() -> None:
    """The time of day is anything within some years, and another one at every look."""
    real, chance = time.time, random.Random(0)
    time.time = lambda: real() + chance.uniform(-1e8, 1e8)


def be_server(order: dict[str, Any]) -> None:
    from odn_hybrid.cli import main

    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        path = os.path.join(order["folder"], name)
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if order.get("hold"):
        hold_steps(order["hold"])
    if order.get("clock"):
        jumping_clock()
    status = main(order["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve() -> None:
    import odn_hybrid.serve.running.server  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                be_server(order)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(99)
        print(process, flush=True)


if __name__ == "__main__":
    serve()
