"""A folder that timm loads by itself: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

Hugging Face's convention for timm: `config.json` says which architecture with which arguments,
`model.safetensors` has the weights under timm's own keys. Pushed to the hub it loads as "hf-hub:NAME".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odn_hybrid.data import Preprocess
from odn_hybrid.deploy.export.writers import Running
from odn_hybrid.deploy.truncation.cutting import CutPlan
from odn_hybrid.deploy.truncation.in_timm import TimmForm, timm_form
from odn_hybrid.errors import ModelError
from odn_hybrid.rundir import write_bytes, write_tensors

__all__ = ["write_timm"]


def write_timm(model: nn.Module, images: Tensor, folder: Path) -> Running:
    """`config.json` and `model.safetensors`; `ModelError` where no arguments of timm's give this network."""
    form, why = timm_form(model)
    if form is None:
        raise ModelError(f"timm cannot express this model ({why}); export another format, or use odn.save")
    config = _config(form, model)
    write_bytes(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_tensors(folder / "model.safetensors", form.weights(model))

    import timm

    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()

    @torch.no_grad()
    def run(batch: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = loaded(batch).numpy()
        return found

    return run


def _config(form: TimmForm, model: nn.Module) -> dict[str, Any]:
    """What timm's config.json holds; images as the model was trained on them."""
    plan: CutPlan = model.__dict__["_odn_plan"]
    preprocess: Preprocess | None = model.__dict__.get("transform")
    with torch.device("meta"):
        twin: Any = form.build()
    kept = {key: value for key, value in twin.pretrained_cfg.items() if key in ("first_conv", "classifier")}
    how = {"custom_load": False, "input_size": list(plan.image_shape), "num_classes": plan.num_classes}
    if preprocess is not None and not preprocess.ready:
        how |= {"mean": list(preprocess.mean), "std": list(preprocess.std)}
        how |= {"interpolation": preprocess.interpolation, "crop_pct": 1.0, "crop_mode": "center"}
    args = {key: value for key, value in form.kwargs.items() if key != "num_classes"}
    return {
        "architecture": form.name,
        "num_classes": plan.num_classes,
        "num_features": twin.num_features,
        "model_args": args,
        "pretrained_cfg": {**kept, **how},
    }
