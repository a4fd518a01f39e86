"""How a network is run in evaluation: precision, folded or not, eager or compiled.

A certificate speaks of one of these and of one kind of device, since inputs near a threshold move with the
last digits (`Execution.name`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from odn_hybrid.errors import ConfigError

__all__ = ["Execution"]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What computes, beside the device.

    Attributes:
        precision: "fp32"; or "bf16" or "fp16": weights stay as they are, and autocast chooses what is
            computed in the lower precision.
        fold: batch normalisation is part of the layer before it where that is exact (`folding`).
        compile: through `torch.compile`.

    Raises:
        ConfigError: another precision, or an answer that is not yes or no.

    Example:
        >>> import torch
        >>> from odn_hybrid import Execution
        >>> Execution(fold=True).name(torch.device("cpu"))
        'eager fp32 folded cpu'
    """

    precision: str = "fp32"
    fold: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        for name in ("fold", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be True or False")

    def name(self, device: torch.device) -> str:
        """The runtime as certificates name it: "eager fp32 cpu", "compiled bf16 folded cuda tf32"."""
        words = ["compiled" if self.compile else "eager", self.precision]
        words += ["folded"] if self.fold else []
        words += [device.type, *(["tf32"] if device.type == "cuda" and _tf32() else [])]
        return " ".join(words)

    def casting(self, device: torch.device) -> AbstractContextManager[Any]:
        """While it lasts, `device` computes in this precision, whatever autocast stands around it."""
        if self.precision != "fp32":
            # What the autocast around it has cast and kept may be of another precision.
            return torch.autocast(device.type, PRECISIONS[self.precision], cache_enabled=False)
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            return torch.autocast(device.type, enabled=False)
        return nullcontext()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Execution:
        """Read back what `to_dict` gave; what is not said is the default. Raises `ConfigError`."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"execution is {data!r}; it must be a mapping")
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(name) for name in data if name not in known)
        if unknown:
            raise ConfigError(f"execution has no option {unknown[0]!r}; its options: {', '.join(known)}")
        return cls(**data)


def _tf32() -> bool:
    """Whether convolutions or matrix products in fp32 are rounded to TF32."""
    try:
        return bool(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:  # set through the newer switches, which the older can't read
        places = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None))
        return any(getattr(place, "fp32_precision", None) == "tf32" for place in places)
