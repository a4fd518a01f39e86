"""A whole run compared: its models built from what it keeps, and those of others beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from odn_hybrid.backbone import BackboneSpec
from odn_hybrid.cost import Costs
from odn_hybrid.data import Preprocess, Split
from odn_hybrid.deploy.comparing.candidates import Candidate, accuracy_of, first_images, given_candidate
from odn_hybrid.deploy.comparing.comparison import Wish, compare_models, images_wanted
from odn_hybrid.deploy.comparing.in_force import model_in_force, told_of
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.errors import ConfigError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, served

__all__ = ["Subject", "compare_run"]

OWN_NAMES = ("full", "static", "static_equal", "dynamic")
FOREIGN = "it may have been trained on some of these images"


@dataclass(frozen=True)
class Subject:
    """What a comparison needs of a run.

    Attributes:
        report, policy: as `report.json` and `policy.json` hold them, the policy with the whole ledger.
        record: recorded outputs of a split by name.
        execution: how the fit recorded, and promised.
    """

    network: MultiExit
    spec: BackboneSpec
    costs: Costs
    report: dict[str, Any]
    policy: dict[str, Any]
    transform: Preprocess
    record: Callable[[str], ExitRecord]
    execution: Execution


def compare_run(
    run: Subject,
    test: Split,
    wish: Wish,
    *,
    against: Mapping[str, nn.Module | Subject],
    dynamic: HaltingModel | None,
    execution: Execution | None,
) -> dict[str, Any]:
    """The `comparison` part of the run's report; arguments as for `Run.compare`."""
    network, device = run.network, next(run.network.parameters()).device
    wish.check()
    for name in against:
        if not isinstance(name, str) or name in OWN_NAMES:
            raise ConfigError(f"a model cannot be called {name!r}: call it other than {', '.join(OWN_NAMES)}")
    execution = execution or (run.execution if dynamic is None else dynamic.execution)
    if dynamic is None:
        dynamic = model_in_force(served(network, execution), run.policy, run.report, execution)
    elif dynamic.execution != execution:
        raise ConfigError(
            f"execution is {execution}, the dynamic model's is {dynamic.execution}: leave it out"
        )
    told = None if dynamic is None else told_of(dynamic, run.report, run.record, run.costs)
    count = images_wanted(wish, network.trunk.image_shape)
    return compare_models(
        network,
        run.report,
        dynamic,
        first_images(test, run.transform, count),
        wish,
        told=told,
        given=[_given(name, thing, run, test, count, execution) for name, thing in against.items()],
        execution=execution,
        spec=run.spec,
        accuracy=lambda model: accuracy_of(model, test, run.transform, device),
    )


def _given(
    name: str, thing: nn.Module | Subject, run: Subject, test: Split, count: int, execution: Execution
) -> Candidate:
    """A model that was given, or the reference of a run that was."""
    note = None
    if isinstance(thing, Subject):
        mine, theirs = run.report["data"], thing.report["data"]
        if theirs["classes"] != mine["classes"]:
            raise ConfigError(f"run {name!r} has other classes than this one: it is of other data")
        known = [theirs["splits"][s]["digest"] == mine["splits"][s]["digest"] for s in ("train", "test")]
        note = None if any(known) else FOREIGN
        model = truncate(thing.network, thing.report["reference"]["exit"], thing.spec)
        model.__dict__["transform"] = thing.transform
    else:
        model = thing
    return given_candidate(name, model, test, count, run.transform, execution, network=run.network, note=note)
