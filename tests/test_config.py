"""Recipes: to plain data and back, and what is refused by name."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from odn_hybrid.config import (
    CONFIG_VERSION,
    FitConfig,
    from_dict,
    load_recipe,
    recipe_path,
    replace_fields,
    to_dict,
)
from odn_hybrid.errors import ConfigError

RECIPES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_yaml(path):
    recipe = load_recipe(path)
    assert recipe.version == CONFIG_VERSION
    assert from_dict(FitConfig, yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe


def test_the_quickstart_comes_with_the_library():
    assert load_recipe(recipe_path("quickstart")).data.source == "digits"
    with pytest.raises(ConfigError, match="no recipe named 'quikstart'"):
        recipe_path("quikstart")


@given(
    tolerance=st.floats(0, 0.99),
    seed=st.integers(0, 2**31 - 1),
    target=st.one_of(st.none(), st.floats(0.01, 1.0)),
)
def test_changed_fields_go_round(tolerance, seed, target):
    changes = {"choice.tolerance": tolerance, "choice.target_accuracy": target, "seed": seed}
    changed = replace_fields(FitConfig(), changes)
    assert (changed.choice.tolerance, changed.choice.target_accuracy, changed.seed) == (
        tolerance,
        target,
        seed,
    )
    assert from_dict(FitConfig, to_dict(changed)) == changed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"choice.target_accuracy": 1.5}, "target_accuracy is 1.5; it must be a fraction"),
        ({"choice.tolerence": 0.1}, "did you mean 'tolerance'"),
        ({"chioce.tolerance": 0.1}, "no section 'chioce'"),
        ({"seed.low": 1}, "no section 'seed'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True; expected int"),
        ({"optim.lr": "fast"}, "optim.lr is 'fast'; expected a number"),
        ({"optim.lr": float("nan")}, "expected a finite number"),
        ({"regime": "warm"}, "choose one of scratch, finetune"),
        ({"model.args": [1]}, "model.args must be a mapping"),
        ({"version": 2}, "this release reads version 1"),
        ({"data.image_size": 4}, "8 to 2048 pixels"),
    ],
)
def test_what_is_refused_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        replace_fields(FitConfig(), changes)


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("expansion: {max_train_macs: 1e15}\n")
    assert load_recipe(path).expansion.max_train_macs == 1e15


@pytest.mark.parametrize("text", ["- a list", "a: [", "version: 1\nmodel: {nam: x}"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(path)


def test_naming_the_published_procedure_keeps_the_other_fields_of_the_expansion() -> None:
    changes = {"choice.target_accuracy": 0.9, "expansion.max_epochs": 7.0, "expansion": "reload"}
    for order in (changes, dict(reversed(changes.items()))):
        changed = replace_fields(FitConfig(), order).expansion
        assert (changed.procedure, changed.max_epochs) == ("reload", 7.0)
