"""The documentation: every public name has its place, pages are what the code says, links lead somewhere."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs"))

from making import (  # noqa: E402
    commands,
    errors,
    executing,
    links,
    mathml,
    places,
    recipes,
    records,
    reference,
    sources,
)

import odn_hybrid  # noqa: E402
from odn_hybrid.cli import cli  # noqa: E402

PUBLIC = [(area.module, name) for area in reference.AREAS for name in area.all_names]


# --- the reference ----------------------------------------------------------------------------------


def test_every_public_name_has_its_place_in_the_reference() -> None:
    front = {name for module, name in PUBLIC if module == "odn_hybrid"}
    assert front | set(reference.ELSEWHERE) == set(odn_hybrid.__all__)
    pages = reference.reference_pages()
    for area in reference.AREAS:
        for name in area.all_names:
            assert f"\n## {name}\n" in pages[f"reference/{area.slug}.md"]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda value: str(value))
def test_every_public_name_says_what_it_is(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    if not callable(thing):
        assert reference._said(name, module)
        return
    said = inspect.getdoc(thing)
    assert said, f"{module}.{name} has no docstring"
    assert re.match(r"\W*\w.*[.:;]($|\n)", said, re.S), f"{module}.{name}: the docstring is no sentence"
    if inspect.isclass(thing):
        members = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        bare = [
            key for key, value in members.items() if inspect.isfunction(value) and not inspect.getdoc(value)
        ]
        assert not bare or bare == ["forward"], f"{module}.{name}: {bare} have no docstring"


# --- pages that programs write ----------------------------------------------------------------------


def test_the_page_of_errors_has_every_kind_and_what_to_do() -> None:
    assert set(errors.ADVICE) == set(errors.kinds())
    page = errors.errors_page()
    for name in errors.kinds():
        assert f"\n## {name}\n" in page and errors.ADVICE[name] in page


def test_the_page_of_errors_has_every_refusal_and_what_a_client_does() -> None:
    assert set(errors.REFUSED) == set(errors.refusals())
    page = errors.errors_page()
    server = page[page.index("## What the server refuses") :]
    known = (ROOT / "docs" / "serving" / "calls.md").read_text(encoding="utf-8")
    for name in errors.refusals():
        status = errors.classes()[name].status
        assert f"\n### {status} {name}\n" in server and errors.REFUSED[name] in server
        assert errors.messages()[name], f"nothing is refused with {name}"
        assert re.search(rf"^\| ({status}|.*, {status})\b", known, re.M), "calls.md lacks the status"


def test_the_classes_of_errors_are_those_that_the_library_has() -> None:
    from odn_hybrid.data.items import ItemError
    from odn_hybrid.serve.app.statuses import Unauthorised
    from odn_hybrid.serve.refusals import Refusal

    found, waiting = {ItemError, Unauthorised}, [odn_hybrid.OdnError]
    while waiting:
        below = [kind for kind in waiting.pop().__subclasses__() if kind.__module__.startswith("odn_hybrid")]
        found |= set(below)
        waiting += below
    read = errors.classes()
    assert {kind.__name__ for kind in found} <= set(read)
    for kind in found:
        one = read[kind.__name__]
        assert one.module == kind.__module__ and one.base == kind.__base__.__name__
        assert kind is Refusal or not issubclass(kind, Refusal) or one.status == kind.status
    # Each is on the page, is a kind of one that is, or is the base of all refusals.
    told = {*errors.kinds(), *errors.refusals(), "Refusal"}
    assert all(name in told or one.base in told for name, one in read.items())


def test_messages_are_read_from_the_code() -> None:
    said = errors.messages()
    assert any("give 15" in text or "too few to divide" in text for text in said["DataError"])
    assert "the batch is empty" in said["InputError"]
    assert any("damaged" in text for text in said["ExportError"])
    assert any(text.startswith("inputs cannot halt") for text in said["ConfigError"])  # a constant's
    assert any("self-check" in text for text in said["ModelError"])
    assert sum(map(len, said.values())) > 500
    assert all(said.get(name) for name in errors.kinds())


def test_the_page_of_commands_has_every_verb_and_option() -> None:
    page = commands.commands_page()
    for name, command in cli.commands.items():
        assert f"## odn {name}\n" in page
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in page, f"odn {name} {option}"


def test_the_page_of_records_tells_what_was_reached_of_each_claim() -> None:
    page = records.records_page()
    rows = {
        line.split("]")[0].removeprefix("| ["): line for line in page.splitlines() if "](repo:bench" in line
    }
    held = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in places.RECORDS.glob("*.json")}
    assert rows.keys() == held.keys()
    speed = [one for one in held["halting_speed"]["verdict"].values() if "reached" in one]
    met = sum(one["reached"] for one in speed)
    assert f" | {met} of {len(speed)} | " in rows["halting_speed"] and met < len(speed)
    cost = held["halting_cost_cpu"]
    assert f" | {cost['met']} of {cost['of']} | " in rows["halting_cost_cpu"]
    assert " |  | " in rows["quickstart"]  # its fit reached its accuracy, but no target was judged
    asked = {"one": {"value": None, "reached": False}, "other": {"value": 2.0, "reached": True}}
    assert records.reached({"verdict": {"asked": asked}, "fit": {"static": {"reached": True}}}) == "1 of 2"


def test_the_page_of_recipes_has_every_field() -> None:
    page = recipes.recipes_page()
    for name in (
        "model.name",
        "optim.lr",
        "expansion.reload.patience",
        "choice.max_macs",
        "frozen.epochs",
        "seed",
    ):
        assert f"| `{name}` |" in page
    assert "| `exits.plan` | `prefix`, `thin` | `prefix` |" in page
    assert "| `optim.lr` | number, or null | `null` |" in page


# --- what Sphinx reads ------------------------------------------------------------------------------


def test_links_between_files_are_made_to_fit_the_site() -> None:
    page = ROOT / "docs" / "halting.md"
    text = "[a](../theory/README.md#x) [`b`](../odn_hybrid/run.py) [c](https://d.e) ![f](../g.png)\n"
    assert sources.fitted(text, page) == (
        "[a](/theory/README.md#x) [`b`](repo:odn_hybrid/run.py) [c](https://d.e) ![f](../g.png)\n"
    )
    code = "```\n[a](../theory/README.md)\n```\n"
    assert sources.fitted(code, page) == code


def test_links_of_every_page_lead_to_files_that_exist() -> None:
    written = {ROOT / "docs" / name for name in sources.written_pages()} | {
        ROOT / "docs" / "choose" / "index.html"
    }
    for page in sources.site_pages():
        text = sources.FENCE.sub("", page.read_text(encoding="utf-8"))
        for match in sources.LINK.finditer(text):
            target = match["target"].partition("#")[0]
            if target and not re.match(r"[a-z]+:", target) and not target.startswith("/"):
                file = (page.parent / target).resolve()
                assert file.exists() or file in written, f"{page.name}: {match['target']}"


def test_every_formula_of_the_pages_becomes_mathml() -> None:
    from pages import FENCE, HEADER, MATH, all_pages

    count = 0
    for page in [*all_pages(), *all_pages(ROOT / "docs")]:
        text = FENCE.sub("", HEADER.sub("", page.text))
        for match in MATH.finditer(text):
            made = mathml.mathml(mathml.TAG.sub("", match[0].strip("$")), "inline")
            assert made.startswith("<math")
            count += 1
    assert count > 1000
    with pytest.raises(ValueError, match="nosuchcommand"):
        mathml.mathml(r"a \nosuchcommand b", "inline")


def test_tutorials_are_notebooks_that_are_executed() -> None:
    names = {page.name for page in executing.notebooks()}
    wanted = {path.stem for path in places.TUTORIALS.glob("*.md")}
    assert wanted >= {
        "first_fit",
        "own_images",
        "pretrained",
        "budget",
        "certificate",
        "extending",
        "serving",
    }
    assert {f"tutorials/{name}.md" for name in wanted} <= names and "theory/certificate.md" in names
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^tutorials/(\w+)$", index, re.M)) == wanted


def test_what_tutorials_import_from_benchmarks_counts_among_what_they_read() -> None:
    read = {path for glob in executing.READ for path in ROOT.glob(glob)}
    taken = set()
    for page in executing.notebooks():
        found = re.findall(r"^(?:from|import) (\w+)", "\n".join(cells(page.text)), re.M)
        taken |= {ROOT / "benchmarks" / f"{name}.py" for name in found}
    taken = {path for path in taken if path.is_file()}
    assert ROOT / "benchmarks" / "cifar10_small.py" in taken and taken <= read


def cells(text: str) -> list[str]:
    """The code of a page's cells."""
    return re.findall(r"^```\{code-cell\}.*\n((?:.*\n)*?)```$", text, re.M)


