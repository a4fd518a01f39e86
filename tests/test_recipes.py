"""The recipes that come with the library: each is read, and each trains on a handful of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
from safetensors.torch import save_file

from odn_hybrid import fit
from odn_hybrid.config import load_recipe, recipe_path
from odn_hybrid.data import load_data

ROOT = Path(__file__).parent.parent
RECIPES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
#: The published nets, fewer and narrower; the rest of the recipe is as it stands.
NARROW = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "resnet34": {"layers": [1, 2, 1, 1], "channels": [8, 8, 16, 16]},
    "resnet50": {"layers": [1, 2, 1, 1], "channels": [4, 4, 8, 8]},
    "deit_small_patch16_224": {"embed_dim": 24, "num_heads": 2, "depth": 4},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_and_says_how_to_run_it(name: str) -> None:
    assert load_recipe(recipe_path(name)).version == 1
    text = (ROOT / "configs" / f"{name}.yaml").read_text()
    assert text.startswith("#"), "a recipe begins with what it is for"
    assert max(map(len, text.splitlines())) <= 125


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Sets of 360 images by side, of three classes that differ in brightness."""
    made = {}
    for side, channels in ((28, 1), (32, 3)):
        rng = np.random.default_rng(0)
        labels = np.arange(360) % 3
        pixels = rng.integers(0, 80, (360, side, side, channels)) + 60 * labels[:, None, None, None]
        file = tmp_path_factory.mktemp("images") / f"of{side}.npz"
        shape = pixels.astype(np.uint8) if channels == 3 else pixels.astype(np.uint8)[..., 0]
        np.savez(file, x_train=shape[:300], y_train=labels[:300], x_test=shape[300:], y_test=labels[300:])
        made[side] = file
    return made


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "quickstart"])
def test_a_recipe_trains(name: str, images: dict[int, Path], tmp_path: Path) -> None:
    recipe = load_recipe(recipe_path(name))
    grey = recipe.data.source in ("mnist", "fashion_mnist", "emnist_letters")
    args = {**recipe.model.args, **NARROW[str(recipe.model.name)]}
    overrides = {
        "model.args": args,
        "expansion.max_looks": 3,
        "expansion.warmup_epochs": 1,
        "expansion.cooldown": 0.5,
        "optim.batch_size": 48,
        "data.workers": 0,
        "data.image_size": 32 if "vit" not in str(recipe.model.name) else None,
        "choice.target_accuracy": None if recipe.choice.target_accuracy is None else 0.5,
    }
    if recipe.data.image_size == 224:
        overrides["data.image_size"] = 32
        if "deit" in str(recipe.model.name):
            overrides["model.args"] = {**args, "img_size": 32, "patch_size": 8}
    if recipe.regime != "scratch":
        weights = timm.create_model(str(recipe.model.name), num_classes=3, **args).state_dict()
        save_file(weights, tmp_path / "weights.safetensors")
        overrides["model.checkpoint"] = str(tmp_path / "weights.safetensors")
    run = fit(recipe_path(name), images[28 if grey else 32], overrides=overrides)
    assert run.exits_[0]["trained"]
    best = max(row["accuracy"]["selection"]["value"] for row in run.exits_ if row["trained"])
    assert best > 0.4, "worse than guessing"
    if recipe.choice.max_bytes is not None:
        kept = next(row for row in run.exits_ if row["exit"] == run.report_["static"]["exit"])
        assert kept["bytes"] <= recipe.choice.max_bytes


def test_the_data_of_a_small_set_have_all_splits(images: dict[int, Path]) -> None:
    assert set(load_data(str(images[32])).splits) >= {
        "train",
        "selection",
        "calibration",
        "certification",
        "test",
    }
