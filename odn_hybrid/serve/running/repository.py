"""Loading and unloading of models over HTTP, as Triton's repository extension has it.

Off unless asked for. Names are those that the server was started with, and so are the paths.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from odn_hybrid.errors import OdnError
from odn_hybrid.serve.hosting import Host
from odn_hybrid.serve.refusals import BadRequest, Refusal
from odn_hybrid.serve.running.loading import Loading

__all__ = ["repository_routes"]

log = logging.getLogger("odn_hybrid.serve")

MOST = 65536  # bytes of a body
LOADING = {"unload_dependents"}  # parameters that change nothing here


class Models(Protocol):
    """The models of a server, and where they come from."""

    host: Host
    loading: Loading

    async def load(self, name: str) -> None:
        """Load a model, or load it again."""

    async def unload(self, name: str) -> None:
        """Answer what was accepted, and let the model go."""


def repository_routes(service: Models) -> APIRouter:
    """`POST /v2/repository/index` and `/v2/repository/models/{name}/load` and `/unload`.

    Not for browsers, in which any page could send these requests to a server on the same machine.
    """
    router = APIRouter(tags=["repository"])

    @router.post("/v2/repository/index", summary="Models and whether they are loaded")
    async def index() -> JSONResponse:
        loaded = {hosted.name: hosted.version for hosted in service.host.models()}
        return JSONResponse(
            [
                {"name": name, "version": loaded[name], "state": "READY"}
                if name in loaded
                else {"name": name, "state": "UNAVAILABLE", "reason": "unloaded"}
                for name in service.loading.models
            ]
        )

    @router.post("/v2/repository/models/{name}/load", summary="Load a model, or load it again")
    async def load(name: str, request: Request) -> Response:
        _check_origin(request)
        await _check_parameters(request)
        try:
            await service.load(name)
        except Refusal:
            raise
        except OdnError as error:
            # The message may name paths: it is for the log.
            log.error("model %s was not loaded: %s", name, error)
            raise BadRequest("the model could not be loaded; the server's log says why") from None
        return Response(status_code=200)

    @router.post("/v2/repository/models/{name}/unload", summary="Unload a model")
    async def unload(name: str, request: Request) -> Response:
        _check_origin(request)
        await _check_parameters(request)
        await service.unload(name)
        return Response(status_code=200)

    return router


def _check_origin(request: Request) -> None:
    if "origin" in request.headers:
        raise BadRequest("models are not loaded and unloaded from web pages")


async def _check_parameters(request: Request) -> None:
    """Triton's clients may send a model's configuration or files: these are refused, not ignored."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MOST:
            raise BadRequest("loading takes no files and no configuration")
    if not data.strip():
        return
    try:
        said: Any = json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    parameters = said.get("parameters") if isinstance(said, dict) else None
    if (
        not isinstance(said, dict)
        or not isinstance(parameters or {}, dict)
        or set(parameters or {}) - LOADING
    ):
        raise BadRequest("loading takes no files and no configuration")
