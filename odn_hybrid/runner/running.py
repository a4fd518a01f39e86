"""The runner: a graph per segment, decisions between them, and only survivors run on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import InputError
from odn_hybrid.runner.manifest import Manifest
from odn_hybrid.runner.sessions import RUNTIME, GraphSession
from odn_hybrid.stopping import Looker
from odn_hybrid.stopping.promises.speaking import why_void

__all__ = ["HaltingRunner", "IfRunner", "RunnerOutput", "SegmentsRunner"]

Images = NDArray[np.float32]


@dataclass(frozen=True)
class RunnerOutput:
    """Answers of an exported halting model, in the order of the inputs; as `HaltingOutput`, in numpy.

    Attributes:
        logits: (batch, classes) float32 of the exit whose answer each input got.
        exit: (batch,) the network's exit where it stopped.
        units_run: (batch,) units run to reach that exit.
        confidence: (batch,) float32, calibrated probability of the answer.
        certified: whether the certificate speaks of these answers: it must have been earned on this runtime.
        answered: (batch,) the exit whose answer it is: with recall perhaps one before `exit`, else the same.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid import runner
        >>> # `exported` is a folder that `odn.export(run.dynamic(certify=False), ...)` wrote
        >>> model = runner.load(exported, threads=1)
        >>> out = model(np.zeros((2, *model.manifest.image_shape), dtype=np.float32))
        >>> out.logits.shape == (2, model.manifest.classes), out.exit.shape, out.certified
        (True, (2,), False)
    """

    logits: NDArray[np.float32]
    exit: NDArray[np.int64]
    units_run: NDArray[np.int64]
    confidence: NDArray[np.float32]
    certified: bool
    answered: NDArray[np.int64]


class HaltingRunner(ABC):
    """An exported halting model: `runner(images)` gives a `RunnerOutput`. Safe to call from several threads.

    `load` makes one. Calling it raises `InputError` for images that the model cannot take.

    Attributes:
        manifest: what was exported.
        runtime: what computes, as certificates name it.
        void: why the certificate does not speak of this runtime's answers; None where it does.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid import runner
        >>> # `exported` is a folder that `odn.export(run.dynamic(certify=False), ...)` wrote
        >>> model = runner.load(exported, threads=1)
        >>> model.manifest.image_shape, model.void
        ((1, 12, 12), 'there is no certificate')
        >>> model(np.zeros((2, 1, 12, 12), dtype=np.float32)).exit.shape
        (2,)
    """

    runtime = RUNTIME

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._exits = np.array(manifest.exits, dtype=np.int64)
        self._units = np.array(manifest.units, dtype=np.int64)
        self.void: str | None = "there is no certificate"
        if manifest.certificate is not None:
            self.void = why_void(manifest.certificate, manifest.digest, manifest.policy, self.runtime)

    def __call__(self, images: Images) -> RunnerOutput:
        """Images (batch, channels, height, width) float32, as `manifest.preprocess` makes them -> answers.

        Raises `InputError` for another shape or dtype, an empty batch, or NaN or infinite pixels.
        """
        checked = _checked(images, self.manifest.image_shape)
        logits, confidence, exit, answered = self._answers(checked)
        units = self._units[np.searchsorted(self._exits, exit)]
        return RunnerOutput(logits, exit, units, confidence, self.void is None, answered)

    @abstractmethod
    def _answers(self, images: Images) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Logits, confidence, the exit where each stopped and the one that answered."""


class SegmentsRunner(HaltingRunner):
    """Runs a graph per segment (format "onnx-segments") on batches of any size.

    Args:
        manifest, sessions: of the same export, a session per graph.
    """

    def __init__(self, manifest: Manifest, sessions: Sequence[GraphSession]) -> None:
        super().__init__(manifest)
        self._sessions = list(sessions)
        self._looker = Looker(manifest.policy)

    @property
    def sessions(self) -> tuple[GraphSession, ...]:
        """One per segment, for those who run segments themselves."""
        return tuple(self._sessions)

    def every_exit(self, images: Images) -> NDArray[np.float32]:
        """Logits (batch, P, classes) at the policy's exits, halting or not; 0 where it never looks."""
        tensors: list[NDArray[Any]] = [_checked(images, self.manifest.image_shape)]
        found = np.zeros((len(images), len(self._exits), self.manifest.classes), dtype=np.float32)
        for session in self._sessions:
            found[:, session.graph.look - 1], *tensors = session(*tensors)
        return found

    def _answers(self, images: Images) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        count = len(images)
        logits = np.empty((count, self.manifest.classes), dtype=np.float32)
        confidence = np.empty(count, dtype=np.float32)
        taken, answered = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
        rows: NDArray[np.intp] = np.arange(count)  # whose the rows of the tensors are
        tensors: list[NDArray[Any]] = [images]
        seen = None
        for session in self._sessions:
            number = session.graph.look
            found, *tensors = session(*tensors)
            stops, seen = self._looker.look(number, found, seen)
            leaving = np.flatnonzero(stops)
            if not leaving.size:
                continue
            done, said = rows[leaving], seen.select(leaving)
            logits[done], confidence[done], taken[done] = said.logits, said.confidence, number
            answered[done] = number if said.exit is None else said.exit
            left = len(rows) - len(leaving)
            if not left:
                break
            # Survivors from the end move into the places of those who left, so that few rows are copied.
            order = np.arange(left)
            holes = leaving[: np.searchsorted(leaving, left)]
            order[holes] = left + np.flatnonzero(~stops[left:])
            for tensor in tensors:
                tensor[holes] = tensor[order[holes]]
            tensors = [tensor[:left] for tensor in tensors]
            rows, seen = rows[order], seen.select(order)
        return logits, confidence, self._exits[taken - 1], self._exits[answered - 1]


class IfRunner(HaltingRunner):
    """Runs the one graph that decides by itself (format "onnx-if"), an image at a time."""

    def __init__(self, manifest: Manifest, sessions: Sequence[GraphSession]) -> None:
        super().__init__(manifest)
        (self._session,) = sessions

    def _answers(self, images: Images) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        found = [self._session(images[row : row + 1]) for row in range(len(images))]
        logits, exit, confidence, answered = (np.concatenate(part) for part in zip(*found, strict=True))
        return logits, confidence, exit, answered


def _checked(images: Any, shape: tuple[int, ...]) -> Images:
    """The images, in one piece of memory; `InputError` for what the model cannot take."""
    if not isinstance(images, np.ndarray):
        raise InputError(f"images must be a numpy array, not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1:] != shape:
        raise InputError(f"images have shape {images.shape}; expected (batch, {', '.join(map(str, shape))})")
    if images.shape[0] == 0:
        raise InputError("the batch is empty")
    if images.dtype != np.float32:
        raise InputError(f"images are {images.dtype}; the model is float32")
    with np.errstate(all="ignore"):
        # One pass without a table of answers; a sum may overflow where no pixel is infinite.
        fine = np.isfinite(images.sum()) or np.isfinite(images).all()
    if not fine:
        raise InputError("images hold NaN or infinite values")
    return np.ascontiguousarray(images)
