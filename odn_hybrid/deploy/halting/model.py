"""Dynamic halting: each input stops at its own exit, inside a batch, and only survivors run on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.deploy.halting.choosing import Flows, image_layout
from odn_hybrid.deploy.halting.profit import Gathering, SegmentTimes
from odn_hybrid.deploy.halting.standing import Standing
from odn_hybrid.deploy.halting.timing import segment_times
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.stopping import DriftMonitor, HaltingTable

__all__ = ["NO_HALTING", "HaltingModel", "HaltingOutput"]

#: Why a network of thin plans has no dynamic model.
NO_HALTING = (
    "inputs cannot halt in a network of thin plans, where no exit goes on from the one before; "
    "fit it with exits.plan = 'prefix', or truncate it"
)


@dataclass(frozen=True)
class HaltingOutput:
    """Answers of a halting model, in the order of the inputs.

    Attributes:
        logits: (batch, classes) of the exit whose answer each input got.
        exit: (batch,) the exit where it stopped, 1 to K.
        units_run: (batch,) units run to reach that exit.
        confidence: (batch,) calibrated probability of the answer.
        certified: whether the model's certificate speaks of these answers.
        answered: (batch,) the exit whose answer it is: with recall perhaps one before `exit`, else the same.

    Example:
        >>> # `run` is a finished fit of a ResNet of 4 units, for grey images of 12x12 pixels in 3 classes
        >>> import torch
        >>> out = run.dynamic(certify=False)(torch.zeros(2, 1, 12, 12))
        >>> out.logits.shape, out.exit.shape, out.certified
        (torch.Size([2, 3]), torch.Size([2]), False)
    """

    logits: Tensor
    exit: Tensor
    units_run: Tensor
    confidence: Tensor
    certified: bool
    answered: Tensor


#: What answers and certificate depend on: set once.
FIXED = ("network", "policy", "exits", "execution", "gather")


class HaltingModel(nn.Module):
    """A multi-exit network with a halting policy: `model(images)` gives a `HaltingOutput`.

    Heads of exits at which the policy never stops and whose answer it does not need are not evaluated. Calls
    from several threads are safe.

    Args:
        network: exits 1..K; exits deeper than the policy's last are never reached.
        policy: when each exit's answer is good enough.
        exits: which exits of the network the policy's exits 1..P are, ascending; default 1..P.
        gather: "always" gathers the survivors after every exit at which an input left, so that no unit
            runs for an input that has its answer (of CUDA graphs: for more than fill a bucket); "auto"
            gathers where it saves more than it costs, by the times that `warm_up` measured, before that
            where a tenth of the batch has left.
        certificate: what is promised, as `run.dynamic` gives it, or None.
        reference: confidences (m,) and exits taken (m,) of the certification images, which `drift_monitor`
            compares with; or None.
        execution: precision, folded or not, compiled or not. A folded network is given folded (see
            `MultiExit.fold`).

    Attributes:
        looked: the network's exits whose heads are evaluated.

    Raises:
        InputError: images of a wrong shape, dtype or device, an empty batch, or NaN pixels.
        ConfigError: a policy made for another network, exits that do not ascend, or thin plans.

    Example:
        >>> import torch
        >>> import timm
        >>> import odn_hybrid as odn
        >>> trunk = odn.Trunk(timm.create_model("resnet18", num_classes=10), image_size=32)
        >>> from odn_hybrid.stopping import Calibration, HaltingTable
        >>> network = odn.MultiExit(trunk).eval()
        >>> table = HaltingTable.of_thresholds([0.9] * 8, Calibration.of_temperatures([1.0] * 8))
        >>> fast = odn.HaltingModel(network, table)
        >>> out = fast(torch.rand(2, 3, 32, 32))
        >>> out.logits.shape, out.certified
        (torch.Size([2, 10]), False)
    """

    _known: Tensor

    def __init__(
        self,
        network: MultiExit,
        policy: HaltingTable,
        *,
        exits: Sequence[int] | None = None,
        gather: Literal["always", "auto"] = "auto",
        certificate: dict[str, Any] | None = None,
        reference: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        gathering = Gathering(gather)
        self.network = network.to(memory_format=image_layout(network))
        self.policy = policy
        self.exits = _checked(network, policy, exits)
        self.gather = gather
        self.reference = reference
        self.execution = execution or Execution()
        self.last = self.exits[-1]
        self.looked = tuple(self.exits[number - 1] for number in policy.needed)
        self._shape = network.trunk.image_shape
        self._standing = Standing(network, certificate, policy, self.execution, self.exits)
        self._flows = Flows(network, policy, self.exits, self.execution, gathering)
        # By numbers in the policy, which begin at 1: nothing has to be subtracted with every batch.
        units = (network.units[exit - 1] for exit in self.exits)
        self.register_buffer("_known", torch.tensor([(0, *self.exits), (0, *units)]), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> HaltingOutput:
        """Images (batch, channels, height, width) -> answers, each from the exit where it halted."""
        # Not in inference mode, even if the caller is: buffers that are kept could not be written outside.
        outside = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
        with outside, torch.no_grad():
            standing = self._standing
            weights = standing.weights
            self._check_input(images, weights[0])
            flow = self._flows.of(weights, made_of=standing.made_of, training=standing.training)
            found = flow(images)
            certified = standing.speaks(images)
            exit, units = self._of(found.taken)
            answered = exit.clone() if found.answered is None else self._of(found.answered)[0]
        return HaltingOutput(found.logits, exit, units, found.confidence, certified, answered)

    def warm_up(self, batch_sizes: Sequence[int] = (1, 16, 64), *, rounds: int = 5) -> SegmentTimes:
        """Measure every segment at batch sizes up to the largest of these, and prepare for these.

        Afterwards gathering is decided by these times, and memory stays as it is for batches up to the
        largest. Seconds to minutes, depending on the network; `compile` and CUDA graphs are done here. Raises
        `ConfigError` unless batch sizes are whole numbers of 1 or more.
        """
        if not batch_sizes or any(
            isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in batch_sizes
        ):
            raise ConfigError(f"batch sizes are {list(batch_sizes)!r}; give whole numbers of 1 or more")
        like = next(self.network.parameters())
        images = torch.rand(
            max(batch_sizes), *self.network.trunk.image_shape, generator=torch.Generator().manual_seed(0)
        )
        images = images.to(device=like.device, dtype=like.dtype)
        with torch.inference_mode(False), torch.no_grad():
            self._flows.straighten()
            times = segment_times(
                self._flows.of(self._standing.weights, made_of=self._standing.made_of),
                images,
                self.execution,
                rounds=rounds,
            )
        self._flows.gathers.times = times
        for size in sorted(set(batch_sizes)):
            self(images[:size])
        return times

    @property
    def times(self) -> SegmentTimes | None:
        """What `warm_up` measured; None before."""
        return self._flows.gathers.times

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and "_flows" in self.__dict__:
            raise AttributeError(f"{name} of a halting model is fixed; make another HaltingModel")
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_flows", "_standing")}
        return {**kept, "_kept": (self.certificate, self.times)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        certificate, times = state.pop("_kept")
        super().__setstate__(state)
        self._standing = Standing(self.network, certificate, self.policy, self.execution, self.exits)
        gathering = Gathering(self.gather)
        gathering.times = times
        self._flows = Flows(self.network, self.policy, self.exits, self.execution, gathering)

    @property
    def certificate(self) -> dict[str, Any] | None:
        """What is promised: a copy, which can't be edited in place; None where nothing is."""
        return self._standing.certificate

    @property
    def void(self) -> str | None:
        """Why the certificate does not speak of the model as it is now; None where it does.

        Looks again whenever weights change by what torch counts: changes through `tensor.data` go unseen.
        """
        return self._standing.void

    def drift_monitor(self, *, alpha: float = 0.05, per: int | None = None) -> DriftMonitor:
        """A monitor of this model's answers: feed it `out.confidence` and `out.exit` of every batch.

        It compares with the certification images. They decided neither weights nor candidates; where a
        sequence of candidates was certified, their labels settled which of it is in force, and the bound on
        false alarms holds up to that. `alpha`, `per` and what it cannot see:
        `odn_hybrid.stopping.DriftMonitor`. Raises `ConfigError` for a model without those statistics.
        """
        if self.reference is None:
            raise ConfigError(
                "this model was made without certification statistics; run.dynamic() keeps them"
            )
        return DriftMonitor(*self.reference, exits=self.last, alpha=alpha, per=per)

    def _of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The network's exits and their units, (batch,) each, by numbers in the policy (batch,), from 1."""
        known = self._known
        if known.device.type == "cpu":  # by numpy: quicker where caches are cold
            found = known.numpy().take(numbers.numpy(), 1)
            return torch.from_numpy(found[0]), torch.from_numpy(found[1])
        exits, units = known.index_select(1, numbers)
        return exits, units

    def _check_input(self, images: Tensor, like: Tensor) -> None:
        if not isinstance(images, Tensor):
            raise InputError(f"images must be a tensor, not {type(images).__name__}; see run.transform")
        if images.dim() != 4 or images.shape[1:] != self._shape:
            want = ", ".join(map(str, self._shape))
            raise InputError(f"images have shape {tuple(images.shape)}; expected (batch, {want})")
        if images.shape[0] == 0:
            raise InputError("the batch is empty")
        if images.dtype != like.dtype or images.device != like.device:
            raise InputError(
                f"images are {images.dtype} on {images.device}; the model is {like.dtype} on {like.device}"
            )


def _checked(network: MultiExit, policy: HaltingTable, exits: Sequence[int] | None) -> tuple[int, ...]:
    """The network's exits that the policy's are; `ConfigError` where policy and network do not fit."""
    if not network.shares_prefix:
        raise ConfigError(NO_HALTING)
    mine = tuple(range(1, len(policy) + 1)) if exits is None else tuple(exits)
    if len(mine) != len(policy):
        raise ConfigError(f"the policy has {len(policy)} exits, {list(mine)} are {len(mine)}")
    if exits is None and len(policy) > len(network):
        raise ConfigError(f"the policy has {len(policy)} exits, the network {len(network)}: made for another")
    if list(mine) != sorted({network.check_exit(exit) for exit in mine}):
        raise ConfigError(f"exits are {list(mine)}; give them in ascending order, each once")
    classes = policy.calibration.scales.shape[1]
    if classes not in (1, network.trunk.num_classes):
        raise ConfigError(
            f"the policy is calibrated for {classes} classes, the network has "
            f"{network.trunk.num_classes}: made for another"
        )
    return mine
