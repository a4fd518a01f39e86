"""The way of a new user: from the built wheel to an answer over HTTP, with README.md's own commands.

Builds the wheel (or takes one that is there), makes an empty environment, installs the wheel there with
the extras that README.md names, makes a folder of images from a CIFAR-10 .npz file, and then types what the
section "Your own images" says, in a folder away from the repository. Every step's output is checked; seconds
per step are printed. Ends with status 1 at the first step that is not as README.md says, with 2 where data
are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from checks import CHECKS, Broken, no_noise
from pictures import make_photo, make_pictures
from server import Server
from told import ROOT, Told, extras, told

CLASSES = ["automobile", "frog"]
PER_CLASS = 2000
LIMIT = 1800.0  # seconds for one command
NEEDED = (
    "it needs CIFAR-10 as an .npz file (x_train, y_train, x_test, y_test, classes): "
    "make walk WALK_DATA=cifar10.npz"
)
#: What a step that is not as README.md says can come to: a check's word, a command that hangs or is missing,
#: output and files that lack something.
STUMBLES = (Broken, subprocess.TimeoutExpired, json.JSONDecodeError, KeyError, OSError)


class Walk:
    """One walk below `folder`: what was typed, where, and how long it took."""

    def __init__(self, folder: Path, wheel: Path | None = None) -> None:
        self.folder = folder
        self.here = folder / "here"
        self.here.mkdir()
        self.environment = folder / "environment"
        self.seconds: dict[str, float] = {}
        self.wheel = wheel
        self.now = "before the first step"

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"walk: {name}", flush=True)
        self.now = name
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def variables(self) -> dict[str, str]:
        """Of a shell with the environment active: nothing points at the checkout or its environment."""
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        kept["PATH"] = f"{self.environment / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**kept, "VIRTUAL_ENV": str(self.environment)}

    def build(self) -> None:
        """The wheel, by the build back end itself: needs no network."""
        target = self.folder / "dist"
        tool([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)], ROOT)
        (self.wheel,) = target.glob("*.whl")

    def install(self, names: list[str]) -> None:
        """The wheel with its extras, from the index, into an environment that has nothing else."""
        uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
        if uv is None:
            raise Broken("uv is not installed; make setup installs it")
        assert self.wheel is not None
        tool([uv, "venv", "--quiet", "--python", sys.executable, str(self.environment)], self.here)
        wanted = f"odn-hybrid[{','.join(names)}] @ {self.wheel.as_uri()}"
        python = str(self.environment / "bin" / "python")
        tool([uv, "pip", "install", "--quiet", "--python", python, wanted], self.here)
        where = self.type_in("python -c 'import odn_hybrid; print(odn_hybrid.__file__)'").stdout.strip()
        if not Path(where).is_relative_to(self.environment):
            raise Broken(f"odn_hybrid is not the wheel's: it is imported from {where}")

    def type_in(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a shell would, in the reader's folder; it has to end with status 0, quietly."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.here,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )
        if done.returncode:
            raise Broken(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}")
        no_noise(command, done.stdout + done.stderr)
        return done


def tool(arguments: list[str], cwd: Path) -> None:
    """Something that the walk needs and README.md does not tell."""
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise Broken(f"{' '.join(arguments[:4])} ...: status {done.returncode}\n{done.stdout}{done.stderr}")


def follow(walk: Walk, commands: list[Told], label: str) -> None:
    """Type the commands; what comes after `odn serve` is typed while the server runs."""
    server: Server | None = None
    try:
        for command in commands:
            if command.verb == "pip":
                continue  # done, with the wheel in the place of the repository
            with walk.step(command.command.split("#")[0].strip()):
                if command.verb == "serve":
                    server = Server(command, walk.here, walk.variables(), walk.folder / "serve.log")
                    server.wait_until_ready()
                else:
                    check: Callable[..., None] = CHECKS[command.verb]
                    check(command, walk.type_in(command.command), walk.here, label)
        if server is None:
            raise Broken("README.md starts no server")
        with walk.step("SIGTERM"):
            server.stop()
    finally:
        if server is not None:
            server.kill()


def free(commands: list[Told]) -> None:
    """The port that README.md names has to be free, or another server would answer."""
    for command in commands:
        if command.verb == "serve" and command.prints:
            port = urlsplit(command.prints[0]).port
            with socket.socket() as probe:
                if port is not None and probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise Broken(f"something listens on port {port} of this machine; end it first")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an .npz file")
    parser.add_argument("--wheel", type=Path, help="walk with this wheel instead of one built now")
    parser.add_argument("--per-class", type=int, default=PER_CLASS, help="training images of each class")
    parser.add_argument("--out", type=Path, help="write seconds per step there, as JSON")
    parser.add_argument("--keep", type=Path, help="walk in this new folder and leave it")
    options = parser.parse_args()
    if options.data is None or not options.data.is_file():
        given = "no data" if options.data is None else f"{options.data} is no file"
        print(f"walk: {given}; {NEEDED}", file=sys.stderr)
        return 2
    if options.wheel is not None and not (options.wheel.is_file() and options.wheel.suffix == ".whl"):
        print(f"walk: {options.wheel} is no wheel; uv build makes one in dist/", file=sys.stderr)
        return 2
    folder = options.keep or Path(tempfile.mkdtemp(prefix="walk-"))
    folder.mkdir(parents=True, exist_ok=options.keep is None)
    walk, commands = Walk(folder.resolve(), options.wheel and options.wheel.resolve()), told()
    try:
        free(commands)
        if walk.wheel is None:
            with walk.step("build the wheel"):
                walk.build()
        with walk.step("install it into an empty environment"):
            walk.install(extras(commands))
        with walk.step("make a folder of images"):
            make_pictures(options.data, walk.here / "photos", CLASSES, options.per_class)
            label = make_photo(walk.here / "photos", walk.here / "photo.jpg")
        follow(walk, commands, label)
    except STUMBLES as stumble:
        kind = "" if isinstance(stumble, Broken) else f"{type(stumble).__name__}: "
        print(f"walk: stumbled at {walk.now}: {kind}{stumble}", file=sys.stderr)
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    width = max(map(len, walk.seconds))
    for name, seconds in walk.seconds.items():
        print(f"{name:<{width}}  {seconds:7.1f} s")
    if options.out:
        options.out.write_text(json.dumps({"seconds": walk.seconds}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
