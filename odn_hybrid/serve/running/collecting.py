"""Garbage collection that does not stop a server for as long as many answers take."""

from __future__ import annotations

import gc

__all__ = ["give_back", "set_aside"]


def set_aside() -> None:
    """Collect garbage now, and leave what stays (libraries, models) out of all later collections.

    A full collection visits every object of the process: with torch loaded that takes some tenths of a
    second, in which nobody is answered, now and then while requests come. What was set aside before is
    looked through again, so that models which were let go are freed.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """What was set aside is collected as anything else again."""
    gc.unfreeze()
