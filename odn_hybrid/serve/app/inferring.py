"""The routes of the Open Inference Protocol v2, with Triton's binary tensors, classification and config."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from odn_hybrid._version import __version__
from odn_hybrid.serve.app import describing
from odn_hybrid.serve.app.answering import write_answer
from odn_hybrid.serve.app.asked import INPUT, OUTPUTS, Asked, parse_request
from odn_hybrid.serve.app.bodies import accepted_encoding, inflate, packed, read_body
from odn_hybrid.serve.app.pixels import compact, read_images
from odn_hybrid.serve.app.replying import json_reply
from odn_hybrid.serve.app.service import Service
from odn_hybrid.serve.refusals import Stopping

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["inference_routes"]

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "parameters"]
PLATFORM = "odn_hybrid"
BINARY_COST, PACKED_COST = 1 / 32, 32  # work for a byte of binary or packed data, beside one of JSON


def inference_routes(service: Service) -> APIRouter:
    """Everything under /v2."""
    router = APIRouter(tags=["Open Inference Protocol v2"])
    get = _getter(router)

    @get("/v2", "Server", "ServerMetadata")
    async def server(request: Request) -> Response:
        return json_reply({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})

    @get("/v2/health/live", "Whether the server runs", "Live", free=True, extra=(503,))
    async def live(request: Request) -> Response:
        if service.host.engine.died:
            raise Stopping("the device thread has died: start the server again")
        return json_reply({"live": True})

    @get("/v2/health/ready", "Whether all models are ready", "Ready", free=True, extra=(503,))
    async def ready(request: Request) -> Response:
        if not service.host.ready:
            raise Stopping("the server is not ready", retry_after=1)
        return json_reply({"ready": True})

    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        _model_routes(router, service, path)
    return router


def _model_routes(router: APIRouter, service: Service, path: str) -> None:
    get = _getter(router)

    def model(request: Request) -> Hosted:
        return service.host.model(request.path_params["name"], request.path_params.get("version"))

    @get(path, "A model's inputs and outputs", "ModelMetadata", extra=(404,))
    async def metadata(request: Request) -> Response:
        return json_reply(_metadata(model(request)))

    @get(f"{path}/ready", "Whether a model is ready", "ModelReady", extra=(404, 503))
    async def ready(request: Request) -> Response:
        hosted = model(request)
        if hosted.lane is None:
            raise Stopping("the model is not ready", retry_after=1)
        return json_reply({"name": hosted.name, "ready": True})

    @get(f"{path}/config", "A model's configuration, as Triton words it", "ModelConfig", extra=(404,))
    async def config(request: Request) -> Response:
        return json_reply(_config(model(request), service.settings.max_images))

    @router.post(f"{path}/infer", **describing.infer(path))
    async def infer(request: Request) -> Response:
        return await _infer(service, request)


def _getter(router: APIRouter) -> Any:
    """`get(path, summary, schema)` decorates a handler of GET with its description."""

    def get(path: str, summary: str, schema: str, *, free: bool = False, extra: tuple[int, ...] = ()) -> Any:
        return router.get(path, **describing.plain(path, summary, schema, free=free, extra=extra))

    return get


async def _infer(service: Service, request: Request) -> Response:
    settings, headers = service.settings, request.headers
    name, version = request.path_params["name"], request.path_params.get("version")
    service.host.model(name, version)  # an unknown one is said before the body is read
    body = await read_body(request)
    encoding = headers.get("content-encoding", "")
    if encoding:
        body = await service.work(len(body) * PACKED_COST, inflate, body, encoding, settings.max_body_bytes)
    header = headers.get("inference-header-content-length")
    text = int(header) if header is not None and header.isdecimal() and len(header) <= 12 else len(body)
    asked = await service.work(text, parse_request, body, header, settings.max_images)
    del body  # what is still needed of it, `asked` holds

    async def prepare(hosted: Hosted) -> NDArray[np.float32]:
        nonlocal asked
        limits, size = (settings.max_images, settings.max_pixels), _size(asked, text, hosted)
        # Not as lists while the request waits for the device, nor afterwards if the model is replaced.
        asked = replace(asked, given=await service.work(size, compact, asked.given, hosted, *limits))
        return await service.work(size, read_images, asked.given, hosted, *limits)

    hosted, output = await service.ask(request, name, version, prepare, asked.options)
    many = output.logits.size * 8 if not asked.wanted[0].binary else 0
    answer, length = await service.work(many, write_answer, asked, hosted, output)
    return await _reply(service, answer, length, headers.get("accept-encoding"))


def _size(asked: Asked, text: int, hosted: Hosted) -> int:
    """About how much work it is to make an array of the pixels."""
    given = asked.given
    if given.datatype == "UINT8" and given.shape[1:3] != hosted.stages.image_shape[1:]:
        return 1 << 30  # it is resized
    return text if given.raw is None else int(len(given.raw) * BINARY_COST)


async def _reply(service: Service, answer: bytes, length: int | None, accepts: str | None) -> Response:
    kind = "application/json" if length is None else "application/octet-stream"
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    encoding = accepted_encoding(accepts)
    if encoding is not None:
        answer, used = await service.work(len(answer), packed, answer, encoding)
        headers |= {} if used is None else {"Content-Encoding": used}
    return Response(answer, 200, headers, kind)


def _metadata(hosted: Hosted) -> dict[str, Any]:
    classes = hosted.stages.classes
    return {
        "name": hosted.name,
        "versions": [hosted.version],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *hosted.stages.image_shape]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, classes] if name == "logits" else [-1]}
            for name, datatype in OUTPUTS.items()
        ],
    }


def _config(hosted: Hosted, max_images: int) -> dict[str, Any]:
    classes = hosted.stages.classes
    return {
        "name": hosted.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": max_images,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": list(hosted.stages.image_shape)}],
        "output": [
            {"name": name, "data_type": f"TYPE_{datatype}", "dims": [classes] if name == "logits" else []}
            for name, datatype in OUTPUTS.items()
        ],
    }
