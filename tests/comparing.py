"""What two fits are compared by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["results"]


def results(folder: Path) -> dict[str, Any]:
    """All a fit says, times and environment apart, and the bytes of every tensor file."""
    report = json.loads((folder / "report.json").read_text())
    report["search"].pop("seconds")
    report.pop("environment")
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    for row in history:
        row.pop("seconds")
    policy = json.loads((folder / "policy.json").read_text())
    tensors = {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}
    return {"report": report, "history": history, "policy": policy, **tensors}
