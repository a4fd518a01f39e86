"""What the labels of a training batch become: mixed with others, weighed by class."""

from __future__ import annotations

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor

from odn_hybrid.config import DataConfig
from odn_hybrid.data.hashing import random_bits

__all__ = ["Mixing", "class_weights"]

_MIX = 5  # a stream of random numbers beside those of order and augmentation (data.loading)


class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of whole batches, by timm.

    What is drawn is a function of (seed, epoch, step), and numpy's global generator is left as it was.
    """

    def __init__(self, config: DataConfig, classes: int, seed: int) -> None:
        self.classes, self.seed = classes, seed
        self.mixup = Mixup(
            mixup_alpha=config.mixup, cutmix_alpha=config.cutmix, label_smoothing=0.0, num_classes=classes
        )

    def __call__(self, images: Tensor, labels: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images (batch, ...), changed in place, and soft targets (batch, classes) for labels (batch,).

        Each image meets its mirror in the batch; the last of an odd number meets none.
        """
        targets = torch.nn.functional.one_hot(labels, self.classes).to(torch.float32)
        even = len(images) // 2 * 2
        if even:
            kept = np.random.get_state()
            np.random.seed(int(random_bits((self.seed, _MIX, epoch), np.array([step]))[0]) & 0xFFFFFFFF)
            try:
                images[:even], targets[:even] = self.mixup(images[:even], labels[:even])
            finally:
                np.random.set_state(kept)
        return images, targets


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Weights (classes,) inverse to how often a class occurs in `labels`, with mean 1 over the labels.

    A class that does not occur weighs 1.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    weights = np.ones(classes)
    found = counts > 0
    weights[found] = counts.sum() / (found.sum() * counts[found])
    return torch.tensor(weights, dtype=torch.float32)
