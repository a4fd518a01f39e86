"""Read records, and say where their figures come from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
ENVIRONMENT = (
    "python", "odn_hybrid", "torch", "timm", "system", "machine", "cpu_count", "torch_threads", "gpu"
)  # fmt: skip
Data = dict[str, Any]


def load(name: str) -> Data:
    """A record by name."""
    record: Data = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def names() -> list[str]:
    """All records there are."""
    return sorted(path.stem for path in RECORDS.glob("*.json"))


def source(name: str, record: Data, what: str) -> Data:
    """Where figures come from, as the page says it."""
    environment = {key: record["environment"].get(key) for key in ENVIRONMENT}
    told = {key: record.get(key) for key in ("claim", "command", "commit", "uncommitted_changes")}
    file = f"benchmarks/records/{name}.json"
    return {
        "what": what,
        "file": file,
        **told,
        "date": _date(record.get("commit")),
        "environment": environment,
    }


def _date(commit: str | None) -> str | None:
    """When the commit that a record names was made; None where git does not know it."""
    if not commit:
        return None
    asked = ["git", "show", "-s", "--format=%cs", commit]
    try:
        found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
