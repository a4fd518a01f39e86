"""`odn`: the command line. Data goes to stdout, everything else to stderr; it only calls the library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console

from odn_hybrid._version import __version__
from odn_hybrid.cli.comparing import compare, show_comparison
from odn_hybrid.cli.exporting import export
from odn_hybrid.cli.models import list_models
from odn_hybrid.cli.promising import certify
from odn_hybrid.cli.seeds import fit_several, parse_seeds, read_seeds, show_seeds
from odn_hybrid.cli.serving import serve
from odn_hybrid.errors import ConfigError, OdnError

__all__ = ["main"]

#: Key of what to say after Ctrl-C, in the context's notes.
ON_INTERRUPT = "odn.on_interrupt"
HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 (failed) or 2 (bad arguments)."""
    try:
        cli.main(args=argv, prog_name="odn", standalone_mode=False)
        return 0
    except click.ClickException as error:
        _complain(error.format_message(), once=True)
        return 2
    except (click.Abort, _Interrupted) as error:
        _complain(str(error) or "interrupted", once=True)
        return 1
    except OdnError as error:
        if not error.elsewhere:
            _complain(str(error))
        return error.exit_status
    except OSError as error:  # the library's own are StorageErrors; this is standard output
        _complain(f"cannot write the output: {error.strerror or error}")
        _silence()
        return 1


class _Interrupted(Exception):
    """Ctrl-C, where click would print an empty line of its own first."""


