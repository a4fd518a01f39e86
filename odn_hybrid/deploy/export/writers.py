"""Writers of static models, one per format: each puts files into a folder and gives a way to run them.

A writer takes a plain model in evaluation mode on the CPU, example images and the folder; what it gives runs
what was written, as it was written, on images (batch, channels, height, width).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.deploy.export.graphs import RETRY, dynamic_shapes, extra, onnx_session, run_onnx, write_onnx
from odn_hybrid.errors import ExportError, ModelError
from odn_hybrid.rundir.files import storage_errors, write_bytes

__all__ = ["INPUT", "OUTPUT", "Running", "onnx_runner", "write_graph", "write_openvino", "write_program"]

INPUT, OUTPUT = "images", "logits"
Running = Callable[[Tensor], NDArray[np.float32]]


# --- torch ----------------------------------------------------------------------------------------


def write_program(model: nn.Module, images: Tensor, folder: Path) -> Running:
    """`model.pt2`: an exported program of torch, with a dynamic batch.

    The archive has weights as plain bytes and the program as JSON. Example inputs, which torch would pickle
    into it, are left out, and so are the source lines of every step.
    """
    with _quiet(), torch.no_grad():
        try:
            shapes = dynamic_shapes(model, [True])
            program: Any = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{type(model).__name__} cannot be exported by torch: {_line(error)}") from None
        program.example_inputs = None
        for step in program.graph.nodes:
            step.meta.pop("stack_trace", None)
        archive = io.BytesIO()
        torch.export.save(program, archive)
        write_bytes(folder / "model.pt2", archive.getvalue())
        archive.seek(0)
        loaded: Any = torch.export.load(archive).module()  # what was written a moment ago, nothing foreign

    @torch.no_grad()
    def run(batch: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = loaded(batch).numpy()
        return found

    return run


# --- ONNX -----------------------------------------------------------------------------------------


def write_graph(model: nn.Module, images: Tensor, folder: Path) -> Running:
    """`model.onnx`, see `graphs.write_onnx`."""
    path = folder / "model.onnx"
    write_onnx(model, (images,), path, input_names=[INPUT], output_names=[OUTPUT], batched=[True])
    return onnx_runner(path)


def onnx_runner(path: Path) -> Running:
    """Run a graph of one input and one output with onnxruntime on the CPU."""
    session = onnx_session(path)
    return lambda batch: run_onnx(session, {INPUT: batch})[0]


# --- OpenVINO -------------------------------------------------------------------------------------


def write_openvino(model: nn.Module, images: Tensor, folder: Path) -> Running:
    """`model.xml` and `model.bin`: OpenVINO's intermediate representation, weights in fp32."""
    openvino = extra("openvino")
    core = openvino.Core()
    path = folder / "model.xml"
    with storage_errors(path, RETRY), TemporaryDirectory(dir=folder) as scratch:
        write_graph(model, images, Path(scratch))
        try:
            found = core.read_model(Path(scratch) / "model.onnx")
            openvino.save_model(found, path, compress_to_fp16=False)
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot write {path}: {_line(error)}") from None
    try:
        # Some processors would otherwise compute in bf16.
        compiled = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        raise ExportError(f"OpenVINO cannot run {path}: {_line(error)}") from None
    return lambda batch: np.asarray(compiled({INPUT: batch.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its inside; the result is checked
        yield


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
