"""The reference of recipes, read from the dataclasses that they fill."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, get_type_hints

from odn_hybrid.config import FitConfig

TOP = """# Recipe fields

A recipe is a YAML file with the fields below; every field has a default. `odn fit RECIPE.yaml`,
`odn fit MODEL --set optim.lr=0.05`, or in Python `odn.fit(model, overrides={"optim.lr": 0.05})`. A field that
does not exist, or a value outside its range, is a `ConfigError`. The same dataclasses hold them in Python:
`odn.FitConfig`, and `odn.load_recipe(path)` reads a file. Recipes that ship with the library are in
[configs](repo:configs).
"""


def recipes_page() -> str:
    """A section for the top and one for each part."""
    return TOP + _section("Top level", FitConfig, "") + "".join(_parts(FitConfig, ""))


def _parts(config: type, above: str) -> list[str]:
    found = []
    for field, kind in _fields(config):
        if dataclasses.is_dataclass(kind):
            name = f"{above}{field.name}"
            found += [_section(f"`{name}`", kind, f"{name}."), *_parts(kind, f"{name}.")]
    return found


def _fields(config: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(config)
    return [(field, hints[field.name]) for field in dataclasses.fields(config)]


def _section(title: str, config: type, above: str) -> str:
    rows = [
        f"| `{above}{field.name}` | {_kind(kind)} | {_default(field)} |\n"
        for field, kind in _fields(config)
        if not dataclasses.is_dataclass(kind)
    ]
    text = f"\n## {title}\n\n{inspect.getdoc(config)}\n\n| field | values | default |\n| --- | --- | --- |\n"
    return text + "".join(rows)


def _kind(kind: Any) -> str:
    values = getattr(kind, "__args__", ()) if "Literal" in str(kind) else ()
    if values:
        return ", ".join(f"`{value}`" for value in values)
    names = {"<class 'float'>": "number", "<class 'int'>": "whole number", "<class 'str'>": "text"}
    names |= {"<class 'bool'>": "`true`, `false`"}
    text = names.get(str(kind), str(kind))
    for long, short in (
        ("float", "number"),
        ("int", "whole number"),
        ("str", "text"),
        (" | None", ", or null"),
    ):
        text = text.replace(long, short) if "|" in str(kind) else text
    return "a mapping" if text.startswith("dict") else text


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    value = {None: "null", True: "true", False: "false"}.get(field.default, field.default)
    return f"`{value}`"
