"""Figures in prose: each is a record's, or stands in docs/unmeasured.toml as something that nobody measured.

    python benchmarks/figures.py            # those that are neither, one line each; exit 1 if there are any

A figure of a record has a comment right behind it, which readers do not see:

    1.99 x<!-- record: halting_speed verdict."throughput over full at 64".median -->
    1.99 x [1.95, 2.10]<!-- record: halting_speed verdict."throughput over full at 64".median; .low; .high -->
    91.2 %<!-- record: halting_speed verdict.full_test_accuracy.value * 100 -->

The record's name, then the way to each figure: keys and places with dots between, in quotation marks where
they have spaces or dots, `length` for how many there are, a factor where units differ. A way that begins with
a dot goes on from the one before it, less its last key. Rounded to the digits that stand on the page, it has
to be the same. Tables between markers are benchmarks/tables.py's. Code, formulas and links are no prose.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
LIST = ROOT / "docs" / "unmeasured.toml"
WRITTEN = ("docs/models.md",)  # by a program, as a whole

UNITS = (
    r"%|&nbsp;%|x\b(?!\s*\d)|times\b|(?:m|µ|n)?s\b|(?:milli)?seconds?\b|minutes?\b|hours?\b|days?\b|points?\b"
    r"|[kKMGT]i?B\b|bytes\b|[kKMGT]?MACs?\b|FLOPs\b|images?\b|inputs?\b|requests?\b|answers?\b|epochs?\b|units?\b"
)
NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-+]?\d+)?"
FIGURE = re.compile(
    r"(?<![\w./:-])(?!\d{4}\.\d{5}\b)"  # numbers of papers are none
    rf"(?:1/\d+|{NUMBER}(?=(?P<unit>(?:\s|-)?(?:{UNITS})|\s+of\s+(?:the\s+)?\d)?))(?![\w/]|\.\d|,\d)"
)
REFERENCE = re.compile(r"<!-- record: (?P<name>\w+) (?P<ways>.*?) -->", re.S)
NEAR = 30  # characters between a figure and its comment
UNSEEN = (  # what is no prose
    re.compile(r"\A---\n.*?\n---\n", re.S),
    re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[ \t]*$", re.M | re.S),
    re.compile(r"<!-- table: (?P<name>\w+) -->.*?<!-- end: (?P=name) -->", re.S),
    re.compile(r"\$\$.*?\$\$|\$[^$\n]+(?:\n[^$\n]+)?\$", re.S),
    re.compile(r"`+[^`]*`+"),
    re.compile(r"\]\([^()]*\)"),
)
STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|`(?:[^`\\]|\\.)*`')
CITATION = re.compile(r"arXiv|\b(?:19|20)\d\d\b|PyPI")


class Untraceable(ValueError):
    """A comment that leads nowhere."""


@dataclass(frozen=True)
class Figure:
    """A figure of a page: what stands there, from where to where."""

    text: str
    start: int
    end: int


def pages() -> dict[str, str]:
    """The text of every page with prose of ours, by its place in the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("theory/**/*.md")]
    found += [*ROOT.glob("docs/choose/*.html"), *ROOT.glob("docs/choose/*.js")]
    names = sorted(str(path.relative_to(ROOT)) for path in found)
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if name not in WRITTEN}


# --- figures of a page --------------------------------------------------------------------------------


def prose(page: str, text: str) -> str:
    """`text` with everything else blank; all places stay where they are."""
    if page.endswith(".js"):
        kept = "".join(_blank(text[a:b]) + text[b:c] for a, b, c in _strings(text))
        return re.sub(r"\$\{[^{}]*\}", lambda match: _blank(match[0]), kept).ljust(len(text))
    if page.endswith(".html"):
        return re.sub(r"<[^>]*>", lambda match: _blank(match[0]), text)
    for unseen in UNSEEN:
        text = unseen.sub(lambda match: _blank(match[0]), text)
    return re.sub(r"<!--.*?-->", lambda match: _blank(match[0]), text, flags=re.S)


def _strings(text: str) -> Iterator[tuple[int, int, int]]:
    """Ends of what lies before a string and of the string itself."""
    end = 0
    for match in STRING.finditer(text):
        yield end, match.start(), match.end()
        end = match.end()


def _blank(text: str) -> str:
    return re.sub(r"\S", " ", text)


def figures(page: str, text: str) -> list[Figure]:
    """Numbers that look measured: with a unit, decimals or a comment, a share, or a count of so many."""
    found = []
    for match in FIGURE.finditer(prose(page, text)):
        if match["unit"] or re.search(r"[.,e/]", match[0]) or REFERENCE.match(text, match.end()):
            found.append(Figure(match[0], *match.span()))
    return found


