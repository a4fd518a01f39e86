"""Which models of timm and torchvision can be split, into what, and the numbers that prove it."""

from odn_hybrid.catalog.checking import Evidence, enliven
from odn_hybrid.catalog.entries import Entry, blank_weights, describe, names, near_names

__all__ = ["Entry", "Evidence", "blank_weights", "describe", "enliven", "names", "near_names"]
