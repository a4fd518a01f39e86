"""`fit`: data, trunk, training and the choice of depth, in reading order."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from odn_hybrid.artifacts import load_run, write_run
from odn_hybrid.backbone import (
    BackboneSpec,
    build_backbone,
    default_image_size,
    fixed_image_size,
    input_channels,
    is_published,
    load_checkpoint,
    parse_name,
    spec_of,
)
from odn_hybrid.config import FitConfig, from_dict, load_recipe, recipe_path, replace_fields, to_dict
from odn_hybrid.cost import Costs, count_costs
from odn_hybrid.data import Data, Preprocess, channel_stats, choose_preprocess, load_data
from odn_hybrid.deploy.choice import check_latency, deepest_within
from odn_hybrid.deploy.conclusion import conclude
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.run import Run, RunParts
from odn_hybrid.rundir import CONFIG, SCHEMA, RunDir, environment, read_json
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

#: What a recipe says of data sets that were handed over as objects.
OWN = "own"

#: Keyword arguments of `fit` that are short for a recipe's field.
SHORT = {
    "loss": "objective.name",
    "head": "exits.head",
    "plan": "exits.plan",
    "target_accuracy": "choice.target_accuracy",
    "tolerance": "choice.tolerance",
    "data_root": "data.root",
    "regime": "regime",
    "precision": "precision",
    "device": "device",
    "seed": "seed",
    "start_from": "start_from",
}


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
        >>> import timm, odn_hybrid
        >>> run = odn_hybrid.fit(
        ...     timm.create_model("resnet18", num_classes=10), loss="depth_reg"
        ... )  # doctest: +SKIP
        >>> small = run.truncate()  # doctest: +SKIP
    """
    changes = {**_long(options), **(overrides or {})}
    if resume and out is None:
        raise ConfigError("resume needs the directory of the interrupted fit: pass out=DIRECTORY (--out)")
    if resume and model is None and config is None:
        config = _stored_recipe(Path(str(out)))
    config, module = _recipe(model, data, config, changes)
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
        backbone, spec, fresh = _backbone(config, backbone, loaded)
        preprocess = _preprocess(config, backbone, loaded)
        network = MultiExit(Trunk(backbone, image_size=preprocess.size), config.exits)
        if config.expansion.preserve:
            start_as_identity(network)
        costs = count_costs(network)
        known = processes.agreed(rundir.config.get("start_from") if rundir and resume else None)
        seed = find_seed(config, network, known)
        engine = _engine(
            network, loaded, preprocess, config, costs, accelerator, rundir, listener, seed, fresh
        )
        check_latency(network, config.choice)
        described = _described(config, spec, loaded, preprocess, seed)
        # The first thing written: whatever was asked for is known to work.
        processes.on_main(lambda: rundir.begin(described) if rundir is not None else None)
        if resume:
            engine.resume()
        progress = engine.run()
        records = {
            name: record_outputs(
                network,
                loaded.splits[name],
                preprocess,
                upto=progress.current,
                workers=config.data.workers,
                sharing=processes,
            )
            for name in ("selection", "calibration", "certification", "test")
        }
    network.eval()
    found = None if seed is None else seed.to_dict()
    report, policy = processes.decide(
        lambda: conclude(network, config, loaded, costs, progress, records, name=spec.name, seed=found)
    )
    parts = RunParts(
        network=network,
        spec=spec,
        costs=costs,
        config=described,
        report=report,
        policy=policy,
        records=records,
        preprocess=preprocess,
        history=engine.history,
    )
    processes.on_main(lambda: write_run(rundir, parts) if rundir is not None else None)
    return Run(parts, path=None if rundir is None else rundir.path, data=loaded)


def _rundir(out: str | Path, config: FitConfig, resume: bool) -> RunDir:
    rundir = RunDir.create(out, to_dict(config), resume=resume, complete=_completed)
    if rundir.finished:
        rundir.clear_checkpoint()  # it was killed after its last word
    return rundir


# --- what was asked for -----------------------------------------------------------------------------


def _long(options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(SHORT))
    if unknown:
        raise ConfigError(
            f"fit has no option {unknown[0]!r}; short options: {', '.join(SHORT)}; "
            'any other field: overrides={"section.field": value}'
        )
    return {SHORT[name]: value for name, value in options.items() if value is not None}


def _both(listener: Listener | None, board: Listener) -> Listener:
    """Tell the board first, then the user's listener, which may end the fit."""

    def tell(row: dict[str, Any]) -> None:
        board(row)
        if listener is not None:
            listener(row)

    return tell


