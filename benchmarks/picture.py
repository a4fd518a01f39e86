"""The picture of README.md, drawn from records: what depths and halting reach, and what that is in time.

python benchmarks/picture.py            # write docs/picture.svg
python benchmarks/picture.py --check    # exit 1 if that would change it

Written by hand, so that it is the same with every version of every library. It has a ground of its own and
follows the reader's choice of light or dark.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "benchmarks" / "records"
PICTURE = ROOT / "docs" / "picture.svg"

WIDTH, HEIGHT = 900, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 560, 66, 300  # the left chart's axes
BARS, END = 690, 860  # the right chart's
LEAST = 60.0  # accuracies further down, of the first exits, are left out
BATCH = "64"
STYLE = """
  svg { --ground: #ffffff; --ink: #1d2126; --soft: #57606a; --rule: #d8dbdf;
        --static: #0072b2; --dynamic: #b84a00; --full: #33383e; }
  @media (prefers-color-scheme: dark) {
    svg { --ground: #1c2024; --ink: #e6e8ea; --soft: #a4acb5; --rule: #343a41;
          --static: #6cb8ec; --dynamic: #f29a5c; --full: #d0d4d9; } }
  text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink); }
  .title { font-size: 15px; font-weight: 600; } .soft { font-size: 13px; fill: var(--soft); }
  .ground { fill: var(--ground); stroke: var(--rule); } .grid { stroke: var(--rule); }
  .whisker { fill: none; stroke: var(--ink); stroke-width: 1.5; }
  .static { fill: var(--static); } .dynamic { fill: var(--dynamic); } .full { fill: var(--full); }
  .bar { fill-opacity: 0.6; } .line.static, .line.dynamic { fill: none; stroke-width: 2; }
  .line.static { stroke: var(--static); } .line.dynamic { stroke: var(--dynamic); }
  .mark { stroke: var(--ground); stroke-width: 1.5; }
"""


def load(name: str) -> dict[str, Any]:
    """A record by name."""
    record: dict[str, Any] = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def tag(name: str, **attributes: object) -> str:
    """An element without contents; `class_` is `class`, `text_anchor` is `text-anchor`."""
    said = " ".join(f'{key.rstrip("_").replace("_", "-")}="{_said(v)}"' for key, v in attributes.items())
    return f"<{name} {said}/>"


def text(said: str, x: float, y: float, **attributes: object) -> str:
    """Words at a place."""
    return tag("text", x=x, y=y, **attributes)[:-2] + f">{escape(said)}</text>"


def _said(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else escape(str(value))


def mark(kind: str, x: float, y: float) -> str:
    """The shapes of the interactive page: a square, a triangle, a disc."""
    if kind == "full":
        return tag("rect", x=x - 6, y=y - 6, width=12, height=12, class_="mark full")
    if kind == "static":
        return tag("path", d=f"M{x:.1f} {y - 8:.1f}l8 14h-16z", class_="mark static")
    return tag("circle", cx=x, cy=y, r=7, class_="mark dynamic")


def three(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Full, static and dynamic rows of the timed pass."""
    found = record["passes"]["eager"][BATCH]
    names = {"full": found["full"], "static": found["static_equal"]["test"], "dynamic": found["dynamic"]}
    return {kind: found["rows"][name] for kind, name in names.items()}


def x_of(macs: float) -> float:
    """Of so many MACs, up to 160 million."""
    return LEFT + (RIGHT - LEFT) * macs / 160e6


def y_of(accuracy: float) -> float:
    """Of a fraction of images, up to 95 %."""
    return BOTTOM - (BOTTOM - TOP) * (100 * accuracy - LEAST) / (95 - LEAST)


def place(row: dict[str, Any]) -> tuple[float, float]:
    """Of a timed model."""
    return x_of(row["mean_macs"]), y_of(row["accuracy"]["value"])


def line(points: Iterable[dict[str, Any]], kind: str) -> str:
    """A curve through (mean cost, accuracy); with dots, for the depths."""
    shown = sorted(
        (one["mean_cost"], one["accuracy"]["value"])
        for one in points
        if 100 * one["accuracy"]["value"] >= LEAST
    )
    places = [(x_of(macs), y_of(accuracy)) for macs, accuracy in shown]
    joined = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    dots = [tag("circle", cx=x, cy=y, r=3, class_=kind) for x, y in places] if kind == "static" else []
    return "\n".join([tag("path", d=f"M{joined}", class_=f"line {kind}"), *dots])


def reached(curves: dict[str, Any], rows: dict[str, dict[str, Any]], units: tuple[int, int]) -> list[str]:
    """The left chart: accuracy against MACs, of every depth and every setting of halting."""
    parts = [text("What cutting and halting reach", 20, 30, class_="title")]
    parts += [text("test accuracy, %", 20, 50, class_="soft")]
    for accuracy in range(int(LEAST), 96, 5):
        y = y_of(accuracy / 100)
        parts += [tag("line", x1=LEFT, x2=RIGHT, y1=y, y2=y, class_="grid")]
        parts += [text(str(accuracy), LEFT - 8, y + 4, class_="soft", text_anchor="end")]
    for macs in range(0, 161, 20):
        parts += [text(str(macs), x_of(1e6 * macs), BOTTOM + 18, class_="soft", text_anchor="middle")]
    parts += [
        text("million MACs an image, on average", (LEFT + RIGHT) / 2, BOTTOM + 38, class_="soft",
             text_anchor="middle"),
        line(curves["fixed"], "static"), line(curves["snell"], "dynamic"),
    ]  # fmt: skip
    for kind, row in rows.items():
        parts.append(mark(kind, *place(row)))  # their intervals would be within the marks
    full, static, dynamic = map(place, rows.values())
    return [
        *parts,
        text(f"full: all {units[1]} units", full[0] + 8, full[1] + 28, class_="full", text_anchor="end"),
        text(f"static: {units[0]} of {units[1]} units", static[0], static[1] + 28, class_="static"),
        text("dynamic: each image its own depth", dynamic[0] - 12, dynamic[1] - 16, class_="dynamic"),
        text("one cut for all images", x_of(44e6), y_of(0.72), class_="static"),
        text("dynamic halting", x_of(36e6), y_of(0.74), class_="dynamic", text_anchor="end"),
    ]


def whisker(low: float, high: float, y: float) -> str:
    """An interval."""
    ends = f"M{low:.1f} {y - 5:.1f}v10M{high:.1f} {y - 5:.1f}v10"
    return tag("path", d=f"M{low:.1f} {y:.1f}H{high:.1f}{ends}", class_="whisker")


def timed(rows: dict[str, dict[str, Any]], threads: int) -> list[str]:
    """The right chart: images a second, as a ratio to the full network."""
    parts = [text("What that is in time", 610, 30, class_="title")]
    parts += [text(f"images a second; full = 1 (batch {BATCH},", 610, 50, class_="soft")]
    parts += [text(f"{threads} CPU threads; 95 % intervals)", 610, 67, class_="soft")]
    most = max(row["over_full"]["throughput"]["high"] for row in rows.values())

    def at(ratio: float) -> float:
        return BARS + (END - BARS) * ratio / most

    for number, (kind, row) in enumerate(rows.items()):
        gain, y = row["over_full"]["throughput"], 96.0 + 68 * number
        parts += [
            text(kind, BARS - 10, y + 22, text_anchor="end", class_=kind),
            tag("rect", x=BARS, y=y, width=at(gain["median"]) - BARS, height=34, class_=f"bar {kind}"),
        ]
        said = f"{gain['median']:.2f} x"
        if gain["high"] > gain["low"]:
            parts.append(whisker(at(gain["low"]), at(gain["high"]), y + 17))
            said += f" [{gain['low']:.2f}, {gain['high']:.2f}]"
        parts.append(text(said, BARS, y + 50, class_="soft"))
    return parts


def picture(read: Callable[[str], dict[str, Any]] = load) -> str:
    """The whole file."""
    speed, choosing = read("halting_speed"), read("choosing_cifar10_deep")["report"]
    if speed["fit"]["seconds"] != choosing["search"]["seconds"]:
        raise ValueError("the two records are of different fits; make them again from one")
    rows, fit = three(speed), speed["fit"]
    curves = choosing["curves"]["families"]
    drop = 100 * speed["dynamic"]["throughput"]["certificate"]["drop"]
    tests = f"{rows['full']['accuracy']['n']:,} test images"
    promised = f"dynamic is certified to lose at most {drop:g} point"
    foot = f"CIFAR-10, ResNet-18 of {fit['reference']['units']} units, one fit; {tests}; {promised}."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        f'height="{HEIGHT}" role="img" aria-label="{escape(foot)}">',
        f"<style>{STYLE}</style>",
        tag("rect", x=0.5, y=0.5, width=WIDTH - 1, height=HEIGHT - 1, rx=8, class_="ground"),
        *reached(curves, rows, (fit["static"]["units"], fit["reference"]["units"])),
        *timed(rows, speed["threads"]),
        text(foot, 20, HEIGHT - 14, class_="soft"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    drawn, there = picture(), PICTURE.read_text(encoding="utf-8") if PICTURE.is_file() else ""
    if parser.parse_args().check:
        return int(drawn != there)
    PICTURE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
