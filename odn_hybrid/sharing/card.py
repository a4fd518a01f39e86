"""Model cards: what a shared model is, how good, what is promised of it and what is not, how to load it."""

from __future__ import annotations

from typing import Any

from torch import nn

from odn_hybrid.backbone import BackboneSpec, unwrapped
from odn_hybrid.deploy.halting import HaltingModel
from odn_hybrid.deploy.truncation.cutting import CutPlan
from odn_hybrid.report import explain
from odn_hybrid.report.wording import accuracy_text, count, megabytes, ranges
from odn_hybrid.run import Run

__all__ = ["model_card"]

TAGS = ["image-classification", "odn-hybrid", "pytorch"]
SEARCH = ("The search", "Epochs by")  # how the lines begin that a card leaves out
#: Data sets by what the hub calls them.
DATASETS = {
    "mnist": "ylecun/mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "svhn": "ufldl-stanford/svhn",
}


def model_card(
    thing: Run | nn.Module, *, run: Run | None = None, name: str, license: str | None = None
) -> str:
    """The text of README.md: front matter for the hub, then what there is to know.

    Args:
        thing: a run, a static or a halting model.
        run: the run that a model came from, if its figures are to be in the card.
        name: what the model is loaded as.
        license: the hub's identifier of a licence.
    """
    run = thing if isinstance(thing, Run) else run
    thing = unwrapped(thing) if isinstance(thing, nn.Module) else thing
    spec = _spec(thing)
    parts = [
        f"# {name}",
        _what(thing, spec),
        *(_exits(run, thing) if run is not None else []),
        *_promise(thing),
        *_use(thing, name),
    ]
    return f"---\n{_front_matter(thing, run, spec, name, license)}\n---\n\n" + "\n\n".join(parts) + "\n"


def _spec(thing: Any) -> BackboneSpec:
    if isinstance(thing, Run):
        return thing.parts.spec
    if isinstance(thing, HaltingModel):
        return thing.network.spec
    plan: CutPlan = thing.__dict__["_odn_plan"]
    return plan.spec


# --- front matter ---------------------------------------------------------------------------------


