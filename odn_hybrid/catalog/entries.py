"""One line of the list of models: how a name splits, or the reason why it does not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from heapq import nlargest
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from odn_hybrid.backbone import (
    BackboneSpec,
    build_backbone,
    default_image_size,
    fixed_image_size,
    input_channels,
    parse_name,
)
from odn_hybrid.catalog.checking import Evidence, examine
from odn_hybrid.cost import count_macs, size_of
from odn_hybrid.errors import ModelError, OdnError
from odn_hybrid.exits import MultiExit
from odn_hybrid.trunk import Trunk

__all__ = ["Entry", "blank_weights", "describe", "names", "near_names"]

# In-place operations that initialisers are made of.
# fmt: off
_FILLS = frozenset((
    "add_", "clamp_", "constant_", "copy_", "erfinv_", "fill_", "kaiming_normal_", "kaiming_uniform_", "mul_",
    "normal_", "ones_", "uniform_", "xavier_normal_", "xavier_uniform_", "zero_", "zeros_",
))
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known about one model name.

    Attributes:
        name: timm's name, or "torchvision/NAME".
        family: the module its builder stands in, e.g. "vision_transformer" or "torchvision/resnet".
        supported: whether it was split.
        reason: why it was not, or why its check failed or was not run; else empty.
        units, exits, stages, removable: their numbers; 0 where it was not split.
        macs: multiply-accumulates an image; None where they were not counted.
        params: parameters; None where it could not be built.
        image_size: (height, width) that the figures are for.
        checked: whether the numerical check passed; None where it was not run.
        evidence: what that check measured.
    """

    name: str
    family: str
    supported: bool = False
    reason: str = ""
    units: int = 0
    exits: int = 0
    stages: int = 0
    removable: int = 0
    macs: int | None = None
    params: int | None = None
    image_size: tuple[int, int] | None = None
    checked: bool | None = None
    evidence: Evidence | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able data."""
        return asdict(self)


def names(pattern: str = "*") -> list[str]:
    """The names of timm that match a glob, then torchvision's classifiers (as "torchvision/NAME")."""
    return [name for name in _all_names() if fnmatchcase(name, pattern.removeprefix("timm/"))]


def near_names(pattern: str) -> list[str]:
    """At most three names that look, or begin, like a pattern which matches none."""
    plain = "".join(c for c in pattern if c not in "*?[]!")

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, plain, part).ratio() for part in (name, name[: len(plain)]))

    return [name for name in nlargest(3, _all_names(), key=likeness) if likeness(name) > 0.5]


def _all_names() -> list[str]:
    import timm
    from torchvision import models

    return [*timm.list_models(), *(f"torchvision/{name}" for name in models.list_models(module=models))]


def describe(name: str, *, check: bool = False, macs: bool = True, image_size: int | None = None) -> Entry:
    """How a model splits, built and traced on the meta device: nothing is computed or downloaded.

    Args:
        name: timm's name, or "torchvision/NAME".
        check: build it again with real random weights on the CPU and run the numerical check.
        macs: count MACs too, which takes about as long as all the rest.
        image_size: side of the images, where the model takes others than those it was made for.

    Whatever goes wrong with a known name becomes the entry's `reason`; an unknown one raises `ModelError`.
    """
    library, plain = parse_name(name)
    spec = BackboneSpec(library=library, name=plain)
    entry = Entry(name=name, family=_family(spec))
    with _quietly():
        try:
            model, size = _built_on_meta(spec, image_size)
            entry = replace(entry, params=size_of([model])[0], image_size=size)
            entry = _split(entry, model)
        except Exception as error:  # a library's own or the tracer's: a list of models has to go on
            entry = replace(entry, reason=_line(error))
        if macs and entry.image_size is not None:
            entry = replace(entry, macs=_macs(model, entry.image_size))
        return _checked(entry, spec, image_size) if check and entry.supported else entry


def _family(spec: BackboneSpec) -> str:
    """The module of the builder; raises `ModelError` if there is none of that name."""
    import timm
    from torchvision import models

    if spec.library == "torchvision" and spec.name in models.list_models():
        return f"torchvision/{_home(models.get_model_builder(spec.name))}"
    if spec.library == "timm" and timm.is_model(spec.name):
        return _home(timm.model_entrypoint(spec.name))
    near = near_names(spec.name)
    hint = f"; close names: {', '.join(near)}" if near else ""
    raise ModelError(f"unknown {spec.library} model {spec.name!r}{hint}")


def _home(builder: Any) -> str:
    return str(builder.__module__).rpartition(".")[2]


def _built_on_meta(spec: BackboneSpec, side: int | None) -> tuple[nn.Module, tuple[int, int]]:
    try:
        with torch.device("meta"), blank_weights():
            model, size = _built(spec, side)
    except ModelError:  # torchvision's RegNets read numbers back from tensors while they are built
        model, size = _built(spec, side)
        model.to("meta")
    return model.requires_grad_(False), size


def _built(spec: BackboneSpec, side: int | None) -> tuple[nn.Module, tuple[int, int]]:
    """The model in evaluation mode and the size of its images: `side`, if the model takes that."""
    model = None
    if side is not None:
        with suppress(ModelError):  # it has no such argument; it may take images of many sizes all the same
            model = build_backbone(replace(spec, args={"img_size": side}))
    model = (model or build_backbone(spec)).eval()
    side = side or default_image_size(model)
    return model, fixed_image_size(model) or (side, side)


def _split(entry: Entry, model: nn.Module) -> Entry:
    trunk = Trunk(model, image_size=entry.image_size)
    with torch.device("meta"):
        network = MultiExit(trunk)
    return replace(
        entry,
        supported=True,
        units=len(trunk),
        exits=len(network),
        stages=len(trunk.stages),
        removable=len(trunk.removable),
    )


def _macs(model: nn.Module, size: tuple[int, int]) -> int | None:
    images = torch.zeros(1, input_channels(model), *size, device="meta")
    try:
        return count_macs(lambda: model(images))
    except Exception:  # the model's own: there is no number then
        return None


def _checked(entry: Entry, spec: BackboneSpec, side: int | None) -> Entry:
    """Weights, their gradients and the activations have to fit: about three times the weights."""
    need, memory = 12 * (entry.params or 0), _memory()
    if need > memory:
        reason = f"not checked: needs {need / 1e9:.0f} GB of memory, this machine has {memory / 1e9:.0f}"
        return replace(entry, reason=reason)
    try:
        evidence = examine(*_built(spec, side))
    except Exception as error:
        return replace(entry, checked=False, reason=_line(error))
    return replace(entry, checked=not evidence.failure, reason=evidence.failure, evidence=evidence)


def _memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return float("inf")


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OdnError) else f"{type(error).__name__}: {text}"


@contextmanager
def _quietly() -> Iterator[None]:
    """The libraries' warnings about their own models are dropped; the caller's random numbers are kept."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


class blank_weights(TorchFunctionMode):
    """Leaves out, on the meta device, what would fill tensors with numbers: half the time of building."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in _FILLS and isinstance(filled, torch.Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)