# --- what they are ------------------------------------------------------------------------------------


@cache
def record(name: str) -> Any:
    """A record by name."""
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        raise Untraceable(f"there is no record {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def values(name: str, ways: str) -> list[float]:
    """The figures that a comment names."""
    found, before = [], [""]
    for way in ways.split(";"):
        path, _, factor = way.strip().partition(" * ")
        keys = [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^.\s"]+)', path)]
        keys = [*before[:-1], *keys] if path.startswith(".") else keys
        found.append(_at(name, keys) * float(factor or 1))
        before = keys
    return found


def _at(name: str, keys: list[str]) -> float:
    place: Any = record(name)
    for key in keys:
        try:
            last = key == "length" and not (isinstance(place, dict) and key in place)
            place = len(place) if last else place[int(key) if isinstance(place, list) else key]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise Untraceable(f"the record {name} has no {'.'.join(keys)}") from error
    if isinstance(place, bool) or not isinstance(place, int | float):
        raise Untraceable(f"{'.'.join(keys)} of the record {name} is no number")
    return place


def agrees(figure: str, value: float) -> bool:
    """Whether a figure on a page is this value, rounded to the digits that it has."""
    if figure.startswith("1/"):
        return value > 0 and round(1 / value) == int(figure[2:])
    digits = figure.replace(",", "").lstrip("+")
    decimals = len(digits.partition("e")[0].partition(".")[2])
    kind = "e" if "e" in digits else "f"
    return float(f"{value:.{decimals}{kind}}") == float(digits)


def listed() -> dict[str, dict[str, list[str]]]:
    """By kind and page, phrases whose figures nobody measured."""
    found: dict[str, dict[str, list[str]]] = tomllib.loads(LIST.read_text(encoding="utf-8"))
    return found


# --- what is wrong ------------------------------------------------------------------------------------


def faults(page: str, text: str, unmeasured: dict[str, dict[str, list[str]]]) -> list[str]:
    """A line for each figure that is neither, for each comment and each phrase that is wrong."""
    held = figures(page, text)
    wrong, covered = _phrases(page, text, unmeasured)
    bound: set[Figure] = set()
    for match in REFERENCE.finditer(text):
        where = f"{page}:{_line(text, match.start())}"
        try:
            wanted = values(match["name"], match["ways"])
        except Untraceable as error:
            wrong.append(f"{where}: {error}")
            continue
        near = [one for one in held if one.end <= match.start() and one not in bound][-len(wanted) :]
        if len(near) < len(wanted) or match.start() - near[-1].end > NEAR:
            wrong.append(f"{where}: the comment has no figure right before it")
            continue
        bound.update(near)
        wrong += [
            f"{where}: {one.text} should be {value:.6g}"
            for one, value in zip(near, wanted, strict=True)
            if not agrees(one.text, value)
        ]
    for one in held:
        if one not in bound and not any(start <= one.start < end for start, end in covered):
            around = " ".join(text[max(0, one.start - 25) : one.end + 15].split())
            wrong.append(f"{page}:{_line(text, one.start)}: {one.text} is of no record: ... {around} ...")
    return wrong


def _phrases(
    page: str, text: str, unmeasured: dict[str, dict[str, list[str]]]
) -> tuple[list[str], list[tuple[int, int]]]:
    """What is wrong with the phrases of a page, and the places that they cover."""
    wrong, covered = [], []
    for kind, by_page in unmeasured.items():
        own, shared = by_page.get(page, []), by_page.get("*", [])
        for phrase in [*own, *shared]:
            pattern = r"(?<![\d.,])" + r"\s+".join(map(re.escape, phrase.split())) + r"(?![\d]|[.,]\d)"
            places = [match.span() for match in re.finditer(pattern, text)]
            covered += places
            if not places and phrase in own:
                wrong.append(f"{page}: docs/unmeasured.toml has a phrase that is not there: {phrase}")
            if kind == "cited" and not all(CITATION.search(_lines(text, *place)) for place in places):
                wrong.append(f"{page}: a cited figure without its source: {phrase}")
    return wrong, covered


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _lines(text: str, start: int, end: int) -> str:
    return text[text.rfind("\n", 0, start) + 1 : (text + "\n").find("\n", end)]


def main() -> int:
    """Say what is wrong."""
    held, unmeasured = pages(), listed()
    wrong = [line for page, text in held.items() for line in faults(page, text, unmeasured)]
    named = {page for by_page in unmeasured.values() for page in by_page}
    wrong += [f"docs/unmeasured.toml names {page}, which is no page" for page in sorted(named - {*held, "*"})]
    print("\n".join(wrong) or "every figure is a record's, or no measurement")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
