"""Dynamic halting: each input stops at its own exit, inside a batch, and only survivors run on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.deploy.halting.deciding import Decider
from odn_hybrid.deploy.promising.promise import why_void
from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import runtime_on, weights_digest
from odn_hybrid.stopping import DriftMonitor, HaltingTable

__all__ = ["NO_HALTING", "HaltingModel", "HaltingOutput"]

#: Why a network of thin plans has no dynamic model.
NO_HALTING = (
    "inputs cannot halt in a network of thin plans, where no exit goes on from the one before; "
    "fit it with exits.plan = 'prefix', or truncate it"
)

# With gather="auto" survivors move to a smaller batch only when enough have left to pay for the copy.
WORTH_GATHERING = 0.1


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
    """

    logits: Tensor
    exit: Tensor
    units_run: Tensor
    confidence: Tensor
    certified: bool
    answered: Tensor


class HaltingModel(nn.Module):
    """A multi-exit network with a halting policy: `model(images)` gives a `HaltingOutput`.

    Args:
        network: exits 1..K; exits later than the policy's last are never reached.
        policy: when each exit's answer is good enough.
        gather: "always" gathers the survivors after every exit at which an input left, so that no unit
            runs for an input that has its answer; "auto" waits until a tenth of the batch has left.
        certificate: what is promised, as `run.dynamic` gives it, or None.
        reference: confidences (m,) and exits taken (m,) of the certification images, which `drift_monitor`
            compares with; or None.

    Raises:
        InputError: images of a wrong shape, dtype or device, an empty batch, or NaN pixels.
    """

    units: Tensor

    def __init__(
        self,
        network: MultiExit,
        policy: HaltingTable,
        *,
        gather: Literal["always", "auto"] = "auto",
        certificate: dict[str, Any] | None = None,
        reference: tuple[NDArray[np.float64], NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__()
        if gather not in ("always", "auto"):
            raise ConfigError(f"gather is {gather!r}; choose 'always' or 'auto'")
        if not network.shares_prefix:
            raise ConfigError(NO_HALTING)
        self.network = network
        self.policy = policy
        self.gather = gather
        self.certificate = certificate
        self.reference = reference
        self.last = len(policy)
        if self.last > len(network):
            raise ConfigError(
                f"the policy has {self.last} exits, the network {len(network)}: made for another"
            )
        classes = policy.calibration.scales.shape[1]
        if classes not in (1, network.trunk.num_classes):
            raise ConfigError(
                f"the policy is calibrated for {classes} classes, the network has "
                f"{network.trunk.num_classes}: made for another"
            )
        self._decider = Decider(policy)
        self._judged: tuple[Any, str | None] | None = None
        self.register_buffer("units", torch.tensor(network.units[: self.last]), persistent=False)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> HaltingOutput:
        """Images (batch, channels, height, width) -> answers, each from the exit where it halted."""
        self._check_input(images)
        count, device = images.shape[0], images.device
        logits = torch.empty(count, self.network.trunk.num_classes, device=device)
        confidence = torch.empty(count, device=device)
        taken = torch.empty(count, dtype=torch.long, device=device)
        answered = torch.empty_like(taken)
        rows = torch.arange(count, device=device)
        waiting = torch.ones(count, dtype=torch.bool, device=device)
        trunk, network = self.network.trunk, self.network
        state, memory = trunk.stem(images), None
        for number in range(1, self.last + 1):
            state = network.advance(state, number)
            stops, memory = self._decider.look(number, network.classify(number, state).float(), memory)
            halts = waiting if number == self.last else waiting & stops
            done = rows[halts]
            logits[done], confidence[done] = memory.logits[halts], memory.confidence[halts].float()
            taken[done], answered[done] = number, memory.exit[halts]
            waiting = waiting & ~halts
            left = int(waiting.sum())  # the one device-to-host copy of this segment
            if not left:
                break
            if left < len(rows) and (
                self.gather == "always" or len(rows) - left >= WORTH_GATHERING * len(rows)
            ):
                state, memory, rows = state.select(waiting), memory.select(waiting), rows[waiting]
                waiting = torch.ones(left, dtype=torch.bool, device=device)
        certified = self._certified(images)
        return HaltingOutput(logits, taken, self.units[taken - 1], confidence, certified, answered)

    @property
    def void(self) -> str | None:
        """Why the certificate does not speak of the model as it is now; None where it does.

        Looks again whenever weights change by what torch counts: changes through `tensor.data` go unseen.
        """
        if self.certificate is None:
            return "there is no certificate"
        tensors = [*self.network.parameters(), *self.network.buffers()]
        versions = [(id(t), -1 if t.is_inference() else t._version) for t in tensors]
        runtime = runtime_on(tensors[0].device)
        known = (versions, runtime, self.certificate, self.policy)
        if self._judged is None or self._judged[0] != known:
            found = why_void(self.certificate, weights_digest(self.network), self.policy, runtime)
            self._judged = (copy.deepcopy(known), found)
        return self._judged[1]

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

    def _certified(self, images: Tensor) -> bool:
        """The promise was earned in evaluation mode and fp32; it speaks of nothing else."""
        usual = images.dtype == torch.float32 and not any(m.training for m in self.network.modules())
        return usual and not torch.is_autocast_enabled(images.device.type) and self.void is None

    def _check_input(self, images: Tensor) -> None:
        like = next(self.network.parameters())
        shape = self.network.trunk.image_shape
        if not isinstance(images, Tensor):
            raise InputError(f"images must be a tensor, not {type(images).__name__}; see run.transform")
        if images.dim() != 4 or tuple(images.shape[1:]) != shape:
            raise InputError(
                f"images have shape {tuple(images.shape)}; expected (batch, {', '.join(map(str, shape))})"
            )
        if images.shape[0] == 0:
            raise InputError("the batch is empty")
        if images.dtype != like.dtype or images.device != like.device:
            raise InputError(
                f"images are {images.dtype} on {images.device}; the model is {like.dtype} on {like.device}"
            )
        if not bool(torch.isfinite(images).all()):
            raise InputError("images hold NaN or infinite values")
