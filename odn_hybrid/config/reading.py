"""Recipes and dictionaries to choices and back, refusing what a recipe cannot say.

Unknown fields are errors: a misspelt option must not be silently ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from odn_hybrid.config.choices import ExpansionConfig, FitConfig
from odn_hybrid.errors import ConfigError

__all__ = ["from_dict", "load_recipe", "recipe_path", "replace_fields", "to_dict"]

MAX_RECIPE_BYTES = 1 << 20  # a recipe is a page of text; anything larger is a mistake or an attack

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of this module as plain JSON-able data."""
    return dataclasses.asdict(config)


def from_dict(kind: type[T], values: Any, where: str = "") -> T:
    """Build the dataclass `kind` from plain data, refusing unknown fields and wrong types by name."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the recipe'} must be a mapping of fields, not {values!r}")
    hints = typing.get_type_hints(kind)
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if key not in hints:
            near = difflib.get_close_matches(str(key), list(hints), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known fields: {', '.join(hints)}"
            raise ConfigError(f"unknown field {name!r}{hint}")
        known[key] = _convert(hints[key], value, name)
    return kind(**known)


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if hint is ExpansionConfig and isinstance(value, str):
        value = {"procedure": value}  # `expansion: reload`
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, name)
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(typing.get_args(hint))}")
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(next(h for h in typing.get_args(hint) if h is not type(None)), value, name)
    if origin is dict:
        if isinstance(value, dict):
            return dict(value)
        raise ConfigError(f"{name} must be a mapping, not {value!r}")
    if hint is float:
        return _number(value, name)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is not int and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise ConfigError(f"{name} is {value!r}; expected {hint.__name__}")


def _number(value: Any, name: str) -> float:
    # YAML 1.1 reads "1e15" as a string; a person means the number.
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {value!r}; expected a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ConfigError(f"{name} is {value!r}; expected a finite number")
    return number


def load_recipe(path: str | Path) -> FitConfig:
    """Read the YAML recipe at `path`. Raises `ConfigError` with the field's name for anything it cannot use.

    Example:
        >>> import odn_hybrid as odn
        >>> from odn_hybrid.config import recipe_path
        >>> odn.load_recipe(recipe_path("quickstart")).model.name
        'resnet18'
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_RECIPE_BYTES} bytes: not a recipe")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    return from_dict(FitConfig, values or {})


def replace_fields(config: FitConfig, changes: dict[str, Any]) -> FitConfig:
    """A copy with dotted fields changed, e.g. `{"choice.tolerance": 0.02}`; checked like a recipe."""
    values = to_dict(config)
    for dotted, value in changes.items():
        *parents, leaf = dotted.split(".")
        place: Any = values
        for parent in parents:
            place = place.get(parent)
            if not isinstance(place, dict):
                raise ConfigError(f"unknown field {dotted!r}: the recipe has no section {parent!r}")
        if dotted == "expansion" and isinstance(value, str):  # `expansion: reload`: its other fields stay
            place, leaf = place[dotted], "procedure"
        place[leaf] = value
    return from_dict(FitConfig, values)


def recipe_path(name: str) -> Path:
    """Path of a recipe that comes with the library, by its name, e.g. "quickstart"."""
    here = Path(__file__).parent.parent
    for folder in (here / "configs", here.parent / "configs"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(f"no recipe named {name!r} comes with this installation")
