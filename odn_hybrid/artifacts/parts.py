"""What runs and models have in common on disk: names of files, networks of exits, words for damage."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from odn_hybrid.backbone import BackboneSpec, build_backbone
from odn_hybrid.config import ExitConfig
from odn_hybrid.exits import MultiExit
from odn_hybrid.folding import Pairs
from odn_hybrid.trunk import Trunk

__all__ = ["EXITS_FILE", "GARBLED", "WEIGHTS_FILE", "garbled", "network_of"]

WEIGHTS_FILE = "model.safetensors"
EXITS_FILE = "exits.safetensors"
#: What building from a damaged description may raise, whatever of it was changed.
GARBLED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


def garbled(name: str | Path, error: BaseException) -> str:
    """What to say of a file that cannot be understood."""
    what = " ".join(str(error).split())[:200]
    return f"{name} is damaged: it lacks or garbles {what}; copy the folder again"


def network_of(
    spec: BackboneSpec,
    exits: ExitConfig,
    image_shape: tuple[int, ...],
    weights: dict[str, Tensor],
    heads: dict[str, Tensor],
    backbone: nn.Module | None,
    folds: Pairs = (),
) -> MultiExit:
    """The network of exits with these weights, in evaluation mode; into `backbone`, if that is given.

    `folds`: of a folded network, what was made one.
    """
    model = backbone if backbone is not None else build_backbone(spec)
    network = MultiExit(Trunk(model, image_size=(image_shape[1], image_shape[2])), exits)
    if folds:
        network.eval().fold(folds)
    network.load_parts(weights, heads)
    return network.eval()
