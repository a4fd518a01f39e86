"""Whether a module, parameter or buffer was set anywhere: only then can lists of them have changed."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as torch_module

__all__ = ["registered"]


class _Registrations:
    """Counts modules, parameters and buffers set anywhere: only then can a network's list of them change."""

    def __init__(self) -> None:
        self.count = 0
        torch_module.register_module_module_registration_hook(self._seen)
        torch_module.register_module_parameter_registration_hook(self._seen)
        torch_module.register_module_buffer_registration_hook(self._seen)

    def _seen(self, *_: Any) -> None:
        self.count += 1


_registrations: _Registrations | None = None


def registered() -> int:
    """How many were set since the first time that this was asked."""
    global _registrations
    if _registrations is None:
        _registrations = _Registrations()
    return _registrations.count
