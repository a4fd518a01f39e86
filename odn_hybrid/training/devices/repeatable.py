"""Deterministic algorithms for the duration of a fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from odn_hybrid.errors import TrainingError

__all__ = ["deterministic_algorithms"]

#: cuBLAS repeats its sums only with a workspace of its own per stream; read when its first handle is made.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
REPEATING = (":4096:8", ":16:8")


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Within the block, where `wanted`, torch uses algorithms whose results repeat to the last bit, or fails.

    Everything is as before afterwards, also after an exception. Raises `TrainingError` that names the
    operation where torch has no such algorithm.
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    kept = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        os.environ.get(WORKSPACE),
    )
    try:
        if kept[-1] not in REPEATING:
            os.environ[WORKSPACE] = REPEATING[0]
        torch.use_deterministic_algorithms(True)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        reason = str(error).split(", but you set")[0].split(". ")[0]
        raise TrainingError(
            f"deterministic training is not possible here: {reason}; "
            "change the model or the objective, or leave deterministic out"
        ) from None
    finally:
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
        cudnn.benchmark, cudnn.deterministic = kept[2], kept[3]
        if kept[-1] is None:
            os.environ.pop(WORKSPACE, None)
        else:
            os.environ[WORKSPACE] = kept[-1]
