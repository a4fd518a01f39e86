"""Which images of a batch each process takes, and the loader that gives it those.

The batch of the recipe is the batch of all processes together. Its order and augmentation do not depend on
how it is shared out, so that many processes see the batches that one would see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch.utils.data import DataLoader, Sampler

from odn_hybrid.config import FitConfig, to_dict
from odn_hybrid.errors import ConfigError
from odn_hybrid.training.devices.processes import Processes

__all__ = ["check_batch", "check_together", "rows_of", "shared_loader"]


@cache
def rows_of(size: int, rank: int, count: int) -> tuple[int, ...]:
    """Rows of a batch of `size` that process `rank` of `count` takes, ascending.

    Rows are dealt out in pairs, an image and its mirror in the batch, because mixup mixes these
    (`targets.Mixing`): both stay in one process. Of an odd number the last goes to the last process.
    """
    even = size // 2 * 2
    return tuple(row for row in range(size) if min(row, even - 1 - row) % count == rank)


class SharedBatches(Sampler[list[int]]):
    """A process's part of each batch of another batch sampler."""

    def __init__(self, batches: Iterable[list[int]], rank: int, count: int) -> None:
        self.batches, self.rank, self.count = batches, rank, count

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield [batch[row] for row in rows_of(len(batch), self.rank, self.count)]


def shared_loader(loader: DataLoader[Any], rank: int, count: int) -> DataLoader[Any]:
    """A loader of a process's part of each batch; the loader itself for one process."""
    if count == 1:
        return loader
    assert loader.batch_sampler is not None
    return DataLoader(
        loader.dataset,
        batch_sampler=SharedBatches(loader.batch_sampler, rank, count),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        pin_memory=loader.pin_memory,
        generator=loader.generator,
    )


def check_together(config: FitConfig, processes: Processes) -> None:
    """Raise `ConfigError` for a recipe that several processes cannot fit together."""
    if processes.count > 1 and config.regime == "frozen":
        raise ConfigError(
            f"regime 'frozen' trains heads in seconds and in one process; {processes.count} were started"
        )
    processes.check_same("another recipe", to_dict(config))


def check_batch(config: FitConfig, images: int, count: int) -> None:
    """Raise `ConfigError` where a batch is too small to give each process two images in every forward."""
    least = 2 * count * config.optim.accumulate
    size = min(config.optim.batch_size, images)
    if count > 1 and size < least:
        raise ConfigError(
            f"a batch of {size} images is too small for {count} processes with {config.optim.accumulate} "
            f"forwards each: optim.batch_size is the batch of all together, at least {least} here"
        )
