"""Bodies: read whole, unpacked within a limit, and the file in a form."""

from __future__ import annotations

import logging
import zlib

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from odn_hybrid.serve.app.statuses import ClientGone, Unsupported
from odn_hybrid.serve.refusals import BadRequest, TooLarge

__all__ = ["accepted_encoding", "form_file", "inflate", "packed", "read_body"]

# It logs what is wrong with a form: the client is told, and logs are not for whoever sends rubbish.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

FIELD = b"file"
PARTS = 16  # of a form
SMALLEST = 1024  # bytes of an answer that is worth packing
WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's window bits; "deflate" is the zlib format, as RFC 9110 says


async def read_body(request: Request) -> bytes:
    """The whole body; what guards the app counts it and watches the time."""
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] != "http.request":
            raise ClientGone
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def inflate(data: bytes, encoding: str, limit: int) -> bytes:
    """A body as it was before it was packed with `encoding`, a Content-Encoding; at most `limit` bytes.

    Raises:
        Unsupported: neither gzip nor deflate. TooLarge: above the limit. BadRequest: damaged.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return data
    if name not in WINDOWS:
        raise Unsupported("the body's Content-Encoding is not known here; use gzip or deflate, or none")
    unpacking = zlib.decompressobj(WINDOWS[name])
    try:
        whole = unpacking.decompress(data, limit + 1)
    except zlib.error:
        raise BadRequest(f"the body is not what its Content-Encoding says ({name})") from None
    if len(whole) > limit:
        raise TooLarge(f"the unpacked body is above the limit of {limit} bytes")
    if not unpacking.eof or unpacking.unused_data:
        raise BadRequest(f"the body's {name} data is cut off, or more follows it")
    return whole


def accepted_encoding(header: str | None) -> str | None:
    """The first of gzip and deflate that an Accept-Encoding names and does not forbid."""
    for part in (header or "").lower().split(","):
        name, _, rest = part.partition(";")
        weight = rest.replace(" ", "").removeprefix("q=")
        if name.strip() in WINDOWS and not (rest and weight.strip("0.") == ""):
            return name.strip()
    return None


def packed(data: bytes, encoding: str | None) -> tuple[bytes, str | None]:
    """An answer's body and its Content-Encoding, None where packing is not asked for or not worth it."""
    if encoding is None or len(data) < SMALLEST:
        return data, None
    packing = zlib.compressobj(1, zlib.DEFLATED, WINDOWS[encoding])
    return packing.compress(data) + packing.flush(), encoding


class _Form:
    """Collects what the parser of a form finds."""

    def __init__(self) -> None:
        self.parts = 0
        self.files: list[bytearray] = []
        self.wanted = False
        self.name, self.value, self.disposition = bytearray(), bytearray(), b""

    def begin(self) -> None:
        self.parts += 1
        if self.parts > PARTS:
            raise BadRequest(f"the form has more than {PARTS} parts")
        self.disposition = b""

    def end_header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.disposition = bytes(self.value)
        self.name, self.value = bytearray(), bytearray()

    def begin_data(self) -> None:
        _, options = parse_options_header(self.disposition)
        self.wanted = options.get(b"name") == FIELD
        if self.wanted:
            self.files.append(bytearray())

    def data(self, data: bytes, start: int, end: int) -> None:
        if self.wanted:
            self.files[-1] += data[start:end]


def form_file(data: bytes, content_type: str) -> bytes:
    """The content of the field `file` of a multipart form; `BadRequest` without exactly one."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequest("the form's Content-Type names no boundary")
    form = _Form()
    ended = []
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": lambda data, start, end: form.name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: form.value.extend(data[start:end]),
                "on_header_end": form.end_header,
                "on_headers_finished": form.begin_data,
                "on_part_data": form.data,
                "on_end": lambda: ended.append(True),
            },
        )
        parser.write(data)
        parser.finalize()
    except FormParserError:
        raise BadRequest("the form cannot be read; it must be multipart/form-data") from None
    if not ended:
        raise BadRequest("the form is cut off")
    if len(form.files) != 1:
        raise BadRequest(f"the form has {len(form.files)} fields named 'file'; send one image")
    return bytes(form.files[0])
