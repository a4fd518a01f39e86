"""The page as a whole: sections from the data of a run directory, in reading order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odn_hybrid._version import __version__
from odn_hybrid.errors import ConfigError
from odn_hybrid.report.html.curves import cost_curve, halting_histogram, history_curve
from odn_hybrid.report.html.elements import item_list, paragraphs, section, table, text
from odn_hybrid.report.html.stopping_images import Missing, Shown, shown_images
from odn_hybrid.report.html.style import STYLE
from odn_hybrid.report.html.times import measured_times
from odn_hybrid.report.html.verdict import verdict
from odn_hybrid.report.sentences import explain
from odn_hybrid.report.tables import model_name, model_rows
from odn_hybrid.report.wording import (
    NOTHING,
    Data,
    accuracy_text,
    count,
    data_name,
    is_thin,
    megabytes,
    needs_whole_report,
    ranges,
    reference_exit,
)
from odn_hybrid.rundir import RunDir, make_folders, write_bytes

__all__ = ["report_page", "write_page"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SPLITS = ("train", "selection", "calibration", "certification", "test")
MOST_NAMES = 20


def write_page(run: str | Path, out: str | Path | None = None, *, data: Any = None) -> Path:
    """Write the page of a finished run; its path.

    Args:
        run: a run directory.
        out: the file to write, atomically; default: report.html in the run directory.
        data: where the data of the fit are now, for the pictures, if they have moved.

    Raises:
        RunDirError: no finished run there, or a damaged one. ConfigError: `out` is a folder.
        StorageError: the disk refuses; an older page is then as it was.
    """
    rundir = RunDir.open(run)
    path = rundir.path / "report.html" if out is None else Path(out)
    if path.is_dir():
        raise ConfigError(f"page {str(path)!r} is a folder: name the file to write, e.g. page.html")
    page = report_page(rundir, data=data)
    make_folders(path.parent)
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def report_page(rundir: RunDir, *, data: Any = None) -> str:
    """The page of a finished run as HTML; see `write_page`."""
    return _page(rundir.read_json("report.json"), rundir, data)


@needs_whole_report
def _page(report: Data, rundir: RunDir, data: Any) -> str:
    title = f"{report['model']} on {data_name(report)}"
    parts = [
        verdict(report),
        _fitted(report, rundir),
        section("models", "The models", _models(report)),
        section("exits", "Every exit", _exits(report)),
        cost_curve(report),
        halting_histogram(report),
        section("promise", "What is promised", *_promise(report)),
        measured_times(report),
        section("pictures", "Inputs that stop early and late", *_pictures(rundir, report, data)),
        history_curve(rundir.read_history()),
        section("words", "In words", item_list(explain(report).splitlines())),
        section("machine", "Where it was fitted", _environment(report)),
    ]
    body = "\n".join(part for part in parts if part)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="odn_hybrid {text(__version__)}">
<link rel="icon" href="data:,">
<title>{text(title)}</title><style>{STYLE}</style></head>
<body><header><h1>{text(title)}</h1>
<p class="soft">How deep this network has to be for these data, found by odn_hybrid.</p></header>
<main>
{body}
</main></body></html>
"""


def _fitted(report: Data, rundir: RunDir) -> str:
    data, search = report["data"], report["search"]
    exits = len(report["exits"])
    lines = [
        f"Network: {report['model']}, with {exits} exit{'s' * (exits != 1)}.",
        f"Data: {data_name(report)}.",
    ]
    if isinstance(data, dict) and data.get("splits"):
        sizes = [f"{data['splits'][name]['size']:,} {name}" for name in SPLITS if name in data["splits"]]
        lines.append(f"Images: {', '.join(sizes)}. The test images were looked at once, at the end.")
    if isinstance(data, dict) and data.get("classes"):
        names = [str(name) for name in data["classes"]]
        more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        lines.append(f"{len(names)} classes: {', '.join(names[:MOST_NAMES])}{more}.")
    shape = data.get("image_shape") if isinstance(data, dict) else None
    size = (rundir.config.get("preprocess") or {}).get("size")
    if shape and size:
        kept = f"{shape[0]} x {shape[1]} pixels in the files"
        lines.append(f"Image size: {kept}, {size[0]} x {size[1]} in the network.")
    lines.append(f"The fit took {search['epochs']:g} epochs and {count(search['train_macs'])} training MACs.")
    return section("fitted", "What was fitted, and on what", item_list(lines))