def test_no_page_tells_to_install_from_an_index_that_lacks_the_package() -> None:
    pages = [path for path in sources.site_pages() if path.name != "releasing.md"]  # its table of stumbles
    pages += [ROOT / "README.md", ROOT / "SECURITY.md"]
    telling = re.compile(r"pip install [^\n`]*['\" ]odn[-_]hybrid(?!-)")
    assert telling.search("pip install 'odn-hybrid[serve]'") and telling.search(
        "pip install --no-deps odn-hybrid"
    )
    assert not telling.search("pip install --no-deps odn_hybrid-*.whl")
    wrong = [path.name for path in pages if telling.search(path.read_text(encoding="utf-8"))]
    assert wrong == []


def test_names_that_pages_import_are_in_the_reference() -> None:
    """What tutorials and other pages teach is public; benchmarks and theory look inside."""
    known = {module: set(importlib.import_module(module).__all__) for module, _ in PUBLIC}
    inside = re.compile(r"^from (odn_hybrid[\w.]*) import (?:\(([^)]*)\)|(.*))$", re.M)
    wrong = []
    for page in sources.site_pages():
        if page.is_relative_to(ROOT / "docs") and "decisions" not in page.parts:
            for module, many, one in inside.findall(page.read_text(encoding="utf-8")):
                names = {name.strip() for name in (many or one.partition("#")[0]).split(",")} - {""}
                names -= {name for name in names if f"{module}.{name}" in known}  # an area itself
                if names - known.get(module, set()):
                    wrong.append(f"{page.name}: {module} {sorted(names)}")
    assert wrong == []


