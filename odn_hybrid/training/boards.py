"""A fit's figures for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from odn_hybrid.errors import ConfigError, StorageError

__all__ = ["BoardWriter"]


class BoardWriter:
    """A listener for `fit` that writes each epoch's figures into `folder` for TensorBoard.

    Tags, over epochs: `train/loss`, `train/lr`, `train/macs` and `train/seconds` (both since the start),
    `train/active` (the deepest exit in training), and at each look `selection/exit_1` and so on (accuracy as
    a fraction). A resumed fit goes on in the same folder; what it trains again replaces what was written.

    Raises `ConfigError` where tensorboard is not installed, `StorageError` where `folder` cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError(
                "tensorboard is not installed; install it with pip install 'odn-hybrid[tensorboard]'"
            ) from None
        self._make, self.folder = SummaryWriter, Path(folder)
        self._writer: Any = None

    def __call__(self, row: dict[str, Any]) -> None:
        """Write one history row, and flush: a fit that is killed leaves what it had."""
        epoch = row["epoch"]
        try:
            if self._writer is None:
                self._writer = self._make(str(self.folder), purge_step=epoch)
            write = self._writer.add_scalar
            for tag, key in (("loss", "loss"), ("lr", "lr"), ("macs", "train_macs"), ("seconds", "seconds")):
                if row[key] is not None:  # computing features has no loss
                    write(f"train/{tag}", row[key], epoch)
            write("train/active", row["active"], epoch)
            for number, accuracy in enumerate(row["selection"] or [], start=1):
                write(f"selection/exit_{number}", accuracy, epoch)
            self._writer.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror or error}") from None
        if row["next"] == "done":
            self.close()

    def close(self) -> None:
        """Close the file; a later row opens another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
