"""Every theory page runs: here without a kernel and with small loops, in full through theory/execute.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from execute import CACHE, main, run_page
from pages import ROOT, Page, all_pages

RUNNER = Path(__file__).parent / "run_plainly.py"
PAGES = all_pages()
pytestmark = pytest.mark.timeout(240)  # seconds on an idle machine
HEADER = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  name: python3
  display_name: Python 3
---

"""


def _cell(source: str) -> str:
    return f"```{{code-cell}} ipython3\n{source}\n```\n"


def _run(page: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": ""}
    return subprocess.run(
        [sys.executable, str(RUNNER), str(page)],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=230, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        # `make theory` executes it in full, too
        pytest.param(page, marks=[pytest.mark.long] if page.path.stem == "transformers" else [])
        for page in PAGES
    ],
    ids=lambda page: page.path.stem,
)
def test_the_cells_of_a_page_run_and_their_checks_hold(page):
    done = _run(page.path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nassert x == 2, 'missed its tolerance'", "missed its tolerance"),
        ("import os\nassert not os.environ['ODN_THEORY_REDUCED']", "AssertionError"),
        ("import warnings\nwarnings.warn('a warning')", "a warning"),
        ("open('notes.txt', 'w')", "must not write into the repository"),
        ("from pathlib import Path\nPath('folder').mkdir()", "must not write into the repository"),
    ],
)
def test_a_page_that_misses_warns_or_writes_fails(source, says, tmp_path):
    """The page stands in a folder of its own, but runs as if it stood in theory/."""
    page = tmp_path / "page.md"
    page.write_text(
        HEADER + "# Title\n\n" + _cell(f"import os\nos.chdir({str(ROOT / 'theory')!r})\n{source}")
    )
    done = _run(page)
    assert done.returncode != 0
    assert says in done.stderr


def test_what_a_page_may_do_it_can(tmp_path):
    page = tmp_path / "page.md"
    cells = (
        _cell(":tags: [hide-input]\n\nx = 3") + "\nText.\n\n" + _cell("open('notes.txt', 'w')\nassert x == 3")
    )
    page.write_text(HEADER + cells)
    done = _run(page)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "notes.txt").exists()


def test_an_error_has_the_line_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(HEADER + "Text.\n\n" + _cell("x = 1\n\nraise ValueError(x)"))
    line = page.read_text().splitlines().index("raise ValueError(x)") + 1
    assert f'page.md", line {line}' in _run(page).stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [("# Title\n", "no Jupytext header"), (HEADER.replace("python3", "julia"), "kernel python3")],
)
def test_a_page_that_is_no_notebook_is_named(text, says, tmp_path):
    (tmp_path / "page.md").write_text(text)
    assert says in run_page(Page(tmp_path / "page.md")).error


def test_a_name_that_is_no_page_is_refused(capsys):
    with pytest.raises(SystemExit, match=r"no page 'nowhere'.*stopping_problem"):
        main(["nowhere"])


def test_execution_fails_where_a_cell_raises_and_the_site_reuses_the_rest(tmp_path, capfd):
    """Kernels and Sphinx on two small pages: what ran is not run again, what failed is in no cache."""
    pages, cache, site = tmp_path / "theory", tmp_path / "cache", tmp_path / "site"
    pages.mkdir()
    count = tmp_path / "count.txt"
    good = _cell(f"with open({str(count)!r}, 'a') as file:\n    file.write('x')\n6 * 7")
    (pages / "good.md").write_text(HEADER + "# Good\n\n$x$ and\n\n" + good)
    (pages / "bad.md").write_text(HEADER + "# Bad\n\n" + _cell("assert 1 == 2, 'missed'"))
    (pages / "README.md").write_text("# Not a page\n")
    run = ["--folder", str(pages), "--cache", str(cache), "--jobs", "2"]
    assert main(run) == 1
    told = capfd.readouterr()
    assert "bad.md" in told.out and "failed" in told.out and "2 pages" in told.out
    assert "missed" in told.err and count.read_text() == "x"
    (pages / "bad.md").unlink()
    (pages / "README.md").unlink()
    (pages / "index.md").write_text("# Index\n\n```{toctree}\ngood\n```\n")
    settings = [
        "extensions=myst_nb", "nb_execution_mode=cache", f"nb_execution_cache_path={cache}",
        "myst_enable_extensions=dollarmath", "nb_execution_raise_on_error=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "sphinx", "-q", "-C", "-b", "html", *(f"-D{s}" for s in settings)]
    built = subprocess.run(
        [*command, str(pages), str(site)], capture_output=True, text=True, timeout=230, check=False
    )
    assert built.returncode == 0, built.stderr
    assert "42" in (site / "good.html").read_text(encoding="utf-8")
    assert count.read_text() == "x"


def test_the_cache_is_ignored_by_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    asked = subprocess.run(
        ["git", "check-ignore", "-q", str(CACHE / "global.db")], cwd=ROOT, timeout=30, check=False
    )
    assert asked.returncode == 0
