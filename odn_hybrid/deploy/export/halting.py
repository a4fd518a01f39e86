"""A halting model as files: a graph per segment, or one graph that decides by itself, and a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.deploy.export.folders import new_folder, versions
from odn_hybrid.deploy.export.graphs import extra, write_onnx
from odn_hybrid.deploy.export.halting_checking import TOLERANCE, check_export
from odn_hybrid.deploy.export.halting_folder import graph_file, specs, write_manifest
from odn_hybrid.deploy.export.halting_graph import join_segments
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.halting.segments import Segment, segments_of
from odn_hybrid.errors import ConfigError, ExportError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import weights_digest
from odn_hybrid.runner.manifest import GRAPH, SEGMENTS, GraphFile, Manifest

__all__ = ["HALTING_FORMATS", "export_halting"]

HALTING_FORMATS = (SEGMENTS, GRAPH)


def export_halting(
    model: HaltingModel,
    path: str | Path,
    *,
    format: str = SEGMENTS,
    images: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Path:
    """Write a halting model for onnxruntime into a new folder, and compare what was written with it.

    Args:
        model: of `run.dynamic()`; its network is written in fp32, whatever its device.
        path: a folder that is not there yet, or is empty.
        format: "onnx-segments": an ONNX graph per segment, with the batch open, for `odn_hybrid.runner`.
            "onnx-if": one ONNX graph for batch 1, with nested `If`, that decides by itself and runs no
            segment beyond the exit taken.
        images: (n, channels, height, width) to compare on, n from 1; default: random ones. Real ones say
            more of the exits taken.
        tolerance: the largest difference of logits allowed, relative to the largest logit where that
            exceeds 1.

    Returns:
        The folder, with the graphs and `manifest.json`.

    Raises:
        ExportError: something in the network cannot be written, or the graphs answer otherwise than the
            model; then the folder is as it was.
        RunDirError: the folder is not empty. StorageError: the disk refuses.
        ConfigError: another format; onnx, onnxscript or onnxruntime is missing.
    """
    if format not in HALTING_FORMATS:
        known = ", ".join(HALTING_FORMATS)
        raise ConfigError(f"format is {format!r}; a halting model is exported as one of {known}")
    for name in ("onnx", "onnxruntime"):
        extra(name)
    network = model.network.copy().to(device="cpu", dtype=torch.float32).eval()
    with new_folder(Path(path)) as folder:
        graphs = _write_segments(folder, network, model)
        if format == GRAPH:
            graphs = (join_segments(folder, graphs, model.policy, model.exits),)
        manifest = _manifest(model, format, graphs)
        checked = check_export(folder, manifest, network, images=images, tolerance=tolerance)
        write_manifest(folder, replace(manifest, checked=checked))  # last: without it, nothing is loaded
    return Path(path)


# --- segments -----------------------------------------------------------------------------------------


class _Rows(nn.Module):
    """A segment that takes and gives only what has a row per input; what all inputs share is a constant.

    `forward(*rows)` gives `(logits, *rows)`. `shared`: the tables that `segment` takes after its rows.
    """

    def __init__(self, segment: Segment, shared: Sequence[Any]) -> None:
        super().__init__()
        self.segment = segment
        self.shared = [None if isinstance(table, Tensor) else table for table in shared]
        for place, table in enumerate(shared):
            if isinstance(table, Tensor):
                self.register_buffer(f"table_{place}", table.detach().clone(), persistent=False)

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        tables = [getattr(self, f"table_{place}", table) for place, table in enumerate(self.shared)]
        found: tuple[Tensor, ...] = self.segment(*rows, *tables)
        return found[: 1 + self.segment.after]


def _write_segments(folder: Path, network: MultiExit, model: HaltingModel) -> tuple[GraphFile, ...]:
    """One file per segment, in order."""
    looks = model.policy.needed
    # Values as large as real images, since a constant may hide behind an example of zeros.
    images = torch.randn(2, *network.trunk.image_shape, generator=torch.Generator().manual_seed(0))
    tensors: tuple[Any, ...] = (images,)
    names, graphs = ["images"], []
    segments = segments_of(network, [model.exits[look - 1] for look in looks])
    for segment, look in zip(segments, looks, strict=True):
        rows, shared = tensors[: segment.before], tensors[segment.before :]
        with torch.no_grad(), evaluating(network):
            found = segment(*tensors)
        outputs = [f"logits_{look}", *(f"state_{look}_{place}" for place in range(segment.after))]
        graphs.append(_write_segment(folder, _Rows(segment, shared), rows, found, names, outputs, look))
        tensors, names = found[1:], outputs[1:]
    return tuple(graphs)


def _write_segment(
    folder: Path,
    module: nn.Module,
    rows: tuple[Tensor, ...],
    found: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    look: int,
) -> GraphFile:
    path = folder / f"segment_{look}.onnx"
    try:
        write_onnx(module, rows, path, input_names=inputs, output_names=outputs, batched=[True] * len(inputs))
    except ModelError as error:
        raise ExportError(f"the segment that ends at exit {look} of the policy: {error}") from None
    return graph_file(path, look, specs(inputs, rows), specs(outputs, found[: len(outputs)]))


def _manifest(model: HaltingModel, format: str, graphs: tuple[GraphFile, ...]) -> Manifest:
    network, preprocess = model.network, model.__dict__.get("transform")
    device = next(network.parameters()).device
    return Manifest(
        format=format,
        policy=model.policy,
        exits=model.exits,
        units=tuple(network.units[exit - 1] for exit in model.exits),
        image_shape=network.trunk.image_shape,
        classes=network.trunk.num_classes,
        graphs=graphs,
        preprocess=None if preprocess is None else preprocess.to_dict(),
        certificate=model.certificate,
        source={"model": weights_digest(network), "runtime": model.execution.name(device)},
        checked={},
        versions=versions(),
    )
