"""The full-depth model as other people's servers run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import odn_hybrid as odn

__all__ = ["Full"]


class Full:
    """The model on one thread."""

    def __init__(self, folder: str) -> None:
        torch.set_num_threads(1)
        self.model = odn.load(folder).eval().to(memory_format=torch.channels_last)
        self.shape = self.model.__dict__["_odn_plan"].image_shape

    def pixels(self, body: bytes) -> Any:
        """(channels, height, width) of one image."""
        return np.frombuffer(body, dtype=np.float32).reshape(self.shape)

    def answers(self, images: Sequence[Any]) -> Any:
        """Logits (n, classes) of images (n, channels, height, width)."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).contiguous(memory_format=torch.channels_last)
            return self.model(batch).numpy()
