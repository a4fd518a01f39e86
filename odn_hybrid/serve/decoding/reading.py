"""The bytes of an image file -> its pixels, exactly as the training data are read. Without torch."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from odn_hybrid.errors import InputError
from odn_hybrid.imaging import BOMBS, IMAGE_FORMATS, MAX_PIXELS, UNKNOWN_RANGE, pil_array
from odn_hybrid.serve.refusals import BadRequest, TooLarge

__all__ = ["MAX_PIXELS", "prepare", "read_image"]


def prepare(max_pixels: int) -> None:
    """Import all that reading may need: nothing can be opened later. The library refuses by its header, too.

    Without this, PIL imports every format it knows, some of which start programs.
    """
    import codecs

    from PIL import (  # noqa: F401
        BmpImagePlugin,
        ExifTags,
        GifImagePlugin,
        ImageFile,
        ImageOps,
        ImagePalette,
        ImageSequence,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    for name in ("ascii", "latin-1", "utf-8", "utf-16"):
        codecs.lookup(name)
    warnings.simplefilter("ignore")  # nobody reads them, and showing one would open a file
    # Twice as many and PIL itself refuses, sooner than we can; not the samples below.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, 64)
    for kind in IMAGE_FORMATS:  # what is imported only when it is used
        sample = io.BytesIO()
        Image.new("RGB", (8, 8)).save(sample, kind)
        read_image(sample.getvalue(), max_pixels=64)


def read_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """uint8 (height, width), grey, or (height, width, 3) of an image file.

    Raises `BadRequest`, `TooLarge` (more than `max_pixels`, by its header), MemoryError.
    """
    limit = min(max_pixels, MAX_PIXELS)
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > limit:
                raise TooLarge(
                    f"the image has {width}x{height} pixels, above the limit of {limit}; scale it down"
                )
            image.load()
        if image.mode in UNKNOWN_RANGE:
            raise BadRequest(
                f"the image has pixel mode {image.mode!r} of unknown range; store it with 8 bits"
            )
        return pil_array(image)
    except (BadRequest, TooLarge, MemoryError):
        raise
    except BOMBS:
        raise TooLarge(f"the image has more than {limit} pixels; scale it down") from None
    except UnidentifiedImageError:
        known = ", ".join(IMAGE_FORMATS)
        raise BadRequest(f"this is not an image file that the server reads; send one of {known}") from None
    except InputError:
        raise BadRequest("the image cannot be brought to 8 bits of grey or colour; convert it") from None
    except Exception:  # a damaged file may end anywhere in the library; what it says is not for the client
        raise BadRequest("the image file is damaged or cut off; send it again or mend it") from None
