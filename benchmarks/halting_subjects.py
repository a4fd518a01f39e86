"""What halting_speed.py compares: a network that was trained by itself, and the dynamic models of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from speeds import accuracy
from torch import nn

import odn_hybrid as odn
from odn_hybrid.data import Data, make_loader
from odn_hybrid.deploy.comparing.ideal import halting_shares
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.errors import CertificateError
from odn_hybrid.execution import Execution
from odn_hybrid.folding import apply_fold, fold_pairs
from odn_hybrid.outputs import ExitRecord, served
from odn_hybrid.run import Run

__all__ = ["Halting", "compiled_twin", "halting_models", "plain_of", "right_of", "training_of"]

AIMS = {"throughput": 64, "latency": 1}


# --- a network trained by itself ----------------------------------------------------------------------


def training_of(folder: Path, run: Run) -> dict[str, Any]:
    """How the network in a folder of plain_twin.py was trained; it has to be a twin of the run's."""
    told: dict[str, Any] = json.loads((folder / "training.json").read_text())
    splits = {name: known["digest"] for name, known in run.parts.config["data"]["splits"].items()}
    if told["splits"] != splits or told["units"] != run.report_["reference"]["units"]:
        raise SystemExit(f"{folder} was trained on other data, or to another depth, than the run")
    return told


def plain_of(folder: Path) -> nn.Module:
    """The network of plain_twin.py, folded, its channels last."""
    model: nn.Module = odn.load(folder).eval()
    shape = model.__dict__["_odn_plan"].image_shape
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    return apply_fold(model, fold_pairs(model, images)).to(memory_format=torch.channels_last)


@torch.no_grad()
def right_of(model: nn.Module, run: Run, data: Data, split: str) -> NDArray[np.bool_]:
    """Whether a plain model gets each image of a split right."""
    found = []
    for images, labels, _ in make_loader(data.splits[split], run.transform, batch_size=256):
        found.append(model(images.contiguous(memory_format=torch.channels_last)).argmax(1) == labels)
    return torch.cat(found).numpy()


# --- dynamic models -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halting:
    """A dynamic model and what recorded outputs say of it."""

    model: HaltingModel
    right: dict[str, NDArray[np.bool_]]
    taken: dict[str, NDArray[np.int64]]
    macs: float

    def to_dict(self, run: Run) -> dict[str, Any]:
        """For the record."""
        full = run.parts.costs.static(run.report_["reference"]["exit"])
        certificate = self.model.certificate or {}
        names = ("certified", "statement", "drop", "asked_delta", "attempt", "n")
        return {
            "exits": list(self.model.exits),
            "looked_at": list(self.model.looked),
            "certificate": {name: certificate.get(name) for name in names},
            "void": self.model.void,
            "accuracy": {split: accuracy(right) for split, right in self.right.items()},
            "halting": {split: halting_shares([taken]) for split, taken in self.taken.items()},
            "mean_macs": self.macs,
            "ideal_speedup_by_macs": full / self.macs,
        }


def halting_models(
    run: Run, records: dict[str, ExitRecord], drop: float, form: Execution
) -> tuple[dict[str, Halting], dict[str, str]]:
    """By aim, the dynamic model that was promised, and why there is none where it was refused."""
    found, refused = {}, {}
    for aim, batch in AIMS.items():
        try:
            model = run.dynamic(drop=drop, optimise_for=aim, batch=batch, execution=form)  # type: ignore[arg-type]
        except CertificateError as error:
            refused[aim] = str(error)
            continue
        exits, right, taken = np.array(model.exits), {}, {}
        for name, record in records.items():
            stops, answers = model.policy.decide(record.logits[:, exits - 1])
            taken[name] = exits[stops - 1]
            right[name] = record.correct[np.arange(len(stops)), exits[answers - 1] - 1]
        # Heads of exits at which the policy never stops are not evaluated.
        paid = dict(zip(model.looked, run.parts.costs.passing(model.looked), strict=True))
        macs = float(np.mean([paid[exit] for exit in taken["test"]]))
        found[aim] = Halting(model, right, taken, macs)
    return found, refused


def compiled_twin(run: Run, model: HaltingModel) -> HaltingModel:
    """The same policy, compiled."""
    form = Execution(fold=True, compile=True)
    return HaltingModel(served(run.network, form), model.policy, exits=model.exits, execution=form)
