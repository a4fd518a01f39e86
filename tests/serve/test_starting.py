"""Where a server listens, what it warns of, what it is told while it loads; and a replica's log."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from odn_hybrid.cli import serving
from odn_hybrid.errors import ConfigError, StorageError
from odn_hybrid.serve.replicas import apart, replica
from odn_hybrid.serve.replicas.plain import to_text
from odn_hybrid.serve.running.listening import beyond, listen, warn_of
from odn_hybrid.serve.running.loading import Loading
from odn_hybrid.serve.running.server import Server
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching import say

NOT_OURS = "192.0.2.7"  # of a network for examples in texts
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of Linux only")


# --- addresses ----------------------------------------------------------------------------------------


def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    """Any name stands for these addresses."""

    def found(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", found)


@needs_linux
def test_all_addresses_of_a_name_are_listened_on_at_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "127.0.0.1", NOT_OURS, "127.0.0.2", "127.0.0.1")
    found = listen(ServeSettings(host="several", port=0))
    try:
        places = [one.getsockname() for one in found]
        assert [host for host, _ in places] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in places}) == 1 and not beyond(found)
        for place in places:
            with socket.socket() as client:  # not by a name
                client.settimeout(20)
                client.connect(place)
        assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in found)
    finally:
        for one in found:
            one.close()


@needs_linux
def test_an_address_that_is_taken_is_an_error_also_where_others_are_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolving(monkeypatch, "127.0.0.1", "127.0.0.2")
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"cannot listen on several port .*choose another --port"):
            listen(ServeSettings(host="several", port=port))
        socket.create_server(("127.0.0.1", port)).close()  # it was let go


def test_a_name_without_an_address_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, NOT_OURS)
    with pytest.raises(ConfigError, match="cannot listen on elsewhere"):
        listen(ServeSettings(host="elsewhere"))


def test_what_is_less_safe_is_said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000, raising=False)
    with caplog.at_level(logging.WARNING, logger="odn_hybrid.serve"):
        warn_of(ServeSettings(), beyond=False)
        assert not caplog.records
        warn_of(ServeSettings(), beyond=True)
        assert ["without a token" in text for text in caplog.messages] == [True, False]
        monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
        warn_of(ServeSettings(), beyond=False)
        assert "runs as root" in caplog.messages[-1]


# --- told while it loads ------------------------------------------------------------------------------


def test_a_wish_to_load_again_is_kept_while_models_load() -> None:
    loads: list[str] = []

    async def scene() -> None:
        again = asyncio.Event()

        async def reload_all() -> None:
            loads.append("again")
            again.set()

        gate = SimpleNamespace(ready=False, stopping=False)
        server = Server(Loading(models={"a": Path("a")}), ServeSettings(), [], None)
        server.service = SimpleNamespace(gate=gate, reload_all=reload_all)  # type: ignore[assignment]
        reloads = asyncio.create_task(server._reloads())
        server._reload.set()  # what SIGHUP does
        for _ in range(10):
            await asyncio.sleep(0)
        assert not loads
        gate.ready = True
        server._loaded.set()
        await asyncio.wait_for(again.wait(), 20)
        reloads.cancel()

    asyncio.run(scene())
    assert loads == ["again"]


# --- options ------------------------------------------------------------------------------------------


def test_limits_on_image_files_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[ServeSettings] = []
    monkeypatch.setattr(
        "odn_hybrid.serve.running.server.serve", lambda models, settings, **_: said.append(settings)
    )
    for more in ([], ["--decode-seconds", "1.5", "--max-pixels", "1000000"]):
        done = CliRunner().invoke(serving.serve, ["net=somewhere", *more])
        assert done.exit_code == 0, done.output
    usual, own = said
    assert (usual.decode_seconds, usual.max_pixels) == (3.0, 16_000_000)
    assert (own.decode_seconds, own.max_pixels) == (1.5, 1_000_000)


# --- a replica of Ray ---------------------------------------------------------------------------------


@pytest.fixture
def locks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    pytest.importorskip("fcntl")
    mine: list[int] = []
    monkeypatch.setattr(apart, "_LOCKS", mine)
    yield mine
    for lock in mine:
        os.close(lock)


def test_replicas_do_not_share_a_log_file(tmp_path: Path, locks: list[int]) -> None:
    settings = ServeSettings(log_file=tmp_path / "server.log")

    def name() -> str:
        file = apart.own_log(settings).log_file
        assert file is not None
        return file.name

    assert [name(), name()] == ["server.replica-0.log", "server.replica-1.log"]
    os.close(locks.pop(0))  # the first one ends
    assert [name(), name()] == ["server.replica-0.log", "server.replica-2.log"]
    assert apart.own_log(ServeSettings()) == ServeSettings()
    with pytest.raises(StorageError, match="cannot be written"):
        apart.own_log(ServeSettings(log_file=tmp_path / "nowhere" / "server.log"))


def test_where_files_cannot_be_locked_the_process_gives_the_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: list[int]
) -> None:
    import fcntl

    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    file = apart.own_log(ServeSettings(log_file=tmp_path / "server.log")).log_file
    assert file is not None and file.name == f"server.replica-{os.getpid()}.log"
    assert len(list(tmp_path.iterdir())) <= 1 and not locks


class Idle:
    """A service without models."""

    def __init__(self, *_: Any) -> None:
        self.watch = SimpleNamespace(lost=None)

    async def open(self) -> None:
        pass

    async def load_all(self) -> None:
        say(logging.getLogger("odn_hybrid.serve"), "ready")

    async def close(self) -> None:
        pass


def test_a_replica_logs_as_a_server_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: list[int]
) -> None:
    monkeypatch.setattr(replica, "Service", Idle)
    monkeypatch.setattr(replica, "_SERVICES", [])
    end = replica.Replica.__del__
    monkeypatch.delattr(replica.Replica, "__del__")  # Ray awaits it; the interpreter does not
    loading, settings = Loading(models={"a": tmp_path}), ServeSettings(log_file=tmp_path / "server.log")

    async def scene() -> None:
        mine = object.__new__(replica.Replica)
        await mine.__init__(to_text(loading, settings))  # type: ignore[misc]
        assert mine.service.watch.lost is mine.logs.lost
        await end(mine)

    asyncio.run(scene())
    (line,) = (tmp_path / "server.replica-0.log").read_text().splitlines()
    assert json.loads(line)["event"] == "ready"
