"""Any backbone as `stem -> units -> tail`: tracing, self-check, a run that stops and resumes."""

from odn_hybrid.trunk.state import State
from odn_hybrid.trunk.trunk import Trunk

__all__ = ["State", "Trunk"]