def _front_matter(thing: Any, run: Run | None, spec: BackboneSpec, name: str, license: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    tags = [*TAGS, *(["timm"] if spec.library == "timm" else [])]
    tags += ["early-exit"] if isinstance(thing, HaltingModel | Run) else []
    more: dict[str, Any] = {}
    if run is not None:
        source = str(run.parts.config["recipe"]["data"]["source"])
        accuracy = _accuracy(thing, run)
        if source in DATASETS:
            more["datasets"] = [DATASETS[source]]
        if accuracy is not None:
            more["model_name"] = name  # which the results are filed under
            more["eval_results"] = EvalResult(
                task_type="image-classification",
                dataset_type=DATASETS.get(source, "private"),
                dataset_name=run.report_["data"]["name"],
                dataset_split="test",
                metric_type="accuracy",
                metric_value=round(accuracy["value"], 6),
            )
    data = ModelCardData(
        base_model=_base_model(run, spec),
        library_name="odn-hybrid",
        license=license,
        metrics=["accuracy"],
        pipeline_tag="image-classification",
        tags=tags,
        **more,
    )
    return str(data.to_yaml()).strip()


def _accuracy(thing: Any, run: Run) -> dict[str, Any] | None:
    """On the test split: of the static model or of the static choice; a halting model's own is not known."""
    if isinstance(thing, HaltingModel):
        return None
    exit = run.depth_["exit"] if isinstance(thing, Run) else thing.__dict__["_odn_plan"].exit
    if exit is None or not 1 <= exit <= len(run.exits_):
        return None
    found: dict[str, Any] | None = run.exits_[exit - 1]["accuracy"]["test"]
    return found


def _base_model(run: Run | None, spec: BackboneSpec) -> str | None:
    """What the hub calls the pretrained weights that the fit began with, if it did and they are there."""
    if run is None or spec.library != "timm":
        return None
    recipe = run.parts.config["recipe"]
    pretrained = recipe["model"].get("pretrained") or recipe.get("regime") in ("finetune", "frozen")
    if not pretrained or recipe["model"].get("checkpoint") or recipe["model"].get("name") is None:
        return None
    import timm

    cfg = timm.get_pretrained_cfg(spec.name, allow_unregistered=True)
    hub = getattr(cfg, "hf_hub_id", None)
    return str(hub) if hub else None


# --- text -----------------------------------------------------------------------------------------


def _what(thing: Any, spec: BackboneSpec) -> str:
    whole = f"{spec.library}'s {spec.name}" if spec.library != "module" else spec.name
    if isinstance(thing, Run):
        return (
            f"{whole} with exits at several depths, fitted by odn_hybrid: static and dynamic models from "
            "one fit."
        )
    if isinstance(thing, HaltingModel):
        policy = f"by a policy on the {thing.policy.score} of the exits' answers"
        return f"{whole} in which each image stops at its own exit, {policy}, fitted by odn_hybrid."
    plan: CutPlan = thing.__dict__["_odn_plan"]
    units = f"{plan.depth} units ({ranges(plan.keep)}, numbered from 0)"
    size = " x ".join(map(str, plan.image_shape))
    return (
        f"{whole}, cut to {units} by odn_hybrid: a plain PyTorch model of {plan.num_classes} classes "
        f"for images of {size} (channels, height, width)."
    )


def _exits(run: Run, thing: Any) -> list[str]:
    """The table of exits; what the report says further is about the run, and stands on its card only."""
    static, reference = run.depth_["exit"], run.report_["reference"]["exit"]
    head = "| exit | units | test accuracy, % (95 % interval) | MACs, static | parameters | MB, fp32 |"
    rows = [head, "| ---: " * 6 + "|"]
    for row in run.exits_:
        marks = "*" * (row["exit"] == static) + "+" * (row["exit"] == reference)
        cells = (
            f"{row['exit']} {marks}".strip().replace("*", "\\*"),
            row["units"],
            accuracy_text((row["accuracy"] or {}).get("test")) if row["trained"] else "not trained",
            count(row["macs_static"]),
            count(row["params"]),
            megabytes(row["bytes"]),
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    n = next((row["accuracy"]["test"]["n"] for row in run.exits_ if row["trained"]), None)
    notes = f"\\* static choice, + reference, against which drops are measured; {n} test images."
    table = ["## Exits of the run", "\n".join(rows), notes]
    if isinstance(thing, Run):
        lines = [line for line in explain(run.report_).splitlines() if not line.startswith(SEARCH)]
        return [*table, "\n".join(f"- {line}" for line in lines)]
    plan = thing.__dict__.get("_odn_plan")
    return [*table, f"This model is exit {plan.exit}."] if plan is not None and plan.exit else table


def _promise(thing: Any) -> list[str]:
    """The certificate in force, with what it does not say; nothing for a static model."""
    if isinstance(thing, HaltingModel):
        held = thing.certificate
    elif isinstance(thing, Run):
        held = thing.parts.policy.get("certificate")
    else:
        return []
    if not held or not held.get("certified"):
        return ["## Certificate", "None: nothing is promised of the accuracy that halting costs."]
    digests = held["digests"]
    lines = [
        "It does not cover:",
        "",
        "- images that are not exchangeable with those it was earned on: another source, camera or time;",
        f"- another runtime or precision than `{digests['runtime']}`, other weights, another policy;",
        "- how right the reference is: the promise is about accuracy lost against it;",
        "- single images, or classes and exits one by one, unless the statement names them.",
        "",
        "It speaks of these, by sha256:",
        "",
        *(f"- {what}: `{digests[what]}`" for what in ("model", "policy", "data") if what in digests),
    ]
    statement = f"> {held['statement']}"
    return ["## Certificate", statement, "\n".join(lines)]


def _use(thing: Any, name: str) -> list[str]:
    load = ["import odn_hybrid as odn", ""]
    if isinstance(thing, Run):
        load += [
            f'run = odn.from_pretrained("{name}")',
            "small = run.truncate()             # the static choice, a plain module",
            "fast = run.dynamic(certify=False)  # each image stops at its own exit",
            "logits = small(run.transform(images))",
        ]
    elif isinstance(thing, HaltingModel):
        load += [
            f'model = odn.from_pretrained("{name}")',
            "out = model(model.transform(images))  # out.logits, out.exit, out.confidence, out.certified",
        ]
    else:
        load += [f'model = odn.from_pretrained("{name}")', "logits = model(model.transform(images))"]
    return ["## Use", "\n".join(["```python", *load, "```"])]
