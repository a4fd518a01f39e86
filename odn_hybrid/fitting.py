"""`fit`: data, trunk, training and the choice of depth, in reading order."""

from __future__ import annotations

import copy
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
    load_checkpoint,
    parse_name,
    spec_of,
)
from odn_hybrid.config import FitConfig, from_dict, load_recipe, recipe_path, replace_fields, to_dict
from odn_hybrid.cost import Costs, count_costs
from odn_hybrid.data import Data, Preprocess, channel_stats, choose_preprocess, load_data
from odn_hybrid.deploy.conclusion import conclude
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import record_outputs
from odn_hybrid.run import Run, RunParts
from odn_hybrid.rundir import CONFIG, SCHEMA, RunDir, environment, read_json
from odn_hybrid.training.device import accelerator_on
from odn_hybrid.training.engine import (
    Engine,
    Listener,
    own_randomness,
    train_macs_per_image,
)
from odn_hybrid.training.expansion import Expansion
from odn_hybrid.training.objectives import PLAIN, build_objective
from odn_hybrid.training.stepping import trains_alone
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
}


def fit(
    model: nn.Module | str | Path | None = None,
    data: Any = None,
    *,
    out: str | Path | None = None,
    config: FitConfig | None = None,
    resume: bool = False,
    inplace: bool = False,
    listener: Listener | None = None,
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
        **options: loss, head, plan, target_accuracy, tolerance, data_root, regime, precision, device, seed:
            short for the recipe's fields of the same meaning. `plan="thin"` trains thinner versions of the
            whole network instead of prefixes; see `ExitConfig`.

    Returns:
        A `Run`: `exits_`, `depth_`, `truncate()`, `dynamic()`, `compare()`.

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
    backbone = module if module is None or inplace else copy.deepcopy(module)
    rundir = None
    if out is not None:
        rundir = RunDir.create(out, to_dict(config), resume=resume, complete=_completed)
    if rundir is not None and rundir.finished:
        rundir.clear_checkpoint()  # it was killed after its last word
        with own_randomness(config.seed):
            return load_run(rundir.path, backbone=backbone)

    source = data if config.data.source == OWN else config.data.source
    if source is None:
        raise ConfigError("this recipe is of datasets handed over as objects: pass them again as data=")
    loaded = load_data(source, root=config.data.root, seed=config.seed)
    with own_randomness(config.seed):
        accelerator = accelerator_on(config.device)
        backbone, spec = _backbone(config, backbone, loaded)
        preprocess = _preprocess(config, backbone, loaded)
        network = MultiExit(Trunk(backbone, image_size=preprocess.size), config.exits)
        costs = count_costs(network)
        engine = _engine(network, loaded, preprocess, config, costs, accelerator, rundir, listener)
        described = _described(config, spec, loaded, preprocess)
        if rundir is not None:
            rundir.begin(described)  # the first thing written: whatever was asked for is known to work
        if resume:
            engine.resume()
        progress = engine.run()
        records = {
            name: record_outputs(
                network, loaded.splits[name], preprocess, upto=progress.current, workers=config.data.workers
            )
            for name in ("selection", "calibration", "certification", "test")
        }
    network.eval()
    report, policy = conclude(network, config, loaded, costs, progress, records, name=spec.name)
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
    if rundir is not None:
        write_run(rundir, parts)
    return Run(parts, path=None if rundir is None else rundir.path, data=loaded)


# --- what was asked for -----------------------------------------------------------------------------


def _long(options: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(options) - set(SHORT))
    if unknown:
        raise ConfigError(
            f"fit has no option {unknown[0]!r}; short options: {', '.join(SHORT)}; "
            'any other field: overrides={"section.field": value}'
        )
    return {SHORT[name]: value for name, value in options.items() if value is not None}


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


def _backbone(config: FitConfig, module: nn.Module | None, data: Data) -> tuple[nn.Module, BackboneSpec]:
    if module is not None:
        return module, spec_of(module, data.num_classes)
    if config.model.name is None:
        raise ConfigError("no model: pass a module, a model's name, or a recipe whose model.name is set")
    library, name = parse_name(config.model.name)
    grey = data.image_shape is not None and data.image_shape[2] == 1 and library == "timm"
    tuned = config.regime == "finetune"
    published = config.model.pretrained or (tuned and config.model.checkpoint is None)
    spec = BackboneSpec(
        library=library,
        name=name,
        args=dict(config.model.args),
        stem=config.model.stem,
        num_classes=data.num_classes,
        in_chans=1 if grey and not (published or tuned) else 3,
    )
    backbone = build_backbone(spec, pretrained=published)
    if config.model.checkpoint is not None:
        load_checkpoint(backbone, config.model.checkpoint)
    return backbone, spec


def _preprocess(config: FitConfig, backbone: nn.Module, data: Data) -> Preprocess:
    cfg = getattr(backbone, "pretrained_cfg", None) or {}
    tuned = config.regime == "finetune" and "mean" in cfg and "std" in cfg
    return choose_preprocess(
        data,
        image_size=config.data.image_size,
        fixed_size=fixed_image_size(backbone),
        default_size=default_image_size(backbone),
        channels=input_channels(backbone),
        mean_std=(tuple(cfg["mean"]), tuple(cfg["std"])) if tuned else channel_stats(data.splits["train"]),
    )


def _described(config: FitConfig, spec: BackboneSpec, data: Data, preprocess: Preprocess) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "recipe": to_dict(config),
        "backbone": spec.to_dict(),
        "data": data.describe(),
        "preprocess": preprocess.to_dict(),
        "environment": environment(),
    }


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
) -> Engine:
    if network.trunk.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {network.trunk.num_classes} classes, the data {data.num_classes}; build it with "
            f"num_classes={data.num_classes}, or pass its name so that this is done for you"
        )
    train = data.splits["train"]
    batch, alone = config.optim.batch_size, trains_alone(network, config.objective.name)
    exits = range(1, len(network) + 1)
    rules = Expansion(
        config.expansion,
        config.choice,
        exits=len(network),
        steps_per_epoch=max(1, len(train) // batch),
        epoch_macs=[train_macs_per_image(costs, m, alone=alone) * len(train) for m in exits],
        plain=config.objective.name == PLAIN,
    )
    return Engine(
        network,
        build_objective(config.objective.name, len(network), **config.objective.args),
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