class _Verbs(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted(ctx.meta.get(ON_INTERRUPT, "")) from None


def _silence() -> None:
    """Standard output is broken: keep the interpreter from failing again when it flushes at the end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, *, once: bool = False) -> None:
    """Say it; `once`: of several processes, which all have it to say, the first does."""
    if once and os.environ.get("RANK", "0") != "0":
        return
    click.echo(f"odn: {' '.join(message.split())}", err=True)


@click.group(cls=_Verbs, context_settings=HELP, epilog="Example: odn fit")
@click.version_option(__version__, prog_name="odn")
def cli() -> None:
    """Right-size the depth of timm ResNets and Transformers, statically and dynamically."""


def _json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(command)


@cli.command(epilog="Example: odn fit resnet18 --data mnist --data-root data --out runs/mnist")
@click.argument("model", required=False)
@click.option("--data", help="digits, a torchvision name, a folder of images, or an .npz file.")
@click.option("--data-root", help="Where torchvision keeps its data sets.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for the run [default: runs/NAME].")
@click.option("--loss", help="Objective: depth_reg, joint, distill or cross_entropy.")
@click.option("--head", help="Exit head: linear, grid or attention.")
@click.option(
    "--regime", help="scratch, finetune (pretrained weights) or frozen (them as they are; heads only)."
)
@click.option(
    "--plan", help="prefix (exits after ever more units) or thin (units removed inside every stage)."
)
@click.option("--target", "target_accuracy", type=float, help="Accuracy to reach, as a fraction (0.995).")
@click.option("--tolerance", type=float, help="Accuracy that may be lost, as a fraction (0.01).")
@click.option("--start-from", metavar="RUN", help="A finished run whose depth seeds the search.")
@click.option("--seed", type=int, help="Seed of splits, weights and batches.")
@click.option("--seeds", metavar="0,1,2", help="Fit once for each, into OUT/seed-0 ..., and sum up.")
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder to write for TensorBoard.")
@click.option("--device", help="cpu or cuda.")
@click.option("--precision", help="auto, fp32 or bf16 (training only; figures are fp32).")
@click.option(
    "--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Any recipe field, e.g. optim.lr=0.05."
)
@click.option("--resume", is_flag=True, help="Go on with the interrupted fit in --out.")
@_json_option
def fit(
    model: str | None,
    data: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    resume: bool,
    as_json: bool,
    seeds: str | None,
    tensorboard: Path | None,
    **options: Any,
) -> None:
    """Fit MODEL (a timm name, torchvision/NAME, or a recipe.yaml) and choose its depth.

    Without MODEL: the quickstart recipe on the embedded data set.
    """
    from odn_hybrid.cli.progress import watching
    from odn_hybrid.fitting import fit as fit_network
    from odn_hybrid.training.devices.processes import is_main_process

    out = out or Path("runs") / Path(model or "quickstart").stem
    meta = click.get_current_context().meta
    meta[ON_INTERRUPT] = f"interrupted; go on with odn fit --resume --out {out}"
    options |= {"overrides": _settings(settings), "tensorboard": tensorboard}
    if seeds is not None:
        meta[ON_INTERRUPT] += f" --seeds {seeds}"
        numbers = parse_seeds(seeds, options.pop("seed"))
        found = fit_several(model, data, seeds=numbers, out=out, resume=resume, **options)
        if is_main_process():
            _print_json(found) if as_json else show_seeds(found)
            click.echo(f"saved in {out}", err=True)
        return
    # Of several processes one speaks.
    with watching(Console(stderr=True, quiet=not is_main_process())) as listener:
        run = fit_network(model, data, out=out, resume=resume, listener=listener, **options)
    if is_main_process():
        _show_report(run.report_, as_json)
        click.echo(f"saved in {out}", err=True)


def _settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair!r}: write FIELD=VALUE, e.g. optim.lr=0.05")
        try:
            changes[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {pair!r}: the value is not valid YAML") from None
    return changes


@cli.command(epilog="Example: odn report runs/quickstart --html --out page.html")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--curves", is_flag=True, help="Every halting policy's accuracy against mean MACs, too.")
@click.option("--html", is_flag=True, help="Write one self-contained page instead, for a browser.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where --html goes [default: report.html in RUN]."
)
@click.option("--data", help="The data of the fit, if it has moved, for the pictures of --html.")
@_json_option
def report(run: Path, curves: bool, html: bool, out: Path | None, data: str | None, as_json: bool) -> None:
    """Print the table of exits, the choice, and the comparison of a finished RUN.

    Of a folder that odn fit --seeds wrote: the table of its seeds. With --html: a page with pictures.
    """
    from odn_hybrid.report import curves_table
    from odn_hybrid.rundir import RunDir

    _check_page(html, out, data, as_json or curves)
    seeds = read_seeds(run)
    if seeds is not None:
        if html:
            raise ConfigError(f"{run} holds several seeds; ask for the page of one, e.g. {run}/seed-0")
        if curves:
            raise ConfigError(f"{run} holds several seeds; ask for the curves of one, e.g. {run}/seed-0")
        _print_json(seeds) if as_json else show_seeds(seeds)
        return
    if html:
        from odn_hybrid.report.html import write_page

        click.echo(f"page in {write_page(run, out, data=data)}", err=True)
        return
    found = RunDir.open(run).read_json("report.json")
    if curves and not as_json:
        if not found.get("curves"):
            why = found.get("no_dynamic") or "it was fitted by an earlier release"
            raise ConfigError(f"{run} has no curves of halting policies: {why}")
        Console().print(curves_table(found))
    _show_report(found, as_json)


def _check_page(html: bool, out: Path | None, data: str | None, other: bool) -> None:
    if html and other:
        raise ConfigError("--html writes a page, which has the curves; leave out --json and --curves")
    if not html and (out is not None or data is not None):
        raise ConfigError("--out and --data belong to --html; add it, or leave them out")


@cli.command(epilog="Example: odn truncate runs/quickstart --out small --max-macs 2e7")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Directory for the small model.")
@click.option("--depth", type=int, help="Units to keep [default: the fit's choice].")
@click.option("--max-macs", type=float, help="Most accurate exit within so many MACs an image.")
@click.option("--max-params", type=float, help="... within so many parameters.")
@click.option("--max-bytes", type=float, help="... within so many fp32 bytes.")
@click.option(
    "--max-latency-ms", type=float, help="... within so many milliseconds at batch 1, measured here."
)
@click.option("--fold", is_flag=True, help="Fold batch normalisations into the layers before them: faster.")
@_json_option
def truncate(run: Path, out: Path, as_json: bool, **wishes: Any) -> None:
    """Cut the model of a finished RUN and save it as a plain small model."""
    from odn_hybrid.artifacts import load_run, save
    from odn_hybrid.report.wording import ranges

    loaded = load_run(run)
    model = loaded.truncate(**wishes)
    save(model, out)
    plan = model.__dict__["_odn_plan"]
    row = next(row for row in loaded.exits_ if row["exit"] == plan.exit)
    if as_json:
        _print_json({"path": str(out), **row, "folded": len(plan.folded)})
    else:
        size = (
            f"{row['params']:,} parameters, {row['bytes'] / 1e6:.2f} MB, {row['macs_static'] / 1e6:.1f} MMACs"
        )
        kept = f" ({ranges(plan.keep)})" if plan.kind == "thin" else ""
        folded = f", {len(plan.folded)} batch normalisations folded" if wishes["fold"] else ""
        click.echo(f"{out}: exit {plan.exit}, {plan.depth} units{kept}, {size}{folded}")


cli.add_command(list_models)
cli.add_command(certify)
cli.add_command(compare)
cli.add_command(export)
cli.add_command(serve)


def _print_json(data: dict[str, Any]) -> None:
    from odn_hybrid.rundir.files import to_plain

    click.echo(json.dumps(to_plain(data), indent=2, allow_nan=False))


def _show_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(report)
        return
    from odn_hybrid.report import exits_table, explain

    console = Console()
    console.print(exits_table(report))
    if report.get("comparison"):
        show_comparison(report, advice=False)
    console.print(explain(report), highlight=False)
