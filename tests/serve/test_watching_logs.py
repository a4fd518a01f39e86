"""Logs are lines of JSON; a full disk, or a reader that does not read, costs lines and nothing else."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from odn_hybrid.errors import StorageError
from odn_hybrid.serve.settings import ServeSettings
from odn_hybrid.serve.watching import Logs, configure_logging, say
from odn_hybrid.serve.watching import logs as logs_module

SOON = 30.0  # seconds after which something is broken
log = logging.getLogger("odn_hybrid.serve.test")
FULL = Path("/dev/full")


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


class Disk(io.StringIO):
    """A file on a disk that may be full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)

    def close(self) -> None:
        """It is read afterwards."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(logging.FileHandler, "_open", lambda self: made)
    yield made


def test_events_and_plain_lines_are_json(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with configure_logging(ServeSettings(log_file=file)):
        say(log, "loaded", model='net\n{"', version="abc", seconds=1.5)
        log.warning("odd %s", "things")
        log.debug("not said")
        try:
            raise ValueError("inside")
        except ValueError:
            log.exception("failed")
        logging.getLogger("uvicorn.error").warning("of a library")
    written = lines_of(file.read_text())
    assert written == lines_of(capfd.readouterr().err)
    first, second, third, fourth = written
    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "event": "loaded", "model": 'net\n{"', "version": "abc", "seconds": 1.5}
    assert (second["event"], second["level"], second["message"]) == ("log", "warning", "odd things")
    assert "ValueError: inside" in third["message"] and third["level"] == "error"
    assert fourth["logger"] == "uvicorn.error"


def test_afterwards_loggers_are_as_before(file: Path) -> None:
    loggers = [logging.getLogger(name) for name in logs_module.LOGGERS]
    before = [(log.propagate, log.level, list(log.handlers)) for log in loggers]
    logs = configure_logging(ServeSettings(log_file=file))
    assert [log.handlers for log in loggers] != [handlers for *_, handlers in before]
    logs.close()
    logs.close()
    assert [(log.propagate, log.level, log.handlers) for log in loggers] == before


def test_a_full_disk_loses_lines_counts_them_says_so_once_and_recovers(
    file: Path, disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = configure_logging(ServeSettings(log_file=file))
    say(log, "before")
    drained(logs)
    disk.full = True
    for number in range(5):
        say(log, "lost", number=number)
    drained(logs)
    disk.full = False
    say(log, "after")
    logs.close()
    assert logs.lost == {"file": 5}
    assert [line["event"] for line in lines_of(disk.getvalue())] == ["before", "after"]
    said = capfd.readouterr().err.splitlines()
    complaints = [line for line in said if not line.startswith("{")]
    assert len(complaints) == 1 and "No space left on device" in complaints[0]
    assert str(file) not in complaints[0]
    assert len(said) == 7 + 1  # on standard error every line is there


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
def test_the_device_that_is_always_full(capfd: pytest.CaptureFixture[str]) -> None:
    with configure_logging(ServeSettings(log_file=FULL)) as logs:
        for number in range(20):
            say(log, "request", number=number)
    assert logs.lost["file"] == 20
    said = capfd.readouterr().err
    assert said.count("No space left") == 1 and said.count('"request"') == 20


def test_half_a_line_of_a_full_disk_does_not_spoil_the_next(file: Path) -> None:
    file.write_text('{"event": "whole"}\n{"event": "ha')
    with configure_logging(ServeSettings(log_file=file)):
        say(log, "next")
    whole, half, after = file.read_text().splitlines()
    assert json.loads(whole)["event"] == "whole" and half.endswith("ha")
    assert json.loads(after)["event"] == "next"


def test_a_large_file_is_put_aside(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "FILE_BYTES", 1000)
    monkeypatch.setattr(logs_module, "FILES", 2)
    with configure_logging(ServeSettings(log_file=file)) as logs:
        for number in range(100):
            say(log, "request", number=number)
    kept = sorted(file.parent.iterdir())
    assert [path.name for path in kept] == ["server.log", "server.log.1", "server.log.2"]
    assert all(path.stat().st_size <= 1000 for path in kept) and not logs.lost
    assert lines_of(file.read_text())[-1]["number"] == 99


def test_a_file_that_cannot_be_put_aside_grows_until_it_can(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs_module, "FILE_BYTES", 1000)
    monkeypatch.setattr(logs_module, "FILES", 2)
    monkeypatch.setattr(logs_module, "AGAIN", 0.0)
    rename, allowed = os.replace, [False]

    def renamed(source: Any, target: Any) -> None:
        if not allowed[0]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        rename(source, target)

    monkeypatch.setattr(os, "replace", renamed)
    older = file.with_name("server.log.1")
    older.write_text("older\n")
    with configure_logging(ServeSettings(log_file=file)) as logs:
        for number in range(50):
            say(log, "request", number=number)
        drained(logs)
        assert [line["number"] for line in lines_of(file.read_text())] == list(range(50))
        assert older.read_text() == "older\n"
        allowed[0] = True
        say(log, "request", number=50)
        drained(logs)
        assert [line["number"] for line in lines_of(file.read_text())] == [50]
        assert len(lines_of(older.read_text())) == 50
    assert not logs.lost
    assert sorted(path.name for path in file.parent.iterdir()) == [
        f"server.log{end}" for end in ("", ".1", ".2")
    ]
    said = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("{")]
    assert (
        len(said) == 1 and "cannot be put aside (Permission denied)" in said[0] and str(file) not in said[0]
    )


@pytest.mark.parametrize("where", ["opening", "numbering"])
def test_older_files_are_kept_where_putting_aside_fails_halfway(
    file: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(logs_module, "FILE_BYTES", 1000)
    monkeypatch.setattr(logs_module, "FILES", 3)
    monkeypatch.setattr(logs_module, "AGAIN", 0.0)
    for number in (1, 2, 3):
        file.with_name(f"server.log.{number}").write_text(f"older {number}\n")
    move, start = os.replace, logging.FileHandler._open
    broken = False

    def moved(source: Any, target: Any) -> None:
        if broken and where == "numbering" and str(target).endswith("server.log.1"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        move(source, target)

    def opened(handler: Any) -> Any:
        if broken and where == "opening" and not file.exists():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return start(handler)

    monkeypatch.setattr(os, "replace", moved)
    monkeypatch.setattr(logging.FileHandler, "_open", opened)
    with configure_logging(ServeSettings(log_file=file)) as logs:
        broken = True
        for number in range(50):  # many times as much as a file is to hold
            say(log, "request", number=number)
        drained(logs)
        texts = [path.read_text() for path in sorted(file.parent.iterdir())]
        assert sum(text.startswith("older") for text in texts) >= 2  # one may have had to go
        aside = file.with_name("server.log.0")
        kept = (aside.read_text() if aside.exists() else "") + file.read_text()
        assert [line["number"] for line in lines_of(kept)] == list(range(50))
        broken = False
        say(log, "request", number=50)
        drained(logs)
    assert not logs.lost and not aside.exists()
    assert [line["number"] for line in lines_of(file.read_text())] == [50]


def test_a_file_that_cannot_be_opened_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        configure_logging(ServeSettings(log_file=tmp_path / "nowhere" / "server.log"))


class Stuck(logging.Handler):
    """A terminal that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.goes_on = threading.Event(), threading.Event()
        self.written = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.reached.set()
        assert self.goes_on.wait(SOON)
        self.written += 1


def test_who_logs_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_module, "LAST", 0.05)
    stuck = Stuck()
    logs = Logs([stuck], Counter(), waiting=10)
    say(log, "first")
    assert stuck.reached.wait(SOON)
    for number in range(1000):
        say(log, "more", number=number)
    assert logs.lost == {"full": 990}
    logs.close()  # gives up waiting
    stuck.goes_on.set()


def test_what_cannot_be_put_into_words_is_lost_alone(file: Path) -> None:
    class Bad:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    with configure_logging(ServeSettings(log_file=file)) as logs:
        log.info("%s", Bad())
        say(log, "fine")
    assert [line["event"] for line in lines_of(file.read_text())] == ["fine"]
    assert sum(logs.lost.values()) == 1


def drained(logs: Logs) -> None:
    """Until what was logged so far is written."""
    logs._entry.queue.join()
