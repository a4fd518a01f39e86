"""The backbone's own classifier: the last linear layer of its head, and what that sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import State

__all__ = ["OwnClassifier"]


class OwnClassifier:
    """Finds the layer that gives the backbone's logits.

    Attributes:
        layer: the linear layer; None where the logits are not what one layer gives (two classifiers that are
            averaged, a normalised one).
        width: how many features it sees.
    """

    def __init__(self, network: MultiExit) -> None:
        self.network = network
        self.layer = self._found()
        self.width = self.layer.in_features if self.layer is not None else 0

    @torch.no_grad()
    def _found(self) -> nn.Linear | None:
        network, trunk = self.network, self.network.trunk
        like = next(network.backbone.parameters())
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(2, *trunk.image_shape, generator=generator).to(like.device, like.dtype)
        state = trunk.run(trunk.stem(images), 0, len(trunk))
        for name in reversed(trunk.after_names):
            for module in reversed(list(trunk.model.get_submodule(name).modules())):
                if not isinstance(module, nn.Linear) or module.out_features != trunk.num_classes:
                    continue
                logits, seen = self._walk(state, module)
                fits = seen is not None and seen.dim() == 2 and seen.shape[1] == module.in_features
                if fits and torch.allclose(module(seen), logits, rtol=1e-4, atol=1e-5):
                    return module
        return None

    def _walk(self, state: State, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        seen: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.network.classify(len(self.network), state)
        finally:
            hook.remove()
        return logits, seen[-1] if seen else None

    def answer(self, state: State) -> tuple[Tensor, Tensor | None]:
        """Logits (batch, classes) of a state at full depth, and what the layer saw, or None."""
        if self.layer is None:
            return self.network.classify(len(self.network), state), None
        return self._walk(state, self.layer)
