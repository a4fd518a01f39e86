"""An inference request of the Open Inference Protocol v2: what its JSON says, and where its pixels lie."""

from __future__ import annotations

import json
import reprlib
from dataclasses import dataclass
from typing import Any, NoReturn

from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import BadRequest, TooLarge

__all__ = ["INPUT", "OUTPUTS", "Asked", "Given", "Wanted", "parse_request"]

INPUT = "images"
#: Outputs and their types: logits (n, classes), the others (n,).
OUTPUTS = {"logits": "FP32", "label": "INT64", "confidence": "FP32", "exit": "INT64", "units_run": "INT64"}
#: What a request's `parameters` may hold. `timeout` (microseconds) and the last three are what Triton's
#: clients send; requests have no ranks here, so that `priority` has no influence.
PARAMETERS = ("max_depth", "min_confidence", "deadline_ms", "timeout", "binary_data_output", "priority")
BRACKETS = 1_000_000  # lists and objects in one body: each costs memory that its two bytes do not show
LONGEST_ID = 256
SHOWN = 40  # characters of a client's own words that an error repeats


@dataclass(frozen=True)
class Given:
    """The input tensor as it was sent: its numbers stand in `data` (JSON) or in `raw` (little endian)."""

    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    raw: memoryview | None = None


@dataclass(frozen=True)
class Wanted:
    """An output to answer with; `top` > 0: the k best classes as text (classification extension)."""

    name: str
    binary: bool
    top: int = 0


@dataclass(frozen=True)
class Asked:
    """A whole request. `given.shape` of a bare tensor (no JSON) is empty: its length says how many images."""

    id: str | None
    given: Given
    wanted: tuple[Wanted, ...]
    options: Options


def parse_request(body: bytes, header: str | None, max_images: int) -> Asked:
    """Read a body.

    Args:
        header: the value of Inference-Header-Content-Length: how many bytes of the body are JSON, the rest
            being binary tensors. None: all of it is JSON. 0: all of it is the float32 tensor.
        max_images: in one request.

    Raises:
        BadRequest, TooLarge: for all that it cannot be.
    """
    length = _json_length(header, len(body))
    raw = memoryview(body)[length:]
    if length == 0 and header is not None:
        return Asked(None, Given("FP32", (), raw=raw), _wanted(None, False), Options())
    request = _object(_loads(body if length == len(body) else body[:length]), "the request")
    parameters = _object(request.get("parameters", {}), "parameters")
    name = request.get("id")
    if name is not None and (not isinstance(name, str) or len(name) > LONGEST_ID):
        raise BadRequest(f"id must be a text of at most {LONGEST_ID} characters")
    given = _given(request.get("inputs"), raw, max_images)
    wanted = _wanted(request.get("outputs"), _truth(parameters, "binary_data_output"))
    return Asked(name, given, wanted, _options(parameters))


# --- JSON -------------------------------------------------------------------------------------------------


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= 20 else float(text)


def _real(text: str) -> float:
    return float(text)


def _constant(text: str) -> NoReturn:
    raise BadRequest(f"the JSON holds {text}; numbers must be finite")


#: Numbers pass through functions of ours: there other threads get their turn.
DECODER = json.JSONDecoder(parse_int=_whole, parse_float=_real, parse_constant=_constant)


