"""`Trunk`: any backbone seen as `stem -> units -> tail`, proved by a numerical self-check."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import default_image_size, evaluating, fixed_image_size, input_channels, unwrapped
from odn_hybrid.errors import InputError, ModelError
from odn_hybrid.trunk.checking import check_route
from odn_hybrid.trunk.flow import Flow, flow_of
from odn_hybrid.trunk.layout import Layout, layout_of
from odn_hybrid.trunk.plans import DepthPlan
from odn_hybrid.trunk.route import Route, chain_of
from odn_hybrid.trunk.splitting import split
from odn_hybrid.trunk.state import State
from odn_hybrid.trunk.tracing import UNFIT, Trace, patching, trace

__all__ = ["Trunk"]


class Trunk:
    """A backbone that can be stopped after any unit and resumed.

    The model stays as it is: same object, same keys, no wrapping. The split is found by tracing two forwards
    and proved on random images at wrap time; what cannot be proved is refused. Images of another size or
    precision than the first are traced and proved when they first come.

    Args:
        model: a classifier that maps images (batch, channels, height, width) to logits (batch, classes). Of a
            compiled or data-parallel one the model inside is taken.
        image_size: side or (height, width) in pixels; default: what the model was made for.
        check: run the numerical self-check (skipped for models on the meta device).

    Raises:
        ModelError: fewer than two residual blocks, a chain of blocks that breaks (the module is named), or a
            self-check that fails.

    Example:
        >>> import timm, torch
        >>> from odn_hybrid import Trunk
        >>> trunk = Trunk(timm.create_model("resnet18", num_classes=10).eval(), image_size=32)
        >>> len(trunk)
        8
        >>> images = torch.rand(2, 3, 32, 32)
        >>> state = trunk.run(trunk.stem(images), 0, 3)
        >>> bool(torch.allclose(trunk.tail(trunk.run(state, 3, 8)), trunk.model(images), atol=1e-5))
        True
    """

    def __init__(
        self, model: nn.Module, *, image_size: int | tuple[int, int] | None = None, check: bool = True
    ) -> None:
        self.model = model = unwrapped(model)
        if (
            isinstance(model, torch.jit.ScriptModule) or "eval" in model.__dict__
        ):  # an exported one's is its own
            raise ModelError(
                f"{type(model).__name__} was scripted or exported, which hides its blocks; "
                "wrap the model that it was made from"
            )
        self.image_shape = _image_shape(model, image_size)
        self.checked = check
        self._fixed = fixed_image_size(model) == self.image_shape[1:]
        self._routes: dict[Any, Route] = {}
        like = next(model.parameters(), torch.zeros(()))
        example = torch.empty(1, *self.image_shape, device=like.device, dtype=like.dtype)
        route, flow = self._explored(example)
        self._routes[_key(example)] = self._main = route
        self._describe(flow)
        self._savers = [module for module in model.modules() if hasattr(module, "grad_checkpointing")]

    # --- the public face --------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._main.units)

    def stem(self, images: Tensor) -> State:
        """The state at depth 0 of images (batch, channels, height, width)."""
        self._check_images(images)
        return self._route(images).begin(images)

    def run(self, state: State, start: int, stop: int) -> State:
        """Run units `start` to `stop - 1` on a state at depth `start`; gives the state at depth `stop`.

        Where the model was asked to checkpoint gradients (`model.set_grad_checkpointing()`), each unit is.
        Raises `InputError` for a state at another depth, or units that are not there.
        """
        route = self._route_of(state)
        if state.depth != start or not start <= stop <= len(self):
            raise InputError(
                f"run(state, {start}, {stop}) on a state at depth {state.depth} of a trunk "
                f"with {len(self)} units"
            )
        return route.advance(state, stop, saving=self._saves()) if stop > start else state

    def follow(self, state: State, plan: DepthPlan, stop: int | None = None) -> State:
        """Go on to depth `stop` (default: all), running only the units that `plan` keeps."""
        route = self._route_of(state)
        for unit in range(state.depth, len(self) if stop is None else stop):
            state = self.run(state, unit, unit + 1) if unit in plan.keep else route.idle(state)
        return state

    def tail(self, state: State) -> Tensor:
        """Logits (batch, classes) of a state at full depth: the backbone's own norm, pool and classifier.

        Raises `InputError` for a state at another depth.
        """
        if state.depth != len(self):
            raise InputError(f"tail needs a state at depth {len(self)}, this one stands at {state.depth}")
        return self._route_of(state).finish(state)

    @property
    def unit_names(self) -> tuple[tuple[str, ...], ...]:
        """The backbone's own module names, per unit."""
        return self._main.split.units

    @property
    def stem_names(self) -> tuple[str, ...]:
        """The backbone's modules that run before the first unit."""
        return self._main.split.stem

    @property
    def after_names(self) -> tuple[str, ...]:
        """The backbone's modules that only serve its own head: norm, pool, classifier."""
        return self._main.split.after

    @property
    def classifier_name(self) -> str:
        """Where the backbone's classifier stands, e.g. "fc", "head" or "head.fc"."""
        cfg = getattr(self.model, "pretrained_cfg", None) or {}
        named = cfg.get("classifier") or ()
        names = [named] if isinstance(named, str) else list(named)
        for name in names:
            if any(name == after or name.startswith(f"{after}.") for after in self.after_names):
                return name
        heavy = [
            n for n in self.after_names if next(self.model.get_submodule(n).parameters(), None) is not None
        ]
        return heavy[-1] if heavy else "head"

    def layout(self, depth: int) -> Layout:
        """Shape and meaning of the axes of the activation after `depth` units (1 to len(trunk))."""
        return self._layouts[depth - 1]

    @property
    def preserving(self) -> tuple[bool, ...]:
        """Per unit, whether it keeps the shape of its input."""
        return self._preserving

    @property
    def stages(self) -> tuple[tuple[int, int], ...]:
        """Runs of units (start, stop) that work at one shape; the first unit of a stage may change it."""
        starts = [0, *(u for u, kept in enumerate(self._preserving) if u and not kept)]
        return tuple(zip(starts, [*starts[1:], len(self)], strict=True))

    @property
    def removable(self) -> tuple[int, ...]:
        """Units, from 0, that a thin plan may remove: they keep the shape and don't begin a stage."""
        firsts = {start for start, _ in self.stages}
        return tuple(u for u, kept in enumerate(self._preserving) if kept and u not in firsts)

    @property
    def chain(self) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Modules of the stem and of all units, where those alone, one after another, lead to the state."""
        route = self._main
        stem = chain_of(route.stem.steps, 0)
        units = chain_of([s for unit in route.units for s in unit.steps], stem[1] if stem else 0)
        return (stem[0], units[0]) if stem and units else None

    @property
    def route(self) -> Route:
        """The programs of the images it was wrapped for."""
        return self._main

    # --- finding out ------------------------------------------------------------------------------

    def _explored(self, example: Tensor) -> tuple[Route, Flow]:
        """Trace, split and prove for images like `example` (1, channels, height, width)."""
        # Not in inference mode, even if the caller is: its tensors don't say when they were changed.
        with patching, torch.inference_mode(False), evaluating(self.model):
            first, second, flow = self._flow(example)
            found = split(flow, self.model)
            route = Route(flow, found, self.model)
            if self.checked and not example.is_meta:
                check_route(route, flow, first, second, type(self.model).__name__)
        return route, flow

    def _flow(self, example: Tensor) -> tuple[Trace, Trace, Flow]:
        images = _random(example, 3)
        first = self._traced(images[:2])
        try:
            second = self._traced(images[1:2])
            return first, second, flow_of(first, second, self.model)
        except ModelError:  # a batch of one may be a case of its own; and what is made once now exists
            first, second = self._traced(images), self._traced(images[1:])
            return first, second, flow_of(first, second, self.model)

    def _traced(self, images: Tensor) -> Trace:
        kind = type(self.model).__name__
        try:
            found = trace(self.model, images)
        except UNFIT as error:
            raise ModelError(
                f"{kind} cannot run images of shape {tuple(images.shape[1:])}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        if not isinstance(found.logits, Tensor) or found.logits.dim() != 2:
            raise ModelError(
                f"{kind} does not give logits (batch, classes); only single-label classification is supported"
            )
        return found

    def _describe(self, flow: Flow) -> None:
        cuts, units = self._main.split.cuts, self._main.split.units
        self.num_classes = int(flow.tensors[flow.output].shape[1])
        self._preserving = tuple(passed is not None for passed in self._main.passes)
        find = self.model.get_submodule
        self._layouts = [
            layout_of(views[0].show(flow.tensors[cut.main]), [find(name) for name in unit], self.model)
            for cut, views, unit in zip(cuts[1:], self._main.views[1:], units, strict=True)
        ]

    def _route(self, images: Tensor) -> Route:
        key = _key(images)
        route = self._routes.get(key)
        if route is None:
            with patching:
                if key in self._routes:  # another thread was faster; states of two routes cannot be joined
                    return self._routes[key]
                route, _ = self._explored(images[:1].detach())
                if route.split.units != self._main.split.units:
                    raise ModelError(
                        f"{type(self.model).__name__} has other units for images of shape "
                        f"{tuple(images.shape[1:])} than for {self.image_shape}"
                    )
                self._routes[key] = route
        return route

    def _route_of(self, state: State) -> Route:
        return self._main if state.route is None else cast(Route, state.route)

    def _saves(self) -> bool:
        asked = any(getattr(module, "grad_checkpointing", False) is True for module in self._savers)
        return asked and self.model.training and torch.is_grad_enabled()

    def _check_images(self, images: Tensor) -> None:
        channels, *size = self.image_shape
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != channels:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images have shape {shape}; the model takes (batch, {channels}, height, width)")
        if self._fixed and list(images.shape[2:]) != size:
            raise InputError(f"images are {images.shape[2]} x {images.shape[3]}; the model takes {size}")


def _key(images: Tensor) -> tuple[Any, ...]:
    """What the steps of a forward may depend on, beside the model."""
    device = images.device.type
    mixed = torch.get_autocast_dtype(device) if _autocasts(device) else None
    return (tuple(images.shape[1:]), images.dtype, str(images.device), mixed)


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _random(example: Tensor, batch: int) -> Tensor:
    where = "meta" if example.is_meta else "cpu"
    generator = None if example.is_meta else torch.Generator().manual_seed(0)
    images = torch.rand(batch, *example.shape[1:], generator=generator, device=where)
    return images.to(device=example.device, dtype=example.dtype)


def _image_shape(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    if size is None:
        size = fixed_image_size(model) or default_image_size(model)
    height, width = (size, size) if isinstance(size, int) else size
    return input_channels(model), height, width
