"""Certified dynamic halting against the full network, static truncation and earlyon, side by side.

    python benchmarks/halting_speed.py --data cifar10.npz --run RUN [--threads 2] [--compile]
        [--plain FOLDER] [--earlyon]

RUN is a finished fit; promises are attempts on its certification split and enter its ledger (the same again
is none). Two dynamic models are made, for throughput in batches of 64 and for latency at batch 1, and the
one that was made for it is compared at each batch size. Static models are the fit's own choice and the
shallowest exits at least as accurate as that model on the selection and on the test split. FOLDER is a
network of the same architecture trained by itself, as plain_twin.py leaves it; the full model is the better
of the two on the selection split.
All are folded and have their channels last; every round runs the same real test images through all of them,
in turns. --compile adds a second pass, in which all but earlyon (which refuses) are compiled; the dynamic
policy stays as it is and isn't certified there.

earlyon comes from a folder of its own:

    uv pip install --target PEER --no-deps earlyon==0.3.0 fvcore iopath portalocker yacs tabulate termcolor
    PYTHONPATH=PEER python benchmarks/halting_speed.py ...
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from earlyon_speed import Goal, peers
from halting_figures import shown, verdict
from halting_subjects import Halting, compiled_twin, halting_models, plain_of, right_of, training_of
from numpy.typing import NDArray
from record import write_record
from speeds import Entry, accuracy, agreement, batches_for, difference, ratios, timed
from torch import nn

import odn_hybrid as odn
from odn_hybrid.deploy.comparing.advice import recommend
from odn_hybrid.deploy.comparing.candidates import first_images
from odn_hybrid.deploy.comparing.forms import formed
from odn_hybrid.deploy.comparing.ideal import exits_taken, halting_shares, ideal_speed
from odn_hybrid.deploy.comparing.turns import Clocked
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.truncate import truncate
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, record_outputs, served
from odn_hybrid.run import Run

CPU = torch.device("cpu")


# --- the comparison -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all passes have in common."""

    run: Run
    records: dict[str, ExitRecord]
    halting: dict[str, Halting]
    plain: tuple[nn.Module, dict[str, NDArray[np.bool_]]] | None
    peers: list[Entry]
    images: torch.Tensor
    sizes: tuple[int, ...]
    rounds: int

    def aim(self, size: int) -> str:
        """Which of the dynamic models is compared at a batch size."""
        wanted = "latency" if size == 1 else "throughput"
        return wanted if wanted in self.halting else next(iter(self.halting))

    def equal(self, size: int, split: str) -> int:
        """The shallowest exit as accurate as the dynamic model on a split."""
        goal = self.halting[self.aim(size)].right[split].mean()
        enough = np.flatnonzero(self.records[split].correct[:, : self.reference].mean(0) >= goal)
        return int(enough[0]) + 1 if len(enough) else self.reference

    @property
    def reference(self) -> int:
        """The exit that is the full model."""
        return int(self.run.report_["reference"]["exit"])

    @property
    def statics(self) -> dict[int, str]:
        """Exits that are timed as static models, with their names; the reference first."""
        equal = {self.equal(size, split) for size in self.sizes for split in ("selection", "test")}
        shallower = sorted({self.run.depth_["exit"], *equal} - {self.reference})
        return {self.reference: "full", **{exit: f"static, exit {exit}" for exit in shallower}}

    @property
    def plain_is_better(self) -> bool:
        """Whether the network trained by itself is more accurate on the selection split."""
        ours = self.records["selection"].correct[:, self.reference - 1].mean()
        return self.plain is not None and bool(self.plain[1]["selection"].mean() > ours)


