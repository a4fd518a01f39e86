"""odn_hybrid: right-size the depth of timm ResNets and Transformers, statically and dynamically.

>>> import odn_hybrid as odn
>>> sorted(odn.__all__)[:3]
['BoundedLoss', 'Costs', 'DepthPlan']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from odn_hybrid._version import __version__

if TYPE_CHECKING:
    from odn_hybrid.artifacts import load as load
    from odn_hybrid.artifacts import save as save
    from odn_hybrid.config import FitConfig as FitConfig
    from odn_hybrid.config import load_recipe as load_recipe
    from odn_hybrid.cost import Costs as Costs
    from odn_hybrid.cost import count_costs as count_costs
    from odn_hybrid.deploy.halting import HaltingModel as HaltingModel
    from odn_hybrid.deploy.halting import HaltingOutput as HaltingOutput
    from odn_hybrid.deploy.truncation.truncate import cut as cut
    from odn_hybrid.errors import OdnError as OdnError
    from odn_hybrid.execution import Execution as Execution
    from odn_hybrid.exits import MultiExit as MultiExit
    from odn_hybrid.exits import register_head as register_head
    from odn_hybrid.fitting import fit as fit
    from odn_hybrid.run import Run as Run
    from odn_hybrid.run import compare as compare
    from odn_hybrid.several import fit_seeds as fit_seeds
    from odn_hybrid.sharing import export as export
    from odn_hybrid.sharing import from_pretrained as from_pretrained
    from odn_hybrid.sharing import push_to_hub as push_to_hub
    from odn_hybrid.sharing import save_pretrained as save_pretrained
    from odn_hybrid.training.objectives import register_objective as register_objective
    from odn_hybrid.trunk import DepthPlan as DepthPlan
    from odn_hybrid.trunk import State as State
    from odn_hybrid.trunk import Trunk as Trunk
    from odn_hybrid.trunk import prefix as prefix
    from odn_hybrid.trunk import thin as thin

# Importing torch and timm takes seconds, so each name is loaded when it is first used.
_HOMES = {
    "BoundedLoss": "deploy.promising.promise",
    "Costs": "cost",
    "DepthPlan": "trunk",
    "Execution": "execution",
    "FitConfig": "config",
    "HaltingModel": "deploy.halting",
    "HaltingOutput": "deploy.halting",
    "MultiExit": "exits",
    "OdnError": "errors",
    "Promise": "deploy.promising.promise",
    "Run": "run",
    "State": "trunk",
    "Trunk": "trunk",
    "compare": "run",
    "count_costs": "cost",
    "cut": "deploy.truncation.truncate",
    "export": "sharing",
    "fit": "fitting",
    "fit_seeds": "several",
    "from_pretrained": "sharing",
    "load": "artifacts",
    "load_recipe": "config",
    "prefix": "trunk",
    "push_to_hub": "sharing",
    "register_head": "exits",
    "register_objective": "training.objectives",
    "save": "artifacts",
    "save_pretrained": "sharing",
    "thin": "trunk",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'odn_hybrid' has no attribute {name!r}")
    return getattr(importlib.import_module(f"odn_hybrid.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
