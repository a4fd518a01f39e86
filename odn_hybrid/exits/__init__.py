"""Exit heads, and `MultiExit`: a trunk and the depths at which it answers."""

from odn_hybrid.exits.heads import HEADS, build_head, register_head
from odn_hybrid.exits.network import MultiExit, forks_of, unused_modules

__all__ = ["HEADS", "MultiExit", "build_head", "forks_of", "register_head", "unused_modules"]
