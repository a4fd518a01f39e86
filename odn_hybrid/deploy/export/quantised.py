"""Eight-bit ONNX graphs by post-training quantization, and what accuracy that costs.

onnxruntime's static quantization: weights symmetric, in 8 bits with a factor per output channel; activations
in unsigned 8 bits, in the range that they had on the calibration images (Nagel et al., 2021, arXiv
2106.08295). Arithmetic is written as QuantizeLinear and DequantizeLinear around the operators (QDQ).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.deploy.export.graphs import RETRY, extra
from odn_hybrid.deploy.export.writers import INPUT, Running, onnx_runner, write_graph
from odn_hybrid.errors import ExportError
from odn_hybrid.rundir.files import storage_errors
from odn_hybrid.stopping import wilson

__all__ = ["CALIBRATION_IMAGES", "accuracy", "answers", "write_quantised"]

#: As many of the calibration split are run to find ranges, stratified by class.
CALIBRATION_IMAGES = 512
BATCH = 64
LARGEST_FILE = (2 << 30) - (64 << 20)  # a graph with weights is one protobuf message, of 2 GiB at most


def write_quantised(
    model: nn.Module, images: Tensor, folder: Path, calibration: Split, preprocess: Preprocess
) -> tuple[Running, Running]:
    """Write `model.onnx` in 8 bits; gives a way to run it, and one to run the graph it was made from."""
    tools = extra("onnxruntime.quantization")
    shapes = extra("onnxruntime.quantization.shape_inference")
    path = folder / "model.onnx"
    with storage_errors(path, RETRY), TemporaryDirectory(dir=folder) as scratch:
        plain = write_graph(model, images, Path(scratch))
        whole, prepared = Path(scratch) / "model.onnx", Path(scratch) / "prepared.onnx"
        large = sum(part.stat().st_size for part in Path(scratch).iterdir()) > LARGEST_FILE
        try:
            shapes.quant_pre_process(whole, prepared, skip_symbolic_shape=True, save_as_external_data=large)
            tools.quantize_static(
                prepared,
                path,
                _Reader(calibration.subset(CALIBRATION_IMAGES), preprocess),
                quant_format=tools.QuantFormat.QDQ,
                calibrate_method=tools.CalibrationMethod.MinMax,
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                use_external_data_format=large,
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise ExportError(
                f"onnxruntime cannot quantize this graph: {' '.join(str(error).split())[:300]}"
            ) from None
    return onnx_runner(path), plain


class _Reader:
    """Batches of calibration images, as onnxruntime asks for them."""

    def __init__(self, split: Split, preprocess: Preprocess) -> None:
        self.batches: Iterator[Any] = iter(make_loader(split, preprocess, batch_size=BATCH))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch[0].numpy()}


def answers(run: Running, split: Split, preprocess: Preprocess) -> NDArray[np.int64]:
    """The class that is answered for every image of a split."""
    loader = make_loader(split, preprocess, batch_size=BATCH)
    return np.concatenate([run(images).argmax(1) for images, _, _ in loader])


def accuracy(said: NDArray[np.int64], split: Split) -> dict[str, Any]:
    """Accuracy of answers with its 95 % interval (Wilson), as reports hold it."""
    right, n = int((said == split.labels).sum()), len(split)
    low, high = wilson(right, n)
    return {"value": right / n, "n": n, "low": float(low), "high": float(high)}
