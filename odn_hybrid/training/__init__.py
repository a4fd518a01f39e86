"""One training loop on accelerate, the objectives, and progressive depth expansion."""

from odn_hybrid.training.objectives import OBJECTIVES, ExitOutputs, build_objective, register_objective

__all__ = ["OBJECTIVES", "ExitOutputs", "build_objective", "register_objective"]
