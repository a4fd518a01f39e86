"""OpenTelemetry: a span for every request, where that is configured. Nothing is imported elsewhere."""

from __future__ import annotations

import os
from typing import Any

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.watching.following import (
    BROKEN,
    App,
    Message,
    Receive,
    Send,
    quiet,
    request_id,
    route_of,
)
from odn_hybrid.serve.watching.telling import Told, telling

__all__ = ["tracing"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
MISSING = f"traces need OpenTelemetry: pip install 'odn-hybrid[tracing]', or unset {ENDPOINTS[0]}"


def tracing(app: App, provider: Any = None) -> App:
    """`app` with a span for each request; `app` itself where nothing is configured.

    Spans go to `provider`, an OpenTelemetry `TracerProvider`; else, over HTTP, to where the standard variable
    OTEL_EXPORTER_OTLP_ENDPOINT says. A `traceparent` header (W3C) makes a span part of the client's trace.

    Raises:
        ConfigError: an endpoint is set and the packages are missing, or another protocol is asked for.
    """
    if provider is None:
        if not any(os.environ.get(name) for name in ENDPOINTS):
            return app
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return app
        provider = _provider()
    return _Tracing(app, provider)


def _provider() -> Any:
    asked = {os.environ[name] for name in PROTOCOLS if os.environ.get(name)}
    if asked - {"http/protobuf"}:
        raise ConfigError(f"traces are sent as http/protobuf, not {sorted(asked)}; unset {PROTOCOLS[0]}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(MISSING) from None
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "odn-serve"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter())
    )  # a bounded queue; drops what is too much
    return provider


class _Tracing:
    """The middleware; see `tracing`."""

    def __init__(self, app: App, provider: Any) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self.app = app
        self.tracer = provider.get_tracer("odn_hybrid")
        self.propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or quiet(scope["path"]):
            await self.app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind

        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        parent = self.propagator.extract(headers)
        with (
            self.tracer.start_as_current_span(scope["method"], context=parent, kind=SpanKind.SERVER) as span,
            telling(scope) as told,
        ):
            try:
                await self.app(scope, receive, sending)
            finally:
                if span.is_recording():
                    _describe(span, scope, told, status)


def _describe(span: Any, scope: Message, told: Told, status: int) -> None:
    from opentelemetry.trace import Status, StatusCode

    route = route_of(scope)
    span.update_name(f"{scope['method']} {route}")
    known = {
        "http.request.method": scope["method"],
        "http.route": route,
        "http.response.status_code": status or None,  # none: the client had gone
        "odn.request_id": request_id(scope),
        "odn.model": told.model,
        "odn.images": told.images or None,
        "odn.exits": told.exits or None,
        "odn.units": told.units or None,
        "odn.certified": told.certified,
        "odn.engine_ms": None if told.engine is None else 1e3 * told.engine,
        "odn.refused": told.why,
    }
    span.set_attributes({name: value for name, value in known.items() if value is not None})
    if status >= BROKEN:
        span.set_status(Status(StatusCode.ERROR))
