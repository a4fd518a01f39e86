"""Every figure in prose is a committed record's, or listed as something that nobody measured.

Tables between markers are compared by tests/test_records.py, the page "Static or dynamic?" by its own tests.
"""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


figures = _figures()
PAGES, LISTED = figures.pages(), figures.listed()


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_in_prose_is_a_records(page):
    assert figures.faults(page, PAGES[page], LISTED) == []


def test_the_pages_people_read_are_among_them():
    assert {"README.md", "docs/index.md", "docs/static-or-dynamic.md", "docs/choose/index.html"} <= set(PAGES)
    named = {page for by_page in LISTED.values() for page in by_page}
    assert named - {"*"} <= set(PAGES)


def test_a_phrase_for_every_page_stands_on_one_of_them():
    for by_page in LISTED.values():
        for phrase in by_page.get("*", ()):
            assert any(phrase in " ".join(text.split()) for text in PAGES.values()), phrase


def altered(text, figure):
    """The page with the figure's last digit another one."""
    at = max(place for place in range(figure.start, figure.end) if text[place].isdigit())
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]


def test_a_figure_that_is_altered_is_noticed():
    seen = 0
    for page, text in PAGES.items():
        for figure in figures.figures(page, text):
            assert figures.faults(page, altered(text, figure), LISTED), f"{page}: {figure.text}"
            seen += 1
    assert seen > 100


def test_no_record_is_altered_unnoticed(monkeypatch):
    """What the comments lead to is what is compared."""
    monkeypatch.setattr(figures, "_at", lambda name, keys: 123456.0)
    for page, text in PAGES.items():
        count = len(figures.REFERENCE.findall(text)) if page.endswith(".md") else 0
        assert len(figures.faults(page, text, LISTED)) >= count


HELD = {"speed": {"at 64": {"median": 1.989, "low": 1.953, "high": 2.0999}}, "rows": [{"n": 12345}, {}]}


@pytest.mark.parametrize(
    "prose",
    [
        '1.99 x<!-- record: r speed."at 64".median --> as fast',
        '1.99 x [1.95, 2.10]<!-- record: r speed."at 64".median; .low; .high --> as fast',
        '198.9 %<!-- record: r speed."at 64".median * 100 --> of it',
        "12,345 images<!-- record: r rows.0.n -->",
        "of 2<!-- record: r rows.length --> rows",
        "1.2e+04<!-- record: r rows.0.n -->",
        "exit 7 of batch 64, arXiv 2510.10764, version 0.3.0, `1.5 x`, [a](b-2.5.md), 32 x 32, $2.5$",
        "```\n1.5 x\n```\n<!-- table: t -->\n1.5 x\n<!-- end: t -->\n",
    ],
)
def test_a_figure_of_a_record_is_right(monkeypatch, prose):
    monkeypatch.setattr(figures, "record", lambda name: HELD)
    assert figures.faults("p.md", prose, {}) == []


@pytest.mark.parametrize(
    ("prose", "said"),
    [
        ('2.00 x<!-- record: r speed."at 64".median -->', "2.00 should be 1.989"),
        ('1.99 x [1.95, 2.11]<!-- record: r speed."at 64".median; .low; .high -->', "2.11 should be 2.0999"),
        ("1.99 x as fast", "1.99 is of no record"),
        ("it takes 58 s", "58 is of no record"),
        ("91.2 %", "of no record"),
        ("7 of 12 were met", "7 is of no record"),
        ("a share of 0.5", "of no record"),
        ("1/15 of the cost", "of no record"),
        ("words<!-- record: r rows.0.n -->", "no figure right before it"),
        ("12,345 images, and then a good many words<!-- record: r rows.0.n -->", "no figure right before"),
        ("12,345<!-- record: r rows.0.m -->", "the record r has no rows.0.m"),
        ("12,345<!-- record: r rows.0 -->", "is no number"),
    ],
)
def test_a_figure_that_is_not_is_said_to_be_wrong(monkeypatch, prose, said):
    monkeypatch.setattr(figures, "record", lambda name: HELD)
    found = figures.faults("p.md", prose, {})
    assert any(said in line for line in found), found
    assert all(re.match(r"p\.md:1: ", line) for line in found)


def test_what_is_listed_has_to_be_there_and_cited_where_it_is_cited():
    said = {"rules": {"p.md": ["at most 5 %"]}}
    assert figures.faults("p.md", "It is at\nmost 5 %.", said) == []
    assert "phrase that is not there" in figures.faults("p.md", "It is at most 6 %.", said)[0]
    assert len(figures.faults("p.md", "It is at most 5 %, or 6 %.", said)) == 1
    cited = {"cited": {"p.md": ["at 5 %"]}}
    assert figures.faults("p.md", "Theirs (SOSP 2024) is at 5 %.", cited) == []
    assert "without its source" in figures.faults("p.md", "Theirs is at 5 %.", cited)[0]


def test_a_record_that_is_not_there():
    assert figures.faults("p.md", "5 %<!-- record: nowhere a.b -->", {})[0].endswith(
        "there is no record nowhere"
    )


def test_text_of_a_script_is_its_strings():
    text = 'const a = 1.5 * b; // 2.5 x\nsay(`${c.toFixed(1)} x, at 3.5 %`, "4.5 x");'
    assert [one.text for one in figures.figures("p.js", text)] == ["3.5", "4.5"]
