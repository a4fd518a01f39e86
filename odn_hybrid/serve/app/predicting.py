"""`POST /predict`: an image file in, the answer in plain words out."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from odn_hybrid.runner import RunnerOutput
from odn_hybrid.serve.app import describing
from odn_hybrid.serve.app.answering import probabilities
from odn_hybrid.serve.app.bodies import form_file, read_body
from odn_hybrid.serve.app.pixels import prepared
from odn_hybrid.serve.app.replying import json_reply
from odn_hybrid.serve.app.service import LARGE, Service, answer_of
from odn_hybrid.serve.app.statuses import Unsupported
from odn_hybrid.serve.asking import Options
from odn_hybrid.serve.refusals import BadRequest

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting.hosted import Hosted

__all__ = ["predict_routes"]

WHOLE, REAL = re.compile(r"[0-9]{1,9}"), re.compile(r"[0-9]{0,20}\.?[0-9]{1,20}(e-?[0-9]{1,2})?")
QUERY = ("model", "max_depth", "min_confidence", "deadline_ms", "top")
TOP = 5


def predict_routes(service: Service) -> APIRouter:
    """The one route for image files."""
    router = APIRouter(tags=["Image files"])

    @router.post("/predict", **describing.predict())
    async def predict(request: Request) -> Response:
        asked = _query(request)
        top = _whole(asked, "top")
        if top == 0:
            raise BadRequest("top is 0; it must be 1 or more classes")
        options = Options(
            max_depth=_whole(asked, "max_depth"),
            min_confidence=_real(asked, "min_confidence"),
            deadline_ms=_real(asked, "deadline_ms"),
        )
        name = asked["model"] if "model" in asked else service.only()
        service.host.model(name)  # an unknown one is said before the body is read
        file = await _file(service, request)
        until = service.until(request, options)

        async def prepare(hosted: Hosted) -> NDArray[np.float32]:
            # The pixels are not kept while the request waits for the device: a small file may hold many.
            pixels = await answer_of(request, service.decoders.decode(file), until)
            small = pixels.shape[:2] == hosted.stages.image_shape[1:]
            return await service.work(0 if small else LARGE, prepared, [pixels], hosted)

        hosted, output = await service.ask(request, name, None, prepare, options)
        seconds = time.monotonic() - request.scope["state"]["arrived"]
        return json_reply(_answer(hosted, output, top or TOP, seconds))

    return router


async def _file(service: Service, request: Request) -> bytes:
    """The image file of a request, as its body or in a form."""
    kind = request.headers.get("content-type", "")
    plain = kind.partition(";")[0].strip().lower()
    if plain not in ("", "application/octet-stream", "multipart/form-data") and plain[:6] != "image/":
        raise Unsupported(
            "send the image file as the body with a Content-Type such as image/jpeg,"
            " or as the field 'file' of a multipart form"
        )
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Unsupported("image files are packed already; send them without Content-Encoding")
    body = await read_body(request)
    if plain == "multipart/form-data":
        body = await service.work(len(body), form_file, body, kind)
    if not body:
        raise BadRequest("there is no image file in the request")
    return body


def _query(request: Request) -> dict[str, str]:
    pairs = request.query_params.multi_items()
    for name, _ in pairs:
        if name not in QUERY:
            raise BadRequest(f"unknown query parameter {name[:40]!r}; known: {', '.join(QUERY)}")
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("a query parameter comes twice")
    return found


def _whole(asked: dict[str, str], name: str) -> int | None:
    if name not in asked:
        return None
    if not WHOLE.fullmatch(asked[name]):
        raise BadRequest(f"{name} is {asked[name][:40]!r}; it must be a whole number")
    return int(asked[name])


def _real(asked: dict[str, str], name: str) -> float | None:
    if name not in asked:
        return None
    if not REAL.fullmatch(asked[name]):
        raise BadRequest(f"{name} is {asked[name][:40]!r}; it must be a number")
    return float(asked[name])


def _answer(hosted: Hosted, output: RunnerOutput, top: int, seconds: float) -> dict[str, Any]:
    logits, labels = output.logits[0], hosted.labels
    chances = probabilities(hosted, logits, int(output.answered[0]))
    # By logits, as the answer is chosen: vector scaling may find another class likelier.
    best = np.argsort(-logits, kind="stable")[:top].tolist()

    def named(index: int) -> str | None:
        return None if labels is None else labels[index]

    return {
        "model": hosted.name,
        "version": hosted.version,
        "label": named(best[0]),
        "class": best[0],
        "confidence": float(output.confidence[0]),
        "top": [{"class": k, "label": named(k), "probability": float(chances[k])} for k in best],
        "exit": int(output.exit[0]),
        "units_run": int(output.units_run[0]),
        "units_total": int(hosted.stages.units[-1]),
        "certified": bool(output.certified),
        "milliseconds": round(seconds * 1e3, 3),
    }
