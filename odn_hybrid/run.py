"""`Run`: the handle a user holds after a fit. It only delegates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import FitConfig, from_dict
from odn_hybrid.cost import Costs
from odn_hybrid.data import Data, Preprocess, Split, load_data
from odn_hybrid.deploy.asked import Asked
from odn_hybrid.deploy.comparing.comparison import Wish
from odn_hybrid.deploy.comparing.subject import Subject, compare_run
from odn_hybrid.deploy.halting import NO_HALTING, HaltingModel
from odn_hybrid.deploy.promising.dynamic import (
    DynamicResult,
    evaluate_policy,
    make_dynamic,
    uncertified_policy,
)
from odn_hybrid.deploy.promising.promise import Promise, promise_of
from odn_hybrid.deploy.truncation.choice import choose_exit
from odn_hybrid.deploy.truncation.truncate import compiled, truncate
from odn_hybrid.errors import CertificateError, ConfigError, DataError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, record_outputs, served, weights_digest
from odn_hybrid.rundir import RunDir

__all__ = ["Run", "RunParts", "compare"]


@dataclass
class RunParts:
    """What a fit leaves: the network, how to rebuild it, what it cost, what was recorded."""

    network: MultiExit
    spec: BackboneSpec
    costs: Costs
    config: dict[str, Any]
    report: dict[str, Any]
    policy: dict[str, Any]
    records: dict[str, ExitRecord]
    preprocess: Preprocess
    history: list[dict[str, Any]]


class Run:
    """A finished fit.

    Attributes:
        exits_: one dictionary per exit: exit, units, which of them it keeps, trained, accuracy with interval,
            MACs, params, bytes.
        depth_: the static choice: exit, units, reason.
        report_: everything that `report.json` holds.
        transform: images as files hold them -> what the models take, (batch, channels, height, width).
        path: the run directory, or None if the fit wrote nothing.
    """

    def __init__(self, parts: RunParts, *, path: Path | None = None, data: Data | None = None) -> None:
        self.parts = parts
        self.path = path
        self.data = data
        self._records: dict[tuple[str, str, str], ExitRecord] = {}

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
        promise = self._promise(drop=drop, delta=delta, policy=policy, **more)
        form = execution or self.execution_
        eager = replace(form, compile=False)  # as outputs are recorded
        if certify and form.compile:
            raise ConfigError(
                "a compiled runtime has last digits of its own, and outputs are recorded eagerly: give "
                "certify=False with compile"
            )
        asked = Asked(promise, self.parts.policy["reference"], optimise_for, batch, exits)
        network = served(self.network, form)
        certificate = None
        if certify:
            made = self._certify(asked, network, eager)
            if not made.certificate["certified"]:
                raise CertificateError(made.certificate["statement"])
            member, certificate, looked = made.policy, made.certificate, made.exits
        else:
            calibration = self._record("calibration", network, eager)
            looks = asked.looks(network, self.parts.costs, calibration, eager)
            member = uncertified_policy(promise, calibration, looks)
            looked = looks.exits
        held = self._record("certification", network, eager).of(looked)
        seen = evaluate_policy(member, held, self.parts.costs.passing(looked))
        model = HaltingModel(
            network.copy() if network is self.network else network, member.table, exits=looked, gather=gather,
            certificate=certificate, reference=(seen["confidence"], np.array(looked)[seen["taken"] - 1]),
            execution=form,
        )  # fmt: skip
        model.__dict__["transform"] = self.transform
        if optimise_for is not None:
            model.warm_up((asked.batch,))
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
        promise, form = self._promise(drop=drop, delta=delta, policy=policy, **more), self.execution_
        asked = Asked(promise, self.parts.policy["reference"])
        return dict(self._certify(asked, served(self.network, form), form).certificate)

    def _promise(self, **said: Any) -> Promise:
        """What was asked for, with the recipe's answers where nothing was said."""
        if not self.network.shares_prefix:
            raise ConfigError(NO_HALTING)
        unknown = sorted(set(said) - set(Promise.__dataclass_fields__))
        if unknown:
            known = ", ".join(Promise.__dataclass_fields__)
            raise ConfigError(f"a promise has no option {unknown[0]!r}; its options: {known}")
        promise = promise_of(from_dict(FitConfig, self.parts.config["recipe"]).dynamic, **said)
        if self.parts.policy["policy"] is None:
            raise CertificateError(self.parts.policy["reason"])
        return promise

    @property
    def execution_(self) -> Execution:
        """How the fit recorded outputs, and promised: runs of earlier releases did not fold."""
        policy = self.parts.policy
        known = policy.get("runtime")
        if known is None:  # lost by an earlier release; certificates say it too
            earned = [policy.get("certificate"), *(entry["certificate"] for entry in policy["ledger"])]
            known = next((c["digests"]["runtime"] for c in earned if c and "digests" in c), "")
        return Execution(fold="folded" in str(known).split())

    def _certify(self, asked: Asked, network: MultiExit, form: Execution) -> DynamicResult:
        calibration, certification = (
            self._record(name, network, form) for name in ("calibration", "certification")
        )
        lock = nullcontext() if self.path is None else RunDir.open(self.path).locked()
        with lock:  # two attempts at a time would take the same number and the same part of delta
            made = make_dynamic(
                network,
                asked.promise,
                reference=asked.reference,
                costs=self.parts.costs.cumulative,
                calibration=calibration,
                certification=certification,
                ledger=self._ledger(),
                looks=lambda: asked.looks(network, self.parts.costs, calibration, form),
                wish=asked.wish,
            )
            self._remember(made.ledger)
        return made

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
            RunDir.open(self.path).write_json("report.json", self.parts.report)
        return found

    def _subject(self) -> Subject:
        parts = self.parts
        policy = {**parts.policy, "ledger": self._ledger()}
        return Subject(
            parts.network, parts.spec, parts.costs, parts.report, policy, self.transform, self._record,
            self.execution_,
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

    def _record(
        self, name: str, network: MultiExit | None = None, form: Execution | None = None
    ) -> ExitRecord:
        """Recorded outputs on a split; made again where they were too large to keep with the run.

        Also where they are of other weights or of another runtime than asked for: what is certified is what
        the network does now. Default: as the fit recorded.
        """
        form = form or self.execution_
        network = network or served(self.network, form)
        now = (name, weights_digest(network), form.name(next(network.parameters()).device))
        kept = self.parts.records.get(name)
        if kept is not None and now == (name, kept.model, kept.runtime):
            return kept
        if now not in self._records:
            split, reference = self._data().splits[name], self.parts.policy["reference"]
            found = record_outputs(network, split, self.transform, upto=reference, execution=form)
            self._records[now] = found
            if form == self.execution_:
                self.parts.records[name] = found
        return self._records[now]

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """Every attempt on the certification split so far."""
        return self._ledger()

    def _ledger(self) -> list[dict[str, Any]]:
        """Earlier attempts on the certification split, those of other handles of this directory included."""
        known = self.parts.policy["ledger"]
        if self.path is not None:
            known = RunDir.open(self.path).read_json("policy.json")["ledger"]
        return list(known)

    def _remember(self, ledger: list[dict[str, Any]]) -> None:
        """Every attempt on the certification split counts, also those made after the fit."""
        if ledger == self._ledger():
            return
        self.parts.policy = {**self.parts.policy, "ledger": ledger}
        if self.path is not None:
            RunDir.open(self.path).write_json("policy.json", self.parts.policy)


def compare(run: Run, **options: Any) -> dict[str, Any]:
    """Full against static against dynamic on this device, and a recommendation: `run.compare(...)`."""
    return run.compare(**options)
