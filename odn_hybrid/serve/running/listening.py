"""Where the server listens: its socket, its address, TLS, and what to warn of."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import ssl
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["address", "allow_files", "beyond", "listen", "tls", "warn_of"]

log = logging.getLogger("odn_hybrid.serve")

BACKLOG = 1024
FILES = 256  # open at most besides connections
PORTS = 8  # free ports that are tried until one is free on all addresses
ABSENT = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})  # of an address that is not this machine's


def listen(settings: ServeSettings) -> list[socket.socket]:
    """Sockets that listen on every address of this machine that the host of `settings` has, on one port.

    A name may have several addresses, as localhost has 127.0.0.1 and ::1. Those that this machine does not
    have are left out. One that is taken is an error: some clients would reach whoever has it.

    Raises `ConfigError` where that is not possible.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host is {host!r}, which is no address of this machine") from None
    places = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
    for _ in range(PORTS if port == 0 else 1):
        listeners, error = _listen_all(places, port)
        if error is None:
            return listeners
        for listener in listeners:
            listener.close()
    why = (error.strerror or str(error)).lower() if error is not None else "no address"
    raise ConfigError(f"cannot listen on {host} port {port} ({why}); choose another --port or --host")


def _listen_all(places: Sequence[tuple[int, Any]], port: int) -> tuple[list[socket.socket], OSError | None]:
    """Sockets on these places, and why that is not enough; where `port` is 0, the first one's is for all."""
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    for family, place in places:
        try:
            # The rest of an IPv6 address says which network of the machine is meant.
            listener = socket.create_server((place[0], port, *place[2:]), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno not in ABSENT:
                return listeners, error
            absent = error
            continue
        # asyncio does so only for sockets that name their protocol; small answers would wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners, None if listeners else absent


def address(listener: socket.socket, settings: ServeSettings) -> str:
    """The URL that reaches it."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def beyond(listeners: Iterable[socket.socket]) -> bool:
    """Whether other machines reach one of them."""
    hosts = (listener.getsockname()[0].partition("%")[0] for listener in listeners)
    return not all(ipaddress.ip_address(host).is_loopback for host in hosts)


def tls(settings: ServeSettings) -> ssl.SSLContext | None:
    """What TLS needs, None without; `ConfigError` for files that are missing or no certificate and key."""
    if settings.certfile is None or settings.keyfile is None:
        return None
    for option, path in (("--certfile", settings.certfile), ("--keyfile", settings.keyfile)):
        if not os.access(path, os.R_OK) or not path.is_file():
            raise ConfigError(f"{option}: {path} is not a file that can be read")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A password would be asked for on the terminal, where there may be none.
        context.load_cert_chain(settings.certfile, settings.keyfile, password=lambda: b"")
    except (ssl.SSLError, OSError):
        raise ConfigError(
            f"{settings.certfile} and {settings.keyfile} are not a certificate and its key (PEM, no password)"
        ) from None
    return context


def allow_files(settings: ServeSettings) -> None:
    """As many open files as connections need, where the system lets us."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * settings.connections + FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        log.warning(
            "%d connections need %d open files, the limit is %d: raise it", settings.connections, wanted, hard
        )
        wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def warn_of(settings: ServeSettings, *, beyond: bool) -> None:
    """Say in the log what makes this server less safe than it is by itself.

    `beyond`: other machines reach it.
    """
    if beyond:
        if settings.token is None:
            log.warning("open to other machines without a token: anybody who reaches it may ask")
        if settings.certfile is None:
            log.warning(
                "open to other machines without TLS: images, answers and tokens can be read on the way"
            )
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        log.warning("runs as root, which it never needs: start it as another user")