def entries_of(setting: Setting, form: Execution, sizes: tuple[int, ...]) -> list[Entry]:
    """All models in one form, prepared for batches of these sizes; the full one first."""
    run = setting.run
    costs, test = run.parts.costs, setting.records["test"].correct

    def of(name: str, kind: str, model: nn.Module, right: Any, macs: float, exit: int | None = None) -> Entry:
        return Entry(name, kind, model, dict.fromkeys(sizes, right), dict.fromkeys(sizes, macs), exit)

    found = []
    for exit, name in setting.statics.items():
        model = formed(truncate(run.network, exit, run.parts.spec, fold=True), form, CPU)
        kind = "full" if name == "full" else "static"
        found.append(of(name, kind, model, test[:, exit - 1], costs.static(exit), exit))
    if setting.plain is not None:
        model, right = setting.plain
        whole = costs.static(setting.reference)
        found.append(of("plain", "plain", formed(model, form, CPU), right["test"], whole))
    for aim, one in setting.halting.items():
        model = compiled_twin(run, one.model) if form.compile else one.model
        model.warm_up(sizes)
        found.append(of(f"dynamic, {aim}", "dynamic", model, one.right["test"], one.macs))
    return [*found, *setting.peers]


def at(setting: Setting, entries: Sequence[Entry], size: int) -> dict[str, Any]:
    """Everything measured at one batch size."""
    clocked = timed(entries, setting.images, size, setting.rounds)
    here = {entry.name: entry for entry in entries if entry.name in clocked}
    labels = setting.records["test"].labels
    mine = f"dynamic, {setting.aim(size)}"
    rows = {
        name: {
            **clocked[name].to_dict(),
            "accuracy": accuracy(entry.right[size]),
            "mean_macs": entry.macs[size],
            "as_recorded": agreement(entry, setting.images, labels, size),
            "over_full": ratios(clocked["full"], clocked[name]),
        }
        for name, entry in here.items()
    }
    found: dict[str, Any] = {
        "rows": rows,
        "dynamic": mine,
        "full": "plain" if setting.plain_is_better else "full",
        "static_equal": {
            split: setting.statics[setting.equal(size, split)] for split in ("selection", "test")
        },
        "dynamic_over": {name: ratios(one, clocked[mine]) for name, one in clocked.items() if name != mine},
        "accuracy_of_dynamic_less": {
            name: difference(here[mine].right[size], entry.right[size])
            for name, entry in here.items()
            if name != mine
        },
        "ideal": {},
        "halting_of_timed_images": {},
        "recommendation": _recommended(setting, here, clocked, size, mine),
    }
    for name, entry in here.items():
        if isinstance(entry.model, HaltingModel):
            batches = batches_for(entry, setting.images, size)
            taken = exits_taken(entry.model, batches)
            found["halting_of_timed_images"][name] = halting_shares(taken)
            found["ideal"][name] = ideal_speed(
                entry.model, here["full"].model, batches, taken,
                (clocked["full"].rounds, clocked[name].rounds), rounds=setting.rounds,
            )  # fmt: skip
    return found


def _recommended(
    setting: Setting, here: dict[str, Entry], clocked: dict[str, Clocked], size: int, mine: str
) -> dict[str, Any]:
    """What `odn compare` would say of these times."""
    rows = []
    for name, entry in here.items():
        if entry.kind in ("full", "static") or name == mine:
            certified = getattr(entry.model, "void", "not a dynamic model") is None
            rows.append(
                {
                    "name": name,
                    "kind": entry.kind,
                    "exit": entry.exit,
                    "accuracy": accuracy(entry.right[size]),
                    "certified": certified if entry.kind == "dynamic" else None,
                    "note": getattr(entry.model, "void", None),
                    "rounds_ms": {str(size): (1000 * clocked[name].rounds).tolist()},
                }
            )
    said = recommend(rows, setting.run.report_, [size])
    return {key: said[key] for key in ("choice", "model", "reason", "notes")}


