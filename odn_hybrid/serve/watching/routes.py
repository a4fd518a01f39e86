"""`/metrics`, `/status` and the page at `/`."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from odn_hybrid.serve.watching.metrics import Shown
from odn_hybrid.serve.watching.status import status
from odn_hybrid.serve.watching.watch import Watch

if TYPE_CHECKING:
    from odn_hybrid.serve.hosting import Host

__all__ = ["watch_routes"]

FRESH = {"cache-control": "no-store"}


def watch_routes(watch: Watch, host: Host) -> APIRouter:
    """The routes; `watch` reads the models of `host` from now on."""
    watch.follow(host)
    router = APIRouter(tags=["watching"])
    page = files("odn_hybrid.serve.watching").joinpath("page")
    html = page.joinpath("status.html").read_bytes()
    script = page.joinpath("status.js").read_bytes()
    headers = {**FRESH, **_strict(html.decode())}

    # Neither is a coroutine: they are worked out in a thread, and the event loop goes on.
    @router.get("/metrics", summary="Metrics, in Prometheus' text format", response_class=Response)
    def metrics() -> Response:
        return Response(
            generate_latest(Shown(watch.metrics.registry)),
            headers={**FRESH, "content-type": CONTENT_TYPE_LATEST},
        )

    @router.get("/status", summary="The last minute, as JSON")
    def current() -> JSONResponse:
        return JSONResponse(status(watch), headers=FRESH)

    @router.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=headers)

    @router.get("/status.js", include_in_schema=False)
    async def javascript() -> Response:
        return Response(script, media_type="text/javascript; charset=utf-8", headers=FRESH)

    return router


def _strict(html: str) -> dict[str, str]:
    """Headers of the page: nothing from elsewhere, no style but its own, nobody frames it."""
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in styles]
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": " ".join(f"'sha256-{digest}'" for digest in digests),
        "img-src": "data:",  # an empty icon: browsers ask for one otherwise
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "referrer-policy": "no-referrer",
    }
