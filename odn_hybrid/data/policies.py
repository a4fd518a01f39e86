"""timm's augmentation policies and random erasing, repeatable: each image's is a function of given words.

timm draws from the global generators of `random`, numpy and torch. They are seeded here for each image, and
given back as they were, so that an image's augmentation depends on (seed, epoch, index) and on nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from odn_hybrid.data.hashing import random_bits
from odn_hybrid.data.preprocess import Preprocess
from odn_hybrid.errors import ConfigError

__all__ = ["apply_policy", "check_policy", "erase_boxes", "make_policy"]

# timm leaves out what it cannot read: a misspelt option would be silently ignored.
_SECTION = re.compile(r"(m|n|p|mstd|mmax|inc|w|d|a|b)\d+(\.\d+)?|t(weights|3aw?)")

Policy = Callable[[Image.Image], Image.Image]


def check_policy(text: str | None, preprocess: Preprocess) -> None:
    """Raise `ConfigError` for a policy that timm does not know, or images that it cannot take."""
    make_policy(text, preprocess)


def make_policy(text: str | None, preprocess: Preprocess) -> Policy | None:
    """RandAugment ("rand-..."), AugMix ("augmix-...") or AutoAugment ("original", "v0", ...) of timm."""
    if text is None:
        return None
    from timm.data import auto_augment

    if preprocess.ready or preprocess.channels not in (1, 3):
        kind = "ready-made tensors" if preprocess.ready else f"images of {preprocess.channels} channels"
        raise ConfigError(f"rand_augment takes grey or colour images, not {kind}; leave it out")
    mean = preprocess.mean if preprocess.channels == 3 else preprocess.mean * 3
    options = {
        "translate_const": int(min(preprocess.size) * 0.45),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
    }
    kinds = {"rand": "rand_augment_transform", "augmix": "augment_and_mix_transform"}
    name, *sections = text.split("-")
    try:
        if not all(map(_SECTION.fullmatch, sections)):
            raise ValueError("an unknown section")
        policy: Policy = getattr(auto_augment, kinds.get(name, "auto_augment_transform"))(text, options)
    except (AssertionError, KeyError, ValueError, AttributeError) as error:
        reason = f" ({error})" if str(error) else ""
        raise ConfigError(
            f"rand_augment is {text!r}, which timm does not know{reason}; write it like rand-m9-mstd0.5-inc1"
        ) from None
    for operation in _operations(policy):
        if operation.name.startswith("Posterize"):
            operation.level_fn = partial(_some_bits, operation.level_fn)
    return policy


def _operations(policy: Any) -> Iterator[Any]:
    """Timm's `AugmentOp`s, each once: of RandAugment and AugMix in `ops`, of AutoAugment in sub-policies."""
    found = getattr(policy, "ops", None) or [op for part in getattr(policy, "policy", ()) for op in part]
    return iter({id(operation): operation for operation in found}.values())


def _some_bits(level: Callable[..., tuple[int, ...]], *magnitude: Any) -> tuple[int, ...]:
    """Timm may ask to keep no bit of a colour, which Pillow 12 refuses: one is the fewest."""
    bits, *rest = level(*magnitude)
    return (max(1, bits), *rest)


def apply_policy(policy: Policy, pixels: Tensor, words: Sequence[int], rows: np.ndarray) -> Tensor:
    """uint8 (N, C, H, W) for pixels that are uint8, or float in 0..1; C is 1 or 3.

    The policy of image k is a function of `words` and `rows[k]`.
    """
    if pixels.dtype != torch.uint8:
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8)
    made = np.empty(tuple(pixels.permute(0, 2, 3, 1).shape), dtype=np.uint8)
    grey = pixels.shape[1] == 1
    with _seeded(words, rows) as images:
        for number in images:
            array = pixels[number].permute(1, 2, 0).numpy()
            image = Image.fromarray(array[:, :, 0] if grey else np.ascontiguousarray(array)).convert("RGB")
            changed = policy(image)
            made[number] = np.asarray(changed.convert("L"))[:, :, None] if grey else np.asarray(changed)
    return torch.from_numpy(made).permute(0, 3, 1, 2)


def erase_boxes(images: Tensor, probability: float, words: Sequence[int], rows: np.ndarray) -> Tensor:
    """Random erasing (Zhong et al. 2020) by timm: a rectangle of 2 to 33 % of the area becomes noise.

    `images`: normalised (N, C, H, W), changed in place; image k's rectangle is a function of `words` and
    `rows[k]`.
    """
    from timm.data.random_erasing import RandomErasing

    erasing = RandomErasing(probability, mode="pixel", device="cpu")
    with _seeded(words, rows) as numbers:
        for number in numbers:
            erasing(images[number])
    return images


@contextmanager
def _seeded(words: Sequence[int], rows: np.ndarray) -> Iterator[Iterator[int]]:
    """Positions 0..len(rows) - 1; as each is taken, the global generators are seeded for its row."""

    def seeding() -> Iterator[int]:
        for number, bits in enumerate(random_bits(words, rows)):
            seed = int(bits) & 0xFFFFFFFF
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            yield number

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield seeding()
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
