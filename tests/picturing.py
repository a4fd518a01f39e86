"""Image files for tests: every format and pixel mode that counts, and files made to hurt their reader."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

__all__ = ["BOMBS", "PICTURES", "saved", "slow_jpeg", "text_bomb"]


def _picture(mode: str, side: int = 21) -> Image.Image:
    noise = np.random.default_rng(len(mode)).integers(0, 256, (side + 3, side, 3), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(noise[..., 0].astype(np.uint16) * 257 + 90)
    image = Image.fromarray(noise)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(noise[..., 1]))
    return image if mode == image.mode else image.convert(mode)


def saved(image: Image.Image, kind: str, **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def _every_kind() -> dict[str, bytes]:
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
        "JPEG": ("L", "RGB", "CMYK"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "PPM": ("1", "L", "RGB"),
        "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("L", "P", "RGB"),
    }
    files = {f"{kind} {mode}": saved(_picture(mode), kind) for kind in modes for mode in modes[kind]}
    colour, grey, palette = _picture("RGB"), _picture("L"), _picture("P")
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        files[f"{kind} turned"] = saved(colour, kind, exif=turned)
    for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        files[f"TIFF {name}"] = saved(colour, "TIFF", compression=name)
    files["TIFF group4"] = saved(_picture("1"), "TIFF", compression="group4")
    files["JPEG progressive"] = saved(colour, "JPEG", progressive=True)
    files["JPEG of two pictures"] = saved(colour, "MPO", save_all=True, append_images=[grey.convert("RGB")])
    files["PNG of transparent palette"] = saved(palette, "PNG", transparency=bytes(range(256)))
    files["PNG of one transparent colour"] = saved(palette, "PNG", transparency=3)
    files["WEBP lossless"] = saved(colour, "WEBP", lossless=True)
    moving = [palette, _picture("P", 21).rotate(90, expand=False)]
    files["GIF moving"] = saved(moving[0], "GIF", save_all=True, append_images=moving[1:])
    files["WEBP moving"] = saved(colour, "WEBP", save_all=True, append_images=[grey.convert("RGB")])
    files["PNG moving"] = saved(colour, "PNG", save_all=True, append_images=[grey.convert("RGB")])
    files["JPEG with a profile"] = saved(colour, "JPEG", icc_profile=b"x" * 100_000)
    told = PngImagePlugin.PngInfo()
    told.add_itxt("Comment", "Größe " * 1000, zip=True)
    files["PNG with a text"] = saved(colour, "PNG", pnginfo=told)
    return files


PICTURES = _every_kind()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IEND", b"")


def _bombs() -> dict[str, bytes]:
    """Small files that say they are large: a header of 40000x40000 pixels or as much as the format can."""
    noughts = _chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9))
    side = 40_000
    bmp = bytearray(PICTURES["BMP RGB"])
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(PICTURES["GIF L"])
    gif[6:10] = struct.pack("<HH", side, side)
    jpeg = bytearray(PICTURES["JPEG L"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    webp = b"VP8L" + struct.pack("<I", 10) + b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(5)
    tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: side, 279: side * side}
    tiff = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    tiff += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()) + bytes(100)
    return {
        "PNG": _png(side, side, noughts),
        "BMP": bytes(bmp),
        "GIF": bytes(gif),
        "JPEG": bytes(jpeg),
        "PPM": b"P5 %d %d 255\n" % (side, side) + bytes(100),
        "TIFF": tiff,
        "WEBP": b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp,
    }


BOMBS = _bombs()


def text_bomb() -> bytes:
    """A PNG file of a few hundred kB whose texts want to be 200 MB."""
    text = _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9))
    return _png(4, 4, text * 200, _chunk(b"IDAT", zlib.compress(bytes(20))))


def slow_jpeg(scans: int = 20_000) -> bytes:
    """A picture of 1000x1000 pixels in so many passes, of which each takes about a millisecond."""
    file = saved(Image.new("L", (1000, 1000), 128), "JPEG", progressive=True)
    scan = file[file.rindex(b"\xff\xda") : -2]
    return file[:-2] + scan * scans + file[-2:]
