"""What a daemon logs: words in a terminal, JSON lines elsewhere; each line knows study, round and site."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

WORDS = "%(asctime)s %(levelname)s %(message)s"
FIELDS = ("study", "round", "site")
_about: ContextVar[Mapping[str, str | int]] = ContextVar("about", default={})  # noqa: B039  (never changed)


def configure_logs(level: int | str = logging.INFO) -> None:
    """Send every log line of this process to stderr: JSON where stderr is no terminal, else words."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(WORDS, "%H:%M:%S") if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


@contextmanager
def logging_about(**fields: str | int) -> Iterator[None]:
    """Lines logged inside the block, by this thread, carry these of study, round and site."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message; study, round, site where known; error.

    What a call gives as `extra` outweighs what `logging_about` says.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line without its newline."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        known = {**_about.get(), **vars(record)}
        line |= {name: known[name] for name in FIELDS if name in known}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
