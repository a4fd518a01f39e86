"""`odn serve --ray`: put the deployment on a Ray cluster, wait, and take it away again."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from odn_hybrid.errors import ConfigError, OdnError
from odn_hybrid.serve.replicas.plain import to_text
from odn_hybrid.serve.running.listening import tls, warn_of
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching import configure_logging, say

__all__ = ["ClusterError", "deploy"]

log = logging.getLogger("odn_hybrid.serve")

APP = "odn"
STORE = 80 << 20  # bytes of shared memory of a cluster of our own: images do not go through it
HEALTH_SECONDS, HEALTH_PERIOD = 30.0, 5.0
MARGIN = 10.0  # seconds that Ray's proxy waits longer than a replica may take
STARTS = 3  # attempts at a cluster of our own
TRIES = 2  # to start a replica, before the deployment counts as failed


class ClusterError(OdnError):
    """Ray cannot be reached or started, or the replicas do not start."""


def deploy(
    models: Mapping[str, Path],
    settings: ServeSettings,
    *,
    replicas: tuple[int, int] | None = None,
    listening: Callable[[str], None] | None = None,
    **loading: Any,
) -> None:
    """Serve models on the Ray cluster there is, or on one of its own, until SIGTERM or SIGINT.

    Args:
        models: name -> folder; every machine of the cluster must have it at this path.
        settings: limits of every replica; `host`, `port` and TLS are of Ray's proxies.
        replicas: least and most of them; default: one for each device of the cluster.
        listening: told the URL once all models are loaded.
        loading: see `Loading`.

    Raises:
        ConfigError: options that cannot be used. ClusterError: see there.
    """
    wanted = Loading(models=models, **loading)
    tls(settings)
    if settings.port == 0:
        raise ConfigError("with --ray name a --port: Ray's proxies do not say which one is free")
    for name, path in models.items():
        if not Path(path).is_dir():
            raise ConfigError(f"no saved model or run at {path} ({name}): not a directory")
    # Before Ray is imported: nothing is reported to its makers; and a cluster of our own is there for the
    # replicas, which Ray would run behind everything else on the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    with configure_logging(settings):
        warn_of(settings, beyond=not _loopback(settings.host))
        _serve(wanted, settings, replicas, listening)


def _serve(
    wanted: Loading,
    settings: ServeSettings,
    replicas: tuple[int, int] | None,
    listening: Callable[[str], None] | None,
) -> None:
    import ray
    from ray import serve

    mine = _connect(ray)
    stop = _signals()  # not before: Ray sets some of its own
    try:
        least, most = replicas or (_devices(ray, wanted),) * 2
        serve.start(
            proxy_location="HeadOnly" if _loopback(settings.host) else "EveryNode",
            http_options=_http(settings),
        )
        _run(serve, wanted, settings, least, most)
        if listening is not None:
            scheme = "https" if settings.certfile else "http"
            listening(f"{scheme}://{settings.host}:{settings.port}")
        say(log, "deployed", models=list(wanted.models), replicas=[least, most])
        stop.wait()
        say(log, "stopping")
        serve.delete(APP)  # replicas answer what they have first
    finally:
        if mine:
            serve.shutdown()
        ray.shutdown()


def _run(serve: Any, loading: Loading, settings: ServeSettings, least: int, most: int) -> None:
    from odn_hybrid.serve.replicas.replica import Replica, application

    lane = settings.lane
    cuda = (loading.device or "").startswith("cuda")
    deployment = serve.deployment(
        serve.ingress(application)(Replica),
        name=APP,
        ray_actor_options={"num_gpus": 1} if cuda else {"num_cpus": loading.threads or 1},
        max_ongoing_requests=lane.queue,
        max_queued_requests=lane.queue,
        # One batch that runs and one that waits keep a device busy; what goes beyond asks for another.
        autoscaling_config={
            "min_replicas": least, "max_replicas": most, "initial_replicas": least,
            "target_ongoing_requests": 2 * lane.max_batch,
        },
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_SECONDS,
        max_constructor_retry_count=TRIES,
    )  # fmt: skip
    try:
        serve.run(deployment.bind(to_text(loading, settings)), name=APP, route_prefix="/")
    except RuntimeError as error:
        log.debug("deploying failed", exc_info=True)
        raise ClusterError(
            f"the replicas did not start; Ray's log says why: {_last_line(str(error))}"
        ) from None


def _connect(ray: Any) -> bool:
    """To the cluster there is; else a small one on this machine, and True."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address="auto", **quiet)
        return False
    except ConnectionError:
        pass
    for attempt in range(STARTS):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                object_store_memory=STORE,
                num_cpus=max(2, os.cpu_count() or 1),
                **quiet,
            )
            break
        except Exception as error:  # on a busy machine it gives itself too little time
            ray.shutdown()
            if attempt == STARTS - 1:
                raise ClusterError(f"Ray does not start: {_last_line(str(error))}") from None
    return True


def _devices(ray: Any, loading: Loading) -> int:
    """How many replicas fill the cluster: one per GPU, or one per machine."""
    if (loading.device or "").startswith("cuda"):
        return max(1, int(ray.cluster_resources().get("GPU", 0)))
    return max(1, sum(bool(node["Alive"]) for node in ray.nodes()))


def _http(settings: ServeSettings) -> dict[str, Any]:
    told: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "request_timeout_s": settings.request_seconds + settings.body_seconds + MARGIN,
    }
    if settings.certfile is not None:
        told |= {"ssl_certfile": str(settings.certfile), "ssl_keyfile": str(settings.keyfile)}
    return told


def _loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _signals() -> threading.Event:
    stop = threading.Event()

    def told(*_: object) -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    return stop


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
