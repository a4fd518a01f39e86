"""The choices of a server, all with limits that are safe as they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

from odn_hybrid.errors import ConfigError

__all__ = ["LaneSettings", "ServeSettings"]


@dataclass(frozen=True, kw_only=True)
class LaneSettings:
    """How requests to one model are batched.

    Attributes:
        max_batch: images that a segment runs on at once, at most.
        queue: images that may wait or be in work; more are refused.
        patience_ms: an input that arrived so long ago comes before all that did not.
        wait_ms: the first segment waits so long for a full batch. 0: the device is never idle while
            something waits.
    """

    max_batch: int = 64
    queue: int = 1024
    patience_ms: float = 1000.0
    wait_ms: float = 0.0

    def __post_init__(self) -> None:
        _check(self, whole=("max_batch", "queue"), positive=("patience_ms",), least_zero=("wait_ms",))
        if self.queue < self.max_batch:
            raise ConfigError(f"queue is {self.queue}, less than max_batch {self.max_batch}; raise it")


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """A server's address and limits.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        token: clients send it as `Authorization: Bearer TOKEN` (not for health checks); None: no token.
        certfile, keyfile: TLS, both or none.
        max_body_bytes: of a request.
        max_pixels: of an image; files of more than 64 million are refused whatever stands here.
        max_images: in one request.
        max_header_bytes: of a request's line and headers together.
        header_seconds, body_seconds: to receive headers and body.
        request_seconds: from arrival to answer; the deadline of requests that name none.
        drain_seconds: after SIGTERM, to answer what was accepted.
        connections: open at a time.
        decoders: processes that read image files.
        decode_seconds, decode_bytes: what reading one file may take, in time and memory.
        log_file: structured logs go there, too; None: standard error only.
        lane: how requests are batched.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    certfile: Path | None = None
    keyfile: Path | None = None
    max_body_bytes: int = 16 << 20
    max_pixels: int = 16_000_000
    max_images: int = 64
    max_header_bytes: int = 32 << 10
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    request_seconds: float = 30.0
    drain_seconds: float = 30.0
    connections: int = 1000
    decoders: int = 1
    decode_seconds: float = 3.0
    decode_bytes: int = 1 << 30
    log_file: Path | None = None
    lane: LaneSettings = field(default_factory=LaneSettings)

    def __post_init__(self) -> None:
        _check(
            self,
            whole=(
                "max_body_bytes", "max_pixels", "max_images", "max_header_bytes", "connections", "decoders",
                "decode_bytes",
            ),
            positive=(
                "header_seconds", "body_seconds", "request_seconds", "drain_seconds", "decode_seconds",
            ),
        )  # fmt: skip
        if type(self.port) is not int or not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port!r}; it must be from 0 to 65535")
        if (self.certfile is None) != (self.keyfile is None):
            raise ConfigError("TLS needs both a certificate and its key (--certfile, --keyfile)")
        token = self.token
        if token is not None and (len(token) < 16 or not token.isascii() or token.strip() != token):
            raise ConfigError(
                "the token is too short, not ASCII, or ends in a blank; give one of 16 characters or more"
            )


def _check(
    settings: object,
    *,
    whole: tuple[str, ...] = (),
    positive: tuple[str, ...] = (),
    least_zero: tuple[str, ...] = (),
) -> None:
    known = {f.name for f in fields(settings)}  # type: ignore[arg-type]
    assert known.issuperset((*whole, *positive, *least_zero))
    for name in whole:
        value = getattr(settings, name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number from 1")
    for name in (*positive, *least_zero):
        value = getattr(settings, name)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < 0 or (name in positive and value == 0):
            raise ConfigError(
                f"{name} is {value!r}; it must be a number above 0" + " or 0" * (name in least_zero)
            )