def measured(setting: Setting, compile: bool) -> dict[str, dict[str, Any]]:
    """By form, "eager" and perhaps "compiled", and batch size, everything measured."""
    eager = entries_of(setting, Execution(fold=True), setting.sizes)
    passes: dict[str, dict[str, Any]] = {"eager": {}}
    for size in setting.sizes:
        passes["eager"][str(size)] = at(setting, eager, size)
        shown(passes["eager"][str(size)], size)
    for size in setting.sizes if compile else ():
        torch.compiler.reset()  # what is compiled for one shape only is the faster
        entries = entries_of(setting, Execution(fold=True, compile=True), (size,))
        passes.setdefault("compiled", {})[str(size)] = at(setting, entries, size)
        shown(passes["compiled"][str(size)], size)
    return passes


# --- the program --------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="CIFAR-10 as .npz")
    parser.add_argument("--run", type=Path, required=True, help="a finished fit")
    parser.add_argument("--plain", type=Path, help="what plain_twin.py left")
    parser.add_argument("--earlyon", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--drop", type=float, default=0.01)
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--images", type=int, default=640, help="test images in every round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="[default: torch's]")
    parser.add_argument("--name", default="halting_speed", help="of the record")
    return parser.parse_args()


def prepared(args: argparse.Namespace) -> tuple[Setting, dict[str, Any]]:
    """The models, and what the record says of them."""
    run: Run = odn.load(args.run)
    run.use_data(args.data)
    data = run.data
    assert data is not None
    if args.earlyon and not run.report_["reference"]["full"]:
        raise SystemExit(
            "earlyon's last exit is the backbone's own: --earlyon needs a run that kept all of it"
        )
    training = training_of(args.plain, run) if args.plain else None
    form = Execution(fold=True)
    folded: MultiExit = served(run.network, form).to(memory_format=torch.channels_last)
    records = {
        name: record_outputs(folded, data.splits[name], run.transform, execution=form)
        for name in ("selection", "calibration", "test")
    }
    halting, refused = halting_models(run, records, args.drop, form)
    if not halting:
        raise SystemExit(f"no dynamic model could be promised: {refused}")
    plain, of_plain, of_peer = None, None, None
    if args.plain:
        model = plain_of(args.plain)
        plain = (model, {split: right_of(model, run, data, split) for split in ("selection", "test")})
        of_plain = {
            "accuracy": {split: accuracy(right) for split, right in plain[1].items()},
            "training": training,
        }
    sizes = tuple(int(size) for size in args.batches.split(","))
    test = data.splits["test"]
    first = replace(test, indices=test.indices[: args.images])  # in the order of recorded outputs
    images = first_images(first, run.transform, len(first))
    setting = Setting(run, records, halting, plain, [], images, sizes, args.rounds)
    if args.earlyon:
        chosen = {size: halting[setting.aim(size)] for size in sizes}
        goals = {
            size: Goal(float(one.right["calibration"].mean()), one.model.looked)
            for size, one in chosen.items()
        }
        found, of_peer = peers(run.network, folded, run.parts.costs, records, goals)
        setting.peers.extend(found)
    search = {key: run.report_["search"][key] for key in ("epochs", "seconds")}
    return setting, {
        "fit": {**{key: run.report_[key] for key in ("model", "reference", "static")}, **search},
        "plain": of_plain,
        "dynamic": {aim: one.to_dict(run) for aim, one in halting.items()},
        "refused": refused,
        "earlyon": of_peer,
    }


def main() -> None:
    """Promise, measure, record."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    begun = time.perf_counter()
    setting, told = prepared(args)
    passes = measured(setting, args.compile)
    found = verdict(passes, accuracy(setting.records["test"].correct[:, setting.reference - 1]))
    print(json.dumps(found, indent=1))
    record = {
        "verdict": found,
        "threads": torch.get_num_threads(),
        "images_each_round": len(setting.images),
        "rounds": args.rounds,
        "seconds": round(time.perf_counter() - begun),
        **told,
        "passes": passes,
    }
    claim = (
        "certified dynamic halting at least 1.5 x the full network's throughput at batch 64, 1.3 x earlyon's"
    )
    print(write_record(args.name, claim, record))


if __name__ == "__main__":
    main()
