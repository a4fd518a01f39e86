"""`RunDir`: one fit's folder, from the first thing written to the finished report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from odn_hybrid.errors import RunDirError
from odn_hybrid.rundir import history
from odn_hybrid.rundir.checks import check_creatable, first_difference, names_in
from odn_hybrid.rundir.files import (
    SCHEMA,
    check_tensors,
    is_temporary,
    make_folders,
    parse_json,
    read_json,
    read_tensors,
    storage_errors,
    to_plain,
    write_json,
    write_tensors,
)
from odn_hybrid.rundir.nested import flatten_state, unflatten_state

__all__ = ["CHECKPOINT", "CONFIG", "EXITS", "HISTORY", "MODEL", "POLICY", "REPORT", "RunDir"]

CONFIG = "config.json"
MODEL = "model.safetensors"
EXITS = "exits.safetensors"
POLICY = "policy.json"
REPORT = "report.json"
HISTORY = "history.jsonl"
CHECKPOINT = "checkpoint"
LOCK = "ledger.lock"
CHECKPOINT_FILE = "state.safetensors"

# A resumed fit may run on another machine; its data are checked by `begin`, once they are read.
NOT_THE_RECIPE = ("schema", "environment", "splits", "device", "data.root", "data.workers", "frozen.folder")


class RunDir:
    """A run directory. Get one from `create` (a fit) or `open` (everything after).

    Attributes:
        path: the folder.
        config: what config.json says; for a new run, only `recipe` until `begin`.
        resumed: whether `create` found an earlier run of the same recipe here.
    """

    def __init__(self, path: Path, config: dict[str, Any], *, resumed: bool) -> None:
        self.path = path
        self.config = config
        self.resumed = resumed

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    # --- getting one ------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | Path,
        recipe: Mapping[str, Any],
        *,
        resume: bool,
        complete: Callable[[Any], Any] = lambda stored: stored,
    ) -> RunDir:
        """Check that a fit of `recipe` may use `path`; nothing is written before `begin`.

        With `resume`, a run of the same recipe may be there, interrupted or finished: every field but those
        that tell where it runs (`NOT_THE_RECIPE`) equals the stored one, to which `complete` adds what
        recipes did not have when it was stored. Raises `RunDirError` where the place is taken,
        `StorageError` where it cannot be written.
        """
        path = Path(path)
        wanted = to_plain(recipe)
        names = names_in(path)
        if not names:
            check_creatable(path)
            return cls(path, {"recipe": wanted}, resumed=False)
        if CONFIG not in names:
            raise RunDirError(f"{path} holds files but no run ({names[0]}, ...): choose another --out")
        if not resume:
            found = "a finished run" if REPORT in names else "an interrupted run"
            raise RunDirError(f"{path} holds {found}: choose another --out, or add --resume to go on with it")
        stored = read_json(path / CONFIG)
        stored["recipe"] = complete(stored.get("recipe"))
        difference = first_difference(stored["recipe"], wanted, ignore=NOT_THE_RECIPE)
        if difference is not None:
            raise RunDirError(f"{path} holds a run of another recipe ({difference}): choose another --out")
        return cls(path, stored, resumed=True)

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """A finished run, for reading.

        Raises `RunDirError`: nothing there, not a run directory, interrupted, damaged, of an unknown schema.
        """
        path = Path(path)
        names = names_in(path)
        if names is None:
            raise RunDirError(
                f"there is no run directory at {path}: check the path, or make one with odn fit"
            )
        if CONFIG not in names:
            raise RunDirError(f"{path} is no run directory (no {CONFIG}): give the folder that odn fit wrote")
        run = cls(path, read_json(path / CONFIG), resumed=False)
        if REPORT not in names:
            raise RunDirError(
                f"{path} holds an interrupted run: finish it with odn fit --resume --out {path}"
            )
        run.read_json(REPORT)
        for name in names:
            if name.endswith(".safetensors"):
                check_tensors(path / name)
        return run

    @property
    def finished(self) -> bool:
        """Whether the report, the last thing a fit writes, is there."""
        return (self.path / REPORT).is_file()

    def begin(self, found: Mapping[str, Any] | None = None) -> None:
        """Make the folder and write config.json: the recipe, and `found`, the fields known only now.

        A resumed run keeps its config.json. `found` must agree with it (the recipe, which `create` compared,
        and "environment" apart), or the data changed since and `RunDirError` says so. When this fails, it
        leaves nothing behind.
        """
        described: dict[str, Any] = to_plain(found or {})
        if self.resumed:
            self._check_same(described)
            return
        if names_in(self.path):
            raise RunDirError(f"{self.path} was taken by another process meanwhile: choose another --out")
        self.config = {"schema": SCHEMA, **self.config, **described}
        made = make_folders(self.path)
        try:
            self._remove_leftovers()
            self.write_json(CONFIG, self.config)
        except BaseException:
            for folder in reversed(made):
                with suppress(OSError):
                    folder.rmdir()
            raise

    def _check_same(self, found: dict[str, Any]) -> None:
        known = {key: self.config.get(key) for key in found}
        difference = first_difference(known, found, ignore=("environment", "recipe"))
        if difference is not None:
            raise RunDirError(
                f"{self.path} was begun otherwise ({difference}): restore that, or choose another --out"
            )
        self._remove_leftovers()
        if not self.finished and not (self.path / CHECKPOINT / CHECKPOINT_FILE).exists():
            self.trim_history(0)  # killed before its first checkpoint, the run starts from its beginning

    # --- files ------------------------------------------------------------------------------------

    def write_json(self, name: str, data: Mapping[str, Any]) -> None:
        """Write `data` atomically; `schema` is added, NaN and infinities become null."""
        write_json(self._place(name), data)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run. Raises `RunDirError`: missing, damaged, unknown schema."""
        return read_json(self._place(name))

    def save_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors atomically as safetensors; tied ones are stored once each."""
        write_tensors(self._place(name), tensors)

    def load_tensors(self, name: str) -> dict[str, Tensor]:
        """Read tensors onto the CPU. Raises `RunDirError`: missing, damaged, cut short."""
        return read_tensors(self._place(name))[0]

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add one line to history.jsonl, flushed to the disk."""
        history.append(self._place(HISTORY), row)

    def read_history(self) -> list[dict[str, Any]]:
        """All rows of history.jsonl; a last line cut short by a crash is left out."""
        return history.read(self._place(HISTORY))

    def trim_history(self, n: int) -> int:
        """Keep the first `n` rows, those up to the checkpoint; returns how many there are now."""
        return history.trim(self._place(HISTORY), n)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else's `locked` runs meanwhile, in other processes too. Raises `StorageError`.

        A folder that cannot be written needs no lock: what would change something there fails by itself.
        """
        lock = FileLock(self._place(LOCK))
        if not os.access(self.path, os.W_OK):
            yield
            return
        with storage_errors(self.path):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    # --- checkpoints ------------------------------------------------------------------------------

    def save_checkpoint(self, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Replace the checkpoint by `tensors` and `state` (anything `flatten_state` takes).

        Both go into one file, replaced atomically: whenever the process dies, the old pair or the new pair is
        there, never a mixture.
        """
        folder = self._checkpoint_folder()
        loose, structure = flatten_state(state)
        merged = {f"tensors.{key}": value for key, value in tensors.items()}
        merged.update({f"state.{key}": value for key, value in loose.items()})
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
        write_tensors(folder / CHECKPOINT_FILE, merged, json.dumps(structure, allow_nan=False))

    def load_checkpoint(self) -> tuple[dict[str, Tensor], Any] | None:
        """The last (tensors, state), on the CPU, or None. Raises `RunDirError` where it is damaged."""
        place = self.path / CHECKPOINT / CHECKPOINT_FILE
        if not place.exists():
            return None
        try:
            merged, note = read_tensors(place)
            tensors = {k.removeprefix("tensors."): v for k, v in merged.items() if k.startswith("tensors.")}
            loose = {k.removeprefix("state."): v for k, v in merged.items() if k.startswith("state.")}
            if note is None:
                raise RunDirError(f"{place} was not written by odn_hybrid")
            return tensors, unflatten_state(loose, parse_json(note.encode()))
        except (RunDirError, ValueError) as error:
            raise RunDirError(
                f"the checkpoint of {self.path} cannot be used ({error}): delete {place.parent}, and "
                "--resume starts this run from its beginning"
            ) from None

    def clear_checkpoint(self) -> None:
        """Remove the checkpoint, and its folder unless it holds someone else's files."""
        folder = self._checkpoint_folder()
        if not folder.is_dir():
            return
        with storage_errors(folder):
            for entry in list(folder.iterdir()):
                if entry.name == CHECKPOINT_FILE or is_temporary(entry.name):
                    entry.unlink()
        with suppress(OSError):
            folder.rmdir()

    # --- inside -----------------------------------------------------------------------------------

    def _place(self, name: str) -> Path:
        if not name or name in (".", "..") or Path(name).name != name:
            raise ValueError(f"{name!r} is not a plain file name")
        return self.path / name

    def _checkpoint_folder(self) -> Path:
        folder = self.path / CHECKPOINT
        if folder.is_symlink():
            raise RunDirError(f"{folder} is a symbolic link, which is not followed for writing: remove it")
        return folder

    def _remove_leftovers(self) -> None:
        # Half-written files of a process that was killed.
        for folder in (self.path, self._checkpoint_folder()):
            if folder.is_dir():
                for entry in folder.iterdir():
                    if is_temporary(entry.name):
                        with suppress(OSError):
                            entry.unlink()
