"""Answers as the Open Inference Protocol v2 carries them, JSON or binary."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.app.asked import OUTPUTS, Asked, Wanted
from odn_hybrid.serve.app.replying import dumps, numbers

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["probabilities", "write_answer"]

TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "INT64": np.dtype("<i8")}


def write_answer(asked: Asked, hosted: Hosted, output: RunnerOutput) -> tuple[bytes, int | None]:
    """The body of a response, and how many bytes of it are JSON where binary tensors follow, else None."""
    arrays = {
        "logits": output.logits,
        "label": output.logits.argmax(1),  # of the raw logits, as everywhere: see stopping's calibration
        "confidence": output.confidence,
        "exit": output.exit,
        "units_run": output.units_run,
    }
    outputs, blobs = [], []
    for wanted in asked.wanted:
        said, blob = _tensor(wanted, arrays[wanted.name], hosted.labels)
        outputs.append(said)
        if blob is not None:
            blobs.append(blob)
    head = {"model_name": hosted.name, "model_version": hosted.version}
    if asked.id is not None:
        head["id"] = asked.id
    parameters = {"certified": bool(output.certified), "version": hosted.version}
    text = f'{dumps(head)[:-1]},"parameters":{dumps(parameters)},"outputs":[{",".join(outputs)}]}}'
    encoded = text.encode()
    return (b"".join([encoded, *blobs]), len(encoded)) if blobs else (encoded, None)


def _tensor(wanted: Wanted, array: NDArray[Any], labels: Sequence[str] | None) -> tuple[str, bytes | None]:
    """One output as JSON; and its bytes, if it is binary."""
    kind, shape = OUTPUTS[wanted.name], list(array.shape)
    if wanted.top:
        lines = _classified(array, wanted.top, labels)
        kind, shape = "BYTES", [len(array), len(lines) // len(array)]
    head = f'{{"name":"{wanted.name}","datatype":"{kind}","shape":{shape}'
    if not wanted.binary:
        return f'{head},"data":{dumps(lines) if wanted.top else numbers(array)}}}', None
    if wanted.top:
        encoded = [line.encode() for line in lines]
        blob = b"".join(struct.pack("<I", len(line)) + line for line in encoded)
    else:
        blob = array.astype(TYPES[kind], copy=False).tobytes()
    return f'{head},"parameters":{{"binary_data_size":{len(blob)}}}}}', blob


def _classified(logits: NDArray[np.float32], top: int, labels: Sequence[str] | None) -> list[str]:
    """The best classes of each row, "value:index" and ":label" where there are names, best first."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    return [
        f"{row[index]:f}:{index}" + (f":{labels[index]}" if labels is not None else "")
        for row, chosen in zip(logits, best, strict=True)
        for index in chosen.tolist()
    ]


def probabilities(hosted: Hosted, logits: NDArray[np.float32], answered: int) -> NDArray[np.float64]:
    """Calibrated probabilities (classes,) of the answer `logits` (classes,) of exit `answered`."""
    stages = hosted.stages
    calibration = stages.looker.table.calibration
    place = stages.exits.index(answered)
    weights = logits * calibration.scales[place] + calibration.shifts[place]
    weights = np.exp(weights - weights.max())
    return np.asarray(weights / weights.sum())
