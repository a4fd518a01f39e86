"""Whether a fit may use a place, and whether what is there is a run of the same recipe."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odn_hybrid.errors import RunDirError
from odn_hybrid.rundir.files import is_temporary, storage_errors

__all__ = ["check_creatable", "first_difference", "names_in"]

ROUNDING = 1e-6  # statistics of the data may differ in the last digits with the number of threads


def names_in(path: Path) -> list[str] | None:
    """Names in the folder at `path`, leftovers apart; None where nothing is, `RunDirError` if no folder."""
    try:
        path.lstat()  # unlike `exists`, it does not hide a path that cannot be
        if not path.is_dir():
            raise RunDirError(f"{path} is not a directory: choose another path")
        return sorted(name for name in os.listdir(path) if not is_temporary(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunDirError(f"cannot read {str(path)!r}: {reason}") from None


def check_creatable(path: Path) -> None:
    """Raise `StorageError` or `RunDirError` unless `path` is a writable folder or can become one."""
    place = path.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise RunDirError(f"{path} cannot be a folder, because {place} is not one: choose another --out")
    with storage_errors(path):
        if not os.access(place, os.W_OK | os.X_OK):
            fixed = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
            raise OSError(errno.EROFS if fixed else errno.EACCES, "not writable")


def first_difference(stored: Any, wanted: Mapping[str, Any], *, ignore: tuple[str, ...]) -> str | None:
    """The first field that is not as stored, in words, or None. `ignore`: fields, also "section.field"."""
    if not isinstance(stored, Mapping):
        return "its recipe is missing"
    return _compare(dict(stored), dict(wanted), "", ignore)


def _compare(old: Any, new: Any, name: str, ignore: tuple[str, ...] = ()) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            field = f"{name}.{key}" if name else str(key)
            difference = None if field in ignore else _compare(old.get(key), new.get(key), field, ignore)
            if difference is not None:
                return difference
        return None
    if old == new and isinstance(old, bool) == isinstance(new, bool):
        return None
    if isinstance(old, float) and isinstance(new, float) and math.isclose(old, new, rel_tol=ROUNDING):
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return next((d for i, (a, b) in pairs if (d := _compare(a, b, f"{name}[{i}]"))), None)
    return f"{name} was {_short(old)}, is now {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
