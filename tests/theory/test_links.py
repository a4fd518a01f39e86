"""From any claim of theory/ to its code and test and back; no figure in prose that a cell should compute."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from pages import INDEX, ROOT, THEORY, Claim, Page, Where, all_pages, plain_words

PAGES = all_pages()
CLAIMS = [(page, claim) for page in PAGES for claim in page.claims()]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path.stem)
each_claim = pytest.mark.parametrize(
    ("page", "claim"), CLAIMS, ids=[f"{page.path.stem}-{claim.name}" for page, claim in CLAIMS]
)


@cache
def _names(path: Path) -> frozenset[str]:
    """What a file defines: functions, classes, attributes, constants; of Coq, what is stated or defined."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".v":
        kinds = "Theorem|Lemma|Corollary|Proposition|Definition|Fixpoint|Inductive|Record|Fact|Remark"
        return frozenset(re.findall(rf"^\s*(?:{kinds})\s+(\w+)", text, re.M))
    if path.suffix != ".py":
        return frozenset()
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return frozenset(found)


def _files(page: Page, where: Where) -> list[Path]:
    return [path for link in where.links if (path := page.file(link)) is not None]


def _unknown(page: Page, where: Where) -> set[str]:
    """Names in backticks that no linked file has; names of the files themselves are not meant."""
    files = _files(page, where)
    there = {name for path in files if path.is_file() for name in _names(path)}
    there |= {path.stem for path in files} | {"True", "False", "None"}
    return {name for name in where.names if not set(name.removesuffix(".py").split(".")) <= there}


# --- links --------------------------------------------------------------------------------------------


@each_page
def test_no_link_is_dead(page: Page) -> None:
    anchors = set(re.findall(r"^\(([\w-]+)\)=", page.prose, re.M))
    anchors |= {_slug(title) for title in re.findall(r"^#+ (.*)$", page.prose, re.M)}
    for link in page.links():
        path = page.file(link)
        place = link.target.partition("#")[2]
        if path is None:
            assert not link.target.startswith("#") or place in anchors, (
                f"{page.name}:{link.line}: {link.target}"
            )
            continue
        assert path.exists(), f"{page.name}:{link.line}: {link.target} does not exist"
        assert path.is_relative_to(ROOT), f"{page.name}:{link.line}: {link.target} leaves the repository"
        if place and path.suffix == ".md":
            assert f"({place})=" in path.read_text(encoding="utf-8"), (
                f"{page.name}:{link.line}: {link.target}"
            )


def _slug(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-")


def test_the_list_of_pages_is_complete() -> None:
    text = (THEORY / INDEX).read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert listed == {page.path.name for page in PAGES}
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (THEORY / target).exists(), f"theory/{INDEX}: {target} does not exist"


@each_page
def test_a_page_has_claims(page: Page) -> None:
    assert page.claims(), f"{page.name} states no claim: give it a target (claim-...)= and links under it"


def test_claims_have_names_of_their_own() -> None:
    names = [claim.name for _, claim in CLAIMS]
    assert len(set(names)) == len(names), {name for name in names if names.count(name) > 1}


@each_claim
def test_a_claim_leads_to_its_code_and_its_test(page: Page, claim: Claim) -> None:
    where = f"{page.name}:{claim.line} ({claim.name})"
    assert claim.code.links, f'{where} has no links after "Code:"'
    assert claim.tests.links, f'{where} has no links after "Test:"'
    for kind in (claim.code, claim.tests):
        assert not _unknown(page, kind), f"{where}: no linked file has {_unknown(page, kind)}"
    tests = _files(page, claim.tests)
    assert all(path.is_relative_to(ROOT / "tests") for path in tests), f"{where}: tests are in tests/"
    assert any(name.startswith("test_") for name in claim.tests.names), f"{where} names no test"


@each_claim
def test_code_and_test_of_a_claim_lead_back(page: Page, claim: Claim) -> None:
    for path in {*_files(page, claim.code), *_files(page, claim.tests)} - {page.path}:
        if path.suffix in (".py", ".v"):
            text = path.read_text(encoding="utf-8")
            own = path.parent == THEORY and page.path.name in text  # a page's helpers stand beside it
            assert own or page.name in text, f"{path.relative_to(ROOT)} does not name {page.name}"


@pytest.mark.parametrize("folder", ["odn_hybrid", "tests", "benchmarks", "theory/formal"])
def test_who_names_a_page_is_named_by_it(folder: str) -> None:
    linked = {page.name: {page.file(link) for link in page.links()} for page in PAGES}
    for path in sorted((ROOT / folder).rglob("*.py")) + sorted((ROOT / folder).rglob("*.v")):
        if path.is_relative_to(ROOT / "tests" / "site"):
            continue  # there pages are examples of pages
        for name in set(re.findall(r"theory/[a-z_]+\.md", path.read_text(encoding="utf-8"))):
            assert name in linked, f"{path.relative_to(ROOT)} names {name}, which is no page"
            assert path in linked[name], f"{path.relative_to(ROOT)} names {name}, which has no link to it"


# --- figures ------------------------------------------------------------------------------------------
# No page prints a figure that it did not compute. What a program can see of that: prose has no decimal
# fraction and no percentage outside formulas and code (a constant of a statement is written as a formula) and
# no table made of figures; what cells print has no such figure among its fixed words; every page asserts.
# That a figure in a formula is a constant and not a result remains the author's word.

FIGURE = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)|\d\s?%")
NOT_FIGURES = re.compile(r"arXiv:? ?\d{4}\.\d{4,5}|doi:? ?\S+|\b10\.\d{4,}/\S+")


