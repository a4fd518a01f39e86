"""Many models described at once: two processes, one thread each, and no name can hold the others up."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from odn_hybrid.catalog import Entry, describe

PROCESSES = 2


@dataclass(frozen=True)
class Job:
    """Names of one family, of which that with the fewest MACs is described; `options` are for `describe`."""

    names: tuple[str, ...]
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What became of a job and how long that took."""

    entry: Entry
    seconds: float


class Overtime(Exception):
    """A name took longer than it may."""


def run(jobs: Iterable[Job]) -> Iterator[Done]:
    """Do the jobs in two fresh processes; what is done first comes first."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES, _start) as pool:
        yield from pool.imap_unordered(_do, jobs)


def _start() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _ring)


def _ring(*_: Any) -> None:
    raise Overtime


def _do(job: Job) -> Done:
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, job.seconds)
    try:
        entry = describe(_smallest(job), **job.options)
    except Overtime:
        entry = Entry(name=job.names[0], family="")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if time.monotonic() - started >= job.seconds:
        # The alarm may have become some other error on its way up.
        reason = f"took more than {job.seconds:.0f} s"
        entry = Entry(name=entry.name, family=entry.family, reason=reason)
    return Done(entry, time.monotonic() - started)


def _smallest(job: Job) -> str:
    if len(job.names) == 1:
        return job.names[0]
    size = job.options.get("image_size")
    macs = {name: describe(name, image_size=size).macs for name in job.names}
    return min(job.names, key=lambda name: macs[name] or float("inf"))
