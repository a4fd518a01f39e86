"""Any backbone as `stem -> units -> tail`: tracing, self-check, a run that stops and resumes, depth plans."""

from odn_hybrid.trunk.plans import DepthPlan, prefix, thin, thinnings
from odn_hybrid.trunk.state import State
from odn_hybrid.trunk.trunk import Trunk

__all__ = ["DepthPlan", "State", "Trunk", "prefix", "thin", "thinnings"]