@each_page
def test_prose_has_no_figures(page: Page) -> None:
    words = NOT_FIGURES.sub("", plain_words(page.prose))
    for number, line in enumerate(words.splitlines(), start=1):
        found = FIGURE.search(line)
        assert not found, (
            f"{page.name}:{number}: {found and found[0]!r} in prose: compute it, or make it $...$"
        )


@each_page
def test_no_table_of_figures(page: Page) -> None:
    assert "<!-- table" not in page.text, f"{page.name}: tables come from cells"
    for number, line in enumerate(page.prose.splitlines(), start=1):
        if line.lstrip().startswith("|"):
            cells = [cell.strip(" $*`") for cell in line.strip().strip("|").split("|")]
            figures = [cell for cell in cells if re.fullmatch(r"[-+\d.,/%() e]*\d[-+\d.,/%() e]*", cell)]
            assert len(figures) < 2, f"{page.name}:{number}: a row of figures in prose: {line.strip()}"


def _spoken(tree: ast.AST) -> list[tuple[int, str]]:
    """Fixed words in what a cell prints or shows; not what stands in format specifications."""
    found = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in (
            "print",
            "Markdown",
            "display",
        ):
            for part in ast.walk(call):
                if isinstance(part, ast.FormattedValue) and part.format_spec is not None:
                    part.format_spec = None
            for part in ast.walk(call):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    found.append((call.lineno, part.value))
    return found


@each_page
def test_cells_print_no_figures_that_were_typed(page: Page) -> None:
    for above, source in page.cells():
        for line, words in _spoken(ast.parse(source)):
            found = FIGURE.search(words)
            assert not found, f"{page.name}:{above + line}: {found and found[0]!r} is typed, not computed"


@each_page
def test_a_page_checks_what_it_says(page: Page) -> None:
    trees = [ast.parse(source) for _, source in page.cells()]
    asserts = sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))
    assert asserts, f"{page.name} has no cell that asserts"


# --- the checks themselves ----------------------------------------------------------------------------


def _page(tmp_path: Path, text: str) -> Page:
    path = tmp_path / "page.md"
    path.write_text(text, encoding="utf-8")
    return Page(path)


def test_claims_and_their_links_are_found(tmp_path: Path) -> None:
    text = """# Title

(claim-one)=
**Claim.** See [a page](other.md).

Code: [`f`](../a.py), `g` in [b](b.py#L3). Test: [`test_f`](t.py),
[`test_g`](t.py).

More [text](no.md).

(claim-two)=
No links. `Code: not this`

```
Code: [nor this](x.py)
```
"""
    page = _page(tmp_path, text)
    one, two = page.claims()
    assert (one.name, one.line) == ("claim-one", 3)
    assert [link.target for link in one.code.links] == ["../a.py", "b.py#L3"]
    assert one.code.names == ("f", "g") and one.tests.names == ("test_f", "test_g")
    assert [(link.target, link.line) for link in one.tests.links] == [("t.py", 6), ("t.py", 7)]
    assert two.code.links == () and two.tests.links == ()
    assert page.file(one.code.links[0]) == tmp_path.parent / "a.py"


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("The error is 0.013.", True),
        ("It wins in 35 % of runs.", True),
        ("See `0.5` and $\\delta = 0.05$ and $5\\,\\%$, section 2.", False),
        ("Qi 2025 (arXiv 2506.16862), doi 10.1093/rfs/14.1.113; 10,000 runs.", False),
        ("Costs $3 or 5$; 3.5 more.", True),
    ],
)
def test_figures_in_prose_are_seen(tmp_path: Path, line: str, bad: bool) -> None:
    words = NOT_FIGURES.sub("", plain_words(_page(tmp_path, f"# T\n\n{line}\n").prose))
    assert bool(FIGURE.search(words)) == bad


@pytest.mark.parametrize(
    ("source", "bad"),
    [
        ('print("error 0.013")', True),
        ('print(f"error {x:.3f} of {y:5.1%}")', False),
        ('print(f"error {x} of 95 %")', True),
        ('label = "0.5"', False),
    ],
)
def test_typed_figures_in_cells_are_seen(source: str, bad: bool) -> None:
    assert any(FIGURE.search(words) for _, words in _spoken(ast.parse(source))) == bad


def test_names_must_be_in_the_linked_files(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("class F:\n    def g(self): ...\n", encoding="utf-8")
    page = _page(tmp_path, "(claim-x)=\nCode: [`F.g`](a.py), `h`. Test: [`test_x`](a.py)\n")
    (claim,) = page.claims()
    assert _unknown(page, claim.code) == {"h"} and _unknown(page, claim.tests) == {"test_x"}
