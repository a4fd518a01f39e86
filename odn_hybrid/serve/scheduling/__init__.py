"""Which segment runs next and on which inputs, and the thread that does it."""

from odn_hybrid.serve.scheduling.engine import Engine
from odn_hybrid.serve.scheduling.lane import Lane
from odn_hybrid.serve.scheduling.observing import Observer

__all__ = ["Engine", "Lane", "Observer"]