def _loads(text: bytes) -> Any:
    if text.count(b"[") + text.count(b"{") > BRACKETS:
        raise BadRequest("the JSON has too many lists; send the numbers as one flat list, or as binary data")
    try:
        return DECODER.decode(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON (or Inference-Header-Content-Length is wrong)") from None


def _json_length(header: str | None, size: int) -> int:
    if header is None:
        return size
    if not (header.isascii() and header.isdigit() and len(header) <= 12) or int(header) > size:
        raise BadRequest("Inference-Header-Content-Length must be a number of bytes within the body")
    return int(header)


def shown(value: Any) -> str:
    """A client's own value in an error message, cut short."""
    text = reprlib.repr(value)  # quick also for what is long
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest(f"{what} must be a JSON object")
    return value


def _truth(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name} is {shown(value)}; it must be true or false")
    return value


def _count(parameters: dict[str, Any], name: str) -> int | None:
    value = parameters.get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(f"{name} is {shown(value)}; it must be a whole number from 0")
    return value


# --- the parts of a request -------------------------------------------------------------------------------


def _options(parameters: dict[str, Any]) -> Options:
    for name in parameters:
        if name not in PARAMETERS:
            raise BadRequest(f"unknown parameter {shown(name)}; known: {', '.join(PARAMETERS)}")
    for name in ("max_depth", "min_confidence", "deadline_ms"):
        if not isinstance(parameters.get(name), int | float | None):
            raise BadRequest(f"{name} is {shown(parameters[name])}; it must be a number")
    deadline = parameters.get("deadline_ms")
    timeout = _count(parameters, "timeout")
    if deadline is None and timeout:
        deadline = timeout / 1e3
    return Options(
        max_depth=parameters.get("max_depth"),
        min_confidence=parameters.get("min_confidence"),
        deadline_ms=deadline,
    )


def _given(inputs: Any, raw: memoryview, max_images: int) -> Given:
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise BadRequest(f"inputs must be a list with one tensor, {INPUT!r}")
    tensor = _object(inputs[0], "an input")
    if tensor.get("name") != INPUT:
        raise BadRequest(f"the input is named {shown(tensor.get('name'))}; it must be {INPUT!r}")
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if datatype not in ("FP32", "UINT8"):
        raise BadRequest(f"datatype is {shown(datatype)}; use FP32 (prepared pixels) or UINT8 (raw pixels)")
    if not isinstance(shape, list) or len(shape) != 4 or any(type(d) is not int or d < 1 for d in shape):
        raise BadRequest(f"shape is {shown(shape)}; it must be four whole numbers from 1")
    if shape[0] > max_images:
        raise TooLarge(f"{shown(shape[0])} images in one request; the limit is {max_images}")
    parameters = _object(tensor.get("parameters", {}), "an input's parameters")
    if any(name.startswith("shared_memory") for name in parameters):
        raise BadRequest("shared memory is not offered; send the tensor's data")
    size, data = _count(parameters, "binary_data_size"), tensor.get("data")
    if size is None:
        if not isinstance(data, list):
            raise BadRequest("the input has neither a list as data nor binary_data_size")
        if len(raw):
            raise BadRequest("binary data follows the JSON, but the input has no binary_data_size")
        return Given(datatype, tuple(shape), data=data)
    if data is not None:
        raise BadRequest("the input has both data and binary_data_size")
    if size != len(raw):
        raise BadRequest(
            f"binary_data_size is {shown(size)}, but {len(raw)} bytes follow the JSON"
            " (see Inference-Header-Content-Length)"
        )
    return Given(datatype, tuple(shape), raw=raw)


def _wanted(outputs: Any, binary: bool) -> tuple[Wanted, ...]:
    """The outputs asked for; all of them where the list is missing or empty."""
    if not outputs and (outputs is None or isinstance(outputs, list)):
        return tuple(Wanted(name, binary) for name in OUTPUTS)
    if not isinstance(outputs, list) or len(outputs) > len(OUTPUTS):
        raise BadRequest(f"outputs must be a list of some of {', '.join(OUTPUTS)}")
    found: dict[str, Wanted] = {}
    for output in outputs:
        name = _object(output, "an output").get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in found:
            raise BadRequest(f"output {shown(name)} is unknown or comes twice; known: {', '.join(OUTPUTS)}")
        parameters = _object(output.get("parameters", {}), "an output's parameters")
        if any(key.startswith("shared_memory") for key in parameters):
            raise BadRequest("shared memory is not offered; leave it out")
        top = _count(parameters, "classification") or 0
        if top and name != "logits":
            raise BadRequest(f"classification is for 'logits', not for {name!r}")
        found[name] = Wanted(name, _truth(parameters, "binary_data", binary), top)
    return tuple(found.values())
