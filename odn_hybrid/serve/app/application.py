"""The app: routes, and the guard around them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from odn_hybrid._version import __version__
from odn_hybrid.serve.app.describing import described
from odn_hybrid.serve.app.guarding import Guard
from odn_hybrid.serve.app.inferring import inference_routes
from odn_hybrid.serve.app.predicting import predict_routes
from odn_hybrid.serve.app.replying import json_reply
from odn_hybrid.serve.app.service import Service
from odn_hybrid.serve.settings import ServeSettings

if TYPE_CHECKING:
    from odn_hybrid.serve.decoding import Decoders
    from odn_hybrid.serve.hosting.host import Host

__all__ = ["create_app"]


def create_app(
    host: Host, settings: ServeSettings, decoders: Decoders, *, pages: Sequence[APIRouter] = ()
) -> FastAPI:
    """The ASGI app that answers for the models of `host`.

    Host, engine and decoders are the caller's to start and close.

    Args:
        host: models and the engine they run on.
        settings: limits and token.
        decoders: read image files.
        pages: more routes, behind the same guard.
    """
    service = Service(host, settings, decoders)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="odn_hybrid",
        version=__version__,
        lifespan=lifespan,
        # FastAPI's own pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _no_route},
    )
    for router in (inference_routes(service), predict_routes(service), *pages):
        app.include_router(router)
    make = app.openapi
    app.openapi = lambda: described(make(), settings)  # type: ignore[method-assign]
    app.add_middleware(Guard, settings=settings)
    return app


async def _no_route(request: Request, error: Any) -> Response:
    """No such path or method."""
    return json_reply({"error": error.detail}, error.status_code, error.headers)
