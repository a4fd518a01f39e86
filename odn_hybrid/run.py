"""`Run`: the handle a user holds after a fit. It only delegates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from odn_hybrid.data import Data, Preprocess, Split, load_data
from odn_hybrid.deploy.comparing.comparison import Wish
from odn_hybrid.deploy.comparing.subject import Subject, compare_run
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.choice import choose_exit
from odn_hybrid.deploy.truncation.truncate import compiled, truncate
from odn_hybrid.earning import Earning, RunParts
from odn_hybrid.errors import ConfigError, DataError, StorageError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord
from odn_hybrid.rundir import RunDir

__all__ = ["Run", "RunParts", "compare"]

SPLITS = ("selection", "calibration", "certification", "test")


class Run:
    """A finished fit.

    Attributes:
        exits_: one dictionary per exit: exit, units, which of them it keeps, trained, accuracy with interval,
            MACs, params, bytes.
        depth_: the static choice: exit, units, reason.
        report_: everything that `report.json` holds.
        transform: images as files hold them -> what the models take, (batch, channels, height, width).
        path: the run directory, or None if the fit wrote nothing.

    Example:
        >>> # `run` is what `odn_hybrid.fit` gave for a ResNet of 4 units and grey images of 12x12 pixels
        >>> import numpy as np
        >>> [row["units"] for row in run.exits_], run.depth_["units"] <= 4
        ([1, 2, 3, 4], True)
        >>> images = run.transform(np.zeros((5, 12, 12), dtype=np.uint8))
        >>> run.truncate(depth=2)(images).shape  # a plain model: 5 images, 3 classes
        torch.Size([5, 3])
        >>> run.dynamic(certify=False)(images).exit.shape  # each image stops at its own exit
        torch.Size([5])
        >>> run.certify(drop=0.01)["certified"]  # the promise that this loses at most one point
        False
    """

    def __init__(self, parts: RunParts, *, path: Path | None = None, data: Data | None = None) -> None:
        self.parts = parts
        self.path = path
        self.data = data
        self._earning = Earning(parts, data=self._data, folder=lambda: self.path)

    @property
    def exits_(self) -> list[dict[str, Any]]:
        """One row per exit; see the class."""
        return list(self.parts.report["exits"])

    @property
    def depth_(self) -> dict[str, Any]:
        """The static choice; see the class."""
        return dict(self.parts.report["static"])

    @property
    def report_(self) -> dict[str, Any]:
        """The whole of `report.json`."""
        return self.parts.report

    @property
    def history_(self) -> list[dict[str, Any]]:
        """One row per epoch: phase, exits in training, loss, selection accuracies, training MACs so far."""
        return list(self.parts.history)

    @property
    def transform(self) -> Preprocess:
        """Images as files hold them -> what the models take."""
        return self.parts.preprocess

    @property
    def network(self) -> MultiExit:
        """The trained multi-exit network: `network(images)` gives the logits of every exit."""
        return self.parts.network

    def __repr__(self) -> str:
        static = self.depth_
        return f"Run({self.report_['model']}, {len(self.exits_)} exits, static depth {static['units']} units)"

    def to(self, device: str) -> Run:
        """Move the network to "cpu" or "cuda"; raises `ConfigError` for a device that is not there."""
        try:
            self.network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        return self

    def truncate(
        self,
        *,
        depth: int | None = None,
        max_macs: float | None = None,
        max_params: float | None = None,
        max_bytes: float | None = None,
        max_latency_ms: float | None = None,
        fold: bool = False,
        compile: bool = False,
    ) -> nn.Module:
        """A plain model: the static choice, the exit with `depth` units, or the best within a budget.

        Budgets are per image: MACs, parameters, fp32 bytes, or milliseconds at batch 1 on the device of the
        network, measured now. Among the trained exits that fit, the one most accurate on the selection split.

        Args:
            depth, max_macs, max_params, max_bytes, max_latency_ms: what is wished; at most one of them.
            fold: batch normalisations go into the layers before them, where that is exact, and image maps
                have their channels last in memory: the same logits to 1e-4, sooner; not for training.
            compile: the model through `torch.compile`, which compiles at the first call and when the shape of
                the images changes. `odn_hybrid.save` saves what is inside.

        Raises:
            ModelError: no exit has that depth. BudgetError: no trained exit fits.
            ConfigError: more than one wish at once, or there is no compiler.
        """
        exit = choose_exit(
            self.network,
            self.parts.costs,
            self.exits_,
            self.depth_["exit"],
            depth=depth,
            max_macs=max_macs,
            max_params=max_params,
            max_bytes=max_bytes,
            max_latency_ms=max_latency_ms,
        )
        if not self.exits_[exit - 1]["trained"]:
            text = f"exit {exit} was never trained: expect poor answers (see the table of exits)"
            warnings.warn(text, UserWarning, stacklevel=2)
        model = truncate(self.network, exit, self.parts.spec, fold=fold)
        model.__dict__["transform"] = self.transform
        return compiled(model.eval()) if compile else model.eval()

    def dynamic(
        self,
        *,
        drop: float | None = None,
        delta: float | None = None,
        policy: str | None = None,
        certify: bool = True,
        gather: Literal["always", "auto"] = "auto",
        optimise_for: Literal["throughput", "latency"] | None = None,
        batch: int | None = None,
        exits: Sequence[int] | None = None,
        execution: Execution | None = None,
        **more: Any,
    ) -> HaltingModel:
        """A model that halts each input at its own exit.

        Promised: an accuracy lower than the reference's by at most `drop`, with confidence 1 - `delta`,
        for images exchangeable with the certification split. Defaults: the recipe's.

        Args:
            drop, delta: the promise.
            policy: family of halting policies: "snell", "lookahead", "confidence", "margin", "entropy",
                "patience" or "fixed".
            certify: `False` gives the cheapest policy that loses at most `drop` on the calibration split,
                and no promise.
            gather: see `HaltingModel`.
            optimise_for: "throughput" or "latency": exits whose head costs more time than it saves are left
                out, by times measured now on the network's device, and policies are chosen for little time
                instead of few MACs. The model comes warmed up.
            batch: images given at once, for `optimise_for`; default 64, or 1 for latency.
            exits: look at these exits only; the last must be the reference.
            execution: precision, folding, compilation; default: what the fit recorded, folded unless the
                recipe says otherwise. In another one, outputs are recorded anew, which needs the data, and
                the promise is a new attempt. A compiled one cannot be certified.
            **more: `recall`, `max_macs`, `scaling`, `measure`, `by`: see `odn_hybrid.Promise`. With
                `max_macs` it is the best policy within so many mean MACs, not the cheapest that keeps the
                promise.

        Raises:
            CertificateError: the promise cannot be given; the message says what it would need.
            ConfigError: the exits are thin networks, in which inputs cannot halt; an unknown policy; no
                policy that is as cheap as `max_macs`.
        """
        model = self._earning.model(
            self._earning.promise(drop=drop, delta=delta, policy=policy, **more),
            execution or self.execution_,
            certify=certify,
            gather=gather,
            optimise_for=optimise_for,
            size=batch,
            exits=exits,
        )
        model.__dict__["transform"] = self.transform
        return model

    def certify(
        self,
        *,
        drop: float | None = None,
        delta: float | None = None,
        policy: str | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """Try to earn a promise on the certification split; gives the certificate, also where it is refused.

        Every attempt is entered in the ledger and spends a part of `delta`; the same again does not.
        Arguments as for `dynamic`; errors too, but for a refusal, which is an answer here.

        Returns:
            A dictionary: `certified`, `statement`, `drop`, `delta`, `n`, `upper_bound`, `needed_n`,
            `attempt`, `policy`, `mean_macs`, `digests` (what it speaks of) and `evidence`.
        """
        promise = self._earning.promise(drop=drop, delta=delta, policy=policy, **more)
        return dict(self._earning.certify(promise, self.execution_).certificate)

    @property
    def execution_(self) -> Execution:
        """How the fit recorded outputs, and promised: runs of earlier releases did not fold."""
        return self._earning.execution

    def compare(
        self,
        *,
        batch_sizes: Sequence[int] = (1, 16, 64),
        rounds: int = 9,
        seconds: float = 20.0,
        data: Any = None,
        against: dict[str, nn.Module | Run] | None = None,
        dynamic: HaltingModel | None = None,
        execution: Execution | None = None,
        exits: bool = False,
    ) -> dict[str, Any]:
        """Full against static against dynamic on the network's device; kept in `report.json`.

        All models run in one way: that of the dynamic one. Speeds are ratios of times taken side by side; a
        model is recommended where it is clearly faster, and "full" where none is.

        Args:
            batch_sizes: images given at once.
            rounds: repetitions, in which the models take turns.
            seconds: about how long the turns at one batch size may take; images a round, at least 512 where
                that allows it, are fewer where it does not.
            data: the data set again, where it has moved or was handed over as objects.
            against: smaller models to stand beside these, by name: plain classifiers of the same classes, or
                runs, of which the reference is taken. Their accuracy is measured on this run's test split.
            dynamic: a model of `run.dynamic()`; default: the fit's own or, where its certificate does not
                speak of this device, the latest of the run's that does.
            execution: precision, folded, compiled; default: `dynamic`'s, or what the fit recorded.
            exits: time the static model of every exit too, for a picture (`report.draw_comparison`).

        Raises:
            ConfigError: batch sizes, rounds or models that cannot be compared. DataError: other data.
        """
        found = compare_run(
            self._subject(),
            self._test_split(data),
            Wish(tuple(batch_sizes), rounds, seconds, exits),
            against={
                name: thing._subject() if isinstance(thing, Run) else thing
                for name, thing in (against or {}).items()
            },
            dynamic=dynamic,
            execution=execution,
        )
        self.parts.report = {**self.parts.report, "comparison": found}
        if self.path is not None:
            try:
                RunDir.open(self.path).write_json("report.json", self.parts.report)
            except StorageError as error:  # minutes of measuring are not lost for that
                warnings.warn(f"the comparison is not kept with the run: {error}", stacklevel=2)
        return found

    def _subject(self) -> Subject:
        parts = self.parts
        policy = {**parts.policy, "ledger": self._earning.ledger()}
        return Subject(
            parts.network, parts.spec, parts.costs, parts.report, policy, self.transform,
            self._earning.record, self.execution_,
        )  # fmt: skip

    def _test_split(self, data: Any) -> Split:
        try:
            return self._data(data).splits["test"]
        except DataError as error:
            if data is not None:
                raise
            raise DataError(f"{error}; if the fit's data have moved, say where: data= (--data)") from None

    def use_data(self, data: Any) -> None:
        """The data of the fit, where it has moved or was handed over as objects; checked to be the same."""
        self._data(data)

    def _data(self, data: Any = None) -> Data:
        """The data of the fit, loaded again where necessary, and checked to be the same."""
        if data is None and self.data is not None:
            return self.data
        recipe = self.parts.config["recipe"]
        source = data if data is not None else recipe["data"]["source"]
        if source == "own":
            raise ConfigError(
                "this run was fitted on datasets handed over as objects: pass them again as data="
            )
        found = load_data(source, root=recipe["data"]["root"], seed=recipe["seed"])
        known = self.parts.config["data"]["splits"]
        for name, split in found.splits.items():
            if split.digest != known[name]["digest"]:
                raise DataError(f"this is not the data of the fit: the {name} split has another digest")
        self.data = found
        return found

    def recorded(self, split: str) -> ExitRecord:
        """What every exit said of a split, in its order: `logits` (n, K, C), `labels` (n,), `correct` (n, K).

        K counts the exits up to the reference. Recorded again, from the data of the fit, where the fit did
        not keep it or the weights have changed since.

        Args:
            split: "selection", "calibration", "certification" or "test".

        Raises:
            DataError: another split, or the data of the fit cannot be had.

        Example:
            >>> # `run` is a finished fit of a network with 4 exits, of images in 3 classes
            >>> run.recorded("calibration").logits.shape[1:]
            (4, 3)
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is not recorded; take one of {', '.join(SPLITS)}")
        return self._earning.record(split)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every attempt on the certification split so far."""
        return self._earning.ledger()


def compare(run: Run, **options: Any) -> dict[str, Any]:
    """Full against static against dynamic on this device, and a recommendation: `run.compare(**options)`.

    `run`: the fit. `options`: what `Run.compare` takes; `ConfigError` and `DataError` as there.

    Example:
        >>> import odn_hybrid as odn
        >>> # `run` is a finished fit; few rounds, so that this takes a second (9 or more say something)
        >>> found = odn.compare(run, batch_sizes=[1], rounds=2, seconds=0.2)
        >>> [row["name"] for row in found["rows"]][:2], found["rounds"]
        (['full', 'static'], 2)
    """
    return run.compare(**options)
