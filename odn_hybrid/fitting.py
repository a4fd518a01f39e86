"""`fit`: data, trunk, training and the choice of depth, in reading order."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
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
from odn_hybrid.config import FitConfig, load_recipe, recipe_path, replace_fields, to_dict
from odn_hybrid.cost import Costs, count_costs, size_of
from odn_hybrid.data import Data, Preprocess, channel_stats, choose_preprocess, load_data
from odn_hybrid.deploy.dynamic import evaluate_policy, make_dynamic
from odn_hybrid.errors import ConfigError, ModelError
from odn_hybrid.exits import MultiExit
from odn_hybrid.outputs import ExitRecord, record_outputs
from odn_hybrid.run import Run, RunParts
from odn_hybrid.rundir import SCHEMA, RunDir, environment
from odn_hybrid.stopping import choose_depth, wilson
from odn_hybrid.training.engine import Engine, Listener, own_randomness, train_macs_per_image
from odn_hybrid.training.expansion import Expansion, Progress
from odn_hybrid.training.objectives import build_objective
from odn_hybrid.trunk import Trunk

__all__ = ["fit"]

#: Keyword arguments of `fit` that are short for a recipe's field.
SHORT = {
    "loss": "objective.name",
    "head": "exits.head",
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
        **options: loss, head, target_accuracy, tolerance, data_root, regime, precision, device, seed:
            short for the recipe's fields of the same meaning.

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
    config, module = _recipe(model, data, config, {**_long(options), **(overrides or {})})
    source = data if data is not None and not isinstance(data, (str, Path)) else config.data.source
    rundir = None if out is None else RunDir.create(out, to_dict(config), resume=resume)
    if resume and rundir is None:
        raise ConfigError("resume needs the directory of the interrupted fit: pass out=DIRECTORY (--out)")
    if rundir is not None and rundir.finished:
        return load_run(rundir.path)

    loaded = load_data(source, root=config.data.root, seed=config.seed)
    with own_randomness(config.seed):
        accelerator = Accelerator(cpu=config.device == "cpu")
        backbone, spec = _backbone(config, module, loaded, inplace)
        preprocess = _preprocess(config, backbone, loaded)
        network = MultiExit(Trunk(backbone, image_size=preprocess.size), config.exits)
        costs = count_costs(network)
        if rundir is not None:
            rundir.begin(_described(config, spec, loaded, preprocess))
        progress, history = _train(
            network, loaded, preprocess, config, costs, accelerator, rundir, resume, listener
        )
        records = {
            name: record_outputs(
                network, loaded.splits[name], preprocess, upto=progress.current, workers=config.data.workers
            )
            for name in ("selection", "calibration", "certification", "test")
        }
    network.eval()
    report, policy = _conclude(network, config, loaded, costs, progress, records)
    parts = RunParts(
        network=network,
        spec=spec,
        costs=costs,
        config=_described(config, spec, loaded, preprocess),
        report=report,
        policy=policy,
        records=records,
        preprocess=preprocess,
        history=history,
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
        changes = {**changes, "data.source": "own"}
    return replace_fields(config or FitConfig(), changes), module


def _backbone(
    config: FitConfig, module: nn.Module | None, data: Data, inplace: bool
) -> tuple[nn.Module, BackboneSpec]:
    if module is not None:
        backbone = module if inplace else copy.deepcopy(module)
        return backbone, spec_of(backbone, data.num_classes)
    if config.model.name is None:
        raise ConfigError("no model: pass a module, a model's name, or a recipe whose model.name is set")
    library, name = parse_name(config.model.name)
    grey = data.image_shape is not None and data.image_shape[2] == 1 and library == "timm"
    spec = BackboneSpec(
        library=library,
        name=name,
        args=dict(config.model.args),
        stem=config.model.stem,
        num_classes=data.num_classes,
        in_chans=1 if grey and not config.model.pretrained else 3,
    )
    backbone = build_backbone(spec, pretrained=config.model.pretrained)
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


# --- training and what follows from it --------------------------------------------------------------


def _train(
    network: MultiExit,
    data: Data,
    preprocess: Preprocess,
    config: FitConfig,
    costs: Costs,
    accelerator: Accelerator,
    rundir: RunDir | None,
    resume: bool,
    listener: Listener | None,
) -> tuple[Progress, list[dict[str, Any]]]:
    if network.trunk.num_classes != data.num_classes:
        raise ModelError(
            f"the model has {network.trunk.num_classes} classes, the data {data.num_classes}; build it with "
            f"num_classes={data.num_classes}, or pass its name so that this is done for you"
        )
    train = data.splits["train"]
    batch = config.optim.batch_size
    rules = Expansion(
        config.expansion,
        config.choice,
        exits=len(network),
        steps_per_epoch=max(1, len(train) // batch),
        epoch_macs=[train_macs_per_image(costs, m) * len(train) for m in range(1, len(network) + 1)],
        plain=config.objective.name == "cross_entropy",
    )
    engine = Engine(
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
    if resume:
        engine.resume()
    return engine.run(), engine.history


def _conclude(
    network: MultiExit,
    config: FitConfig,
    data: Data,
    costs: Costs,
    progress: Progress,
    records: dict[str, ExitRecord],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report and the policy, from the recorded outputs. Test is used for figures only."""
    reference = progress.current
    plain = config.objective.name == "cross_entropy"
    trained = [k == reference if plain else k <= reference for k in range(1, len(network) + 1)]
    static = _choose(config, records["selection"], reference, trained)
    dynamic, policy = _dynamic(network, config, costs, reference, trained, records)
    report = {
        "schema": SCHEMA,
        "model": config.model.name or type(network.backbone).__name__,
        "data": data.describe(),
        "reference": {
            "exit": reference,
            "units": network.units[reference - 1],
            "full": reference == len(network),
        },
        "exits": [_exit_row(k, network, costs, trained[k - 1], records) for k in range(1, len(network) + 1)],
        "static": {**static, "units": network.units[static["exit"] - 1]},
        "dynamic": dynamic,
        "comparison": None,
        "search": {
            "epochs": progress.epoch,
            "train_macs": progress.train_macs,
            "seconds": round(progress.seconds, 3),
            "by_depth": progress.by_depth,
            "stopped_by": progress.stopped_by or "rule",
        },
        "environment": environment(),
    }
    return report, policy


