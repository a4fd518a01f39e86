"""Several models of one server, loaded, swapped and unloaded while requests come."""

from __future__ import annotations

import re
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import ConfigError
from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.hosting.hosted import Hosted, Opened
from odn_hybrid.serve.hosting.opening import open_path
from odn_hybrid.serve.hosting.trying import made_ready
from odn_hybrid.serve.refusals import Unknown
from odn_hybrid.serve.scheduling import Engine
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["Host"]

NAME = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.-]{1,100}")


class Host:
    """Models by name, on one engine. All methods may be called from any thread.

    What is loaded is measured and tried before it gets a request; while it is, requests to the others go on,
    and take their part of the processor: times measured then are too long rather than too short.

    Args:
        engine: runs them.
        settings: of the server; its `lane` is every model's.
    """

    def __init__(self, engine: Engine, settings: ServeSettings) -> None:
        self.engine, self.settings = engine, settings
        self._models: dict[str, Hosted] = {}
        self._changing = threading.RLock()  # one is loaded at a time
        self._lock = threading.RLock()  # held for microseconds
        self._loading = 0
        self._was_ready = False

    # --- models ---------------------------------------------------------------------------------------

    def load(self, name: str, path: str | Path, kind: str = "dynamic", **how: Any) -> Hosted:
        """Serve what stands at `path` under `name`, once it is ready. Seconds to minutes.

        `kind` and `how`: see `opening.open_path`.

        Raises:
            ConfigError: a bad name or one that is taken; see also `open_path`. ModelError: it gives no
                answers. Whatever is raised, the others are served as before.
        """
        _check_name(name)
        with self._lock:
            self._loading += 1
        try:
            with self._changing:
                self._check_free(name)
                opened = open_path(path, kind, **how)
                return self._take(name, opened, Path(path), {"kind": kind, **how})
        finally:
            with self._lock:
                self._loading -= 1

    def put(self, name: str, opened: Opened) -> Hosted:
        """As `load`, for a model that is not in a folder."""
        _check_name(name)
        with self._changing:
            self._check_free(name)
            return self._take(name, opened, None, {})

    def reload(self, name: str, path: str | Path | None = None) -> Hosted:
        """Load a model again, or another in its place, with the options that it was loaded with.

        The new one takes requests when it is ready. The old one answers those that it had accepted, and is
        closed. If the new one is broken it raises, as `load` does, and the old one stays. Both are in memory
        for that long.

        Raises `Unknown` for a name that is not served.
        """
        with self._changing:
            old = self.model(name)
            where = old.path if path is None else Path(path)
            if where is None:
                raise ConfigError(f"model {name} came from no folder; say which to load")
            return self._take(name, open_path(where, **(old.how or {"kind": old.kind})), where, old.how)

    def unload(self, name: str) -> None:
        """No more requests for it; back when the accepted ones are answered. `Unknown`: it is not served."""
        with self._changing, self._lock:
            hosted = self.model(name)
            del self._models[name]
            assert hosted.lane is not None
            left = self.engine.retire(hosted.lane)
        left.result()

    def model(self, name: str, version: str | None = None) -> Hosted:
        """The model of this name, and of this version if one is said; `Unknown` where there is none."""
        with self._lock:
            hosted = self._models.get(name)
        if hosted is None:
            raise Unknown("there is no model of this name")
        if version is not None and version != hosted.version:
            raise Unknown("there is no such version of this model")
        return hosted

    def models(self) -> list[Hosted]:
        """All of them, in the order in which they were loaded."""
        with self._lock:
            return list(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether there is a model, the first ones have all been loaded, and the device thread runs."""
        with self._lock:
            self._was_ready = self._was_ready or (bool(self._models) and not self._loading)
            runs = self.engine.alive and not self.engine.died
            return self._was_ready and bool(self._models) and runs

    # --- requests -------------------------------------------------------------------------------------

    def submit(
        self,
        name: str,
        images: NDArray[np.float32],
        options: Options,
        *,
        arrived: float | None = None,
        version: str | None = None,
    ) -> Future[RunnerOutput]:
        """Ask the model of that name; see `Engine.submit`. Raises `Unknown`, too.

        A model is not swapped while a request finds its way: none is refused because of a reload.
        """
        with self._lock:
            lane = self.model(name, version).lane
            assert lane is not None
            return self.engine.submit(lane, images, options, arrived=arrived)

    # --- inside ---------------------------------------------------------------------------------------

    def _take(self, name: str, opened: Opened, path: Path | None, how: dict[str, Any]) -> Hosted:
        """Make it ready, open its lane, and put it in place of what has the name."""
        times = made_ready(opened.stages, self.settings.lane.max_batch)
        try:
            lane = self.engine.open(name, opened.stages, times, self.settings.lane)
        except BaseException:
            opened.stages.close()
            raise
        hosted = Hosted(
            name=name,
            version=opened.digest[:12],
            kind=opened.kind,
            stages=opened.stages,
            times=times,
            lane=lane,
            transform=opened.transform,
            labels=opened.labels,
            certificate=opened.certificate,
            void=opened.void,
            drift=opened.drift,
            path=path,
            how=how,
        )
        with self._lock:
            old = self._models.get(name)
            self._models[name] = hosted
            if old is not None and old.lane is not None:
                self.engine.retire(old.lane)
        return hosted

    def _check_free(self, name: str) -> None:
        with self._lock:
            if name in self._models:
                raise ConfigError(f"a model {name} is served already; reload it, or take another name")


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"a model cannot be called {name!r}: up to 100 letters, digits, '_', '-' and '.', not dots alone"
        )
