"""`Trunk`: any backbone seen as `stem -> units -> tail`, proved by a numerical self-check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odn_hybrid.backbone import default_image_size, evaluating, fixed_image_size, input_channels
from odn_hybrid.errors import InputError, ModelError
from odn_hybrid.trunk.interrupting import listen, stop_at
from odn_hybrid.trunk.layout import Layout, layout_of
from odn_hybrid.trunk.splitting import GLUES, Split, splits
from odn_hybrid.trunk.state import State, UnitExtras
from odn_hybrid.trunk.tracing import Trace, trace

__all__ = ["Trunk"]

# A resumed run repeats the same kernels on the same numbers, so it is normally exact; the tolerance
# (relative to the largest logit) leaves room for kernels that are chosen by memory layout or batch size.
TOLERANCE = 1e-4


class Trunk:
    """A backbone that can be stopped after any unit and resumed.

    The model stays as it is: same object, same keys, no wrapping. The split is found by tracing one
    forward and proved on random images at wrap time; what cannot be proved is refused.

    Args:
        model: a classifier that maps images (batch, channels, height, width) to logits (batch, classes).
        image_size: side or (height, width) in pixels; default: what the model was made for.
        check: run the numerical self-check (skipped for models on the meta device).

    Raises:
        ModelError: no run of at least two residual blocks, a chain that breaks (the module is named),
            or a self-check that fails.

    Example:
        >>> import timm, torch
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
        self.model = model
        self.image_shape = _image_shape(model, image_size)
        self._fixed = fixed_image_size(model) == self.image_shape[1:]
        with evaluating(model):
            self._settle(self._traced(model), check)

    # --- the public face --------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._units)

    def stem(self, images: Tensor) -> State:
        """The state at depth 0 of images (batch, channels, height, width)."""
        self._check_images(images)
        if self._stem is not None:
            x = images
            for module in self._stem:
                x = module(x)
            return State(x, 0, self._constant)
        x, extras = self._stopped(images)
        return State(x, 0, extras)

    def run(self, state: State, start: int, stop: int) -> State:
        """Run units `start` to `stop - 1` on a state at depth `start`; gives the state at depth `stop`."""
        if state.depth != start or not start <= stop <= len(self):
            raise InputError(
                f"run(state, {start}, {stop}) on a state at depth {state.depth} of a trunk "
                f"with {len(self)} units"
            )
        x = state.x
        for number in range(start, stop):
            extras = state.extras_of(number)
            first, *rest = self._units[number]
            x = x.clone() if self._spoils[number] else x
            x = first(x, *extras.args, **dict(extras.kwargs))
            for module in rest:
                x = module(x)
        return State(x, stop, state.extras)

    def tail(self, state: State) -> Tensor:
        """Logits (batch, classes) of a state at full depth: the backbone's own norm, pool and classifier."""
        if state.depth != len(self):
            raise InputError(f"tail needs a state at depth {len(self)}, this one stands at {state.depth}")
        x = state.x.clone() if self._spoils[-1] else state.x
        if self._headed:
            for name in self.split.post or ():
                x = self.model.get_submodule(name)(x)
            return self.model.forward_head(x)  # type: ignore[operator]
        for glue, name in self.split.tail or ():
            x = self.model.get_submodule(name)(GLUES[glue](x))
        return x

    @property
    def unit_names(self) -> tuple[tuple[str, ...], ...]:
        """The backbone's own module names, per unit."""
        return self.split.units

    @property
    def after_names(self) -> tuple[str, ...]:
        """The backbone's modules that only serve its own head: norm, pool, classifier."""
        return self.split.after

    @property
    def classifier_name(self) -> str:
        """Where the backbone's classifier stands, e.g. "fc", "head" or "head.fc"."""
        cfg = getattr(self.model, "pretrained_cfg", None) or {}
        named = cfg.get("classifier") or ()
        names = [named] if isinstance(named, str) else list(named)
        for name in names:
            if any(name == after or name.startswith(f"{after}.") for after in self.split.after):
                return name
        return next(
            n
            for n in reversed(self.split.after)
            if next(self.model.get_submodule(n).parameters(), None) is not None
        )

    def layout(self, depth: int) -> Layout:
        """Shape and meaning of the axes of the activation after `depth` units (1 to len(trunk))."""
        return self._layouts[depth - 1]

    @property
    def preserving(self) -> tuple[bool, ...]:
        """Per unit, whether it keeps the shape of its input, so that it could be removed."""
        return self._preserving

    # --- finding out ------------------------------------------------------------------------------

    def _traced(self, model: nn.Module) -> Trace:
        like = next(model.parameters(), torch.zeros(()))
        generator = None if like.is_meta else torch.Generator().manual_seed(0)
        where = "meta" if like.is_meta else "cpu"
        images = torch.rand(2, *self.image_shape, generator=generator, device=where)
        images = images.to(device=like.device, dtype=like.dtype)
        try:
            found = trace(model, images)
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot run images of shape {self.image_shape}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        if not isinstance(found.logits, Tensor) or found.logits.dim() != 2:
            raise ModelError(
                f"{type(model).__name__} does not give logits (batch, classes); only single-label "
                "classification is supported"
            )
        return found

    def _settle(self, found: Trace, check: bool) -> None:
        """Take the heaviest run of blocks that can be resumed to the logits."""
        problem: ModelError | None = None
        for candidate in splits(found):
            try:
                self._take(candidate, found)
                if check and not found.images.is_meta:
                    self._check(found)
                return
            except ModelError as error:
                problem = problem or error
        assert problem is not None
        raise problem

    def _take(self, candidate: Split, found: Trace) -> None:
        find = self.model.get_submodule
        self.split = candidate
        self._units = [[find(name) for name in unit] for unit in candidate.units]
        # Tables given to the units are made between stem and trunk: then only a stopped forward has them.
        plain = candidate.stem is not None and candidate.extras == "none"
        self._stem = [find(name) for name in candidate.stem or ()] if plain else None
        self._read_trace(found)
        self._headed = self._choose_tail(found)

    def _read_trace(self, found: Trace) -> None:
        calls = {call.name: call for call in found.root.walk()}
        self.num_classes = int(found.logits.shape[1])
        firsts = [calls[unit[0]] for unit in self.split.units]
        lasts = [calls[unit[-1]] for unit in self.split.units]
        self._layouts = [layout_of(c.target.tensor, c.module, self.model) for c in lasts if c.target]
        self._preserving = tuple(
            bool(a.source and b.target and a.source.tensor.shape == b.target.tensor.shape)
            for a, b in zip(firsts, lasts, strict=True)
        )
        # A unit (or the tail) that changes its input in place would change a state that somebody still holds.
        inputs = [*(call.source for call in firsts), lasts[-1].target]
        self._spoils = tuple(bool(i and i.tensor._version != i.version) for i in inputs)
        recorded = tuple(_extras(call.args, call.kwargs) for call in firsts)
        self._constant = recorded if self.split.extras == "own" else (recorded[0],)

    def _choose_tail(self, found: Trace) -> bool:
        """True: `post` then timm's forward_head; False: the glued modules. Both are tried on the trace."""
        calls = {call.name: call for call in found.root.walk()}
        last = calls[self.split.units[-1][-1]].target
        assert last is not None
        state = State(last.tensor, len(self))
        for headed in (True, False):
            self._headed = headed
            if (self.split.post if headed else self.split.tail) is None:
                continue
            if found.images.is_meta:
                return headed
            try:
                with torch.no_grad():
                    logits = self.tail(state)
            except (RuntimeError, IndexError, TypeError, AttributeError):
                continue
            if _close(logits, found.logits):
                return headed
        after = self.split.units[-1][-1]
        raise ModelError(
            f"{type(self.model).__name__}: what follows the last block {after!r} cannot be run on its own, "
            "so the network cannot be resumed to its end"
        )

    def _check_images(self, images: Tensor) -> None:
        channels, *size = self.image_shape
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] != channels:
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images have shape {shape}; the model takes (batch, {channels}, height, width)")
        if self._fixed and list(images.shape[2:]) != size:
            raise InputError(f"images are {images.shape[2]} x {images.shape[3]}; the model takes {size}")

    def _stopped(self, images: Tensor) -> tuple[Tensor, tuple[UnitExtras, ...]]:
        """Run the model until its first unit (or past idle units, to hear what each would be given)."""
        own = self.split.extras == "own"
        if own and all(self._preserving):
            heard = listen([unit[0] for unit in self._units], self.model, images)
            return heard[0][0][0], tuple(_extras(*arguments) for arguments in heard)
        if own and tuple(images.shape[1:]) != self.image_shape:
            raise InputError(
                f"this model's blocks take tables made for images of shape {self.image_shape}, "
                f"not {tuple(images.shape[1:])}; wrap it with Trunk(model, image_size=...)"
            )
        args, kwargs = stop_at(self._units[0][0], self.model, images)
        return args[0], self._constant if own else (_extras(args, kwargs),)

    @torch.no_grad()
    def _check(self, found: Trace) -> None:
        """Resumed run against the forward; each stop against what the trace saw; one image alone."""
        calls = {call.name: call for call in found.root.walk()}
        state = self.stem(found.images)
        alone = self.stem(found.images).select(torch.tensor([1], device=found.images.device))
        for depth, unit in enumerate(self.split.units, start=1):
            state = self.run(state, depth - 1, depth)
            alone = self.run(alone, depth - 1, depth)
            seen = calls[unit[-1]].target
            intact = seen is not None and seen.tensor._version == seen.version
            if intact and seen is not None and not _close(state.x, seen.tensor):
                raise ModelError(self._failed(f"stopping after {unit[-1]!r} gives another activation"))
        if not _close(self.tail(state), found.logits):
            raise ModelError(self._failed("the resumed run gives other logits than the forward"))
        if not _close(self.tail(alone), found.logits[1:2]):
            raise ModelError(self._failed("one image alone gives other logits than in its batch"))

    def _failed(self, what: str) -> str:
        return f"{type(self.model).__name__} failed the self-check: {what}; it cannot be split safely"


def _extras(args: tuple[Any, ...], kwargs: dict[str, Any]) -> UnitExtras:
    return UnitExtras(tuple(args[1:]), tuple(kwargs.items()))


def _image_shape(model: nn.Module, size: int | tuple[int, int] | None) -> tuple[int, int, int]:
    if size is None:
        size = fixed_image_size(model) or default_image_size(model)
    height, width = (size, size) if isinstance(size, int) else size
    return input_channels(model), height, width


def _close(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    left, right = left.float(), right.float()
    loose = 100 if right.dtype != torch.float32 else 1
    scale = max(1.0, float(right.abs().max()))
    return bool((left - right).abs().max() <= TOLERANCE * loose * scale)
