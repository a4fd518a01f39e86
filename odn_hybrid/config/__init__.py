"""Every choice of a fit as a frozen dataclass, to YAML / JSON and back.

A recipe is the YAML form of `FitConfig`.
"""

from odn_hybrid.config.choices import (
    CONFIG_VERSION,
    ChoiceConfig,
    DataConfig,
    DynamicConfig,
    ExitConfig,
    ExpansionConfig,
    FitConfig,
    FrozenConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ReloadConfig,
)
from odn_hybrid.config.reading import from_dict, load_recipe, recipe_path, replace_fields, to_dict

__all__ = [
    "CONFIG_VERSION",
    "ChoiceConfig",
    "DataConfig",
    "DynamicConfig",
    "ExitConfig",
    "ExpansionConfig",
    "FitConfig",
    "FrozenConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ReloadConfig",
    "from_dict",
    "load_recipe",
    "recipe_path",
    "replace_fields",
    "to_dict",
]
