"""A promise for the runtime where an export runs: earned on fresh images, without torch."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odn_hybrid.errors import ConfigError, InputError, StorageError
from odn_hybrid.runner.files import MANIFEST, export_folder
from odn_hybrid.runner.loading import load
from odn_hybrid.runner.manifest import Manifest
from odn_hybrid.runner.running import SegmentsRunner
from odn_hybrid.stopping import certify_sequence, look_level
from odn_hybrid.stopping.checks import as_labels
from odn_hybrid.stopping.promises.speaking import policy_digest

__all__ = ["certify"]


def certify(
    path: str | Path,
    images: NDArray[np.float32],
    labels: ArrayLike,
    *,
    drop: float = 0.01,
    delta: float = 0.05,
    threads: int | None = None,
    batch: int = 64,
) -> dict[str, Any]:
    """Try to earn "an accuracy at most `drop` below the deepest exit's, with confidence 1 - `delta`".

    Both are measured in this runtime, and the attempt is counted in the manifest. Where it is
    certified, answers of the export say so from the next `load` on; a refusal leaves an earlier promise as it
    was. Every call is an attempt, whatever the images, and spends a smaller part of `delta` than the last.

    Args:
        path: an export of format "onnx-segments".
        drop, delta: the promise, fractions.
        threads: see `load`.
        images, labels: (n, channels, height, width) as the runner takes them, and (n,). They must have
            decided nothing yet: not images of the certification split, which has chosen the policy.
        batch: images given at once.

    Returns:
        A dictionary: `certified`, `statement`, `drop`, `delta`, `n`, `upper_bound`, `needed_n`, `attempt`,
        `asked_delta`, `digests` (what it speaks of) and `evidence`.

    Raises:
        ExportError, InputError, ConfigError: as `load` and the runner do.
        StorageError: the manifest cannot be written.

    Example:
        >>> import numpy as np
        >>> from odn_hybrid import runner
        >>> # `exported` is a folder that `odn.export(run.dynamic(certify=False), ...)` wrote
        >>> images = np.zeros((40, 1, 12, 12), dtype=np.float32)
        >>> told = runner.certify(exported, images, np.zeros(40, dtype=np.int64), drop=0.01, threads=1)
        >>> told["certified"], told["attempt"], told["n"]  # forty images are too few for one point
        (False, 1, 40)
    """
    runner = load(path, threads=threads)
    if not isinstance(runner, SegmentsRunner):
        raise ConfigError("only an export of format 'onnx-segments' gives the deepest exit's answers too")
    if type(batch) is not int or batch < 1:
        raise ConfigError(f"batch is {batch!r}; it must be a whole number from 1")
    manifest = runner.manifest
    if not isinstance(images, np.ndarray):
        raise InputError(f"images must be an array, not {type(images).__name__}")
    if not 0 <= drop < 1 or not 0 < delta < 1:
        raise ConfigError(f"drop is {drop!r} and delta {delta!r}: they must be in [0, 1) and (0, 1)")
    wanted = as_labels(labels, len(images), manifest.classes)
    attempt = manifest.attempts + 1
    level = look_level(delta, attempt)
    deepest, given = [], []
    for start in range(0, max(len(images), 1), batch):
        part = images[start : start + batch]
        given.append(runner(part).logits.argmax(1))
        deepest.append(runner.every_exit(part)[:, -1].argmax(1))
    data = hashlib.sha256(np.ascontiguousarray(images).tobytes() + wanted.tobytes()).hexdigest()
    right = [np.concatenate(answers) == wanted for answers in (deepest, given)]
    found = certify_sequence(
        right[0], right[1][None], drop=drop, delta=level, reference=f"exit {manifest.exits[-1]}",
        data="the images given",
    )  # fmt: skip
    digests = {
        "data": data,
        "model": manifest.digest,
        "policy": policy_digest(manifest.policy),
        "runtime": runner.runtime,
    }
    certificate = {
        "kind": "sequence",
        "drop": found.drop,
        "delta": found.delta,
        "certified": found.certified,
        "statement": f"{found.statement} (attempt {attempt} in {runner.runtime})",
        "n": len(wanted),
        "upper_bound": found.upper_bound,
        "needed_n": found.needed_n,
        "asked_delta": delta,
        "attempt": attempt,
        "digests": digests,
        "evidence": found.to_dict(),
    }
    kept = certificate if found.certified or manifest.certificate is None else manifest.certificate
    _keep(export_folder(path), replace(manifest, certificate=kept, attempts=attempt))
    return certificate


def _keep(folder: Path, manifest: Manifest) -> None:
    """The manifest anew, whole or not at all."""
    beside = folder / f".{MANIFEST}.{os.getpid()}.tmp"
    try:
        beside.write_text(json.dumps(manifest.to_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(beside, folder / MANIFEST)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {folder / MANIFEST}: {error.strerror or error}; the folder is as it was"
        ) from None
