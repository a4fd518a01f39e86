"""The runtime of dynamic halting: each input stops at its own exit, and only survivors run on."""

from odn_hybrid.deploy.halting.model import NO_HALTING, HaltingModel, HaltingOutput

__all__ = ["NO_HALTING", "HaltingModel", "HaltingOutput"]
