"""A log for programs: one JSON object per line."""

import datetime
import json
import logging
import os
import traceback

logger = logging.getLogger("lae_jax")
# A record for each request: only the log of JSON lines has them.
_requests = logging.getLogger("lae_jax.requests")
_requests.setLevel(logging.WARNING)


class JsonLines(logging.Formatter):
    """Formats a record as a line of JSON in ASCII.

    Its fields are `time` (UTC), `level`, `message`, those that the record has as `extra={"fields": {...}}`, and of an
    error `error` (its type) and `trace` (file, line and function of each call). What an error says is left out: the
    errors of some libraries quote names and values that a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        error = record.exc_info[1] if record.exc_info else None
        return line(
            record.levelname.lower(), record.getMessage(), record.created, error, **getattr(record, "fields", {})
        )


def line(level: str, message: str, created: float, error: BaseException | None = None, **fields) -> str:
    """Returns a line of the log.

    Args:
      level: Level in lower case.
      message: A sentence.
      created: Seconds since 1970.
      error: What was raised, if anything.
      **fields: Further fields.
    """
    time = datetime.datetime.fromtimestamp(created, datetime.UTC).isoformat(timespec="milliseconds")
    told = {"time": time, "level": level, "message": message, **fields}
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        told["error"] = type(error).__name__
        told["trace"] = [f"{os.path.basename(one.filename)}:{one.lineno} {one.name}" for one in frames]
    return json.dumps(told)


def use() -> None:
    """Turns the log of this process, and Python's warnings, into JSON lines."""
    for handler in logger.handlers:
        handler.setFormatter(JsonLines())
    _requests.setLevel(logging.INFO)
    logging.captureWarnings(True)
    warned = logging.getLogger("py.warnings")
    warned.handlers, warned.propagate = logger.handlers, False


def is_used() -> bool:
    """Whether the log of this process is JSON lines."""
    return _requests.isEnabledFor(logging.INFO)


def request(**fields) -> None:
    """Logs a request that was answered, with what `Counts` counts of it: no name, no address, no age."""
    _requests.info("request", extra={"fields": fields})
