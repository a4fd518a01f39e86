"""What goes over the pipes of a process that reads images. Bytes with their length before them; no pickle.

To it: `REQUEST` (length of the file), then the file. From it: `ANSWER`, four whole numbers. For `PIXELS`
they are height, width and channels (1 or 3), and as many bytes follow; for everything else the length of a
text in ASCII, which follows, and two zeros. `READY` comes once, before anything is asked.
"""

from __future__ import annotations

import struct
from enum import IntEnum

__all__ = ["ANSWER", "LONGEST_TEXT", "REQUEST", "Status"]

REQUEST = struct.Struct("<I")
ANSWER = struct.Struct("<BIII")
LONGEST_TEXT = 300


class Status(IntEnum):
    """How reading went."""

    READY = 0
    PIXELS = 1
    BAD = 2  # cannot be read
    LARGE = 3  # too many pixels
    MEMORY = 4  # the memory allowed did not do; whoever says so is not to be asked again
