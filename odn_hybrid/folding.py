"""Batch normalisation taken into the convolution or linear layer before it, where that changes nothing.

In evaluation a batch normalisation is y = scale * x + shift per channel, and what is linear before it can do
that itself (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2). Found by looking at one forward, proved
on a copy: what reads the layer's output beside the normalisation would otherwise see other numbers.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import evaluating
from odn_hybrid.errors import ModelError

__all__ = ["Pairs", "apply_fold", "fold_pairs"]

#: Names of (layer, normalisation) that become one.
Pairs = Sequence[tuple[str, str]]

# Package and class, exactly: a child of a class may standardise its weight, or do anything else.
LAYERS = {("torch", "Conv2d"), ("torch", "Linear"), ("timm", "Conv2dSame")}
NORMS = {
    ("torch", "BatchNorm1d"),
    ("torch", "BatchNorm2d"),
    ("torch", "SyncBatchNorm"),
    ("timm", "BatchNormAct2d"),
    ("timm", "FrozenBatchNorm2d"),
    ("timm", "FrozenBatchNormAct2d"),
    ("torchvision", "FrozenBatchNorm2d"),
}
EXACT = 1e-9  # relative difference of outputs in float64


@torch.inference_mode(False)  # a copy made in inference mode could not be changed
@torch.no_grad()
def fold_pairs(model: nn.Module, images: Tensor) -> tuple[tuple[str, str], ...]:
    """Names (layer, normalisation) that `apply_fold` can make one, in the order in which they run.

    A pair is one whose normalisation is given what the layer gave, each being called once and sharing nothing
    with others. Folding all of them is then proved on a copy in float64, to 1e-9 of the largest output, with
    normalisations that are not near an identity; where it fails, the pairs that are guilty are left out.
    Everything that reads the model's inside must be part of it: of a network with exits give the whole
    `MultiExit`, whose exits are outputs then, not its backbone.

    Args:
        model: maps images to a tensor or to a nest of tensors; it is left as it is.
        images: (batch, channels, height, width); one or two are enough.
    """
    found = [pair for pair in _neighbours(model, images) if _stays_finite(model, pair)]
    if not found:
        return ()
    device = images.device if images.device.type != "mps" else torch.device("cpu")  # it has no float64
    twin = copy.deepcopy(model).to(device=device, dtype=torch.float64)
    _shake(twin, [norm for _, norm in found])
    proof = _Proof(twin, images.to(device=device, dtype=torch.float64))
    right = proof.right(found)
    return tuple(right) if proof.holds(right) else ()


@torch.inference_mode(False)  # weights made in inference mode are not like others
def apply_fold(model: nn.Module, pairs: Pairs) -> nn.Module:
    """Fold `pairs` into `model`, in place, and give it back; for evaluation only.

    The layer has a bias then, and the normalisation's place is taken by an identity, or by the activation
    that it had inside. What is built depends on the pairs only, not on values, so that the weights of a
    folded model can be loaded into one folded anew. Values are computed in float64 on the CPU and rounded
    once, so that they are the same everywhere. Raises `ModelError` for a pair that the model does not have.
    """
    for layer_name, norm_name in pairs:
        layer, norm = _pair(model, layer_name, norm_name)
        weight, bias = _folded(layer, norm)
        trained = layer.weight.requires_grad
        layer.weight = nn.Parameter(weight, requires_grad=trained)
        layer.bias = nn.Parameter(bias, requires_grad=trained)
        model.set_submodule(norm_name, _rest(norm))
    return model


# --- what stands after what --------------------------------------------------------------------------


def _neighbours(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """(layer, normalisation) of which the second is given the first's output, by one forward."""
    alone = _unshared(model)
    calls: Counter[str] = Counter()
    made: dict[int, tuple[str, Tensor]] = {}  # by place in memory, which they hold on to
    found: list[tuple[str, str]] = []
    hooks = []

    def watch(name: str, module: nn.Module) -> None:
        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            calls[name] += 1
            made[output.data_ptr()] = (name, output)

        def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            calls[name] += 1
            given = inputs[0] if inputs else None
            if isinstance(given, Tensor) and given.data_ptr() in made:
                layer, output = made[given.data_ptr()]
                if _is_passed_on(output, given, module):
                    found.append((layer, name))

        hooks.append(
            module.register_forward_hook(after)
            if _kind(module) in LAYERS
            else module.register_forward_pre_hook(before)
        )

    try:
        for name, module in model.named_modules():
            if name in alone and (_is_plain_layer(module) or _is_fixed_norm(module)):
                watch(name, module)
        with evaluating(model), torch.autocast(images.device.type, enabled=False):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    readers = Counter(layer for layer, _ in found)
    return [(a, b) for a, b in found if calls[a] == calls[b] == readers[a] == 1]


def _unshared(model: nn.Module) -> set[str]:
    """Names of modules that stand in one place only and share no parameter with another."""
    places: Counter[int] = Counter()
    owners: Counter[int] = Counter()
    for parent in model.modules():
        places.update(id(child) for child in parent._modules.values() if child is not None)
        owners.update(id(tensor) for tensor in parent._parameters.values() if tensor is not None)
    return {
        name
        for name, module in model.named_modules()
        if places[id(module)] == 1
        and all(owners[id(tensor)] == 1 for tensor in module._parameters.values() if tensor is not None)
    }


def _is_plain_layer(module: nn.Module) -> bool:
    return _kind(module) in LAYERS and _is_unhooked(module) and isinstance(module.weight, nn.Parameter)


def _is_fixed_norm(module: nn.Module) -> bool:
    """A normalisation that uses running statistics in evaluation."""
    known = _kind(module) in NORMS and isinstance(module._buffers.get("running_mean"), Tensor)
    return known and _is_unhooked(module)


