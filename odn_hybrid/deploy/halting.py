"""Dynamic halting: each input stops at its own exit, inside a batch, and only survivors run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from odn_hybrid.errors import ConfigError, InputError
from odn_hybrid.exits import MultiExit
from odn_hybrid.stopping import ConfidencePolicy

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
        logits: (batch, classes) of the exit each input took.
        exit: (batch,) its number, 1 to K.
        units_run: (batch,) units run to reach that exit.
        confidence: (batch,) calibrated probability of the most likely class.
        certified: whether the model's certificate speaks of these answers.
    """

    logits: Tensor
    exit: Tensor
    units_run: Tensor
    confidence: Tensor
    certified: bool


class HaltingModel(nn.Module):
    """A multi-exit network with a halting policy: `model(images)` gives a `HaltingOutput`.

    Args:
        network: exits 1..K; later exits than `last` are never reached.
        policy: when each exit's answer is good enough.
        gather: "always" gathers the survivors after every exit at which an input left, so that no unit
            runs for an input that has its answer; "auto" waits until a tenth of the batch has left.
        certificate: what is promised (a dictionary with at least `certified`), or None.

    Raises:
        InputError: images of a wrong shape, dtype or device, an empty batch, or NaN pixels.
    """

    units: Tensor

    def __init__(
        self,
        network: MultiExit,
        policy: ConfidencePolicy,
        *,
        gather: Literal["always", "auto"] = "auto",
        certificate: dict[str, Any] | None = None,
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
        self.last = len(policy.thresholds)
        if self.last > len(network):
            raise ConfigError(
                f"the policy has {self.last} exits, the network {len(network)}: made for another"
            )
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
        rows = torch.arange(count, device=device)
        waiting = torch.ones(count, dtype=torch.bool, device=device)
        trunk, network = self.network.trunk, self.network
        state = trunk.stem(images)
        for number in range(1, self.last + 1):
            state = network.advance(state, number)
            answers = network.classify(number, state).float()
            score = self._confidence(answers, number)
            halts = (
                waiting
                if number == self.last
                else waiting & (score >= float(self.policy.thresholds[number - 1]))
            )
            done = rows[halts]
            logits[done], confidence[done], taken[done] = answers[halts], score[halts].float(), number
            waiting = waiting & ~halts
            left = int(waiting.sum())  # the one device-to-host copy of this segment
            if not left:
                break
            if left < len(rows) and (
                self.gather == "always" or len(rows) - left >= WORTH_GATHERING * len(rows)
            ):
                state, rows = state.select(waiting), rows[waiting]
                waiting = torch.ones(left, dtype=torch.bool, device=device)
        return HaltingOutput(logits, taken, self.units[taken - 1], confidence, self._certified(images))

    def _confidence(self, answers: Tensor, number: int) -> Tensor:
        # In float64, as the policy was chosen: float32 cannot tell 1 - 1e-9 from 1, where confident networks
        # live, and would halt other inputs than the certificate speaks of. Some devices have float32 only.
        exact = answers if answers.device.type == "mps" else answers.double()
        return (exact / float(self.policy.temperatures[number - 1])).softmax(1).amax(1)

    def _certified(self, images: Tensor) -> bool:
        """The promise was earned in evaluation mode and fp32; it speaks of nothing else."""
        promised = self.certificate is not None and self.certificate.get("certified") is True
        usual = images.dtype == torch.float32 and not any(m.training for m in self.network.modules())
        return promised and usual and not torch.is_autocast_enabled(images.device.type)

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
