"""`odn serve`: an HTTP server of finished runs, on one device or on a Ray cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click

from odn_hybrid.errors import ConfigError

__all__ = ["serve"]

TOKEN = "ODN_SERVE_TOKEN"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PATH = click.Path(path_type=Path)


@click.command(epilog="Example: odn serve runs/quickstart --kind static --port 8000")
@click.argument("runs", nargs=-1, required=True, metavar="[NAME=]RUN...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port; 0 takes a free one.")
@click.option(
    "--token-file", type=PATH, help=f"File with the token that clients must send [default: ${TOKEN}]."
)
@click.option("--certfile", type=PATH, help="TLS: the certificate, PEM ...")
@click.option("--keyfile", type=PATH, help="... and its key.")
@click.option(
    "--kind",
    type=click.Choice(["dynamic", "full", "static"]),
    default="dynamic",
    show_default=True,
    help="Inputs halt; the whole network; or the fit's choice of depth.",
)
@click.option("--uncertified", is_flag=True, help="Serve a dynamic model without a certificate, too.")
@click.option("--max-batch", type=int, help="Images that a segment runs on at once, at most.")
@click.option("--queue", type=int, help="Images that may wait; more are refused.")
@click.option("--wait-ms", type=float, help="The first segment waits so long for a full batch.")
@click.option("--deadline-ms", type=float, help="Deadline of requests that name none.")
@click.option("--drain-seconds", type=float, help="To answer what was accepted, after SIGTERM.")
@click.option("--header-seconds", type=float, help="Clients have to send a request's headers ...")
@click.option("--body-seconds", type=float, help="... its body, and to take the answer.")
@click.option("--connections", type=int, help="Open at a time.")
@click.option("--max-body-bytes", type=int, help="Of a request.")
@click.option("--max-pixels", type=int, help="Of an image.")
@click.option("--decoders", type=int, help="Processes that read image files ...")
@click.option("--decode-seconds", type=float, help="... and have so long for one.")
@click.option("--threads", type=int, help="CPU threads of a segment.")
@click.option("--device", help="cpu or cuda.")
@click.option("--log-file", type=PATH, help="Write the log there, too.")
@click.option("--allow-reload", is_flag=True, help="Let clients load and unload these models by name.")
@click.option("--ray", is_flag=True, help="On the Ray cluster there is, or one of its own.")
@click.option(
    "--replicas", metavar="MIN:MAX", help="With --ray: how many, by load [default: one per device]."
)
def serve(
    runs: tuple[str, ...],
    ray: bool,
    replicas: str | None,
    token_file: Path | None,
    kind: str,
    uncertified: bool,
    threads: int | None,
    device: str | None,
    allow_reload: bool,
    **limits: Any,
) -> None:
    """Serve the models of finished RUNs, or of what odn export wrote, over HTTP.

    A model is called by its folder's name unless another NAME is given. Prints the server's URL. SIGTERM or
    Ctrl-C ends it once accepted requests are answered; SIGHUP loads the models again.
    """
    models = _models(runs)
    settings = _settings(limits, _token(token_file))
    loading = {
        "kind": kind,
        "uncertified": uncertified,
        "threads": threads,
        "device": device,
        "allow_reload": allow_reload,
    }
    if not ray and replicas is not None:
        raise ConfigError("--replicas goes with --ray")
    if ray and allow_reload:
        raise ConfigError("--allow-reload would act on one replica only; leave it out with --ray")
    if ray:
        _need("serve,ray", "ray", "fastapi", "prometheus_client", "python_multipart")
        from odn_hybrid.serve.replicas.cluster import deploy

        deploy(models, settings, replicas=_range(replicas), listening=click.echo, **loading)
        return
    _need("serve", "fastapi", "uvicorn", "httptools", "prometheus_client", "python_multipart")
    from odn_hybrid.serve.running.server import serve as run_server

    run_server(models, settings, listening=click.echo, **loading)


def _need(extra: str, *modules: str) -> None:
    """`ConfigError` that names the extra, where one of these packages is missing."""
    from importlib.util import find_spec

    missing = [name.replace("_", "-") for name in modules if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"odn serve needs {', '.join(missing)}, not installed here: pip install 'odn-hybrid[{extra}]'"
        )


def _models(runs: tuple[str, ...]) -> dict[str, Path]:
    """Model names -> folders."""
    models: dict[str, Path] = {}
    for text in runs:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path, name = text, Path(text).resolve().name
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot name a model (letters, digits, and . _ - inside); write NAME={path}"
            )
        if name in models:
            raise ConfigError(f"two models are named {name!r}; write NAME=RUN")
        models[name] = Path(path)
    return models


def _settings(limits: dict[str, Any], token: str | None) -> Any:
    from odn_hybrid.serve.settings import LaneSettings, ServeSettings

    said = {name: value for name, value in limits.items() if value is not None}
    lane = {name: said.pop(name) for name in ("max_batch", "queue", "wait_ms") if name in said}
    if "max_batch" in lane and "queue" not in lane:
        lane["queue"] = max(LaneSettings.queue, 4 * lane["max_batch"])
    if "deadline_ms" in said:
        said["request_seconds"] = said.pop("deadline_ms") / 1e3
    return ServeSettings(**said, token=token, lane=LaneSettings(**lane))


def _token(path: Path | None) -> str | None:
    """The token of a file or of the environment, whence it is taken out: child processes need not know it."""
    given = os.environ.pop(TOKEN, None)
    if path is None:
        return given
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--token-file: {path} is not a text file that can be read") from None
    if hasattr(os, "getuid") and path.stat().st_mode & 0o077:
        click.echo(f"odn: others may read {path}, the token's file; chmod 600 keeps them out", err=True)
    return text


def _range(text: str | None) -> tuple[int, int] | None:
    """Least and most: of 2:8 (2, 8), of 2 (2, 2)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", text.strip())
    if found is None:
        raise ConfigError(f"--replicas is {text!r}; write MIN:MAX, e.g. 1:4")
    least = int(found[1])
    most = int(found[2] or least)
    if not 1 <= least <= most:
        raise ConfigError(f"--replicas is {text!r}; MIN must be from 1 to MAX")
    return least, most
