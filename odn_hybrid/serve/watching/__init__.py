"""What people and their tools see of a server: metrics, status page, logs, traces.

Needs the extra `serve`.
"""

from odn_hybrid.serve.watching.events import say
from odn_hybrid.serve.watching.following import Following
from odn_hybrid.serve.watching.logs import Logs, configure_logging
from odn_hybrid.serve.watching.routes import watch_routes
from odn_hybrid.serve.watching.traces import tracing
from odn_hybrid.serve.watching.watch import Watch
from odn_hybrid.serve.watching.watched import WatchedEngine

__all__ = [
    "Following",
    "Logs",
    "Watch",
    "WatchedEngine",
    "configure_logging",
    "say",
    "tracing",
    "watch_routes",
]
