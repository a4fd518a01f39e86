"""The reference pages: every public name, in areas, from its docstring."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Area:
    """A page of the reference: its file, title, what it is about, where its names are, and which."""

    slug: str
    title: str
    about: str
    module: str
    names: tuple[str, ...] = ()  # empty: all of the module's

    @property
    def all_names(self) -> tuple[str, ...]:
        """Public names of the page, in the order given or that of the module."""
        return self.names or public_names(importlib.import_module(self.module))


# fmt: off
AREAS = (
    Area("fitting", "Fitting and runs", "One fit gives a table of exits, a static model and a dynamic one.",
         "odn_hybrid", ("fit", "fit_seeds", "Run", "compare", "FitConfig", "load_recipe")),
    Area("trunks", "Trunks, plans and exits", "Any backbone as stem, units and tail; its exits.",
         "odn_hybrid", ("Trunk", "State", "DepthPlan", "prefix", "thin", "cut", "MultiExit", "register_head",
                        "Costs", "count_costs")),
    Area("halting", "Halting and promises", "Models that stop each input where it may.",
         "odn_hybrid", ("HaltingModel", "HaltingOutput", "Promise", "BoundedLoss", "Execution")),
    Area("keeping", "Saving, exporting, sharing", "Files for this library and others.",
         "odn_hybrid", ("save", "load", "export", "save_pretrained", "from_pretrained", "push_to_hub")),
    Area("reporting", "Tables and sentences of a report", "What a fit and a comparison found, for a person.",
         "odn_hybrid.report"),
    Area("training", "Objectives", "What a fit lowers, and how to add an objective.",
         "odn_hybrid.training"),
    Area("stopping", "Optimal stopping on arrays",
         "Policies, certificates and drift on recorded outputs; numpy and scipy.",
         "odn_hybrid.stopping"),
    Area("runner", "Running exported models", "Exported halting models, without torch.",
         "odn_hybrid.runner"),
)
# fmt: on

#: Names of the front that other pages of the reference have: where.
ELSEWHERE = {"__version__": "the version", "OdnError": "errors", "register_objective": "training"}

TOP = """# Reference

From the docstrings of every public name. Arrays are given with their shapes; K is the number of exits, C that
of classes. Costs are multiply-accumulates of one image (MACs) unless something else is said.

```{{toctree}}
:maxdepth: 1

{pages}
commands
recipes
errors
records
```
"""


def public_names(module: ModuleType) -> tuple[str, ...]:
    """What a module's `__all__` names."""
    return tuple(name for name in module.__all__ if not name.startswith("__"))


def reference_pages() -> dict[str, str]:
    """Every page, by its name on the site."""
    pages = {f"reference/{area.slug}.md": _page(area) for area in AREAS}
    top = TOP.format(pages="\n".join(area.slug for area in AREAS))
    return {"reference/index.md": top, **pages}


def _page(area: Area) -> str:
    text = f"# {area.title}\n\n{area.about}\n\n```{{eval-rst}}\n.. currentmodule:: {area.module}\n```\n"
    module = importlib.import_module(area.module)
    return text + "".join(_entry(name, getattr(module, name), area) for name in area.all_names)


def _entry(name: str, thing: object, area: Area) -> str:
    if inspect.isclass(thing):
        directive, options = "autoclass", "   :members:\n"
        if fields := getattr(thing, "_fields", None):  # of a named tuple: "alias for field number 0"
            options += f"   :exclude-members: {', '.join(fields)}\n"
    elif callable(thing):
        directive, options = "autofunction", ""
    else:
        return f"\n## {name}\n\n```{{eval-rst}}\n.. py:data:: {name}\n\n   {_said(name, area.module)}\n```\n"
    return f"\n## {name}\n\n```{{eval-rst}}\n.. {directive}:: {area.module}.{name}\n{options}```\n"


def _said(name: str, module: str) -> str:
    """What the comment at a value's definition says of it."""
    folder = Path(importlib.import_module(module).__file__ or "").parent
    defined = re.compile(rf"((?:^#: .*\n)*)^{name}\b[^=\n]*=[^#\n]*(?:# (.*))?$", re.M)
    for path in sorted(folder.rglob("*.py")):
        for above, beside in defined.findall(path.read_text(encoding="utf-8")):
            text = beside or " ".join(line.removeprefix("#: ") for line in above.splitlines())
            if text:
                return str(text[0].upper() + text[1:].rstrip(".") + ".")
    raise ValueError(f"{module}.{name} has no comment at its definition that says what it is")