def test_a_page_is_executed_again_when_its_surroundings_change(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("1")
    before = executing.digest([file], "text")
    assert executing.digest([file], "text") == before != executing.digest([file], "other")
    file.write_text("2")
    assert executing.digest([file], "text") != before


# --- the checker of links ---------------------------------------------------------------------------


def test_broken_links_and_foreign_files_are_found(tmp_path: Path) -> None:
    site = tmp_path.resolve()
    (site / "deep").mkdir()
    (site / "index.html").write_text(
        '<h1 id="top">a</h1><a href="deep/b.html#there">b</a><a href="#top">c</a>'
    )
    (site / "deep" / "b.html").write_text('<p id="there"></p><a href="../index.html">up</a>')
    assert links.faults(site) == []
    (site / "deep" / "b.html").write_text(
        '<a href="../index.html#no">1</a><a href="none.html">2</a><a href="/index.html">3</a>'
        '<a href="../../out.html">4</a><script src="https://a.b/c.js"></script><a href="https://a.b">fine</a>'
    )
    found = "\n".join(links.faults(site))
    assert "index.html: deep/b.html#there has no such place" in found
    for said in ("#no has no such place", "none.html is not there", "under a sub-path", "out of the site"):
        assert said in found
    assert "fetches https://a.b/c.js" in found and len(found.splitlines()) == 6
