"""`Run`: the handle a user holds after a fit. It only delegates."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.config import FitConfig, from_dict, to_dict
from odn_hybrid.cost import Costs
from odn_hybrid.data import Data, Preprocess, load_data
from odn_hybrid.deploy.comparing.comparison import IMAGES_PER_ROUND, compare_models, first_images
from odn_hybrid.deploy.halting import NO_HALTING, HaltingModel
from odn_hybrid.deploy.promising.dynamic import (
    DynamicResult,
    evaluate_policy,
    make_dynamic,
    uncertified_policy,
)
from odn_hybrid.deploy.promising.promise import Promise
from odn_hybrid.deploy.truncation.choice import choose_exit
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import CertificateError, ConfigError, DataError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, record_outputs, runtime_on, weights_digest
from odn_hybrid.rundir import RunDir
from odn_hybrid.stopping import Member

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
    ) -> nn.Module:
        """A plain model: the static choice, the exit with `depth` units, or the best within a budget.

        Budgets are per image: MACs, parameters, fp32 bytes, or milliseconds at batch 1 on the device of the
        network, measured now. Among the trained exits that fit, the one most accurate on the selection split.

        Raises:
            ModelError: no exit has that depth. BudgetError: no trained exit fits.
            ConfigError: more than one wish at once.
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
        model = truncate(self.network, exit, self.parts.spec)
        model.__dict__["transform"] = self.transform
        return model.eval()

    def dynamic(
        self,
        *,
        drop: float | None = None,
        delta: float | None = None,
        policy: str | None = None,
        certify: bool = True,
        gather: Literal["always", "auto"] = "auto",
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
            **more: `recall`, `max_macs`, `scaling`, `measure`, `by`: see `odn_hybrid.Promise`. With
                `max_macs` it is the best policy within so many mean MACs, not the cheapest that keeps the
                promise.

        Raises:
            CertificateError: the promise cannot be given; the message says what it would need.
            ConfigError: the exits are thin networks, in which inputs cannot halt; an unknown policy; no
                policy that is as cheap as `max_macs`.
        """
        promise = self._promise(drop=drop, delta=delta, policy=policy, **more)
        reference, certificate = self.parts.policy["reference"], None
        if certify:
            made = self._certify(promise)
            if not made.certificate["certified"]:
                raise CertificateError(made.certificate["statement"])
            member, certificate = made.policy, made.certificate
        else:
            member = uncertified_policy(promise, self._record("calibration"), self._costs, reference)
        held = evaluate_policy(member, self._record("certification"), self._costs)
        model = HaltingModel(
            self.network.copy(), member.table, gather=gather, certificate=certificate,
            reference=(held["confidence"], held["taken"]),
        )  # fmt: skip
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
        return dict(self._certify(self._promise(drop=drop, delta=delta, policy=policy, **more)).certificate)

    def _promise(self, **said: Any) -> Promise:
        """What was asked for, with the recipe's answers where nothing was said."""
        if not self.network.shares_prefix:
            raise ConfigError(NO_HALTING)
        unknown = sorted(set(said) - set(Promise.__dataclass_fields__))
        if unknown:
            known = ", ".join(Promise.__dataclass_fields__)
            raise ConfigError(f"a promise has no option {unknown[0]!r}; its options: {known}")
        recipe = to_dict(from_dict(FitConfig, self.parts.config["recipe"]).dynamic)
        promise = Promise(**{**recipe, **{name: value for name, value in said.items() if value is not None}})
        if self.parts.policy["policy"] is None:
            raise CertificateError(self.parts.policy["reason"])
        return promise

    def _certify(self, promise: Promise) -> DynamicResult:
        records = {name: self._record(name) for name in ("calibration", "certification")}
        lock = nullcontext() if self.path is None else RunDir.open(self.path).locked()
        with lock:  # two attempts at a time would take the same number and the same part of delta
            made = make_dynamic(
                self.network,
                promise,
                reference=self.parts.policy["reference"],
                costs=self._costs,
                **records,
                ledger=self._ledger(),
            )
            self._remember(made.ledger)
        return made

    @property
    def _costs(self) -> tuple[int, ...]:
        return self.parts.costs.cumulative

    def compare(
        self, *, batch_sizes: Sequence[int] = (1, 16, 64), rounds: int = 9, data: Any = None
    ) -> dict[str, Any]:
        """Full against static against dynamic on the network's device; kept in `report.json`.

        Args:
            batch_sizes: images given at once.
            rounds: repetitions, in which the models take turns.
            data: the data set again, for a run loaded from disk whose data was handed over as objects.
        """
        split = self._data(data).splits["test"]
        images = first_images(split, self.transform, max(IMAGES_PER_ROUND, *batch_sizes))
        policy = self.parts.policy["policy"]
        halting = None if policy is None else HaltingModel(self.network, Member.from_dict(policy).table)
        found = compare_models(
            self.network, self.report_, halting, images, batch_sizes=batch_sizes, rounds=rounds
        )
        self.parts.report = {**self.parts.report, "comparison": found}
        if self.path is not None:
            RunDir.open(self.path).write_json("report.json", self.parts.report)
        return found

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

    def _record(self, name: str) -> ExitRecord:
        """Recorded outputs on a split; made again where they were too large to keep with the run.

        Also where they are of other weights or of another runtime than the network has now: what is certified
        is what it does now.
        """
        kept = self.parts.records.get(name)
        now = (weights_digest(self.network), runtime_on(next(self.network.parameters()).device))
        if kept is None or (kept.model, kept.runtime) != now:
            split, reference = self._data().splits[name], self.parts.policy["reference"]
            self.parts.records[name] = record_outputs(self.network, split, self.transform, upto=reference)
        return self.parts.records[name]

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
