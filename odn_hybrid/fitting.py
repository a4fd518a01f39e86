"""`fit`: data, trunk, training and the choice of depth, in reading order."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from odn_hybrid.artifacts import load_run, write_run
from odn_hybrid.asking import (
    OWN,
    asked_recipe,
    completed,
    described,
    long_names,
    make_backbone,
    make_preprocess,
    stored_recipe,
)
from odn_hybrid.config import FitConfig, to_dict
from odn_hybrid.cost import Costs, count_costs
from odn_hybrid.data import Data, Preprocess, load_data, make_loader
from odn_hybrid.deploy.conclusion import conclude
from odn_hybrid.deploy.truncation.choice import check_latency, deepest_within
from odn_hybrid.earning import RunParts
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.execution import Execution
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs, served
from odn_hybrid.run import Run
from odn_hybrid.rundir import RunDir
from odn_hybrid.training.boards import BoardWriter
from odn_hybrid.training.devices.device import accelerator_on
from odn_hybrid.training.devices.processes import Processes, is_main_process, together
from odn_hybrid.training.devices.repeatable import deterministic_algorithms
from odn_hybrid.training.devices.sharing import check_together
from odn_hybrid.training.engine import Engine, Listener, own_randomness
from odn_hybrid.training.frozen import Frozen
from odn_hybrid.training.procedure.preserving import start_as_identity
from odn_hybrid.training.procedure.rules import make_objective, make_rules
from odn_hybrid.training.procedure.seeding import Seed, find_seed
from odn_hybrid.trunk import Trunk

__all__ = ["fit"]


@together
def fit(
    model: nn.Module | str | Path | None = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    config: FitConfig | None = None,
    resume: bool = False,
    inplace: bool = False,
    listener: Listener | None = None,
    tensorboard: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
    **options: Any,
) -> Run:
    """Fit a network of exits, choose its static depth, and prepare dynamic halting.

    Args:
        model: a classifier module (a copy is trained unless `inplace`), a timm name ("resnet18") or
            "torchvision/NAME", or the path of a recipe (.yaml). None is the quickstart recipe.
        data: "digits" (embedded, the default), a torchvision name, a folder of images, an .npz file, or
            your own `(train, val)` or `(train, val, test)` datasets or loaders. Over a recipe's own.
        out: directory for the run; without it nothing is written and nothing can be resumed.
        config: all choices at once; `overrides` changes dotted fields, e.g. {"optim.lr": 0.05}.
        resume: go on with the interrupted fit in `out`.
        listener: called with a dictionary after every epoch.
        tensorboard: a folder to write each epoch's figures to, for TensorBoard (an extra); see `BoardWriter`.
        **options: loss, head, plan, target_accuracy, tolerance, data_root, regime, precision, device, seed,
            start_from: short for the recipe's fields of the same meaning. `plan="thin"` trains thinner
            versions of the whole network instead of prefixes; see `ExitConfig`.

    Returns:
        A `Run`: `exits_`, `depth_`, `truncate()`, `dynamic()`, `compare()`. Of several processes (torchrun,
        accelerate launch) each gets one; the first's alone has a `path`, reads and writes `out`.

    Raises:
        ConfigError, DataError, ModelError, RunDirError, StorageError, TrainingError: see each.

    Example:
        >>> import odn_hybrid as odn
        >>> # `data` is an .npz file of 450 images of 12x12 pixels in 3 classes; a tiny network and few looks,
        >>> # so that this takes a second
        >>> tiny = {
        ...     "model.args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
        ...     "model.stem": "small",
        ...     "data.image_size": 12,
        ...     "expansion.max_looks": 2,
        ... }
        >>> run = odn.fit("resnet18", data, loss="depth_reg", overrides=tiny)
        >>> len(run.exits_), run.depth_["units"] <= 4
        (4, True)
        >>> small = run.truncate()  # a plain model of that many units
    """
    changes = {**long_names(options), **(overrides or {})}
    if resume and out is None:
        raise ConfigError("resume needs the directory of the interrupted fit: pass out=DIRECTORY (--out)")
    if resume and model is None and config is None:
        config = stored_recipe(Path(str(out)), needed=data is None and not changes)
    config, module = asked_recipe(model, data, config, changes)
    if tensorboard is not None and is_main_process():
        listener = _both(listener, BoardWriter(tensorboard))
    backbone = module if module is None or inplace else copy.deepcopy(module)
    accelerator = accelerator_on(config.device)
    processes = Processes(accelerator)
    check_together(config, processes)
    rundir = None
    if out is not None:
        rundir = processes.on_main(partial(_rundir, out, config, resume))
    if processes.agreed(rundir is not None and rundir.finished):
        with own_randomness(config.seed):
            finished = load_run(str(out), backbone=backbone)
        finished.path = None if rundir is None else rundir.path
        return finished

    source = data if config.data.source == OWN else config.data.source
    if source is None:
        raise ConfigError("this recipe is of datasets handed over as objects: pass them again as data=")
    loaded = processes.main_first(partial(load_data, source, root=config.data.root, seed=config.seed))
    processes.check_same("other data", {name: split.digest for name, split in loaded.splits.items()})
    with own_randomness(config.seed), deterministic_algorithms(config.deterministic):
        backbone, spec, fresh = make_backbone(config, backbone, loaded)
        preprocess = make_preprocess(config, backbone, loaded, spec)
        network = MultiExit(Trunk(backbone, image_size=preprocess.size), config.exits)
        if config.expansion.preserve:
            start_as_identity(network)
        costs = count_costs(network)
        known = processes.agreed(rundir.config.get("start_from") if rundir and resume else None)
        seed = _seed(processes, config, network, known)
        engine = _engine(
            network, loaded, preprocess, config, costs, accelerator, rundir, listener, seed, fresh
        )
        check_latency(network, config.choice)
        if loaded.folder and not resume:
            _check_pixels(loaded, preprocess, config.data.workers, processes)
        description = described(config, spec, loaded, preprocess, seed)
        # The first thing written: whatever was asked for is known to work.
        processes.on_main(lambda: rundir.begin(description) if rundir is not None else None)
        if resume:
            engine.resume()
        progress = engine.run()
        execution = Execution(fold=config.dynamic.fold)
        network.eval()
        runs = served(network, execution)
        records = {
            name: record_outputs(
                runs,
                loaded.splits[name],
                preprocess,
                upto=progress.current,
                workers=config.data.workers,
                sharing=processes,
                execution=execution,
            )
            for name in ("selection", "calibration", "certification", "test")
        }
    found = None if seed is None else seed.to_dict()
    report, policy = processes.decide(
        lambda: conclude(runs, config, loaded, costs, progress, records, name=spec.name, seed=found)
    )
    parts = RunParts(
        network=network,
        spec=spec,
        costs=costs,
        config=description,
        report=report,
        policy=policy,
        records=records,
        preprocess=preprocess,
        history=engine.history,
    )
    processes.on_main(lambda: write_run(rundir, parts) if rundir is not None else None)
    return Run(parts, path=None if rundir is None else rundir.path, data=loaded)


def _rundir(out: str | Path, config: FitConfig, resume: bool) -> RunDir:
    rundir = RunDir.create(out, to_dict(config), resume=resume, complete=completed)
    if rundir.finished:
        rundir.clear_checkpoint()  # it was killed after its last word
    return rundir


def _seed(processes: Processes, config: FitConfig, network: MultiExit, known: Any) -> Seed | None:
    """What the first process reads of the other run, for all: it may lie on that machine alone."""

    def found() -> dict[str, Any] | None:
        seed = find_seed(config, network, known)
        return None if seed is None else seed.to_dict()

    told = processes.decide(found)
    return None if told is None else Seed(**told)


def _check_pixels(data: Data, preprocess: Preprocess, workers: int, processes: Processes) -> None:
    """Decode the images that are used after training only: to find a damaged one then would lose the fit."""
    for name in ("calibration", "certification", "test"):
        split = data.splits[name]
        mine = replace(split, indices=split.indices[processes.rank :: processes.count])
        for _ in make_loader(mine, preprocess, batch_size=64, workers=workers):
            pass


def _both(listener: Listener | None, board: Listener) -> Listener:
    """Tell the board first, then the user's listener, which may end the fit."""

    def tell(row: dict[str, Any]) -> None:
        board(row)
        if listener is not None:
            listener(row)

    return tell


# --- training ---------------------------------------------------------------------------------------


def _engine(
    network: MultiExit,
    data: Data,
    preprocess: Preprocess,
    config: FitConfig,
    costs: Costs,
    accelerator: Accelerator,
    rundir: RunDir | None,
    listener: Listener | None,
    seed: Seed | None,
    fresh: bool,
) -> Engine | Frozen:
    if network.trunk.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {network.trunk.num_classes} classes, the data {data.num_classes}; build it with "
            f"num_classes={data.num_classes}, or pass its name so that this is done for you"
        )
    deepest = deepest_within(config.choice, costs)
    common: dict[str, Any] = {
        "train": data.splits["train"],
        "selection": data.splits["selection"],
        "preprocess": preprocess,
        "config": config,
        "costs": costs,
        "accelerator": accelerator,
        "rundir": rundir,
        "listener": listener,
    }
    if config.regime == "frozen":
        return Frozen(network, deepest=deepest, fresh=fresh, **common)
    start = None if seed is None else seed.exit
    rules = make_rules(config, network, costs, len(common["train"]), deepest=deepest, start=start)
    return Engine(network, make_objective(config, len(network)), rules, **common)