def _is_unhooked(module: nn.Module) -> bool:
    """Nothing of its call was changed from outside, as pruning and weight normalisation do."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return not changed


def _kind(module: nn.Module) -> tuple[str, str]:
    kind = type(module)
    return kind.__module__.partition(".")[0], kind.__qualname__


def _is_passed_on(output: Tensor, given: Tensor, norm: Any) -> bool:
    """Whether `given` is a layer's `output`, or the same rows of channels in another arrangement (LeViT)."""
    size = norm.running_mean.numel()
    if _kind(norm)[1] == "BatchNorm1d" or given.dim() == 2:
        rows = given.dim() == 2 and output.shape[-1] == given.shape[-1] == size
        return rows and output.numel() == given.numel() and output.is_contiguous() and given.is_contiguous()
    return output is given and given.dim() == 4 and given.shape[1] == size


# --- folding one pair --------------------------------------------------------------------------------


def _pair(model: nn.Module, layer_name: str, norm_name: str) -> tuple[Any, Any]:
    layer: Any
    norm: Any
    try:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    except AttributeError as error:
        raise ModelError(f"nothing to fold: {error}") from None
    fits = _kind(layer) in LAYERS and _kind(norm) in NORMS and norm._buffers.get("running_mean") is not None
    if not fits or norm.running_mean.numel() != layer.weight.shape[0]:
        kinds = f"{type(layer).__name__} {layer_name!r} and {type(norm).__name__} {norm_name!r}"
        raise ModelError(f"{kinds} cannot be folded: not a layer and its batch normalisation")
    return layer, norm


@torch.no_grad()
def _folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer with the normalisation in it, on the layer's device and of its dtype."""

    def exact(tensor: Tensor | None, otherwise: float) -> Tensor:
        if tensor is None:
            tensor = torch.full_like(norm.running_mean, otherwise)
        place = tensor.device if tensor.is_meta else "cpu"
        return tensor.detach().to(device=place, dtype=torch.float64)

    mean, variance = exact(norm.running_mean, 0), exact(norm.running_var, 1)
    scale = exact(norm.weight, 1) / (variance + norm.eps).sqrt()
    shift = exact(norm.bias, 0) - mean * scale
    weight = exact(layer.weight, 0)
    weight = weight * scale.view(-1, *([1] * (weight.dim() - 1)))
    bias = exact(layer.bias, 0) * scale + shift
    like = layer.weight
    return weight.to(device=like.device, dtype=like.dtype), bias.to(device=like.device, dtype=like.dtype)


def _rest(norm: Any) -> nn.Module:
    """What is left of a normalisation that was folded: its own dropout and activation, if it has them."""
    parts = {name: getattr(norm, name, None) for name in ("drop", "act")}
    left = {name: p for name, p in parts.items() if p is not None and not isinstance(p, nn.Identity)}
    rest: nn.Module = nn.Identity()
    if len(left) == 1:
        (rest,) = left.values()
    elif left:
        rest = nn.Sequential()
        for name, part in left.items():
            rest.add_module(name, part)
    rest.training = norm.training
    return rest


def _stays_finite(model: nn.Module, pair: tuple[str, str]) -> bool:
    """Whether the folded values are numbers in the layer's dtype: a channel's scale can be large."""
    return all(bool(part.isfinite().all()) for part in _folded(*_pair(model, *pair)))


# --- the proof ---------------------------------------------------------------------------------------


class _Proof:
    """Compares a model's outputs on images with those of the same model after a fold."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images
        self.wanted = self._outputs()

    def right(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of `pairs` that may be folded, by halving."""
        if not pairs or self.holds(pairs):
            return pairs
        middle = len(pairs) // 2
        return self.right(pairs[:middle]) + self.right(pairs[middle:]) if middle else []

    def holds(self, pairs: Pairs) -> bool:
        """Whether all outputs stay the same; the model is then as it was."""
        before = [(*_pair(self.model, *pair), pair[1]) for pair in pairs]
        kept = [(layer, layer.weight, layer.bias, name, norm) for layer, norm, name in before]
        try:
            apply_fold(self.model, pairs)
            found = self._outputs()
        finally:
            for layer, weight, bias, name, norm in kept:
                layer.weight, layer.bias = weight, bias
                self.model.set_submodule(name, norm)
        return len(found) > 0 and all(map(_same, self.wanted, found))

    def _outputs(self) -> list[Tensor]:
        with evaluating(self.model), torch.autocast(self.images.device.type, enabled=False):
            return list(_tensors(self.model(self.images)))


def _same(wanted: Tensor, found: Tensor) -> bool:
    return bool((wanted - found).abs().max() <= EXACT * wanted.abs().max())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _shake(model: nn.Module, norms: Iterable[str]) -> None:
    """Change `norms` at random, and parameters that are all zero, in place.

    A normalisation that is new, or a branch that ends in zeros, would hide a fold that is wrong.
    """
    generator = torch.Generator().manual_seed(0)

    def some(like: Tensor, low: float, high: float) -> Tensor:
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * values).to(like.device)

    for parameter in model.parameters():
        if parameter.is_floating_point() and not parameter.any():
            parameter.copy_(some(parameter, 0.05, 0.1))
    for norm in map(model.get_submodule, norms):
        mean, variance, weight, bias = (
            getattr(norm, n) for n in ("running_mean", "running_var", "weight", "bias")
        )
        mean.add_(variance.sqrt() * some(mean, -0.5, 0.5))
        variance.mul_(some(variance, 0.5, 1.5))
        if weight is not None:
            weight.mul_(some(weight, 0.5, 1.5))
            bias.add_(some(bias, 0.1, 0.5))
