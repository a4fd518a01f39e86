"""A sample of timm's families, small: the promise of a trunk in numbers. `make sweep` checks them all."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from odn_hybrid import MultiExit, Trunk

_TOKENS = {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 2}

# name -> arguments, image size to wrap it at, units, and what flows beside the activation: tensors, tables
FAMILIES: dict[str, tuple[dict[str, Any], int | None, int, int, int]] = {
    "cait_xxs24_224": (_TOKENS, None, 4, 0, 0),  # the class token enters after three blocks, then two in one
    "pit_ti_224": ({"img_size": 64}, None, 14, 0, 0),  # between its stages a map and a class token
    "tnt_s_patch16_224": ({"img_size": 64, "depth": 3}, 64, 3, 1, 0),  # pixels of patches lie in the rows
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 3}, None, 5, 0, 0),
    "convit_tiny": ({"img_size": 64, "depth": 4}, None, 4, 0, 0),
    "levit_128s": ({"img_size": 64}, 64, 11, 0, 0),
    "beit_base_patch16_224": (_TOKENS, None, 3, 0, 0),
    "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 3}, None, 3, 0, 0),
    "naflexvit_base_patch16_gap": ({"depth": 3, "embed_dim": 48, "num_heads": 2}, 64, 3, 0, 0),
    "test_nfnet": ({}, 64, 4, 0, 0),
    "test_mambaout": ({}, 64, 9, 0, 0),
    "test_byobnet": ({}, 64, 4, 0, 0),
    "edgenext_xx_small": ({}, 64, 7, 0, 0),
    "ghostnet_050": ({}, 64, 17, 0, 0),
    "mobilevit_xxs": ({}, 64, 12, 0, 0),
    "ese_vovnet19b_slim_dw": ({}, 64, 4, 0, 0),
    "starnet_s050": ({}, 64, 10, 0, 0),
    "dla46_c": ({}, 64, 8, 3, 0),  # a tree: its branches wait beside the activation
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families(prove: Callable[..., Trunk], name: str) -> None:
    args, size, units, streams, tables = FAMILIES[name]
    trunk = prove(timm.create_model(name, num_classes=5, **args), size)
    assert len(trunk) == units
    state, most = trunk.stem(torch.rand(2, *trunk.image_shape)), [0, 0]
    for depth in range(units):
        state = trunk.run(state, depth, depth + 1)
        most = [max(most[0], len(state.streams)), max(most[1], len(state.tables))]
    assert most == [streams, tables]

    network = MultiExit(trunk).train()
    sum(logits.square().mean() for logits in network(torch.rand(2, *trunk.image_shape))).backward()  # type: ignore[union-attr]
    for unit in trunk.unit_names:
        found = [
            p.grad for n in unit for p in trunk.model.get_submodule(n).parameters() if p.grad is not None
        ]
        assert all(bool(grad.isfinite().all()) for grad in found)
        assert any(bool(grad.any()) for grad in found), unit


def test_both_heads_of_a_distilled_model_count(prove: Callable[..., Trunk]) -> None:
    """A model with several heads answers as it answers itself: the mean of its heads."""
    trunk = prove(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **_TOKENS))
    assert {"head", "head_dist"} <= set(trunk.after_names)
    assert isinstance(trunk.model.get_submodule("head_dist"), nn.Linear)
