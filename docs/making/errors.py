"""The page of errors: each kind, what to do, and every message there is, read from the library's code."""

from __future__ import annotations

import ast
import html
import inspect
from collections.abc import Iterator
from functools import cache

from making.places import ROOT
from odn_hybrid import errors

TOP = """# Errors

Every error that a user can cause is an `OdnError`. Its message says what was wrong, with what value, and what
to do. The command line prints it on one line, without a traceback, and exits with the status given here. Any
other exception is a mistake of ours: please report it.

Below are the kinds, what to do about each, and their messages; "..." stands for what a message names. The
page is written from the library's own code.
"""

#: What to do. A test checks that every kind is here and no other.
ADVICE = {
    "ConfigError": "An option, an argument or a recipe field is wrong. The message gives the range or the "
    "known values: correct it and run the same command again. Nothing was trained or "
    "written.",
    "DataError": "Look at the file or folder that the message names. A folder needs one subfolder for "
    "each class; an `.npz` needs `x_train, y_train, x_test, y_test`. The same data set must "
    "be given again to a run that has moved.",
    "ModelError": "The network is unknown, cannot be split into units, or has other classes than the "
    "data. `odn models NAME --check` says whether a network of timm can be split, and where "
    "it cannot. Give the model by name, so that the class count is set for you.",
    "InputError": "Images or arrays given to a finished model have the wrong shape or type, or hold "
    "values that are not numbers. Use `run.transform(images)`, and compare with the shape "
    "in the message.",
    "RunDirError": "A run directory or a saved model is missing, damaged, occupied, or of a newer release. "
    "Name another directory for a new fit; `odn fit --resume --out RUN` goes on with an "
    "interrupted one. A damaged one cannot be mended: fit again, or take a copy.",
    "ExportError": "The export was not made, or what lies there is not one of ours. Nothing half-written "
    "is left. Choose another format, or install the extra: `pip install 'odn- "
    "hybrid[export]'`.",
    "StorageError": "The disk is full, read-only, or not yours to write. Make room, or name another "
    "directory. An interrupted fit goes on with `--resume`.",
    "CertificateError": "The promise was not given, and that is an answer: the data do not show "
    "it. Give more certification images (the message says how many), ask for less (a larger drop), or "
    "run without a promise (`certify=False`, `--no-certify`). Do not ask again and again: "
    "every attempt costs confidence.",
    "TrainingError": "Training cannot go on, mostly because the loss is no longer a number. Lower "
    "`optim.lr`, set `optim.clip_grad`, or use `precision=fp32`; then fit again. With "
    "several processes: see which one ended.",
    "BudgetError": "No exit that was trained is as cheap as that. The message names the cheapest. Ask for "
    "more, or fit again with the budget in the recipe (`choice.max_macs`), so that shallow "
    "exits are trained for it.",
}


def kinds() -> list[str]:
    """The kinds of errors, without their base."""
    return [name for name in errors.__all__ if name != "OdnError"]


def errors_page() -> str:
    """A section for each kind."""
    text = (
        TOP + "\n```{eval-rst}\n.. currentmodule:: odn_hybrid\n.. autoexception:: odn_hybrid.OdnError\n```\n"
    )
    return text + "".join(_section(name) for name in sorted(kinds()))


def _section(name: str) -> str:
    kind = getattr(errors, name)
    said = sorted(set(messages().get(name, ())))
    listed = "\n".join(f"<li>{html.escape(message)}</li>" for message in said)
    entry = f"```{{eval-rst}}\n.. autoexception:: odn_hybrid.errors.{name}\n```"
    text = f"\n## {name}\n\n{entry}\n\nExit status {kind.exit_status}. {ADVICE[name]}\n"
    if not said:
        return text
    many = f"{len(said)} messages" if len(said) > 1 else "1 message"
    return text + f"\n<details>\n<summary>{many}</summary>\n<ul>\n{listed}\n</ul>\n</details>\n"


@cache
def messages() -> dict[str, tuple[str, ...]]:
    """Messages by kind, as they are written in the code, with "..." for what is filled in."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "odn_hybrid").rglob("*.py")):
        for name, message in _raised(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(name, []).append(message)
    return {name: tuple(said) for name, said in found.items()}


def _raised(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
            continue
        name = ast.unparse(node.exc.func).rpartition(".")[2]
        kind = getattr(errors, name, None)
        message = _words(node.exc.args[0])
        if inspect.isclass(kind) and message.strip(" .:"):
            yield name, message


def _words(node: ast.expr) -> str:
    """The fixed words of a message."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _words(node.left) + _words(node.right)
    return "..."
