"""onnxruntime's sessions: opened from bytes that were checked, and run on numpy arrays."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError, ExportError
from odn_hybrid.runner.manifest import GraphFile, TensorSpec

__all__ = ["RUNTIME", "GraphSession", "usual_threads"]

#: What computes, as certificates name it.
RUNTIME = "onnxruntime fp32 cpu"
NUMBERS = {
    "tensor(bool)": "bool", "tensor(float16)": "float16", "tensor(float)": "float32",
    "tensor(double)": "float64", "tensor(int32)": "int32", "tensor(int64)": "int64",
}  # fmt: skip


NOWHERE = os.path.join(os.sep, "no", "such", "folder")


class GraphSession:
    """One graph, ready to run; safe to call from several threads.

    Args:
        graph: what the manifest tells of it.
        data: its bytes.
        threads: that one call computes with.

    Raises:
        ConfigError: onnxruntime is missing. ExportError: it cannot take the graph, or the graph's inputs and
            outputs are not those that the manifest tells of.
    """

    def __init__(self, graph: GraphFile, data: bytes, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                f"running an export needs onnxruntime ({error}): pip install 'odn-hybrid[runner]'"
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # A pattern is kept for every batch size that was ever met, and survivors come in any number.
        options.enable_mem_pattern = False
        # Every segment has threads of its own: those of one that has finished must not spin beside the next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # Weights outside of a graph are in no digest. There is no such folder: a graph with some won't load.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", NOWHERE)
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own classes, which differ between releases
            raise ExportError(f"onnxruntime cannot run {graph.file}: {_line(error)}") from None
        for told, there in ((graph.inputs, session.get_inputs()), (graph.outputs, session.get_outputs())):
            _check(graph.file, told, there)
        self.graph = graph
        self._session = session
        self._inputs = [tensor.name for tensor in graph.inputs]
        self._outputs = [tensor.name for tensor in graph.outputs]

    def __call__(self, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for these inputs, in the manifest's order; fresh arrays."""
        found: list[NDArray[Any]] = self._session.run(
            self._outputs, dict(zip(self._inputs, arrays, strict=True))
        )
        return found


def usual_threads() -> int:
    """OMP_NUM_THREADS where it is set, as torch does; else the processors this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if said.isdecimal() and int(said) > 0:
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(file: str, told: tuple[TensorSpec, ...], there: list[Any]) -> None:
    """The manifest's tensors against the graph's own; an axis of the graph may be open."""
    found = {tensor.name: tensor for tensor in there}
    if sorted(found) != sorted(tensor.name for tensor in told):
        raise ExportError(f"{file} has the inputs or outputs {sorted(found)}, the manifest names others")
    for tensor in told:
        own = found[tensor.name]
        shape = list(own.shape)[1:]
        fits = len(shape) == len(tensor.shape) and all(
            not isinstance(size, int) or size == wanted
            for size, wanted in zip(shape, tensor.shape, strict=True)
        )
        if not fits or NUMBERS.get(own.type) != np.dtype(tensor.type).name:
            raise ExportError(
                f"{tensor.name} of {file} is {own.type} of shape {own.shape}, "
                f"the manifest says {tensor.type} of shape (batch, {', '.join(map(str, tensor.shape))})"
            )


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
