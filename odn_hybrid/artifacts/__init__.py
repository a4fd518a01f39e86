"""Save and load whatever a user keeps: run directories, static models, halting models.

Weights are safetensors, everything else JSON; no code and no pickle.
"""

from odn_hybrid.artifacts.runs import load_run, write_run
from odn_hybrid.artifacts.saving import load, save

__all__ = ["load", "load_run", "save", "write_run"]