def _recipe(
    model: nn.Module | str | Path | None, data: Any, config: FitConfig | None, changes: dict[str, Any]
) -> tuple[FitConfig, nn.Module | None]:
    """The complete recipe, and the user's module if there is one."""
    module: nn.Module | None = None
    if model is None and config is None:
        config = load_recipe(recipe_path("quickstart"))
    elif isinstance(model, (str, Path)):
        if str(model).endswith((".yaml", ".yml")):
            if config is not None:
                raise ConfigError("pass a recipe or config=, not both")
            config = load_recipe(model)
        else:
            changes = {"model.name": str(model), **changes}
    elif isinstance(model, nn.Module):
        module = model
        changes = {"model.name": None, **changes}
    elif model is not None:
        raise ConfigError(
            f"model is a {type(model).__name__}; pass a module, a model's name or a recipe's path"
        )
    if isinstance(data, (str, Path)):
        changes = {**changes, "data.source": str(data)}
    elif data is not None:
        changes = {**changes, "data.source": OWN}
    return replace_fields(config or FitConfig(), changes), module


def _stored_recipe(out: Path) -> FitConfig | None:
    """The recipe of the run in `out`, so that resuming needs nothing but the directory; None without one."""
    if not (out / CONFIG).is_file():
        return None
    return from_dict(FitConfig, read_json(out / CONFIG).get("recipe"))


def _completed(recipe: Any) -> Any:
    """A stored recipe with the defaults of fields that are younger than it."""
    try:
        return to_dict(from_dict(FitConfig, recipe))
    except ConfigError:  # damaged, or of a later release: what compares it will say so
        return recipe


def _backbone(
    config: FitConfig, module: nn.Module | None, data: Data
) -> tuple[nn.Module, BackboneSpec, bool]:
    """The backbone, its spec, and whether weights were loaded into all of it but the classifier."""
    if module is not None:
        return module, spec_of(module, data.num_classes), False
    if config.model.name is None:
        raise ConfigError("no model: pass a module, a model's name, or a recipe whose model.name is set")
    library, name = parse_name(config.model.name)
    grey = data.image_shape is not None and data.image_shape[2] == 1 and library == "timm"
    tuned = config.regime in ("finetune", "frozen")
    published = config.model.pretrained or (tuned and config.model.checkpoint is None)
    spec = BackboneSpec(
        library=library,
        name=name,
        args=dict(config.model.args),
        stem=config.model.stem,
        num_classes=data.num_classes,
        in_chans=1 if grey and not (published or tuned) else 3,
    )
    if config.regime == "frozen":
        _check_frozen(config, spec, published)
    backbone = build_backbone(spec, pretrained=published)
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    fresh = published and cfg.get("num_classes") not in (None, spec.num_classes)
    if config.model.checkpoint is not None:
        fresh = not load_checkpoint(backbone, config.model.checkpoint)
    return backbone, spec, fresh


def _check_frozen(config: FitConfig, spec: BackboneSpec, published: bool) -> None:
    """Raise `ConfigError` where a frozen backbone would have random weights."""
    if config.model.checkpoint is not None:
        return
    advice = "set model.checkpoint to a .safetensors file of its weights, or pass the model as a module"
    if spec.stem == "small":
        raise ConfigError(
            f"regime frozen leaves weights as they are, and a small stem would be random ones: {advice}"
        )
    if published and spec.library == "timm" and not is_published(spec.name):
        raise ConfigError(
            f"regime frozen needs pretrained weights, and none are published for {spec.name}: {advice}"
        )


def _preprocess(config: FitConfig, backbone: nn.Module, data: Data) -> Preprocess:
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    wanted = config.data.normalise
    told = wanted == "pretrained" or (wanted == "auto" and config.regime in ("finetune", "frozen"))
    if wanted == "pretrained" and not ("mean" in cfg and "std" in cfg):
        raise ConfigError(
            "data.normalise is 'pretrained', but the model does not say by which mean and deviation: "
            "choose 'data'"
        )
    tuned = told and "mean" in cfg and "std" in cfg
    return choose_preprocess(
        data,
        image_size=config.data.image_size,
        fixed_size=fixed_image_size(backbone),
        default_size=default_image_size(backbone),
        channels=input_channels(backbone),
        mean_std=(tuple(cfg["mean"]), tuple(cfg["std"])) if tuned else channel_stats(data.splits["train"]),
    )


def _described(
    config: FitConfig, spec: BackboneSpec, data: Data, preprocess: Preprocess, seed: Seed | None
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "recipe": to_dict(config),
        "backbone": spec.to_dict(),
        "data": data.describe(),
        "preprocess": preprocess.to_dict(),
        "environment": environment(),
    } | ({} if seed is None else {"start_from": seed.to_dict()})


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
    train = data.splits["train"]
    deepest, start = deepest_within(config.choice, costs), None if seed is None else seed.exit
    if config.regime == "frozen":
        return Frozen(
            network,
            deepest=deepest,
            train=train,
            selection=data.splits["selection"],
            preprocess=preprocess,
            config=config,
            costs=costs,
            accelerator=accelerator,
            fresh=fresh,
            rundir=rundir,
            listener=listener,
        )
    rules = make_rules(config, network, costs, len(train), deepest=deepest, start=start)
    return Engine(
        network,
        make_objective(config, len(network)),
        rules,
        train=train,
        selection=data.splits["selection"],
        preprocess=preprocess,
        config=config,
        costs=costs,
        accelerator=accelerator,
        rundir=rundir,
        listener=listener,
    )
