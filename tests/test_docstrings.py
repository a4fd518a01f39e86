"""Docstrings: every public name says what it takes and raises, and shows an example; every example runs here.

Examples are found in the source, so that none hides behind a decorator. Some stand on things that they don't
make themselves, because a fit in each would take minutes in all: see `NAMES`.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "odn_hybrid"
sys.path.append(str(ROOT / "docs"))

from making import reference  # noqa: E402

from odn_hybrid import errors  # noqa: E402

PUBLIC = [(area.module, name) for area in reference.AREAS for name in area.all_names]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

#: What examples may use without making it; each that does says so in a comment.
NAMES = {
    "run": "a finished fit: 450 grey images of 12x12 pixels in 3 classes, a ResNet of 4 units",
    "data": "the .npz file of these images",
    "exported": 'the folder of `odn.export(run.dynamic(certify=False), ...)`, format "onnx-segments"',
    "folder": "a new empty folder",
}

#: Parameters and fields that the docstring of the name doesn't have, and why.
UNSAID = {
    "FitConfig": "the page of recipes lists every field with its section, default and range",
    "Run": "made by `fit` and `load`, never by a user; its docstring has what it gives",
}


@dataclass(frozen=True)
class Said:
    """A docstring: the module and the name it is of, its text, line, and the code it is about."""

    module: str
    name: str
    text: str
    line: int
    node: ast.Module | ast.ClassDef | ast.FunctionDef


@cache
def said() -> dict[tuple[str, str], Said]:
    """Every class and function of the library, and every module, by module and name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, node in _named(ast.parse(path.read_text(encoding="utf-8")), ""):
            line = node.body[0].lineno - 1 if node.body else 0
            found[module, name] = Said(module, name, ast.get_docstring(node) or "", line, node)
    return found


def _named(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, node
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _named(child, f"{name}.{child.name}".strip("."))
        elif isinstance(child, ast.FunctionDef):
            yield f"{name}.{child.name}".strip("."), child


EXAMPLES = [one for one in said().values() if ">>>" in one.text]


def parsed(one: Said, names: dict[str, Any]) -> doctest.DocTest:
    title = f"{one.module}.{one.name}".strip(".")
    return doctest.DocTestParser().get_doctest(one.text, names, title, one.module, one.line)


def stands_on(one: Said) -> set[str]:
    """Names that an example uses before it makes them."""
    made = set(dir(builtins))
    used: set[str] = set()
    for example in parsed(one, {}).examples:
        nodes = list(ast.walk(ast.parse(example.source)))
        loaded = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        made |= {(each.asname or each.name).partition(".")[0] for node in nodes
                 if isinstance(node, ast.Import | ast.ImportFrom) for each in node.names}  # fmt: skip
        made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
        made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ExceptHandler)}
        made |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        used |= loaded - made
    return used


# --- examples ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def run(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    from odn_hybrid import fit

    overrides = {**tiny["overrides"], "expansion.max_looks": 12}
    return fit(**{**tiny, "overrides": overrides}, out=tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def exported(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from odn_hybrid import export

    return export(run.dynamic(certify=False), tmp_path_factory.mktemp("exports") / "halting", "onnx-segments")


class Hub:
    """Takes the place of the Hugging Face hub's client: accepts everything and keeps nothing."""

    def create_repo(self, repo_id: str, **more: Any) -> Any:
        import huggingface_hub

        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, repo_id: str, folder_path: Path, **more: Any) -> str:
        assert (folder_path / "README.md").is_file()
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: f"{one.module}.{one.name}".strip("."))
def test_every_example_runs(
    one: Said, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = stands_on(one)
    names: dict[str, Any] = {"__name__": "__main__"}
    if "run" in given:
        names["run"] = request.getfixturevalue("run")
    if "data" in given:
        names["data"] = request.getfixturevalue("tiny_npz")
    if "exported" in given:  # a copy: an attempt at a promise is entered in it
        names["exported"] = shutil.copytree(request.getfixturevalue("exported"), tmp_path / "exported")
    if "folder" in given:
        names["folder"] = tmp_path / "folder"
        names["folder"].mkdir()
    if one.name == "push_to_hub":
        import huggingface_hub

        monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: Hub())
    for home, registry, name in (
        ("odn_hybrid.exits.heads", "HEADS", "largest"),
        ("odn_hybrid.training", "OBJECTIVES", "worst"),
    ):  # what examples register goes again
        if f'("{name}")' in one.text:
            table = getattr(importlib.import_module(home), registry)
            monkeypatch.setitem(table, name, None)
            monkeypatch.delitem(table, name)
    complaints: list[str] = []
    ran = doctest.DocTestRunner(optionflags=FLAGS).run(parsed(one, names), out=complaints.append)
    assert ran.attempted and not ran.failed, "".join(complaints)


def test_no_example_is_left_out() -> None:
    skipped = [
        f"{one.module}.{one.name}"
        for one in EXAMPLES
        for example in parsed(one, {}).examples
        if example.options.get(doctest.SKIP) or "doctest:" in example.source
    ]
    assert not skipped
    written = sum(path.read_text(encoding="utf-8").count(">>> ") for path in PACKAGE.rglob("*.py"))
    found = sum(len(re.findall(r"^ *>>> ", one.text, re.M)) for one in EXAMPLES)
    assert found == written, "an example stands where no test finds it"


# --- every public name ------------------------------------------------------------------------------


