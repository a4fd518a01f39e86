"""One line of the log, as data."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

__all__ = ["JsonLines", "say"]

MOST = 8192  # characters of a text


def say(log: logging.Logger, event: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened, with plain data: `say(log, "loaded", model="mine", seconds=1.5)`.

    Neither images nor tokens belong here, and of texts that came from outside only what is known to be short.
    """
    log.log(level, event, extra={"odn_event": event, "odn_fields": fields})


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event, then what else there is.

    Lines of libraries and of plain `log.info(...)` are of the event "log" and have a `message`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": when.replace("+00:00", "Z"), "level": record.levelname.lower()}
        event = getattr(record, "odn_event", None)
        if event is None:
            line |= {"event": "log", "logger": record.name, "message": super().format(record)[:MOST]}
        else:
            line |= {"event": event, **getattr(record, "odn_fields", {})}
        return json.dumps(line, default=str, ensure_ascii=True)
