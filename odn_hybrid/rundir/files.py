"""Files that are there whole or not at all: atomic writes, JSON and safetensors with their limits.

A file is written beside its place under a temporary name, flushed to the disk, and moved over the old one, so
that a crash at any instant leaves the old file or the new one. A symbolic link in the place is replaced,
never followed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from odn_hybrid.errors import RunDirError, StorageError

__all__ = [
    "MAX_JSON_BYTES",
    "SCHEMA",
    "check_tensors",
    "is_temporary",
    "make_folders",
    "parse_json",
    "read_json",
    "read_tensors",
    "storage_errors",
    "to_plain",
    "write_bytes",
    "write_json",
    "write_tensors",
]

SCHEMA = 1
KNOWN_SCHEMAS = (1,)
MAX_JSON_BYTES = 64 << 20
# One metadata entry only: several would stand in no fixed order, and equal runs should give equal bytes.
METADATA_KEY = "odn_hybrid"
TEMPORARY = (".odn-", ".tmp")

FULL = {errno.ENOSPC: "the disk is full", getattr(errno, "EDQUOT", -1): "the disk quota is used up"}
CLOSED = {
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}


# --- writing --------------------------------------------------------------------------------------


@contextmanager
def storage_errors(path: Path, then: str = "go on with --resume, or choose another --out") -> Iterator[None]:
    """Turn an `OSError` of writing `path` into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            what, advice = FULL[error.errno], "free some space"
        elif error.errno in CLOSED:
            what, advice = CLOSED[error.errno], "make the folder writable"
        else:
            what, advice = (error.strerror or str(error)), "mend that"
        raise StorageError(
            f"cannot write {path}: {what}; what was there is intact: {advice} and {then}"
        ) from None


def is_temporary(name: str) -> bool:
    """Whether `name` is that of a file left half-written by a process that was killed."""
    return name.startswith(TEMPORARY[0]) and name.endswith(TEMPORARY[1])


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path` atomically and durably. Raises `StorageError`; then `path` is as it was."""
    temporary = path.parent / f"{TEMPORARY[0]}{secrets.token_hex(8)}{TEMPORARY[1]}"
    with storage_errors(path):
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:  # Ctrl-C included
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Makes the move itself survive a power cut; where folders cannot be synced, the move is still atomic.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folders(path: Path) -> list[Path]:
    """Make `path` and its missing parents; the folders made, topmost first."""
    made: list[Path] = []
    missing = [p for p in (path, *path.parents) if not p.exists()]
    try:
        for folder in reversed(missing):
            with storage_errors(folder):
                folder.mkdir(exist_ok=True)
            made.append(folder)
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise
    return made


# --- JSON -----------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """`value` as standard JSON data: tuples are lists, numpy values Python's, NaN and infinities null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} is not JSON data: {value!r}")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise TypeError(f"a JSON key must be a string or an integer, not {key!r}")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a mapping as standard JSON with its `schema`; non-finite numbers become null."""
    plain = {"schema": SCHEMA, **to_plain(data)}
    encoded = (json.dumps(plain, indent=2, allow_nan=False) + "\n").encode()
    if len(encoded) > MAX_JSON_BYTES:
        raise StorageError(_too_large(path, len(encoded)) + ": put large arrays into a .safetensors file")
    write_bytes(path, encoded)


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote. Raises `RunDirError`: missing, too large, damaged, unknown schema."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise RunDirError(_too_large(path, size) + ": not a file that odn_hybrid wrote")
        data = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise RunDirError(f"{path} is missing: copy the whole folder again, or repeat the fit") from None
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise RunDirError(f"{path} is damaged ({error}): copy it again, or repeat the fit") from None
    if not isinstance(data, dict) or "schema" not in data:
        raise RunDirError(f"{path} was not written by odn_hybrid (it has no schema number)")
    schema = data["schema"]
    if type(schema) is not int or schema not in KNOWN_SCHEMAS:
        known = ", ".join(map(str, KNOWN_SCHEMAS))
        raise RunDirError(
            f"{path} has schema {schema!r}, this release reads {known}: use the release that wrote it"
        )
    return data


def parse_json(text: bytes) -> Any:
    """Standard JSON only. Raises `ValueError` for anything else, NaN and endless nesting included."""
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise ValueError("not text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not standard JSON")


def _too_large(path: Path, size: int) -> str:
    return f"{path} has {size / 1e6:.0f} MB, more than the {MAX_JSON_BYTES >> 20} MiB allowed for JSON"


# --- tensors --------------------------------------------------------------------------------------


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: str | None = None) -> None:
    """Write tensors (on any device, tied and strided ones too) as safetensors, with an optional text."""
    kept: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory (tied weights): each gets its own.
        if own.untyped_storage().data_ptr() in owners:
            own = own.clone()
        owners.add(own.untyped_storage().data_ptr())
        kept[name] = own
    write_bytes(path, safetensors.torch.save(kept, None if note is None else {METADATA_KEY: note}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read (tensors on the CPU, the text written with them). Raises `RunDirError`: missing or damaged."""
    with _reading(path), safe_open(path, framework="pt") as file:
        note = (file.metadata() or {}).get(METADATA_KEY)
        return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118 (no mapping)


def check_tensors(path: Path) -> None:
    """Raise `RunDirError` where `read_tensors` would: reads the header and compares it with the length."""
    with _reading(path), safe_open(path, framework="pt"):
        pass


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise RunDirError(f"{path} is missing: copy the whole folder again, or repeat the fit") from None
    except SafetensorError as error:
        raise RunDirError(
            f"{path} is damaged or cut short ({error}): copy it again or repeat the fit"
        ) from None
    except OSError as error:
        raise RunDirError(f"cannot read {path}: {error.strerror or error}") from None
