"""A forward and its gradients over several processes: torch's DDP, or its FSDP with sharded weights.

Every process runs its part of the batch and then sees the logits of all of it, so that any objective,
whatever it computes over a batch, is that of the whole batch; losses need no averaging. Batch normalisation
takes its statistics over a process's own part (as is usual in DDP); the running ones are averaged over the
processes before anybody looks at them, which, being linear, is as good as averaging them at every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from odn_hybrid.backbone import evaluating
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.devices.compiling import CompiledForward
from odn_hybrid.training.devices.processes import Processes
from odn_hybrid.training.devices.sharing import rows_of

__all__ = ["Forward", "Parallel"]


class Forward(nn.Module):
    """The training forward as one module, so that hooks on a module's call see all of it."""

    def __init__(self, network: MultiExit, compiled: CompiledForward | None = None) -> None:
        super().__init__()
        self.network, self.compiled = network, compiled

    def forward(self, images: Tensor, active: int, alone: bool) -> list[Tensor]:
        """Logits of exits 1..active, or of exit `active` alone."""
        if self.compiled is not None:
            runner = self.compiled
            return [runner.one(images, active)] if alone else runner.every(images, active)
        if alone:
            return [self.network.at(images, active)]
        logits: list[Tensor] = self.network(images, active)
        return logits


class Parallel:
    """Runs a network's training forward in all processes; with one process it only calls the network.

    Args:
        network, objective: the same in all processes.
        processes: who takes part.
        compiled: what runs the network where its forward is compiled.
        root: the forward with sharded weights (`sharded.shard`); None for DDP.
    """

    def __init__(
        self,
        network: MultiExit,
        objective: nn.Module,
        processes: Processes,
        *,
        compiled: CompiledForward | None = None,
        root: Forward | None = None,
    ) -> None:
        self.network, self.objective, self.processes, self.root = network, objective, processes, root
        self._plain = Forward(network, compiled)
        self._trained: tuple[int, bool] | None = None
        self._ddp: DistributedDataParallel | None = None
        self._orders: dict[tuple[int, int, int], tuple[list[int], Tensor]] = {}

    def forward(self, images: Tensor, active: int, *, alone: bool) -> list[Tensor]:
        """Logits of exits 1..active (or of `active` alone) of this process's images."""
        if self.processes.count == 1:
            found: list[Tensor] = self._plain(images, active, alone)
        elif self.root is not None:
            found = self.root(images, active, alone)
        else:
            found = self._wrapped(active, alone)(images, active, alone)
        return found

    def whole(
        self, logits: list[Tensor], labels: Tensor, size: int, part: int = 0, parts: int = 1
    ) -> tuple[list[Tensor], Tensor]:
        """Logits and labels of all processes, in the order of the batch.

        Gradients flow to this process's own logits, scaled so that the mean over processes that DDP and FSDP
        take of the weights' gradients is the gradient of the whole batch.

        Args:
            size: images of the batch in all processes together.
            part, parts: the batch was cut into so many parts by `torch.tensor_split` in each process; this
                is part number `part`, from 0.
        """
        if self.processes.count == 1:
            return logits, labels
        sizes, order = self._order(size, part, parts)
        if sizes[self.processes.rank] != len(labels):
            raise ValueError(f"{len(labels)} images of {sizes} in process {self.processes.rank}")
        mine = torch.stack([z.float() for z in logits], dim=1)
        every = _Gathered.apply(mine, sizes, self.processes.rank).index_select(0, order)
        return list(every.unbind(1)), _gather(labels, sizes).index_select(0, order)

    @contextmanager
    def gradients(self, active: int, *, alone: bool, last: bool = True) -> Iterator[None]:
        """Around a forward and its backward: gradients are exchanged in the `last` of a step's only."""
        if self.processes.count == 1:
            yield
            return
        if self.root is not None:
            self.root.set_requires_gradient_sync(last)  # type: ignore[operator]
        whole = last or self.root is not None
        with warnings.catch_warnings(), nullcontext() if whole else self._wrapped(active, alone).no_sync():
            # Seen with convolutions of one channel, whose strides say nothing; a copy is slower at worst.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield

    def finish(self) -> None:
        """After the last backward of a step: the objective's own gradients, made the same."""
        if self.processes.count > 1:
            own = (p.grad for p in self.objective.parameters() if p.grad is not None)
            self.processes.average(own)

    def average_buffers(self, *networks: nn.Module) -> None:
        """Make the running statistics of batch normalisation the mean over the processes."""
        self.processes.average([b for network in networks for b in network.buffers()])

    # --- inside -----------------------------------------------------------------------------------

    def _wrapped(self, active: int, alone: bool) -> DistributedDataParallel:
        """DDP of what trains now: weights of idle units and heads are neither waited for nor sent."""
        if self._trained != (active, alone):
            used = self._used(active, alone)
            ignored = [name for name, weight in self._plain.named_parameters() if id(weight) not in used]
            ignored += [name for name, _ in self._plain.named_buffers()]  # see `average_buffers`
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self._plain, ignored)
            self._ddp = DistributedDataParallel(self._plain)
            self._trained = (active, alone)
        assert self._ddp is not None
        return self._ddp

    def _used(self, active: int, alone: bool) -> set[int]:
        """The weights that the logits depend on, by `id`: leaves of the graph of one forward.

        DDP can look for them itself, but would in every step.
        """
        image = torch.zeros(1, *self.network.trunk.image_shape, device=self.processes.device)
        with evaluating(self.network), torch.enable_grad():
            logits = Forward(self.network)(image, active, alone)
        waiting, seen, found = [z.grad_fn for z in logits], set(), set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                found.add(id(node.variable))
            waiting += [source for source, _ in node.next_functions]
        return found

    def _order(self, size: int, part: int, parts: int) -> tuple[list[int], Tensor]:
        """How many rows each process has, and where the rows of the batch lie among all of them."""
        key = (size, part, parts)
        if key not in self._orders:
            count = self.processes.count
            shares = [torch.tensor(rows_of(size, rank, count)) for rank in range(count)]
            rows = [share.tensor_split(parts)[part] for share in shares]
            order = torch.cat(rows).argsort().to(self.processes.device)
            self._orders[key] = ([len(r) for r in rows], order)
        return self._orders[key]


def _gather(mine: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all processes, one process after another; `sizes` tells how many each has."""
    most = max(sizes)
    padded = mine.contiguous()
    if len(mine) < most:
        padded = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    every = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(every, padded)
    return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])


class _Gathered(torch.autograd.Function):
    """`_gather` with a gradient: that of the own rows, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.start, ctx.size, ctx.count = sum(sizes[:rank]), sizes[rank], len(sizes)
        return _gather(mine, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0][ctx.start : ctx.start + ctx.size] * ctx.count, None, None
