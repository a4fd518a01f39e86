"""ONNX graphs: written from a module, opened and run with onnxruntime, and how far two answers are apart."""

from __future__ import annotations

import importlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.rundir.files import storage_errors

__all__ = [
    "BATCHES",
    "OPSET",
    "RETRY",
    "difference",
    "extra",
    "onnx_session",
    "run_onnx",
    "write_onnx",
]

#: The version of ONNX's operator set that graphs are written in.
OPSET = 20
#: Batch sizes at which what was exported is compared with the model.
BATCHES = (1, 3, 16)
#: What to do when the disk refuses, for `storage_errors`.
RETRY = "export again, or choose another folder"


def extra(name: str) -> Any:
    """An optional library by its name; raises `ConfigError` naming what to install where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"this needs {name.partition('.')[0]} ({_line(error)}): pip install 'odn-hybrid[export]'"
        ) from None


def write_onnx(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    batched: Sequence[bool],
) -> None:
    """Write `module` in evaluation mode as an ONNX graph of opset 20 at `path`.

    Weights are in the file; those of more than 2 GB stand beside it, in `path` + ".data".

    Args:
        module: takes and gives tensors; its forward may be `forward(*tensors)`.
        inputs: example tensors, at least two examples along the first axis of those that are batched: with
            one, tracing takes the size for a constant.
        input_names, output_names: what the graph calls them, in order.
        batched: which inputs grow with the batch; those share one size along their first axis.

    Raises:
        ConfigError: onnx or onnxscript is missing. StorageError: the disk refuses.
        ModelError: the module cannot be traced, or does something that ONNX has no word for.
    """
    if not len(inputs) == len(input_names) == len(batched):
        raise ValueError(f"{len(inputs)} inputs, {len(input_names)} names, {len(batched)} flags")
    extra("onnx")
    extra("onnxscript")
    passes = extra("onnx_ir.passes.common")
    with _quietly(), evaluating(module), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=dynamic_shapes(module, batched),
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{type(module).__name__} cannot be written as ONNX: {_line(_first(error))}"
            ) from None
    # Every node carries the stack of source lines that made it: long, and with paths of this machine.
    passes.ClearMetadataAndDocStringPass()(program.model)
    with storage_errors(path, RETRY):
        program.save(path)


def dynamic_shapes(module: nn.Module, batched: Sequence[bool]) -> tuple[Any, ...]:
    """What torch.export is told about the inputs of `module`: which grow along their first axis."""
    size = torch.export.Dim("batch", min=1)
    shapes = tuple({0: size} if grows else None for grows in batched)
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    return (shapes,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else shapes


def onnx_session(path: Path, *, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU; `threads` None: as many as torch uses.

    Raises `ConfigError` where onnxruntime is missing, `ModelError` where it cannot take the graph.
    """
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, which differ between releases
        raise ModelError(f"onnxruntime cannot run {path}: {_line(error)}") from None


def run_onnx(session: Any, feeds: Mapping[str, Tensor]) -> list[NDArray[Any]]:
    """All outputs of a session, in order."""
    found: list[NDArray[Any]] = session.run(
        None, {name: x.detach().cpu().numpy() for name, x in feeds.items()}
    )
    return found


def difference(found: Any, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number wanted where that exceeds 1.

    Infinite where shapes differ or where one has a number and the other has none.
    """
    right = wanted.detach().float().cpu().numpy()
    got = np.asarray(found, dtype=np.float32)
    if got.shape != right.shape or not np.array_equal(np.isnan(got), np.isnan(right)):
        return float("inf")
    if not right.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        apart = np.where(got == right, 0.0, np.abs(got - right))
    return float(np.nan_to_num(apart, nan=0.0).max()) / max(1.0, float(np.nanmax(np.abs(right), initial=0.0)))


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporters log and warn about their own inside; what matters is checked by running the result."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first(error: BaseException) -> BaseException:
    """What the exporter stumbled over, where it tells; its own message is a page of advice."""
    return error.__cause__ or error


def _line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
