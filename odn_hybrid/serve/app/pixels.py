"""The pixels of a request, as the array that the model takes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from odn_hybrid.errors import InputError
from odn_hybrid.serve.app.asked import Given
from odn_hybrid.serve.refusals import BadRequest, TooLarge

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["compact", "prepared", "read_images"]

PIECE = 65536  # numbers of a list turned into an array at once
TYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}


def read_images(given: Given, hosted: Hosted, max_images: int, max_pixels: int) -> NDArray[np.float32]:
    """The input of a request as (n, channels, height, width) float32, finite, in memory of its own.

    Raises:
        BadRequest: another shape than the model's, wrong lengths, numbers that the type does not hold.
        TooLarge: too many images or pixels.
    """
    shape = _shape(given, hosted, max_images, max_pixels)
    dtype = TYPES[given.datatype]
    if given.raw is not None:
        if len(given.raw) != math.prod(shape) * dtype.itemsize:
            raise BadRequest(
                f"{len(given.raw)} bytes of {given.datatype} data do not fill the shape {_listed(shape)}"
            )
        pixels: NDArray[Any] = np.frombuffer(given.raw, dtype=dtype).reshape(shape)
    else:
        assert given.data is not None
        pixels = _from_lists(given.data, shape, dtype)
    if given.datatype == "UINT8":
        return prepared(pixels, hosted)
    images = np.array(pixels, dtype=np.float32, order="C")  # of its own: aligned, writable
    check_finite(images)
    return images


def compact(given: Given, hosted: Hosted, max_images: int, max_pixels: int) -> Given:
    """The same tensor, its numbers as bytes: lists of them take eight times the memory or more.

    Raises as `read_images` does.
    """
    if given.data is None:
        return given
    shape = _shape(given, hosted, max_images, max_pixels)
    pixels = _from_lists(given.data, shape, TYPES[given.datatype])
    return Given(given.datatype, shape, raw=pixels.reshape(-1).view(np.uint8).data)


def prepared(pixels: Any, hosted: Hosted) -> NDArray[np.float32]:
    """Images as files hold them, uint8 arrays, through the model's own transform."""
    if hosted.transform is None:
        raise BadRequest("this model has no transform for image files; send prepared pixels as FP32")
    try:
        images = np.asarray(hosted.transform(pixels), dtype=np.float32)
    except InputError as error:
        raise BadRequest(str(error)) from None
    check_finite(images)
    return images


def check_finite(images: NDArray[np.float32]) -> None:
    """Raises `BadRequest` for NaN or infinite pixels."""
    with np.errstate(all="ignore"):
        # One pass without a table of answers; a sum may overflow where no pixel is infinite.
        fine = np.isfinite(images.sum()) or np.isfinite(images).all()
    if not fine:
        raise BadRequest("images hold NaN or infinite values")


def _shape(given: Given, hosted: Hosted, max_images: int, max_pixels: int) -> tuple[int, ...]:
    want = hosted.stages.image_shape
    shape = given.shape or _bare_shape(given, want, max_images)
    if given.datatype == "FP32" and shape[1:] != want:
        sizes = ", ".join(map(str, want))
        raise BadRequest(f"FP32 images have shape {_listed(shape)}; the model takes [n, {sizes}]")
    if given.datatype == "UINT8" and shape[1] * shape[2] > max_pixels:
        raise TooLarge(f"an image of {shape[1]} x {shape[2]} pixels; the limit is {max_pixels} pixels")
    return shape


def _bare_shape(given: Given, want: tuple[int, int, int], max_images: int) -> tuple[int, ...]:
    """Of a body that is nothing but a float32 tensor."""
    assert given.raw is not None
    images, rest = divmod(len(given.raw), 4 * math.prod(want))
    if rest or not images:
        raise BadRequest(f"the body holds {len(given.raw)} bytes; an image takes {4 * math.prod(want)}")
    if images > max_images:
        raise TooLarge(f"{images} images in one request; the limit is {max_images}")
    return (images, *want)


def _from_lists(data: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers in flat or nested lists; in pieces, between which other threads get their turn."""
    count = math.prod(shape)
    flat = not data or not isinstance(data[0], list)
    if len(data) != (count if flat else shape[0]):
        raise BadRequest(f"data has {len(data)} entries; the shape is {_listed(shape)}")
    pieces = _pieces(data) if flat else list(_rows(data, shape))  # as many numbers as the shape says
    found = np.empty(count, dtype=dtype)
    place = 0
    for row in pieces:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            found[place : place + len(row)] = _numbers(row, dtype)
        place += len(row)
    return found.reshape(shape)


def _pieces(data: list[Any]) -> Iterator[list[Any]]:
    return (data[start : start + PIECE] for start in range(0, len(data), PIECE))


def _rows(data: Any, shape: tuple[int, ...]) -> Iterator[list[Any]]:
    """The innermost lists, in order."""
    if not isinstance(data, list) or len(data) != shape[0]:
        raise BadRequest("data is nested in another way than the shape says")
    if len(shape) == 1:
        yield data
        return
    for part in data:
        yield from _rows(part, shape[1:])


def _numbers(row: list[Any], dtype: np.dtype[Any]) -> array[Any]:
    """Not by numpy, which turns texts into numbers, and numbers beside a long text into as long texts."""
    if dtype.kind == "u":
        try:
            return array("B", row)
        except (TypeError, OverflowError):
            raise BadRequest("UINT8 data must be whole numbers from 0 to 255") from None
    try:
        return array("d", row)
    except TypeError:
        raise BadRequest("data must be numbers, flat or nested as the shape says") from None


def _listed(shape: tuple[int, ...]) -> str:
    text = str(list(shape))
    return text if len(text) <= 80 else f"{text[:80]}..."
