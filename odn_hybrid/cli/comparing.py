"""`odn compare`: full, static and dynamic measured on this device, and which is worth it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from odn_hybrid.errors import ConfigError

if TYPE_CHECKING:
    from odn_hybrid.run import Run

__all__ = ["compare", "show_comparison"]

OWN_NAMES = ("full", "static", "static_equal", "dynamic")


@click.command(epilog="Example: odn compare runs/quickstart --batch 1,16,64 --picture compared.png")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--batch", default="1,16,64", show_default=True, help="Batch sizes, separated by commas.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--rounds", default=9, show_default=True, help="Repetitions, in which the models take turns.")
@click.option(
    "--seconds", default=20.0, show_default=True, help="About so long for the turns at each batch size."
)
@click.option("--threads", type=int, help="Threads on the CPU [default: torch's own choice].")
@click.option("--data", help="The data of the fit, if it has moved.")
@click.option(
    "--against",
    multiple=True,
    metavar="MODEL",
    help="A smaller model to stand beside these: a run, a saved static model, NAME=FILE.safetensors, or a "
    "timm NAME with its published weights. May be repeated.",
)
@click.option("--precision", help="fp32, bf16 or fp16, for all models [default: as the run was certified].")
@click.option("--fold/--no-fold", default=None, help="Batch normalisation folded, in all models.")
@click.option("--compile", is_flag=True, help="All models through torch.compile.")
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw accuracy against time: .png, .svg or .pdf."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def compare(
    run: Path,
    batch: str,
    device: str,
    rounds: int,
    seconds: float,
    threads: int | None,
    data: str | None,
    against: tuple[str, ...],
    precision: str | None,
    fold: bool | None,
    compile: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Measure full, static and dynamic models of a RUN on this device and say which is worth it.

    Models take turns in every round, on real images of the test split. Where static wins it says static, and
    where nothing is clearly faster, to keep the full network.
    """
    from odn_hybrid.artifacts import load_run
    from odn_hybrid.report.picture import check_picture, draw_comparison
    from odn_hybrid.rundir.files import to_plain

    sizes = _sizes(batch)
    if picture is not None:
        check_picture(picture)  # before minutes of measuring
    loaded = load_run(run)
    loaded.to(device)
    execution = None
    if compile or precision is not None or fold is not None:
        said: dict[str, Any] = {"precision": precision, "fold": fold, "compile": compile or None}
        execution = replace(
            loaded.execution_, **{name: value for name, value in said.items() if value is not None}
        )
    with _threads(threads):
        found = loaded.compare(
            batch_sizes=sizes,
            rounds=rounds,
            seconds=seconds,
            data=data,
            against=_all_given(against, loaded),
            execution=execution,
            exits=picture is not None,
        )
    if picture is not None:
        draw_comparison(loaded.report_, picture)
        click.echo(f"drawn in {picture}", err=True)
    if as_json:
        click.echo(json.dumps(to_plain(found), indent=2, allow_nan=False))
    else:
        show_comparison(loaded.report_)


def show_comparison(report: dict[str, Any], *, advice: bool = True) -> None:
    """Print the tables of a report's comparison and, with `advice`, what it recommends."""
    from odn_hybrid.report import comparison_lines, summary_table, timings_table

    console, comparison = Console(), report["comparison"]
    timings = timings_table(report, comparison)
    console.print(summary_table(report, comparison, times=timings is None))
    if timings is not None:
        console.print()
        console.print(timings)
    console.print()
    if not advice:
        return
    for line in comparison_lines(report, comparison):
        console.print(line, highlight=False, markup=False)


def _sizes(batch: str) -> list[int]:
    try:
        return [int(size) for size in batch.split(",")]
    except ValueError:
        raise ConfigError(
            f"--batch {batch!r}: give whole numbers separated by commas, e.g. 1,16,64"
        ) from None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise ConfigError(f"--threads is {number}; give 1 or more")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _all_given(texts: tuple[str, ...], run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts:
        name, thing = _given(text, run)
        found[text if name in found or name in OWN_NAMES else name] = thing
    return found


def _given(text: str, run: Run) -> tuple[str, Any]:
    """Name and model of one `--against`."""
    from odn_hybrid.artifacts import load
    from odn_hybrid.run import Run as FinishedRun

    if Path(text).is_dir():
        thing = load(text)
        if isinstance(thing, FinishedRun):
            thing.to(str(next(run.network.parameters()).device))
        return Path(text).resolve().name, thing
    name, equals, file = text.partition("=")
    return name, _with_weights(name, Path(file), run) if equals else _published(name, run)


def _with_weights(name: str, file: Path, run: Run) -> Any:
    """A model by name with the weights of a file; with timm's stem, or the one for small images."""
    from odn_hybrid.backbone import BackboneSpec, build_backbone, load_checkpoint, parse_name
    from odn_hybrid.errors import ModelError

    library, bare = parse_name(name)
    trunk = run.network.trunk
    spec = BackboneSpec(
        library=library, name=bare, num_classes=trunk.num_classes, in_chans=trunk.image_shape[0]
    )
    model = build_backbone(spec)
    try:
        whole = load_checkpoint(model, file)
    except ModelError:
        if not file.is_file() or file.suffix != ".safetensors":
            raise
        model = build_backbone(replace(spec, stem="small"))
        whole = load_checkpoint(model, file)
    if not whole:
        raise ConfigError(f"{file} has no classifier of {trunk.num_classes} classes: it is of other data")
    return model


def _published(name: str, run: Run) -> Any:
    """A timm model with its published weights, and the transform that goes with them."""
    from odn_hybrid.backbone import BackboneSpec, build_backbone, parse_name

    library, bare = parse_name(name)
    classes = run.network.trunk.num_classes
    if library != "timm":
        raise ConfigError(f"--against {name!r}: give a folder, NAME=FILE.safetensors, or a name of timm's")
    spec = BackboneSpec(library=library, name=bare, num_classes=classes)
    known = getattr(build_backbone(spec), "pretrained_cfg", None) or {}
    if known.get("num_classes") != classes:
        raise ConfigError(
            f"--against {name!r}: there is no folder of that name, and timm's published weights are for "
            f"{known.get('num_classes')} classes, not {classes}; give a folder or NAME=FILE.safetensors"
        )
    model = build_backbone(spec, pretrained=True)
    size = tuple(known["input_size"][1:])
    model.__dict__["transform"] = replace(
        run.transform, size=size, mean=tuple(known["mean"]), std=tuple(known["std"]), channels=3
    )
    return model
