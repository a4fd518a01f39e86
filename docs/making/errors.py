"""The page of errors: each kind, what to do, and every message there is, read from the library's code."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from making.places import ROOT
from odn_hybrid import errors

TOP = """# Errors

Every error that a user can cause is an `OdnError`. Its message says what was wrong, with what value, and what
to do. The command line prints it on one line, without a traceback, and exits with the status given here. Any
other exception is a mistake of ours: please report it.

Below are the kinds, what to do about each, and their messages; "..." stands for what a message names. Further
down is [what the server refuses](#what-the-server-refuses). The page is written from the library's own code.
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
    "ClusterError": "`odn serve --ray` found no Ray cluster to run on, or its replicas did not start. Look "
    "at Ray's own log for the reason; `odn serve` without `--ray` needs none of it.",
}

SERVER = """
## What the server refuses

A request that `odn serve` does not answer gets a status of 400 or more and one line of JSON,
`{"error": "what was wrong"}`, which says nothing about the machine. The header `X-Request-Id` names the
request in the server's log. Where there is a header `Retry-After`, the same request may have an answer after
that many seconds. Paths and methods that are not there get the usual 404 and 405.
"""

#: What a client is to do. A test checks that every refusal is here and no other.
REFUSED = {
    "BadRequest": "Correct the request: send images in the model's shape and type (`GET /v2/models/NAME` "
    "says which) or as a file that is an image, without NaN, with options that exist.",
    "Unauthorised": "Send the header `Authorization: Bearer TOKEN` with the token that the server was "
    "started with.",
    "Unknown": "Ask `POST /v2/repository/index` for the names of models and versions; a version goes when "
    "other files take its place.",
    "TooSlow": "Send the whole body sooner, or a smaller one; whoever runs the server can raise "
    "`--body-seconds`.",
    "TooLarge": "Send fewer or smaller images; the message says the limit. Whoever runs the server can raise "
    "`--max-body-bytes` and `--max-pixels`.",
    "Unsupported": "Send JSON, the protocol's binary form or an image file, with the content type and the "
    "encoding that belong to it.",
    "HeadersTooLong": "Send fewer or shorter headers.",
    "Failed": "Send it once more. If it comes again, give the request's id to whoever runs the server: its "
    "log says more.",
    "Overloaded": "Wait for `Retry-After` seconds and send it again, with a later deadline if you gave one. "
    "If it goes on, the server needs more devices, or fewer clients.",
    "Stopping": "Wait for `Retry-After` seconds and send it again, here or to another server: this one loads "
    "its models or ends.",
    "DeadlinePassed": "Allow more time, or come when the server has less to do.",
}


@dataclass(frozen=True)
class Kind:
    """A class of errors: where it is, its base, its docstring, and for a refusal the HTTP status."""

    module: str
    base: str
    said: str
    status: int | None


@cache
def sources() -> dict[str, ast.Module]:
    """The library's modules, by their names."""
    found = {}
    for path in sorted((ROOT / "odn_hybrid").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


@cache
def classes() -> dict[str, Kind]:
    """Every class below `OdnError`, wherever it is defined."""
    defined = [
        (module, node)
        for module, tree in sources().items()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.bases
    ]
    found: dict[str, Kind] = {}
    more = True
    while more:  # a base may stand in a module that is read later
        before = len(found)
        for module, node in defined:
            base = ast.unparse(node.bases[0]).rpartition(".")[2]
            if base == "OdnError" or base in found:
                found[node.name] = Kind(module, base, ast.get_docstring(node) or "", _status(node))
        more = len(found) > before
    return found


def _status(node: ast.ClassDef) -> int | None:
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id == "status":
            return int(ast.literal_eval(line.value))  # type: ignore[attr-defined]
    return None


def refusals() -> list[str]:
    """What the server refuses with, by status; `Refusal` itself is only their base."""
    found = {name: kind for name, kind in classes().items() if kind.base == "Refusal"}
    return sorted(found, key=lambda name: (found[name].status or 0, name))


def kinds() -> list[str]:
    """The kinds of errors of the library and the command line, without bases and what is caught inside."""
    inside = {"Refusal", *refusals()}
    return [
        name
        for name, kind in classes().items()
        if name not in inside and (kind.base == "OdnError" or name in errors.__all__)
    ]


def errors_page() -> str:
    """A section for each kind."""
    text = (
        TOP + "\n```{eval-rst}\n.. currentmodule:: odn_hybrid\n.. autoexception:: odn_hybrid.OdnError\n```\n"
    )
    text += "".join(_section(name) for name in sorted(kinds()))
    return text + SERVER + "".join(_refusal(name) for name in refusals())


def _section(name: str) -> str:
    kind = classes()[name]
    entry = f"```{{eval-rst}}\n.. autoexception:: {kind.module}.{name}\n```"
    if kind.module != "odn_hybrid.errors":  # needs an extra to import
        entry = kind.said
    status = getattr(errors, name, errors.OdnError).exit_status
    return f"\n## {name}\n\n{entry}\n\nExit status {status}. {ADVICE[name]}\n" + _listed(name)


def _refusal(name: str) -> str:
    kind = classes()[name]
    return f"\n### {kind.status} {name}\n\n{kind.said}\n\n{REFUSED[name]}\n" + _listed(name)


def _listed(name: str) -> str:
    said = sorted(set(messages().get(name, ())))
    if not said:
        return ""
    listed = "\n".join(f"<li>{html.escape(message)}</li>" for message in said)
    many = f"{len(said)} messages" if len(said) > 1 else "1 message"
    return f"\n<details>\n<summary>{many}</summary>\n<ul>\n{listed}\n</ul>\n</details>\n"


# --- messages ---------------------------------------------------------------------------------------


@cache
def messages() -> dict[str, tuple[str, ...]]:
    """Messages by kind, as they are written in the code, with "..." for what is filled in.

    A class below a kind (`ItemError`, of data) counts as that kind. A message that is nothing but another
    error's, or a promise's statement, is not among them.
    """
    found: dict[str, list[str]] = {}
    listed = {*kinds(), *refusals()}
    for module, tree in sources().items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            while name in classes() and name not in listed:
                name = classes()[name].base
            if name in listed:
                said = (text for text in _texts(node.args[0], module) if text.strip(" .:"))
                found.setdefault(name, []).extend(said)
    return {name: tuple(said) for name, said in found.items()}


def _texts(node: ast.expr, module: str) -> Iterator[str]:
    """What a message may be: through names of constants and functions that only put words together."""
    if isinstance(node, ast.Name):
        value = _constants().get((module, node.id)) or _constants().get(("", node.id))
        yield from [] if value is None else [value]
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body, module)
        yield from _texts(node.orelse, module)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        made = _functions().get((module, node.func.id)) or _functions().get(("", node.func.id))
        for line in ast.walk(made) if made else ():
            if isinstance(line, ast.Return) and isinstance(
                line.value, ast.Constant | ast.JoinedStr | ast.BinOp
            ):
                yield _words(line.value)
    else:
        yield _words(node)


@cache
def _constants() -> dict[tuple[str, str], str]:
    """Texts that modules name, by module and name; and by name alone, for who imports them."""
    found = {}
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                words = _words(node.value)
                if words.strip(" .:"):
                    found[module, node.targets[0].id] = found["", node.targets[0].id] = words
    return found


@cache
def _functions() -> dict[tuple[str, str], ast.FunctionDef]:
    found = {}
    for module, tree in sources().items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found[module, node.name] = found["", node.name] = node
    return found


def _words(node: ast.expr) -> str:
    """The fixed words of a message."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_words(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _words(node.left) + _words(node.right)
    return "..."
