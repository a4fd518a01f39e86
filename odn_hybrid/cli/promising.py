"""`odn certify`: try to earn a promise for dynamic halting on a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from odn_hybrid.errors import CertificateError

__all__ = ["certify"]


@click.command(epilog="Example: odn certify runs/quickstart --drop 0.03 --policy confidence --out halting")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--drop", type=float, help="Largest drop, a fraction: 0.01 is one point. Default: the recipe's."
)
@click.option("--delta", type=float, help="Chance of being wrong: 0.05 is 95 % confidence.")
@click.option("--policy", help="snell, lookahead, confidence, margin, entropy, patience or fixed.")
@click.option("--recall", is_flag=True, help="Answer with the most confident exit seen so far.")
@click.option("--scaling", help="Calibration of the exits: temperature or vector.")
@click.option("--max-macs", type=float, help="The best policy within so many mean MACs an image.")
@click.option(
    "--measure", default="accuracy", show_default=True, help="accuracy, top-2, top-5, ... or brier."
)
@click.option("--by", help="class or exit: one promise per class or per halting exit, together.")
@click.option("--data", help="The data of the fit, if it has moved.")
@click.option(
    "--device", default="cpu", show_default=True, help="Where it is to run: a certificate names it."
)
@click.option("--out", type=click.Path(path_type=Path), help="Save the halting model with its certificate.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of sentences.")
def certify(
    run: Path,
    recall: bool,
    data: str | None,
    device: str,
    out: Path | None,
    as_json: bool,
    **wishes: Any,
) -> None:
    """Try to promise that dynamic halting of a RUN loses at most --drop accuracy, and say how it went.

    Each new promise is one more look at the certification images and is tested at a smaller level; the same
    promise again is not. Exit status 1 where the promise cannot be given.
    """
    from odn_hybrid.artifacts import load_run, save
    from odn_hybrid.rundir.files import to_plain

    loaded = load_run(run)
    loaded.to(device)
    if data is not None:
        loaded.use_data(data)
    wishes["recall"] = recall or None
    found = loaded.certify(**wishes)
    if as_json:
        click.echo(json.dumps(to_plain(found), indent=2, allow_nan=False))
    elif found["certified"]:
        _show(found)
    if not found["certified"]:
        raise CertificateError(found["statement"])
    if out is not None:
        save(loaded.dynamic(**wishes), out)
        click.echo(f"saved in {out}", err=True)


def _show(found: dict[str, Any]) -> None:
    policy = found["policy"]
    click.echo(f"Certified: {found['statement']}.")
    cost = (
        f"{found['mean_macs'] / 1e6:.4g} MMACs per image on average, {found['share']:.0%} of the reference's"
    )
    click.echo(f"Policy: {policy['family']}, setting {policy['setting']:.4g}; {cost}.")
    click.echo(
        f"It speaks of {found['digests']['runtime']}, and of these weights, this policy and these data:"
    )
    for name in ("model", "policy", "data"):
        click.echo(f"  {name:<7} sha256 {found['digests'][name]}")
