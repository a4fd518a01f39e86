"""Write a record: what was run, on what, with what, and every raw value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from odn_hybrid.rundir import environment

RECORDS = Path(__file__).parent / "records"


def write_record(name: str, claim: str, data: dict[str, Any]) -> Path:
    """Write `records/NAME.json` with the claim, the command, the commit, the environment and `data`."""
    command = " ".join(
        ["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folders, sys.argv[1:])]
    )
    record = {
        "claim": claim,
        "command": command,
        "commit": commit(),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "environment": environment(),
        **data,
    }
    RECORDS.mkdir(exist_ok=True)
    path = RECORDS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def gathered(
    name: str, part: str, new: list[dict[str, Any]], same: Callable[[dict[str, Any]], Any]
) -> list[dict[str, Any]]:
    """List `part` of record NAME as it stands, with `new` entries added, or in place of the same ones.

    For measurements that take days: entries tell their own commit and environment.
    """
    path = RECORDS / f"{name}.json"
    known = json.loads(path.read_text())[part] if path.exists() else []
    found = {json.dumps(same(one)): one for one in (*known, *new)}
    return [found[key] for key in sorted(found)]


def commit() -> str | None:
    """The commit that is checked out; None where there is none."""
    return _git("rev-parse", "HEAD")


def _without_folders(argument: str) -> str:
    """Records tell what was run, not where somebody's files lie."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _git(*arguments: str) -> str | None:
    asked = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RECORDS.parent)
    return asked.stdout.strip() or None
