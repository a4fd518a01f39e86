"""Every HTTP request is counted, logged and traced with what became of it."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from watched import EXITS, answers, logits_of, model, serving_watched

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.app import create_app
from odn_hybrid.serve.decoding import Decoders
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.stages.simulated import numbered_images
from odn_hybrid.serve.watching import Following, Watch, tracing, watch_routes
from odn_hybrid.serve.watching import traces as traces_module

LOGITS = logits_of(50)
TOKEN = "a token that nobody knows"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Asking:
    """An app around a watched host, asked without a network."""

    def __init__(self, app: Any, watch: Watch) -> None:
        self.app, self.watch = app, watch

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())

    def infer(self, *numbers: int, path: str = "/v2/models/net/infer", **more: Any) -> httpx.Response:
        images = numbered_images(numbers)
        given = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
        return self("POST", path, json={"inputs": [given]}, **more)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def asking(spans: InMemorySpanExporter) -> Iterator[Asking]:
    settings = ServeSettings()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with serving_watched(settings) as (watch, host):
        host.put("net", model(LOGITS))
        app = create_app(host, settings, Decoders(settings), pages=[watch_routes(watch, host)])
        yield Asking(Following(tracing(app, provider), watch), watch)


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.odn_fields for r in caplog.records if getattr(r, "odn_event", "") == "request"]


def test_a_request_has_its_line(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = asking.infer(3, 4, headers={"x-request-id": "mine-1"})
    assert found.status_code == 200
    (line,) = logged(caplog)
    assert line["id"] == "mine-1" == found.headers["x-request-id"]
    assert (line["method"], line["status"], line["model"]) == ("POST", 200, "net")
    assert line["route"].startswith("/v2/models/{") and line["route"].endswith("/infer")
    assert line["exits"] == answers(LOGITS[[3, 4]])[1].tolist() and set(line["exits"]) <= set(EXITS)
    assert line["certified"] is True and line["units"] > 0
    assert line["bytes"] == len(found.request.content) and line["ms"] >= line["engine_ms"] > 0


def test_a_refused_request_says_why_and_repeats_nothing(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"authorization": "Bearer " + TOKEN}
    asking.infer(3, path="/v2/models/nobody%0aknows/infer?key=" + "k" * 30, headers=secret)
    asking("POST", "/v2/models/net/infer", json={"inputs": []}, headers=secret)
    asking("GET", "/" + "x" * 50)
    images = numbered_images([1, 2])[:, :, :1]
    given = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    asking("POST", "/v2/models/net/infer", json={"inputs": [given]})
    lines = logged(caplog)
    assert [line["status"] for line in lines] == [404, 400, 404, 400]
    text = json.dumps(lines)
    assert TOKEN not in text and "knows" not in text and "kkk" not in text and "xxx" not in text


def test_what_machines_ask_all_the_time_is_not_logged(
    asking: Asking, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/status", "/", "/status.js"):
        assert asking("GET", path).status_code == 200
    assert logged(caplog) == []


def test_requests_of_one_connection_are_told_apart(asking: Asking, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    images = numbered_images([3])
    given = {"name": "images", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
    body = json.dumps({"inputs": [given]}).encode()

    def scope(method: str, path: str) -> dict[str, Any]:
        return {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [], "root_path": "", "http_version": "1.1", "scheme": "http",
        }  # fmt: skip

    async def scene() -> None:
        waiting = [("GET", "/v2", b""), ("POST", "/v2/models/net/infer", body)]
        tasks: list[asyncio.Task[None]] = []

        def begin(method: str, path: str, data: bytes) -> None:
            messages = [{"type": "http.request", "body": data, "more_body": False}]

            async def receive() -> dict[str, Any]:
                return messages.pop() if messages else await asyncio.Future()  # the client stays

            async def send(message: Any) -> None:
                # A server begins what is pipelined when an answer is out, in the context of that answer.
                if message["type"] == "http.response.body" and not message.get("more_body") and waiting:
                    begin(*waiting.pop())

            tasks.append(asyncio.create_task(asking.app(scope(method, path), receive, send)))

        begin("POST", "/v2/models/net/infer", body)
        while tasks:
            await tasks.pop(0)

    asyncio.run(scene())
    first, second, third = logged(caplog)
    assert [line["status"] for line in (first, second, third)] == [200] * 3
    assert first["exits"] == second["exits"] == answers(LOGITS[[3]])[1].tolist()
    assert first["units"] == second["units"] and "model" not in third and "exits" not in third


def test_metrics_and_status_over_http(asking: Asking) -> None:
    asking.infer(1, 2, 3)
    asking("GET", "/nowhere")
    found = asking("GET", "/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=")
    assert found.headers["cache-control"] == "no-store"
    samples = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(found.text)
        for sample in family.samples
    }
    assert samples["odn_http_responses_total", ("200",)] == 1
    assert samples["odn_http_responses_total", ("404",)] == 1
    assert samples["odn_ready", ()] == 1
    said = asking("GET", "/status")
    assert said.headers["content-type"] == "application/json"
    assert [row["name"] for row in said.json()["models"]] == ["net"]


def test_the_page_and_its_script_come_with_strict_headers(asking: Asking) -> None:
    page = asking("GET", "/")
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'"
    assert policy["style-src"].startswith("'sha256-") and "unsafe" not in str(policy)
    assert policy["frame-ancestors"] == "'none'"
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    script = asking("GET", "/status.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    for text in (page.text, script.text):
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text
    paths = asking("GET", "/openapi.json").json()["paths"]
    assert "/metrics" in paths and "/status" in paths and "/" not in paths


def test_a_client_that_goes_and_an_application_that_breaks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = Watch()

    async def gone(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("inside")

    async def ask(app: Any) -> None:
        messages = [{"type": "http.request", "body": b"12345"}, {"type": "http.disconnect"}]

        async def receive() -> dict[str, Any]:
            return messages.pop(0)

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
        await Following(app, watch)(scope, receive, send)

    asyncio.run(ask(gone))
    with pytest.raises(RuntimeError, match="inside"):
        asyncio.run(ask(broken))
    assert [(line["status"], line["bytes"]) for line in logged(caplog)] == [(499, 5), (500, 0)]


# --- traces -----------------------------------------------------------------------------------------------


def test_a_span_says_what_became_of_the_request(asking: Asking, spans: InMemorySpanExporter) -> None:
    asking.infer(3, 4, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    asking("GET", "/metrics")
    (span,) = spans.get_finished_spans()
    assert format(span.context.trace_id, "032x") == TRACE
    assert span.parent is not None and format(span.parent.span_id, "016x") == PARENT
    assert span.name.startswith("POST /v2/models/{")
    said = dict(span.attributes or {})
    assert said["http.response.status_code"] == 200 and said["odn.model"] == "net" and said["odn.images"] == 2
    assert list(said["odn.exits"]) == answers(LOGITS[[3, 4]])[1].tolist()
    assert said["odn.certified"] is True and said["odn.engine_ms"] > 0


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", "00-" * 1000, "\xff"])
def test_a_traceparent_that_is_none_begins_a_trace(
    asking: Asking, spans: InMemorySpanExporter, header: str
) -> None:
    found = asking.infer(3, headers=[(b"traceparent", header.encode("latin-1"))])
    (span,) = spans.get_finished_spans()
    assert found.status_code == 200 and span.parent is None


def test_failures_are_errors_and_bad_requests_are_not(asking: Asking, spans: InMemorySpanExporter) -> None:
    asking("POST", "/v2/models/net/infer", content=b"{")
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None and span.attributes["http.response.status_code"] == 400
    assert span.status.is_ok or span.status.is_unset


def test_nothing_is_traced_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in traces_module.ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    app: Any = object()
    assert tracing(app) is app
    monkeypatch.setenv(traces_module.ENDPOINTS[0], "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing(app) is app
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert runpy.run_path(traces_module.__file__)["tracing"](app) is app


def test_an_endpoint_without_the_packages_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(traces_module.ENDPOINTS[0], "http://127.0.0.1:4318")
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    app: Any = object()
    with pytest.raises(ConfigError, match=r"odn-hybrid\[tracing\]"):
        tracing(app)
    monkeypatch.setenv(traces_module.PROTOCOLS[0], "grpc")
    with pytest.raises(ConfigError, match="http/protobuf"):
        tracing(app)
