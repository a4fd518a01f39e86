"""Image files as arrays of bytes: what of a file counts, for training and for serving alike. Without torch.

Orientation tags (EXIF) of JPEG, PNG and WebP files change nothing: pixels are taken as they are stored. Of
an animation the first frame is taken; colour profiles are not applied.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from odn_hybrid.errors import InputError

__all__ = ["BOMBS", "IMAGE_FORMATS", "MAX_PIXELS", "UNKNOWN_RANGE", "check_mode", "open_image", "pil_array"]

MAX_PIXELS = 64_000_000  # a larger "image" is a decompression bomb or needs cutting first
# Named, because PIL would otherwise also try formats that start outside programs (EPS).
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNKNOWN_RANGE = ("I", "F")  # modes of PIL whose pixels nobody knows how to bring to 0..255


def _check_pixels(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{name} has {width}x{height} pixels, above the limit of {MAX_PIXELS}; scale it down"
        )


def open_image(path: Path, header_only: bool = False) -> Image.Image:
    """The image at `path`, its pixels read unless `header_only`. Raises `InputError` naming the file."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            _check_pixels(image, str(path))
            if not header_only:
                image.load()
            return image
    except BOMBS:
        raise InputError(f"{path} has more than {MAX_PIXELS} pixels; scale it down") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read the image {path} ({reason}); mend or remove it") from None


def check_mode(image: Image.Image, name: str) -> None:
    """Raise `InputError` for pixels of unknown range."""
    if image.mode in UNKNOWN_RANGE:
        raise InputError(f"{name} has pixel mode {image.mode!r} of unknown range; store it with 8 bits")


def pil_array(image: Image.Image) -> np.ndarray:
    """uint8 HxW (grey) or HxWx3 (colour) of a PIL image; transparency is dropped, 16-bit grey scaled to 8."""
    name = str(getattr(image, "filename", "") or "an image")
    _check_pixels(image, name)
    try:
        if image.mode.startswith("I;16"):
            return np.round(np.asarray(image).astype(np.float32) / 257.0).astype(np.uint8)
        check_mode(image, name)
        if image.mode in ("1", "L", "LA", "La"):
            return np.array(image.convert("L"))
        if image.mode == "P":
            image = image.convert("RGBA")  # straight to RGB, PIL warns about transparency in bytes
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot read {name} ({reason}); mend or leave it out") from None
