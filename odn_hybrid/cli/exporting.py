"""`odn export`: a finished run's static or dynamic model as files for another runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from odn_hybrid.errors import ConfigError

__all__ = ["export"]


@click.command(epilog="Example: odn export runs/quickstart onnx_model --format onnx --max-macs 2e7")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    default="onnx",
    show_default=True,
    help="Static: onnx, onnx-int8, openvino, pt2 or timm. Dynamic: onnx-segments or onnx-if.",
)
@click.option("--exit", type=int, help="Static: the exit to cut at [default: the fit's choice].")
@click.option("--depth", type=int, help="... the exit after so many units.")
@click.option("--max-macs", type=float, help="... the most accurate exit within so many MACs an image.")
@click.option("--max-params", type=float, help="... within so many parameters.")
@click.option("--max-bytes", type=float, help="... within so many fp32 bytes.")
@click.option(
    "--max-latency-ms", type=float, help="... within so many milliseconds at batch 1, measured here."
)
@click.option("--drop", type=float, help="Dynamic: the largest drop promised, a fraction.")
@click.option("--delta", type=float, help="Dynamic: the chance of being wrong.")
@click.option("--policy", help="Dynamic: the family of policies.")
@click.option("--no-certify", is_flag=True, help="Dynamic: without a promise.")
@click.option("--data", help="The data of the fit, if it has moved.")
@click.option("--json", "as_json", is_flag=True, help="Print the export's manifest instead of a line.")
def export(
    run: Path,
    out: Path,
    format: str,
    drop: float | None,
    delta: float | None,
    policy: str | None,
    no_certify: bool,
    data: str | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Write the model of a finished RUN into a new folder OUT, for other runtimes.

    What was written is run and compared with the model before it counts; where it differs, nothing is left.
    """
    from odn_hybrid.artifacts import load_run
    from odn_hybrid.deploy.export.halting import HALTING_FORMATS
    from odn_hybrid.sharing import export as export_model

    loaded = load_run(run)
    if data is not None:
        loaded.use_data(data)
    promise: dict[str, Any] = {"drop": drop, "delta": delta, "policy": policy}
    if format in HALTING_FORMATS:
        _refuse(wishes, format, "static")
        export_model(loaded.dynamic(certify=not no_certify, **promise), out, format)
    else:
        _refuse({**promise, "no_certify": no_certify or None}, format, "dynamic")
        export_model(loaded, out, format, **wishes)
    manifest = json.loads(_manifest(out).read_text(encoding="utf-8"))
    click.echo(json.dumps(manifest, indent=2) if as_json else _line(manifest, out))


def _refuse(options: dict[str, Any], format: str, kind: str) -> None:
    said = sorted(name for name, value in options.items() if value is not None)
    if said:
        raise ConfigError(f"--{said[0].replace('_', '-')} is for {kind} models; --format is {format}")


def _manifest(folder: Path) -> Path:
    """Of a static model export.json, of a halting one manifest.json."""
    static = folder / "export.json"
    return static if static.is_file() else folder / "manifest.json"


def _line(manifest: dict[str, Any], out: Path) -> str:
    files = manifest.get("files") or manifest.get("graphs") or []
    size = sum(file["bytes"] for file in files) / 1e6
    text = f"{out}: {manifest['format']}, {len(files)} files, {size:.2f} MB"
    if manifest.get("exit"):
        text += f", exit {manifest['exit']} ({manifest['units']} units)"
    checked = manifest.get("checked")
    if checked and checked.get("difference") is not None:
        text += f"; logits within {checked['difference']:.1g} of the model's"
    if manifest.get("accuracy_fp32"):
        for name in ("selection", "test"):
            found, before = manifest["accuracy"][name], manifest["accuracy_fp32"][name]
            interval = f"[{100 * found['low']:.2f}, {100 * found['high']:.2f}]"
            text += f"\n{name}: {100 * found['value']:.2f} % {interval} of {found['n']} images, "
            text += f"fp32 {100 * before['value']:.2f} %"
    return text
