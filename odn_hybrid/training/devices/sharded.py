"""Weights, gradients and the optimizer's state sharded over the processes: torch's `fully_shard` (FSDP2).

What trains is a sharded twin of the network, with a group of shards for each unit. The network itself stays
whole in every process, without gradients, and takes up the twin's (averaged) weights when it is looked at.
In checkpoints everything is whole, so that they do not tell how many processes wrote them.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from odn_hybrid.backbone import evaluating
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.devices.compiling import CompiledForward
from odn_hybrid.training.devices.parallel import Forward, Parallel
from odn_hybrid.training.steps.averaging import WeightAverage, idle_prefixes, rising_decay
from odn_hybrid.training.steps.stepping import Stepper

__all__ = ["ShardedStepper"]


class ShardedAverage(WeightAverage):
    """The average of the weights on shards: each process averages what it holds, in `held`."""

    def __init__(self, twin: MultiExit, horizon: float) -> None:
        self.longest = 1 - 1 / max(1.0, horizon)
        self.steps = 0
        self.held: dict[str, Tensor] = {
            name: value.detach().clone() for name, value in twin.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: MultiExit, active: int) -> None:
        """Take in the weights of the twin after a step that trained exits 1..active."""
        self.steps += 1
        idle = idle_prefixes(network, active)
        kept, new = [], []
        for name, source in network.state_dict().items():
            if name.startswith(idle):
                continue
            if source.is_floating_point():
                kept.append(_local(self.held[name]))
                new.append(_local(source))
            else:
                self.held[name].copy_(source)
        torch._foreach_lerp_(kept, new, 1 - rising_decay(self.steps, self.longest))


class ShardedStepper(Stepper):
    """A `Stepper` with weights in shards; `evaluated` is the whole network, up to date after `settle`."""

    def _to_train(self, network: MultiExit) -> MultiExit:
        self.kept = network
        image = torch.zeros(1, *network.trunk.image_shape, device=self.processes.device)
        with torch.no_grad(), evaluating(network):  # how images run is found out while the network is whole
            network.trunk.stem(image)
            with torch.autocast(image.device.type, self.dtype, enabled=self.dtype != torch.float32):
                network.trunk.stem(image)
        self.root = _sharded(network, self.processes.device, self.processes.count)
        return self.root.network

    def _averaged(self, horizon: float) -> WeightAverage:
        return ShardedAverage(self.network, horizon)

    def _in_parallel(self, compiled: CompiledForward | None) -> Parallel:
        return Parallel(self.network, self.objective, self.processes, root=self.root)

    @torch.no_grad()
    def _clip(self, norm: float) -> None:
        """By the norm over all shards and the objective's own weights."""
        weights = [*self.network.parameters(), *self.objective.parameters()]
        grads = [p.grad for p in weights if p.grad is not None]
        squares = [cast(Tensor, _whole(g.square().sum())) for g in grads]
        factor = (norm / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
        for grad in grads:
            _local(grad).mul_(factor)

    @property
    def evaluated(self) -> MultiExit:
        """The whole network."""
        return self.kept

    def settle(self) -> None:
        """Average the buffers, and gather the (averaged) weights into the whole network."""
        held = self.ema.held.values() if isinstance(self.ema, ShardedAverage) else []
        plain = [value for value in held if not isinstance(value, DTensor)]
        self.processes.average([*self.network.buffers(), *plain])
        self.kept.load_state_dict(_whole(self._result()))

    def keep(self) -> None:
        """Nothing to do: `settle` has put the weights into the whole network."""

    def follow(self, order: str | None) -> None:
        """Hold no weights: procedures that return to earlier ones are refused (`device.shards_weights`)."""
        assert order is None

    def state(self) -> dict[str, dict[str, object]]:
        """State dictionaries by part, whole; to be asked for in all processes together."""
        parts: dict[str, dict[str, object]] = {
            "network": _whole(self.network.state_dict()),
            "objective": self.objective.state_dict(),
            "optimizer": _whole(self.optimizer.state_dict()),
            "held": {},
        }
        return parts | ({"ema": _whole(self._result())} if self.ema is not None else {})

    def load_state(self, states: dict[str, dict[str, object]], steps: int) -> None:
        """Take up `state()` of another process, sharded or not; `steps` that the average has seen."""
        self.objective.load_state_dict(states["objective"])
        _load(self.network.state_dict(), states["network"])
        self.optimizer.load_state_dict(states["optimizer"])
        for weight, found in self.optimizer.state.items():
            for name, value in found.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    found[name] = _like(value, weight)
        if self.ema is not None:
            _load(self._result(), states["ema"])
            self.ema.steps = steps

    def _result(self) -> dict[str, Tensor]:
        if isinstance(self.ema, ShardedAverage):
            return self.ema.held
        return self.network.state_dict()


def _sharded(network: MultiExit, device: torch.device, count: int) -> Forward:
    """A twin of `network` with sharded weights; its forward gathers those of one unit at a time."""
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # shards must be contiguous
    root = Forward(plain)
    twin, mesh = root.network, init_device_mesh(device.type, (count,))
    for names in twin.trunk.unit_names:
        modules = [twin.backbone.get_submodule(name) for name in names]
        unit: list[nn.Module] = [module for module in modules if next(module.parameters(), None) is not None]
        if unit:
            fully_shard(unit if len(unit) > 1 else unit[0], mesh=mesh)
    fully_shard(root, mesh=mesh)  # the rest: stem, heads and the backbone's own head
    return root


def _whole(value: Any) -> Any:
    """Nested state with every sharded tensor gathered; all processes must ask for it together."""
    if isinstance(value, DTensor):
        return cast(DTensor, value.detach()).full_tensor()
    if isinstance(value, dict):
        return {key: _whole(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return value


@torch.no_grad()
def _load(targets: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Copy whole tensors into tensors of the same names, which may be sharded."""
    for name, target in targets.items():
        _local(target).copy_(_local(_like(values[name], target)))


def _like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as `target` is: its device, its dtype, its shards."""
    value = value.to(target.device, target.dtype)
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


def _local(value: Tensor) -> Tensor:
    found: Tensor = value.to_local() if isinstance(value, DTensor) else value
    return found
