"""What the manifest of an exported halting model says of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from odn_hybrid.errors import ExportError
from odn_hybrid.rundir.files import to_plain, write_bytes
from odn_hybrid.runner.files import MANIFEST, MAX_GRAPH_BYTES
from odn_hybrid.runner.manifest import GraphFile, Manifest, TensorSpec

__all__ = ["graph_file", "specs", "write_manifest"]


def graph_file(
    path: Path, look: int, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> GraphFile:
    """What the manifest says of a graph that was written; `ExportError` for one of more than 2 GB."""
    size = path.stat().st_size
    if size > MAX_GRAPH_BYTES or Path(f"{path}.data").exists():
        raise ExportError(f"{path.name} has more than 2 GB, which one ONNX file cannot hold")
    return GraphFile(path.name, size, hashlib.sha256(path.read_bytes()).hexdigest(), look, inputs, outputs)


def specs(names: Sequence[str], tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Names and tensors (batch, ...) as the manifest tells of them."""
    return tuple(
        TensorSpec(name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into the folder, whole or not at all."""
    text = json.dumps(to_plain(manifest.to_dict()), indent=1, allow_nan=False) + "\n"
    write_bytes(folder / MANIFEST, text.encode())
