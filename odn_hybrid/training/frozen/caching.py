"""The pass over the data that keeps what exit heads need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.config import FitConfig
from odn_hybrid.data import Preprocess, Split, make_loader
from odn_hybrid.errors import TrainingError
from odn_hybrid.exits import MultiExit
from odn_hybrid.training.frozen.classifier import OwnClassifier
from odn_hybrid.training.frozen.store import FeatureStore

__all__ = ["FeaturePass", "features_of"]


def features_of(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """What of the activation a head needs: all of it, for a head that does not say."""
    if hasattr(head, "features") and hasattr(head, "classify"):
        return cast(Callable[[Tensor], Tensor], head.features)
    return lambda x: x


class FeaturePass:
    """One walk over a split: features of exits 1 to `deepest` into a store.

    The backbone is in evaluation mode and no gradient is kept: neither its weights nor its statistics change.

    Args:
        network: on its device. deepest: units beyond this exit do not run.
        own: the backbone's own classifier, if it is among the exits.
        dtype: of autocast.
    """

    def __init__(
        self,
        network: MultiExit,
        deepest: int,
        own: OwnClassifier | None,
        *,
        config: FitConfig,
        preprocess: Preprocess,
        dtype: torch.dtype,
    ) -> None:
        self.network, self.deepest, self.own = network, deepest, own
        self.config, self.preprocess, self.dtype = config, preprocess, dtype
        self.device = next(network.parameters()).device
        self.maps = network.trunk.layout(1).kind == "NCHW"
        self.batch = 2 * config.optim.batch_size  # without a backward pass there is room for twice as many

    @torch.no_grad()
    def shapes(self) -> Mapping[int, tuple[int, ...]]:
        """Per exit, the shape of one image's features."""
        like = next(self.network.parameters())
        images = torch.zeros(1, *self.network.trunk.image_shape, device=like.device, dtype=like.dtype)
        with evaluating(self.network):
            return {k: tuple(values.shape[1:]) for k, values, _ in self._walk(images) if values is not None}

    @torch.no_grad()
    def run(self, split: Split, store: FeatureStore, start: int, *, number: int = 0) -> tuple[int, int]:
        """Pass `number` over a split into rows from `start` on; all but pass 0 are augmented.

        Returns how many images the backbone's own classifier answers rightly (0 where it is not among the
        exits), and how many images there were.
        """
        data = self.config.data
        loader = make_loader(
            split,
            self.preprocess,
            batch_size=self.batch,
            augment=data.augment if number else "none",
            rand_augment=data.rand_augment if number else None,
            erase=data.erase if number else 0.0,
            seed=self.config.seed,
            epoch=number,
            workers=data.workers,
        )
        right, seen = torch.zeros((), dtype=torch.long, device=self.device), 0
        with evaluating(self.network):
            for images, labels, _ in loader:
                if self.maps:
                    images = images.contiguous(memory_format=torch.channels_last)
                images = images.to(self.device, non_blocking=True)
                for exit, values, logits in self._cast(images):
                    if values is not None:
                        store.write(exit, start + seen, values)
                    if logits is not None:
                        right += (logits.argmax(1) == labels.to(self.device)).sum()
                seen += len(labels)
        return int(right), seen

    def _cast(self, images: Tensor) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
        try:
            with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                yield from self._walk(images)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"the device's memory is too small for a forward of {self.batch} images; lower "
                "optim.batch_size (of which it is twice), or the image_size"
            ) from None

    def _walk(self, images: Tensor) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
        """Per exit: its number, features, and the logits of the backbone's own classifier."""
        for number, state in self.network.states(images, self.deepest):
            if not self.network.own_head(number):
                yield number, features_of(self.network.heads[number - 1])(state.x), None
            elif self.own is not None:
                logits, seen = self.own.answer(state)
                yield number, seen, logits
