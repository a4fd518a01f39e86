"""From a folder to a runner: everything in it is checked before anything of it runs."""

from __future__ import annotations

from pathlib import Path

from odn_hybrid.errors import ConfigError
from odn_hybrid.runner.files import export_folder, read_graph, read_manifest
from odn_hybrid.runner.manifest import SEGMENTS, Manifest
from odn_hybrid.runner.running import HaltingRunner, IfRunner, SegmentsRunner
from odn_hybrid.runner.sessions import GraphSession, usual_threads

__all__ = ["load", "open_export"]


def load(path: str | Path, *, threads: int | None = None) -> HaltingRunner:
    """The runner of what `odn.export(model, path, format="onnx-segments")` (or "onnx-if") wrote.

    Args:
        path: the folder.
        threads: that one call computes with; default: OMP_NUM_THREADS, else the processors there are.

    Raises:
        ExportError: no export, damaged, cut short, of an unknown version, or with files outside the folder.
        ConfigError: onnxruntime is missing, or `threads` is no number from 1.

    Example:
        >>> from odn_hybrid import OdnError, runner
        >>> try:
        ...     runner.load("no/such/folder")
        ... except OdnError as error:
        ...     print(type(error).__name__)
        ExportError
    """
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads is {threads!r}; it must be a whole number from 1")
    folder = export_folder(path)
    manifest = Manifest.from_dict(read_manifest(folder))
    return open_export(folder, manifest, threads or usual_threads())


def open_export(folder: Path, manifest: Manifest, threads: int) -> HaltingRunner:
    """The runner of the graphs in `folder` that `manifest` tells of; `ExportError` if they are not those."""
    sessions = [
        GraphSession(graph, read_graph(folder, graph.file, graph.bytes, graph.sha256), threads)
        for graph in manifest.graphs
    ]
    runner = SegmentsRunner if manifest.format == SEGMENTS else IfRunner
    return runner(manifest, sessions)
