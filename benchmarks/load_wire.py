"""Requests and answers as bytes: the Open Inference Protocol v2 with binary tensors, or tensors alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["RawWire", "V2Wire", "Wire", "wire_of"]

DTYPES = {
    "FP32": np.float32, "FP64": np.float64, "INT64": np.int64, "INT32": np.int32, "UINT8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip
JSON_LENGTH = "inference-header-content-length"


class Wire(Protocol):
    """How a server is spoken to."""

    def request(self, images: NDArray[Any]) -> bytes:
        """A whole HTTP/1.1 request for images (n, channels, height, width)."""

    def answer(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """Outputs by name, "logits" (n, classes) among them; headers have small letters."""


def _post(path: str, body: bytes, **headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass(frozen=True)
class V2Wire:
    """The v2 protocol, all tensors binary.

    Attributes:
        model: its name in the server.
        input: name of the images in its metadata.
        parameters: of the request, beside that answers are wanted binary.
    """

    model: str
    input: str
    parameters: tuple[tuple[str, Any], ...] = ()

    def request(self, images: NDArray[Any]) -> bytes:
        """See `Wire`."""
        (datatype,) = (name for name, dtype in DTYPES.items() if images.dtype == dtype)
        data = images.tobytes()
        tensor = {"name": self.input, "shape": list(images.shape), "datatype": datatype}
        tensor["parameters"] = {"binary_data_size": len(data)}
        asked = {"inputs": [tensor], "parameters": {"binary_data_output": True, **dict(self.parameters)}}
        head = json.dumps(asked).encode()
        return _post(
            f"/v2/models/{self.model}/infer",
            head + data,
            Content_Type="application/octet-stream",
            Inference_Header_Content_Length=str(len(head)),
        )

    def answer(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """See `Wire`."""
        length = int(headers.get(JSON_LENGTH, len(body)))
        found, at = {}, length
        for output in json.loads(body[:length])["outputs"]:
            dtype = DTYPES.get(output["datatype"])
            if dtype is None:  # words, such as a label: of no use here
                at += output.get("parameters", {}).get("binary_data_size", 0)
            elif "data" in output:
                found[output["name"]] = np.array(output["data"], dtype=dtype).reshape(output["shape"])
            else:
                size = output["parameters"]["binary_data_size"]
                part = np.frombuffer(body[at : at + size], dtype=dtype)
                found[output["name"]] = part.reshape(output["shape"])
                at += size
        return found


@dataclass(frozen=True)
class RawWire:
    """float32 pixels go in, float32 logits come out: for peers, which have no protocol of their own."""

    path: str
    classes: int

    def request(self, images: NDArray[Any]) -> bytes:
        """See `Wire`."""
        return _post(self.path, images.tobytes(), Content_Type="application/octet-stream")

    def answer(self, headers: Mapping[str, str], body: bytes) -> dict[str, NDArray[Any]]:
        """See `Wire`."""
        return {"logits": np.frombuffer(body, dtype=np.float32).reshape(-1, self.classes)}


def wire_of(told: dict[str, Any]) -> Wire:
    """From plain data: `{"v2": {...}}` or `{"raw": {...}}`."""
    ((kind, fields),) = told.items()
    if kind == "raw":
        return RawWire(**fields)
    pairs = tuple((name, value) for name, value in fields.get("parameters", ()))
    return V2Wire(fields["model"], fields["input"], pairs)
