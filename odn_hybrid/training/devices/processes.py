"""The processes of one fit: which of them this is, what they tell each other, and how they fail together.

Started by `accelerate launch` or `torchrun`, each process runs the same `fit`. The first, the main process,
alone reads and writes the run directory. What it found is sent to the others as JSON or as tensors.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from odn_hybrid import errors
from odn_hybrid.errors import ConfigError, OdnError, TrainingError
from odn_hybrid.rundir.files import to_plain

__all__ = ["Processes", "is_main_process", "together"]

P = ParamSpec("P")
T = TypeVar("T")
ENDED = "another process of this fit has ended; see what it said, and go on with resume"


def is_main_process() -> bool:
    """Whether this process is the one that prints: the only one, or the first of those launched together."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """The processes that an accelerator knows of.

    Attributes:
        count, rank: how many there are, and this one's number from 0.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index
        self.device: torch.device = accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the main process, the only one that writes."""
        return self.rank == 0

    # --- telling ----------------------------------------------------------------------------------

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """`tensor` of process `source`, on the CPU; the others give one of the same shape and dtype."""
        if self.count == 1:
            return tensor
        sent = tensor.detach().to(self.device).contiguous()
        sent = sent.clone() if sent.data_ptr() == tensor.data_ptr() else sent
        distributed.broadcast(sent, src=source)
        return sent.cpu()

    def agreed(self, value: Any) -> Any:
        """The main process's value (JSON-able data); what the others give is ignored."""
        if self.count == 1:
            return value
        said = json.dumps(value).encode() if self.main else b""
        size = int(self.broadcast(torch.tensor([len(said)]), 0))
        text = torch.zeros(size, dtype=torch.uint8)
        if self.main:
            text = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        return json.loads(self.broadcast(text, 0).numpy().tobytes())

    def on_main(self, do: Callable[[], T]) -> T | None:
        """Do it in the main process while the others wait; they get None, or the error that it got."""
        if self.count == 1:
            return do()
        result: T | None = None
        failed: Exception | None = None
        if self.main:
            try:
                result = do()
            except Exception as error:
                failed = error
        told = self.agreed(None if failed is None else _described(failed))
        if failed is not None:
            failed.__dict__["shared"] = True
            raise failed
        if told is not None:
            raise _rebuilt(told)
        return result

    def main_first(self, do: Callable[[], T]) -> T:
        """Do it in the main process, which may download something, then in the others."""
        result = self.on_main(do)
        return do() if result is None else result

    def decide(self, do: Callable[[], Any]) -> Any:
        """What the main process finds, in all of them: as JSON holds it, where there are several."""
        found = self.on_main(do)
        return found if self.count == 1 else self.agreed(to_plain(found))

    def share_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors by name, on the CPU; what the others give is ignored."""
        if self.count == 1:
            return tensors
        forms = self.agreed([(k, list(v.shape), str(v.dtype)[6:]) for k, v in tensors.items()])
        found = {}
        for name, shape, dtype in forms:
            mine = tensors[name] if self.main else torch.empty(shape, dtype=getattr(torch, dtype))
            found[name] = self.broadcast(mine, 0)
        return found

    @torch.no_grad()
    def align(self, module: nn.Module) -> None:
        """Give every process the main one's weights and buffers."""
        if self.count > 1:
            for value in module.state_dict(keep_vars=True).values():
                value.data.copy_(self.broadcast(value.data, 0))

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace floating-point tensors by their means over the processes, in one message."""
        wanted = [t for t in tensors if t.is_floating_point()]
        if self.count == 1 or not wanted:
            return
        flat = torch.cat([t.reshape(-1).double() for t in wanted])
        distributed.all_reduce(flat)
        for tensor, mean in zip(wanted, (flat / self.count).split([t.numel() for t in wanted]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def check_same(self, what: str, value: Any) -> None:
        """Raise `ConfigError` in every process unless all have the same JSON-able value."""
        if self.count == 1:
            return
        digest = hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        for source in range(1, self.count):
            other, first = self.broadcast(mine, source), self.broadcast(mine, 0)
            if not torch.equal(other, first):
                error = ConfigError(f"process {source} of this fit has {what} than process 0")
                error.__dict__["shared"] = True
                error.elsewhere = not self.main
                raise error


# --- failing ----------------------------------------------------------------------------------------

KEY = "odn_hybrid.failed"
CALLS = itertools.count()


def together(work: Callable[P, T]) -> Callable[P, T]:
    """Decorate what all processes do: an error of one becomes an error of all.

    `error.elsewhere` is true in all processes but the one that is to print it.
    """

    @functools.wraps(work)
    def do(*args: P.args, **kwargs: P.kwargs) -> T:
        key = (
            f"{KEY}.{next(CALLS)}"  # all processes call equally often; what an earlier call left is not ours
        )
        try:
            return work(*args, **kwargs)
        except Exception as error:
            if not (distributed.is_available() and distributed.is_initialized()):
                if isinstance(error, OdnError):  # all of them meet it
                    error.elsewhere = not is_main_process()
                raise
            if isinstance(error, OdnError):
                _publish(error, key)
                raise
            found = _published(key)
            if found is not None:
                raise found from error
            lost = TrainingError(ENDED) if _connection_lost(error) else error
            _publish(lost, key)
            raise lost from error

    return do


def _publish(error: Exception, key: str) -> None:
    """Leave word of an error for the others; the first to do so is the one that prints it."""
    if error.__dict__.get("shared"):  # all know already; the main process prints
        return
    with suppress(Exception):  # the place where word is left may have gone with its process
        store = distributed.distributed_c10d._get_default_store()
        first = store.add(f"{key}.count", 1) == 1
        if first:
            store.set(key, json.dumps(_described(error)))
        if isinstance(error, OdnError):
            error.elsewhere = not first


def _published(key: str) -> OdnError | None:
    with suppress(Exception):
        store = distributed.distributed_c10d._get_default_store()
        if store.check([key]):
            return _rebuilt(json.loads(store.get(key)))
    return None


def _described(error: Exception) -> list[str]:
    """An error of ours by class and message; of another only that there was one."""
    if isinstance(error, OdnError):
        return [type(error).__name__, str(error)]
    return ["TrainingError", f"{ENDED} ({type(error).__name__}: {' '.join(str(error).split())[:200]})"]


def _rebuilt(told: list[str]) -> OdnError:
    kind, message = told
    error: OdnError = getattr(errors, kind)(message) if kind in errors.__all__ else TrainingError(message)
    error.elsewhere = True
    error.__dict__["shared"] = True
    return error


def _connection_lost(error: Exception) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in text or "Connection" in text or "NCCL" in text)
