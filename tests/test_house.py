"""The walls of the house: who imports whom, what importing costs, no pickle, a lock without addresses."""

import ast
import graphlib
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "odn_hybrid"
LOCK = ROOT / "requirements" / "dev.txt"

# From the top floor down; docs/decisions/ holds a record for every change of this list.
# fmt: off
ROOMS = (
    "cli", "serve", "several", "fitting", "asking", "sharing", "artifacts", "run", "earning", "report",
    "diagnose", "catalog", "deploy", "runner", "training", "rundir", "outputs", "cost", "execution",
    "exits", "trunk", "folding", "backbone", "stopping", "data", "imaging", "config",
    "errors",
)
FREE = "_version"  # may be read from every floor
HEAVY = (
    "torch", "torchvision", "timm", "accelerate", "sklearn", "scipy", "fastapi", "uvicorn", "ray", "onnx",
    "onnxruntime", "onnxscript",
)
PICKLERS = ("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
# fmt: on


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
INSIDE = [name for name in MODULES if name not in (PACKAGE, f"{PACKAGE}.{FREE}")]
PACKAGES = [name for name, path in MODULES.items() if path.name == "__init__.py"]


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _imports(module: str) -> Iterator[tuple[str, int]]:
    """Every dotted name that `module` imports anywhere in its text, with the line number."""
    is_package = MODULES[module].name == "__init__.py"
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = (
                module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            )
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def _own_imports(module: str) -> Iterator[tuple[str, int]]:
    """The imports that stay in the house: `from a.b import c` is module a.b.c if there is one, else a.b."""
    for name, line in _imports(module):
        if name.split(".")[0] == PACKAGE:
            yield (name if name in MODULES or name.count(".") == 0 else name.rpartition(".")[0]), line


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- walls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", INSIDE)
def test_imports_only_from_rooms_below(module: str) -> None:
    own = _room(module)
    assert own in ROOMS, f"{module}: {own!r} is not a room of the house; give it a floor in ROOMS"
    for target, line in _own_imports(module):
        room = _room(target)
        if room == FREE:
            continue
        where = f"{MODULES[module].relative_to(ROOT)}:{line}"
        assert room != "__init__", f"{where} imports from the package front; import from the room itself"
        assert room in ROOMS, f"{where} imports {target}, which is not a room of the house"
        assert ROOMS.index(room) >= ROOMS.index(own), (
            f"{where}: {own!r} imports {room!r}, which stands above it"
        )


def test_no_circle_of_modules() -> None:
    graph = {name: {target for target, _ in _own_imports(name)} - {name, PACKAGE} for name in INSIDE}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("modules import each other in a circle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("room", ["stopping", "runner", "imaging"])
def test_array_rooms_never_load_a_network_library(room: str) -> None:
    names = [name for name in MODULES if _room(name) == room]
    if not names:
        pytest.skip(f"{room} is not built yet")
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    loaded = _run(code + "print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))")
    assert loaded.strip() == "[]"


# --- the front ------------------------------------------------------------------------------------


def test_importing_the_package_is_cheap() -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); import odn_hybrid; "
        f"print(json.dumps([time.perf_counter() - start, sorted(set({HEAVY!r}) & set(sys.modules))]))"
    )
    seconds, loaded = json.loads(_run(code))
    assert loaded == []
    assert seconds < 2  # milliseconds, on an idle machine


def test_every_public_name_is_there_and_an_unknown_one_is_an_attribute_error() -> None:
    front = importlib.import_module(PACKAGE)
    assert {"fit", "load", "save", "compare", "Trunk", "MultiExit", "Run", "OdnError"} <= set(front.__all__)
    assert set(front.__all__) <= set(dir(front))
    for name in front.__all__:
        assert getattr(front, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        front.no_such_name  # noqa: B018


def test_public_names_survive_the_import_of_every_module() -> None:
    front = importlib.import_module(PACKAGE)
    for name in INSIDE:
        if _room(name) not in ("serve", "runner"):  # these need an extra
            importlib.import_module(name)
    modules = [name for name in front.__all__ if inspect.ismodule(getattr(front, name))]
    assert modules == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_has_the_name_of_a_public_function(package: str) -> None:
    public = {
        name.rpartition(".")[2]
        for name, _ in _imports(package)
        if name.startswith(f"{PACKAGE}.") and name not in MODULES
    }
    public |= {node.name for node in _tree(package).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    if package == PACKAGE:
        public |= set(importlib.import_module(PACKAGE).__all__)
    modules = {name.rpartition(".")[2] for name in MODULES if name.rpartition(".")[0] == package}
    assert not public & modules, (
        f"{package}: which of the two `{package}.NAME` is, depends on who imported what"
    )


# --- no pickle ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", list(MODULES))
def test_nothing_is_loaded_with_pickle(module: str) -> None:
    for name, line in _imports(module):
        assert name.split(".")[0] not in PICKLERS, f"{module}:{line} imports {name}"
    for node in ast.walk(_tree(module)):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{module}:{node.lineno}"
        assert called not in ("torch.load", "torch.save", "torch.jit.load"), f"{where} calls {called}"
        assert called not in ("yaml.load", "yaml.unsafe_load", "yaml.full_load"), f"{where} calls {called}"
        for keyword in node.keywords:
            said = f"{keyword.arg}={ast.unparse(keyword.value)}"
            assert said not in ("allow_pickle=True", "weights_only=False"), f"{where} says {said}"


# --- the lock -------------------------------------------------------------------------------------


def _locked() -> list[tuple[Requirement, int]]:
    """Each pin of the lock with the number of its hashes."""
    text = re.sub(r"^\s*#.*\n", "", LOCK.read_text(encoding="utf-8"), flags=re.M)
    entries = [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]
    return [(Requirement(entry.split("--hash=")[0]), entry.count("--hash=sha256:")) for entry in entries]


def test_the_lock_pins_everything_with_hashes() -> None:
    for pin, hashes in _locked():
        assert re.fullmatch(r"==[^,*]+", str(pin.specifier)), f"{pin} is not one version"
        assert hashes, f"{pin} has no hash"


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_requirements_name_no_address(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found = re.search(r"://|\bfile:|@ |^\s*(-[a-zA-Z]|--(?!hash=))", line)
        assert not found, f"{path.name}:{number}: {line}"


def test_the_lock_is_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins: dict[str, list[Requirement]] = {}
    for pin, _ in _locked():
        pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for text in project["project"]["dependencies"] + project["dependency-groups"]["dev"]:
        wanted = Requirement(text)
        here = [
            pin
            for pin in pins.get(canonicalize_name(wanted.name), [])
            if pin.marker is None or pin.marker.evaluate(dict(default_environment()))
        ]
        assert len(here) == 1, f"{text}: the lock has {[str(pin) for pin in here]}; run `make lock`"
        version = str(here[0].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{text}: the lock has {version}; run `make lock`"


def test_uv_lock_is_not_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files", "uv.lock"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert tracked.stdout == "", "uv.lock names the package index of the machine that made it"
