"""The "frozen" regime: the backbone stays as it is, exit heads are trained on features computed once."""

from odn_hybrid.training.frozen.procedure import Frozen

__all__ = ["Frozen"]
