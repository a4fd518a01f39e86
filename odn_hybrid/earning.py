"""What promises rest on: recorded outputs, the ledger of every attempt, the models that keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import FitConfig, from_dict
from odn_hybrid.cost import Costs
from odn_hybrid.data import Data, Preprocess
from odn_hybrid.deploy.asked import Asked
from odn_hybrid.deploy.halting import NO_HALTING, HaltingModel
from odn_hybrid.deploy.promising.dynamic import (
    DynamicResult,
    evaluate_policy,
    make_dynamic,
    uncertified_policy,
)
from odn_hybrid.deploy.promising.promise import Promise, promise_of
from odn_hybrid.errors import CertificateError, ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, record_outputs, served, weights_digest
from odn_hybrid.rundir import RunDir

__all__ = ["Earning", "RunParts"]


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


class Earning:
    """Earns promises for a run.

    Args:
        parts: the run's.
        data: gives the data of the fit, for outputs that have to be recorded.
        folder: gives the run directory, in which the ledger is kept, or None.
    """

    def __init__(
        self, parts: RunParts, *, data: Callable[[], Data], folder: Callable[[], Path | None]
    ) -> None:
        self.parts = parts
        self._data, self._folder = data, folder
        self._records: dict[tuple[str, str, str], ExitRecord] = {}

    def model(
        self,
        promise: Promise,
        form: Execution,
        *,
        certify: bool,
        gather: Literal["always", "auto"],
        optimise_for: str | None,
        size: int | None,
        exits: Sequence[int] | None,
    ) -> HaltingModel:
        """The halting model that keeps a promise, or without one (`certify` False); see `Run.dynamic`."""
        eager = replace(form, compile=False)  # as outputs are recorded
        if certify and form.compile:
            raise ConfigError(
                "a compiled runtime has last digits of its own, and outputs are recorded eagerly: give "
                "certify=False with compile"
            )
        asked = Asked(promise, self.parts.policy["reference"], optimise_for, size, exits)
        network = served(self.parts.network, form)
        certificate = None
        if certify:
            made = self._earn(asked, network, eager)
            if not made.certificate["certified"]:
                raise CertificateError(made.certificate["statement"])
            member, certificate, looked = made.policy, made.certificate, made.exits
        else:
            calibration = self.record("calibration", network, eager)
            looks = asked.looks(network, self.parts.costs, calibration, eager)
            member = uncertified_policy(promise, calibration, looks)
            looked = looks.exits
        held = self.record("certification", network, eager).of(looked)
        seen = evaluate_policy(member, held, self.parts.costs.passing(looked))
        model = HaltingModel(
            network.copy() if network is self.parts.network else network,
            member.table,
            exits=looked,
            gather=gather,
            certificate=certificate,
            reference=(seen["confidence"], np.array(looked)[seen["taken"] - 1]),
            execution=form,
        )
        if optimise_for is not None:
            model.warm_up((asked.batch,))
        return model

    def certify(self, promise: Promise, form: Execution) -> DynamicResult:
        """One attempt at a promise at all exits, entered in the ledger; a refusal is a result too."""
        asked = Asked(promise, self.parts.policy["reference"])
        return self._earn(asked, served(self.parts.network, form), form)

    def promise(self, **said: Any) -> Promise:
        """What was asked for, with the recipe's answers where nothing was said."""
        if not self.parts.network.shares_prefix:
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
    def execution(self) -> Execution:
        """How the fit recorded outputs, and promised: runs of earlier releases did not fold."""
        policy = self.parts.policy
        known = policy.get("runtime")
        if known is None:  # lost by an earlier release; certificates say it too
            earned = [policy.get("certificate"), *(entry["certificate"] for entry in policy["ledger"])]
            known = next((c["digests"]["runtime"] for c in earned if c and "digests" in c), "")
        return Execution(fold="folded" in str(known).split())

    def _earn(self, asked: Asked, network: MultiExit, form: Execution) -> DynamicResult:
        calibration, certification = (
            self.record(name, network, form) for name in ("calibration", "certification")
        )
        rundir = self._rundir()
        with (
            nullcontext() if rundir is None else rundir.locked()
        ):  # two attempts at a time would take the same number and the same part of delta
            made = make_dynamic(
                network,
                asked.promise,
                reference=asked.reference,
                costs=self.parts.costs.cumulative,
                calibration=calibration,
                certification=certification,
                ledger=self.ledger(),
                looks=lambda: asked.looks(network, self.parts.costs, calibration, form),
                wish=asked.wish,
            )
            self.remember(made.ledger)
        return made

    def record(
        self, name: str, network: MultiExit | None = None, form: Execution | None = None
    ) -> ExitRecord:
        """Recorded outputs on a split; made again where they were too large to keep with the run.

        Also where they are of other weights or of another runtime than asked for: what is certified is what
        the network does now. Default: as the fit recorded.
        """
        form = form or self.execution
        network = network or served(self.parts.network, form)
        now = (name, weights_digest(network), form.name(next(network.parameters()).device))
        kept = self.parts.records.get(name)
        if kept is not None and now == (name, kept.model, kept.runtime):
            return kept
        if now not in self._records:
            split, reference = self._data().splits[name], self.parts.policy["reference"]
            found = record_outputs(network, split, self.parts.preprocess, upto=reference, execution=form)
            self._records[now] = found
            if form == self.execution:
                self.parts.records[name] = found
        return self._records[now]

    def ledger(self) -> list[dict[str, Any]]:
        """Earlier attempts on the certification split, those of other handles of this directory included."""
        known, rundir = self.parts.policy["ledger"], self._rundir()
        if rundir is not None:
            known = rundir.read_json("policy.json")["ledger"]
        return list(known)

    def remember(self, ledger: list[dict[str, Any]]) -> None:
        """Every attempt on the certification split counts, also those made after the fit."""
        if ledger == self.ledger():
            return
        self.parts.policy = {**self.parts.policy, "ledger": ledger}
        rundir = self._rundir()
        if rundir is not None:
            rundir.write_json("policy.json", self.parts.policy)

    def _rundir(self) -> RunDir | None:
        folder = self._folder()
        return None if folder is None else RunDir.open(folder)
