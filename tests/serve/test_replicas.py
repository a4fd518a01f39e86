"""Several replicas on one machine through Ray: one is killed under load, and what that costs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from asking import PATIENCE, Server, until
from hosting import unpack_shared

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.replicas.plain import from_text, to_text
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.settings import LaneSettings, ServeSettings

CLIENTS, START = 8, 900.0


def test_settings_travel_as_plain_json(tmp_path: Path) -> None:
    loading = Loading(models={"a": tmp_path / "x", "b": Path("y")}, kind="full", uncertified=True, threads=2)
    settings = ServeSettings(
        token="t" * 20, log_file=Path("log"), lane=LaneSettings(max_batch=3, queue=7), decoders=2
    )
    text = to_text(loading, settings)
    assert json.loads(text)["loading"]["models"] == {"a": str(tmp_path / "x"), "b": str(Path.cwd() / "y")}
    again, same = from_text(text)
    assert again.models == {"a": tmp_path / "x", "b": Path.cwd() / "y"}
    assert (again.kind, again.uncertified, again.threads) == ("full", True, 2)
    assert (same.token, same.lane, same.decoders) == (settings.token, settings.lane, 2)
    assert same.log_file == Path.cwd() / "log" and same.certfile is None
    with pytest.raises(ConfigError):
        from_text(text.replace('"queue": 7', '"queue": 1'))


# --- a cluster --------------------------------------------------------------------------------------


class Cluster(Server):
    """`odn serve --ray` with a cluster of its own, as a process in a group of its own."""

    def __init__(self, folder: Path, run: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.folder = folder
        arguments = ["serve", f"net={run}", "--ray", "--replicas", "2:2", "--port", str(self.port)]
        arguments += ["--threads", "1", "--max-batch", "4", "--drain-seconds", "20"]
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "odn_hybrid.cli", *arguments],
                stdout=out, stderr=err, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
            )  # fmt: skip
        self.pid = self.process.pid

    def started(self) -> Cluster:
        def listens() -> bool:
            assert self.process.poll() is None, f"the server has ended:\n{self.err}"
            return bool(re.fullmatch(r"http://127.0.0.1:\d+\n", self.out))

        until(listens, "replicas that are ready", START)
        return self

    def replicas(self) -> set[int]:
        """Numbers of the processes that are replicas: this process's descendants of that name."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
                    names[int(entry.name)] = (entry / "cmdline").read_bytes()
                except (OSError, IndexError):
                    continue
        found, grown = {self.pid}, True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found, grown = found | more, bool(more)
        return {pid for pid in found if names.get(pid, b"").startswith(b"ray::ServeReplica:")}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    run = unpack_shared(tmp_path_factory.mktemp("runs") / "net")
    found = Cluster(tmp_path_factory.mktemp("cluster"), run)
    try:
        yield found.started()
    finally:
        left = found.replicas()
        found.process.terminate()
        try:
            found.process.wait(PATIENCE)
        finally:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            found.process.kill()


class Load(threading.Thread):
    """One client that asks again and again. Attributes: `statuses` of its answers, in order."""

    def __init__(self, server: Server, image: np.ndarray, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.server, self.image, self.over = server, image, over
        self.statuses: list[int] = []
        self.said: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            answer = self.server.infer(self.image)
            self.statuses.append(answer.status)
            if answer.status != 200:
                self.said.append(answer.body.decode(errors="replace"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_replica_costs_the_requests_in_it_and_no_others(cluster: Cluster) -> None:
    images = np.random.default_rng(0).normal(0, 1, (CLIENTS, 3, 32, 32)).round(2).astype(np.float32)
    alone = [cluster.infer(image).json["outputs"] for image in images]
    before = until(lambda: len(found := cluster.replicas()) == 2 and found, "two replicas")
    over = threading.Event()
    clients = [Load(cluster, image, over) for image in images]
    for client in clients:
        client.start()
    until(lambda: all(len(client.statuses) >= 5 for client in clients), "five answers for each client")
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    marks = [len(client.statuses) for client in clients]
    until(
        lambda: all(len(c.statuses) >= mark + 20 for c, mark in zip(clients, marks, strict=True)),
        "answers after the loss", START,
    )  # fmt: skip
    new = until(lambda: len(found := cluster.replicas() - {killed}) == 2 and found, "a new replica", START)
    assert before - {killed} < new
    over.set()
    for client in clients:
        client.join(PATIENCE)
    statuses = [client.statuses for client in clients]
    # A client has one request under way: at most one of each can have been in the replica that was lost.
    assert all(sum(status != 200 for status in of_one) <= 1 for of_one in statuses), statuses
    assert {status for of_one in statuses for status in of_one} <= {200, 500, 502, 503, 504}
    assert all(len(of_one) > 25 for of_one in statuses)
    until(lambda: cluster.get("/v2/health/ready").status == 200, "health")
    again = [cluster.infer(image).json["outputs"] for image in images]
    for one, other in zip(alone, again, strict=True):
        np.testing.assert_allclose(one[0]["data"], other[0]["data"], atol=1e-4)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_cluster_drains_and_ends(cluster: Cluster) -> None:
    image = np.zeros((3, 32, 32), dtype=np.float32)
    assert cluster.infer(image).status == 200
    replicas = cluster.replicas()
    cluster.process.terminate()
    assert cluster.process.wait(PATIENCE) == 0
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in replicas), "replicas that have ended")
