"""docs/models.md, from the records of the coverage and the sweep; `tables.py` writes and checks it."""

from __future__ import annotations

from typing import Any

INTRODUCTION = """\
# Models

This page is written by `python benchmarks/tables.py` from the records of two programs:
[`coverage.py`](../benchmarks/coverage.py) builds and traces every name of timm without weights, and
[`sweep.py`](../benchmarks/sweep.py) runs the smallest model of every family with real numbers. `make sweep`
runs both. `odn models PATTERN --check` does the same for the names you choose, torchvision's among them
(`odn models 'torchvision/*'`). Any other `torch.nn.Module` is traced and checked when `odn_hybrid.Trunk`
wraps it.
"""

CHECKED = """\
A family is a module of timm. *Split* are the names that have at least 4 exits. *Checked* is the name with the
fewest MACs among them (timm's own tiny test models left out), with random weights, none of them zero:

- *resumed*: largest difference of a logit between a run that is stopped and resumed after every unit and the
  model's own forward (at most {resumed:.0e} is allowed);
- *part*: the same between images run without the others of their batch and the whole batch (at most
  {part:.0e}: kernels are chosen by batch size);
- gradients of the exits reach every unit.

Differences are relative to the largest logit, or to 1 if that is larger.
"""


def page(coverage: dict[str, Any], sweep: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION, _figures(coverage, sweep), "## By family\n", _explained(sweep)]
    parts += [_table(coverage["families"], sweep["families"]), _rest(coverage["families"], sweep["families"])]
    return "\n".join(parts)


def _figures(coverage: dict[str, Any], sweep: dict[str, Any]) -> str:
    counts, checked = coverage["summary"], sweep["summary"]
    timm = (coverage["traced_by"] or coverage)["environment"]["timm"]
    lines = [
        "| | |",
        "| --- | --- |",
        f"| names in timm {timm} | {counts['names']:,} |",
        f"| split, with at least 4 exits | {counts['split']:,} ({100 * counts['split_share']:.1f} %) |",
    ]
    if counts["counted"] is not None:
        share = f"{counts['counted']:,} ({100 * counts['counted_share']:.1f} %)"
        lines.append(f"| of these in a family whose check passed | {share} |")
    return "\n".join(
        [
            *lines,
            f"| families with a split name | {checked['claimed']} of {checked['families']} |",
            f"| families whose check passed | {checked['passed']} |",
            f"| tracing all names | {counts['minutes']:.1f} minutes, {counts['processes']} processes |",
            f"| checking the families | {checked['minutes']:.1f} minutes, {checked['processes']} processes |",
            "",
        ]
    )


def _explained(sweep: dict[str, Any]) -> str:
    allowed = sweep["summary"]["allowed"]
    return CHECKED.format(resumed=allowed["resumed_difference"], part=allowed["part_difference"])


def _table(families: dict[str, Any], checks: dict[str, Any]) -> str:
    lines = [
        "| family | names | split | checked | pixels | units | MMACs | resumed | part |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for family, found in families.items():
        cells = [family, str(found["names"]), str(found["split"]), *_checked(checks.get(family))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _checked(check: dict[str, Any] | None) -> list[str]:
    if check is None or check["model"] is None:
        return ["-"] * 6
    if not check["passed"]:
        return [f"{check['model']}: failed", *["-"] * 5]
    height, width = check["image_size"]
    macs = "-" if check["macs"] is None else f"{check['macs'] / 1e6:,.0f}"
    differences = [_difference(check[key]) for key in ("resumed_difference", "part_difference")]
    return [check["model"], f"{height} x {width}", str(check["units"]), macs, *differences]


def _difference(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}"


def _rest(families: dict[str, Any], checks: dict[str, Any]) -> str:
    lines = ["## What is not split, and why\n"]
    for family, found in families.items():
        for rest in found["rest"]:
            examples = ", ".join(f"`{name}`" for name in rest["examples"])
            more = ", ..." if rest["count"] > len(rest["examples"]) else ""
            count = f"{rest['count']} of {found['names']}"
            lines.append(f"- **{family}** ({count}: {examples}{more}): {_text(rest['reason'])}")
        check = checks.get(family)
        if check and check["model"] and not check["passed"]:
            lines.append(f"- **{family}** (not counted; `{check['model']}` failed): {_text(check['reason'])}")
    return "\n".join(lines) + "\n"


def _text(reason: str) -> str:
    """A reason as Markdown text: nothing in it is markup."""
    return "".join(f"\\{c}" if c in "\\`*_<>[]|" else c for c in reason)
