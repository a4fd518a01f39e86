"""Where the server listens: its socket, its address, TLS, and what to warn of."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import ssl
import sys

from odn_hybrid.errors import ConfigError
from odn_hybrid.serve.settings import ServeSettings

__all__ = ["address", "allow_files", "listen", "tls", "warn_of"]

log = logging.getLogger("odn_hybrid.serve")

BACKLOG = 1024
FILES = 256  # open at most besides connections


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that listens on the address of `settings`; `ConfigError` where that is not possible."""
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host is {host!r}, which is no address of this machine") from None
    family, _, _, _, place = found[0]
    try:
        listener = socket.create_server(place[:2], family=family, backlog=BACKLOG)
        # asyncio does so only for sockets that name their protocol; small answers would wait 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot listen on {host} port {port} ({why.lower()}); choose another --port or --host"
        ) from None


def address(listener: socket.socket, settings: ServeSettings) -> str:
    """The URL that reaches it."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.certfile else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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


def warn_of(listener: socket.socket, settings: ServeSettings) -> None:
    """Say in the log what makes this server less safe than it is by itself."""
    if not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        if settings.token is None:
            log.warning("open to other machines without a token: anybody who reaches it may ask")
        if settings.certfile is None:
            log.warning(
                "open to other machines without TLS: images, answers and tokens can be read on the way"
            )
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        log.warning("runs as root, which it never needs: start it as another user")