def home(module: str, name: str) -> Said | None:
    """What a public name's docstring is; None for a value, which has none."""
    thing = getattr(importlib.import_module(module), name)
    return said()[thing.__module__, thing.__qualname__] if callable(thing) else None


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_public_name_shows_an_example(module: str, name: str) -> None:
    one = home(module, name)
    if one is None:  # a value: in the example of something that takes it
        sources = [example.source for one in EXAMPLES for example in parsed(one, {}).examples]
        assert any(re.search(rf"\b{name}\b", source) for source in sources)
        return
    assert re.match(r"\W*\w.*?[.:;](\s|$)", one.text, re.S), "the docstring begins with no sentence"
    assert "Example:\n" in one.text and parsed(one, {}).examples, "the docstring has no example"
    for given in sorted(stands_on(one)):
        assert given in NAMES and re.search(rf">>> #.*`{given}`", one.text), f"say what {given} is"


def _takes(node: ast.AST) -> dict[str, str]:
    """What a function or a class takes, by the names that a caller uses, with the annotations."""
    if isinstance(node, ast.ClassDef):
        made = {child.name: child for child in node.body if isinstance(child, ast.FunctionDef)}
        if "__init__" in made:
            return _takes(made["__init__"])
        fields = [child for child in node.body if isinstance(child, ast.AnnAssign)]
        return {
            field.target.id: ast.unparse(field.annotation)
            for field in fields
            if isinstance(field.target, ast.Name)
            and not field.target.id.startswith("_")
            and "ClassVar" not in ast.unparse(field.annotation)
        }
    assert isinstance(node, ast.FunctionDef)
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    taken = {one.arg: ast.unparse(one.annotation) if one.annotation else "" for one in every}
    taken |= {one.arg: "" for one in (given.vararg, given.kwarg) if one is not None}
    return {name: kind for name, kind in taken.items() if name not in ("self", "cls")}


ARRAY = re.compile(r"\b(ArrayLike|NDArray|ndarray|Tensor|Floats|Bools)\b")
SIZE = r"(?:\.\.\.|\d+|(?:[A-Za-z]|batch|classes|channels|height|width)(?: [+-] \d)?)"
SHAPE = re.compile(rf"\({SIZE}(?:,|(?:, {SIZE})+)\)")
NEAR = 170  # characters after a name within which its shape stands: an entry of two lines


def _said_of(name: str, text: str) -> list[str]:
    """What stands after each place that describes a name: in backticks, or as an entry of its own."""
    entry = rf"^ *(?:\**\w+, )*\**{name}(?:, \**\w+)*(?: \(.*\))?:"
    return [text[found.start() :][:NEAR] for found in re.finditer(rf"`\**{name}`|{entry}", text, re.M)]


def undescribed(one: Said) -> list[str]:
    """Parameters and fields that the text, without its example, doesn't describe, arrays with their shape.

    "see `other`" sends to another docstring, which this same test reads.
    """
    text = re.sub(r"^ *(>>>|\.\.\.) .*\n?", "", one.text, flags=re.M)
    wrong = []
    for name, kind in _takes(one.node).items():
        places = _said_of(name, text)
        if not places:
            wrong.append(name)
        elif ARRAY.search(kind) and not any(SHAPE.search(said) or "see `" in said for said in places):
            wrong.append(f"{name}: no shape")
    return wrong


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_parameter_is_described(module: str, name: str) -> None:
    one = home(module, name)
    if one is not None and name not in UNSAID:
        assert undescribed(one) == []


def test_a_name_in_passing_and_an_array_without_shape_are_not_described() -> None:
    def of(text: str) -> list[str]:
        node = ast.parse("def f(n: int, logits: ArrayLike, *more: int): ...").body[0]
        assert isinstance(node, ast.FunctionDef)
        return undescribed(Said("", "f", text, 0, node))

    assert of("Of n images their logits (n, K), and more.") == ["n", "logits", "more"]
    assert of("Of `n` images.\n\nArgs:\n    logits: of each (see there).\n    *more: numbers.") == [
        "logits: no shape"
    ]
    assert of("Of `n` and `more`.\n\nArgs:\n    logits: (n, ...) of each.") == []
    assert of("`n`, `logits`, `more`: see `g`.") == []


def test_what_is_unsaid_is_worth_an_exception() -> None:
    ones = {name: home(module, name) for module, name in PUBLIC}
    assert all(one is not None and undescribed(one) for name, one in ones.items() if name in UNSAID)


# --- errors -----------------------------------------------------------------------------------------

KINDS = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}


def raised(one: Said) -> set[str]:
    """Errors that a function raises by itself, or by functions of its own module that it calls."""
    waiting, seen, found = [one.node], {id(one.node)}, set()
    if isinstance(one.node, ast.ClassDef):  # by making one; its methods have their own docstrings
        waiting = [
            node for node in one.node.body if getattr(node, "name", "") in ("__init__", "__post_init__")
        ]
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found |= {ast.unparse(node.exc.func).rpartition(".")[2]} & KINDS
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                other = said().get((one.module, node.func.id))
                if other and isinstance(other.node, ast.FunctionDef) and id(other.node) not in seen:
                    seen.add(id(other.node))
                    waiting.append(other.node)
    return found


def unnamed(one: Said) -> list[str]:
    """Errors that the docstring of a class or function, or for a method that of its class, doesn't name."""
    text = one.text
    if "." in one.name:
        text += said()[one.module, one.name.rpartition(".")[0]].text
    return sorted(kind for kind in raised(one) if kind not in text)


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_error_is_named(module: str, name: str) -> None:
    one = home(module, name)
    if one is None:
        return
    ones = [one]
    if isinstance(one.node, ast.ClassDef):
        methods = [node.name for node in one.node.body if isinstance(node, ast.FunctionDef)]
        ones += [said()[one.module, f"{one.name}.{name}"] for name in methods if not name.startswith("_")]
    assert {one.name: unnamed(one) for one in ones if unnamed(one)} == {}
