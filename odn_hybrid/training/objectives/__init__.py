"""Training objectives over the exits of one forward: the registry, and the one this library is for."""

from odn_hybrid.training.objectives import depth_reg  # noqa: F401  (enters the registry)
from odn_hybrid.training.objectives.registry import (
    OBJECTIVES,
    PLAIN,
    ExitOutputs,
    build_objective,
    check_distillation,
    exit_losses,
    register_objective,
)

__all__ = [
    "OBJECTIVES",
    "PLAIN",
    "ExitOutputs",
    "build_objective",
    "check_distillation",
    "exit_losses",
    "register_objective",
]