def _choose(config: FitConfig, selection: ExitRecord, reference: int, trained: list[bool]) -> dict[str, Any]:
    """The static depth, from the selection split only."""
    right = selection.correct
    choice = config.choice
    if choice.target_accuracy is not None:
        goal = choice.target_accuracy - choice.tolerance
        accuracies = right.mean(0)
        reached = [k for k in range(1, reference + 1) if trained[k - 1] and accuracies[k - 1] >= goal]
        if reached:
            found = accuracies[reached[0] - 1]
            reason = (
                f"the shallowest exit with at least {goal:.2%} on the selection split "
                f"(target {choice.target_accuracy:.2%} less {choice.tolerance:.2%}): it has {found:.2%}"
            )
            return {"exit": reached[0], "reason": reason, "rule": "target", "reached": True}
        reason = (
            f"no exit reached {goal:.2%} on the selection split; the deepest trained one, "
            f"{accuracies[reference - 1]:.2%}, is kept"
        )
        return {"exit": reference, "reason": reason, "rule": "target", "reached": False}
    found = choose_depth(
        right,
        reference=reference,
        trained=np.array(trained),
        tolerance=choice.tolerance,
        delta=choice.delta,
        look=1,
    )
    return {"exit": int(found.exit), "reason": found.reason, "rule": "non-inferior", "reached": True}


def _dynamic(
    network: MultiExit,
    config: FitConfig,
    costs: Costs,
    reference: int,
    trained: list[bool],
    records: dict[str, ExitRecord],
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if reference == 1 or not all(trained[:reference]):
        why = "one exit only" if reference == 1 else "the objective trains one exit only"
        return None, {"schema": SCHEMA, "policy": None, "reason": f"no dynamic halting: {why}", "ledger": []}
    drop, delta = config.dynamic.drop, config.dynamic.delta
    made = make_dynamic(
        network,
        reference=reference,
        calibration=records["calibration"],
        certification=records["certification"],
        drop=drop,
        delta=delta,
        ledger=[],
    )
    tested = evaluate_policy(made.policy, records["test"], costs.cumulative)
    taken = tested["taken"]
    dynamic = {
        "policy": made.policy.to_dict(),
        "accuracy": {"selection": None, "test": _accuracy(tested["correct"], tested["n"])},
        "mean_macs": tested["mean_macs"],
        **_size_upto(network, costs, reference),
        "mean_units": float(np.asarray(network.units)[taken - 1].mean()),
        "halting": tested["halting"],
        "certificate": made.certificate if made.certificate["certified"] else None,
        "refusal": None if made.certificate["certified"] else made.certificate["statement"],
    }
    policy = {
        "schema": SCHEMA,
        "policy": made.policy.to_dict(),
        "continuation_values": None,
        "certificate": made.certificate,
        "reference": reference,
        "ledger": made.ledger,
    }
    return dynamic, policy


def _size_upto(network: MultiExit, costs: Costs, reference: int) -> dict[str, int]:
    """Parameters and bytes of a dynamic model: the reference's static model and every head before it."""
    params, size = costs.params[reference - 1], costs.bytes[reference - 1]
    more, extra = size_of(list(network.heads[: reference - 1]))
    return {"params": params + more, "bytes": size + extra}


def _exit_row(
    k: int, network: MultiExit, costs: Costs, trained: bool, records: dict[str, ExitRecord]
) -> dict[str, Any]:
    def accuracy(name: str) -> dict[str, Any] | None:
        if not trained:
            return None  # and not even recorded, where it is deeper than the reference
        right = records[name].correct[:, k - 1]
        return _accuracy(int(right.sum()), len(right))

    return {
        "exit": k,
        "units": network.units[k - 1],
        "trained": trained,
        "macs_static": costs.static(k),
        "macs_dynamic": costs.dynamic(k),
        "params": costs.params[k - 1],
        "bytes": costs.bytes[k - 1],
        "accuracy": {"selection": accuracy("selection"), "test": accuracy("test")},
    }


def _accuracy(correct: int, n: int) -> dict[str, Any]:
    low, high = wilson(correct, n)
    return {"value": correct / n, "n": n, "low": float(low), "high": float(high)}
