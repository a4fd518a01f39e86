"""What is served, and how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from odn_hybrid.errors import ConfigError

__all__ = ["Loading"]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """What is served, and how it is loaded.

    Attributes:
        models: name -> run directory, or saved or exported model.
        kind: "dynamic" (inputs halt), "full" (the whole network) or "static" (the fit's choice of depth).
        uncertified: serve a dynamic model although there is no certificate for it.
        device: "cpu", "cuda", ...; None: as the model is loaded.
        threads: of the CPU that a segment runs on; None: the library's choice.
        allow_reload: models may be loaded and unloaded over HTTP, by the names that they have here.
    """

    models: Mapping[str, Path]
    kind: str = "dynamic"
    uncertified: bool = False
    device: str | None = None
    threads: int | None = None
    allow_reload: bool = False

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("there is nothing to serve; name a run")
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise ConfigError(f"threads is {self.threads!r}; it must be a whole number from 1")
