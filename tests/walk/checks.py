"""What each command of the walk has to say and leave behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from told import Told

Done = CompletedProcess[str]


class Broken(Exception):
    """A step was not as README.md says."""


def need(true: object, what: str) -> None:
    if not true:
        raise Broken(what)


def no_noise(command: str, text: str) -> None:
    """A new user sees no warning and no traceback."""
    found = re.search(r"^.*(Warning|Traceback|Deprecat).*$", text, flags=re.M)
    need(found is None, f"{command}: prints {found and found[0].strip()!r}")


def after(told: Told, option: str) -> str:
    """The word after an option."""
    words = told.words
    return words[words.index(option) + 1]


def fitted(told: Told, done: Done, here: Path, label: str) -> None:
    run = after(told, "--out")
    need("Exits of" in done.stdout, f"{told.command}: no table of exits\n{done.stdout}")
    need("Static choice" in done.stdout, f"{told.command}: no choice of depth\n{done.stdout}")
    need(done.stderr.rstrip().endswith(f"saved in {run}"), f"{told.command}: does not say where the run is")
    report = json.loads((here / run / "report.json").read_text(encoding="utf-8"))
    need(len(report["exits"]) > 1, f"{told.command}: fewer than two exits")
    need((here / run / "config.json").is_file(), f"{told.command}: the run has no config.json")


def certified(told: Told, done: Done, here: Path, label: str) -> None:
    need(done.stdout.startswith("Certified: "), f"{told.command}: no certificate\n{done.stdout}{done.stderr}")
    policy = json.loads((here / told.words[2] / "policy.json").read_text(encoding="utf-8"))
    need(len(policy["ledger"]) == 1, f"{told.command}: is not the promise that the fit tried for")


def exported(told: Told, done: Done, here: Path, label: str) -> None:
    folder = here / told.words[3]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    need(manifest["graphs"], f"{told.command}: no graphs")
    for graph in manifest["graphs"]:
        need((folder / graph["file"]).is_file(), f"{told.command}: {graph['file']} is missing")


def compared(told: Told, done: Done, here: Path, label: str) -> None:
    report = json.loads((here / told.words[2] / "report.json").read_text(encoding="utf-8"))
    found = report["comparison"]["recommendation"]
    need(found["choice"] in ("static", "dynamic", "full"), f"{told.command}: recommends {found['choice']!r}")
    said = " ".join(done.stdout.lower().split())  # a capital begins it; lines are as wide as the terminal
    need(
        found["reason"][:40].lower() in said,
        f"{told.command}: does not say what it recommends\n{done.stdout}",
    )


def reported(told: Told, done: Done, here: Path, label: str) -> None:
    page = here / told.words[2] / "report.html"
    need(page.is_file() and page.stat().st_size < 3e6, f"{told.command}: no page under 3 MB")


def answered(told: Told, done: Done, here: Path, label: str) -> None:
    answer = json.loads(done.stdout)
    need(isinstance(answer.get("class"), int), f"{told.command}: no class in {done.stdout}")
    classes = sorted(path.name for path in (here / "photos" / "train").iterdir())
    need(answer["label"] == classes[answer["class"]], f"{told.command}: its class is not a folder's name")
    if answer["label"] != label:  # one image in many may be taken for another class; that is no stumble
        print(f"walk: the image of {label} was taken for {answer['label']} ({answer['confidence']:.2f})")
    need(0 < answer["confidence"] <= 1, f"{told.command}: no confidence in {done.stdout}")
    need(answer["exit"] >= 1, f"{told.command}: no exit in {done.stdout}")
    need(1 <= answer["units_run"] <= answer["units_total"], f"{told.command}: no units in {done.stdout}")
    need(answer["certified"] is True, f"{told.command}: the answer is not certified\n{done.stdout}")


CHECKS: dict[str, Callable[[Told, Done, Path, str], None]] = {
    "fit": fitted,
    "certify": certified,
    "export": exported,
    "compare": compared,
    "report": reported,
    "curl": answered,
}