def _models(report: Data) -> str:
    comparison = report.get("comparison")
    rows = comparison["rows"] if comparison else model_rows(report)
    whole = rows[0]["mean_macs"]
    cells = []
    for row in rows:
        macs = row.get("mean_macs")
        share = f"{100 * macs / whole:.0f} %" if macs is not None and whole else NOTHING
        sizes = [count(macs), share, count(row.get("params")), megabytes(row.get("bytes"))]
        cells.append([model_name(row, report), accuracy_text(row["accuracy"]), *sizes])
    n = next((row["accuracy"]["n"] for row in rows if row["accuracy"]), None)
    images = f" on {n:,} test images" if n else ""
    caption = f"Accuracy{images} with its 95 % interval; MACs an image, on average; MB of 10^6 bytes, fp32"
    chosen = None if not comparison else (comparison.get("recommendation") or {}).get("model")
    marked = [number for number, row in enumerate(rows) if row["name"] == chosen]
    return table(caption, ["Model", "Test accuracy, %", "MACs", "Share", "Parameters", "MB"], cells, marked)


def _exits(report: Data) -> str:
    static, reference, thin = report["static"]["exit"], reference_exit(report), is_thin(report)
    cells, marked = [], []
    for number, row in enumerate(report["exits"]):
        marks = " *" * (row["exit"] == static) + " +" * (row["exit"] == reference)
        both = row["accuracy"] or {}
        told = [accuracy_text(both.get(split)) for split in ("selection", "test")]
        told = told if row["trained"] else ["not trained", NOTHING]
        macs = [count(row["macs_static"]), *(() if thin else (count(row["macs_dynamic"]),))]
        kept = [ranges(row["keep"])] if thin else []
        sizes = [count(row["params"]), megabytes(row["bytes"])]
        cells.append([f"{row['exit']}{marks}", str(row["units"]), *kept, *told, *macs, *sizes])
        if row["exit"] == static:
            marked.append(number)
    macs = ["MACs"] if thin else ["MACs, static", "MACs, all heads passed"]
    columns = ["Exit", "Units", *(["Units kept"] if thin else []), "Selection, %", "Test, %", *macs]
    caption = "* the static choice; + the reference, against which losses are measured; 95 % intervals"
    return table(caption, [*columns, "Parameters", "MB"], cells, marked)


def _promise(report: Data) -> list[str]:
    dynamic = report.get("dynamic")
    if not dynamic:
        why = report.get("no_dynamic") or "it needs more than one trained exit"
        return [paragraphs([f"There is no halting model: {why}."])]
    certificate = dynamic.get("certificate")
    if not certificate:
        refusal = str(dynamic.get("refusal") or "none was asked for").removeprefix("not certified: ")
        return [
            paragraphs([f"There is no certificate: {refusal}."]),
            paragraphs(["The halting model can be used, but nothing is promised of it."], "soft"),
        ]
    digests = certificate.get("digests") or {}
    told = str(certificate.get("statement") or "").strip()
    lines = [f"{told[:1].upper()}{told[1:]}." if told else ""]
    drop, delta = 100 * certificate["drop"], certificate["delta"]
    asked = certificate.get("promise") or {}
    if asked.get("measure", "accuracy") == "accuracy" and asked.get("by") is None:
        plain = (
            f"Halting loses at most {drop:g} point{'s' * (drop != 1)} against exit {reference_exit(report)}; "
            f"the chance that this is wrong is at most {100 * delta:.3g} %, for images like those tested."
        )
        lines.insert(0, plain)
    if digests.get("runtime"):
        lines.append(
            f"It holds as the network was run then: {digests['runtime']}. Another way of running voids it."
        )
    return [paragraphs(line for line in lines if line)]


def _pictures(rundir: RunDir, report: Data, data: Any) -> list[str]:
    try:
        early, late = shown_images(rundir, report, data)
    except Missing as missing:
        return [paragraphs([str(missing)])]
    lead = "The first test images, in their order, that stop earliest and latest; none was picked by hand."
    parts = [paragraphs([lead], "soft")]
    for title, shown in (("Early", early), ("Late", late)):
        parts.append(f"<h3>{title}</h3><ul class=pictures>{''.join(map(_picture, shown))}</ul>")
    return parts


def _picture(one: Shown) -> str:
    right = (
        f"answer {one.answer}" if one.answer == one.label else f"answer {one.answer}, in truth {one.label}"
    )
    alt, kind = text(f"test image {one.row}: {one.label}"), ' class="tiny"' if one.tiny else ""
    return f'<li><img{kind} src="{one.source}" alt="{alt}">exit {one.exit}: {text(right)}</li>'


def _environment(report: Data) -> str:
    found = report.get("environment") or {}
    rows = [
        [str(name).replace("_", " "), NOTHING if value is None else str(value)]
        for name, value in found.items()
    ]
    return table("Versions and machine of the fit", ["What", "Value"], rows)
