"""The log: events on standard error, for people, or as JSON, one object a line.

An object has `time` (UTC), `level`, `logger`, `process` (what this process does) and `message`; `cause` and `trace` if
an exception is told of; and whatever fields the caller gave. Warnings, and exceptions that nobody caught, in any
thread, are told the same way; but not warnings of libraries, which are for who builds on them, not for who runs this.
"""

import contextlib
import json
import logging
import os
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, TextIO

LOG = logging.getLogger("freshet")

_ENDS, _STRAY, _STRAY_LIMIT_S = "freshet: ", "stderr", 2.0
_INSTALLED = tuple(f"{Path(sysconfig.get_path(name))}{os.sep}" for name in ("stdlib", "purelib", "platlib"))
_OURS = tuple(f"{Path(__file__).parents[2] / name}{os.sep}" for name in ("flows", "schemas", "scripts"))
"""Folders whose code is a library's, and those below them, if this is installed, whose code is not."""
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""What every record has; anything else is a field that a caller gave."""


def begin(form: str, process: str) -> None:
    """Log from now on as `json`, or as `text`; libraries are heard from ERROR on, and their warnings not at all."""
    formatter = Json(process) if form == "json" else Text()
    heard = {"": logging.ERROR, "freshet": logging.INFO, "py.warnings": logging.WARNING, _STRAY: logging.WARNING}
    for name, level in heard.items():
        handler, logger = _Stderr(level), logging.getLogger(name)
        handler.setFormatter(formatter)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    logging.captureWarnings(capture=True)  # in any form: where a library does so later, it would undo what follows
    sys.excepthook = _uncaught
    if form == "json":
        threading.excepthook = lambda told: _unhandled(told.exc_type, told.exc_value, told.exc_traceback)
        sys.unraisablehook = lambda told: _unhandled(told.exc_type, told.exc_value, told.exc_traceback)
    _leave_out_warnings_of_libraries()


def _leave_out_warnings_of_libraries() -> None:
    """Show warnings about our code and a project's only. A filter would not do: Feast, imported, sets its own."""
    show = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not _is_of_library(filename):
            show(message, category, filename, lineno, file, line)

    warnings.showwarning = shown


def _is_of_library(filename: str) -> bool:
    """Say whether code is a library's, by its file; so is what no line of Python is to blame for.

    >>> [_is_of_library(one) for one in (json.__file__, "sys", "<frozen importlib>", __file__, "/shop/events.py")]
    [True, True, True, False, False]
    """
    if filename == "sys" or filename.startswith("<frozen"):
        return True
    return filename.startswith(_INSTALLED) and not filename.startswith(_OURS)


@contextlib.contextmanager
def strays() -> Iterator[None]:
    """While this lasts, and if events are JSON, tell what Rust and C print to standard error as events, too."""
    if not any(isinstance(handler.formatter, Json) for handler in LOG.handlers):
        yield
        return
    kept = os.dup(2)
    taken, given = os.pipe()
    os.dup2(given, 2)
    os.close(given)
    _Stderr.stream = os.fdopen(os.dup(kept), "w", encoding="utf-8")
    reader = threading.Thread(target=_relay, args=(taken,), name="stray lines", daemon=True)
    reader.start()
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        reader.join(_STRAY_LIMIT_S)  # it ends with the last who writes there, and a child process may still
        _Stderr.stream = None


def _relay(taken: int) -> None:
    with os.fdopen(taken, "rb") as lines:
        for line in lines:
            if text := line.decode(errors="replace").strip():
                logging.getLogger(_STRAY).warning("%s", text)


def ending(line: bytes) -> str:
    """Return what a line says of why its process ended; nothing if that is not what it is about.

    >>> ending(b'freshet: kafka "localhost:1" is not available'), ending(b"2026-03-01 12:00:00 INFO stopped")
    ('kafka "localhost:1" is not available', '')
    """
    text = line.decode(errors="replace").strip()
    if text.startswith("{") and '"exit_code":' in text:
        return str(json.loads(text)["message"])
    return text.removeprefix(_ENDS) if text.startswith(_ENDS) else ""


class _Stderr(logging.Handler):
    """Writes to what is standard error by then: whoever replaced it may have closed what was there before."""

    stream: ClassVar[IO[str] | None] = None
    """Where all of them write instead."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one event."""
        try:
            stream = self.stream or sys.stderr
            stream.write(f"{self.format(record)}\n")
            stream.flush()
        except (OSError, ValueError):  # nobody listens any more
            self.handleError(record)


class Text(logging.Formatter):
    """An event for people. Why a process ends stands without time and level, after the command's name."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the event's line, with what led to it below; why a process ends stands last."""
        if not hasattr(record, "exit_code"):
            return super().format(record)
        trace = self.formatException(record.exc_info) + "\n" if record.exc_info else ""
        return f"{trace}{_ENDS}{record.getMessage()}"


class Json(logging.Formatter):
    r"""An event as one JSON object on one line, whatever is in it.

    >>> import logging
    >>> record = logging.makeLogRecord({"msg": "two\nlines", "levelname": "INFO", "name": "freshet", "created": 0})
    >>> print(Json("validator").format(record))
    {"time":"1970-01-01T00:00:00.000Z","level":"INFO","logger":"freshet","process":"validator","message":"two\nlines"}
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        told: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage().strip(),
        }
        if record.exc_info and record.exc_info[1] is not None:
            told["cause"] = _named(_root(record.exc_info[1]))
            told["trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        fields = {name: value for name, value in record.__dict__.items() if name not in _OWN and name not in told}
        return json.dumps({**told, **fields}, ensure_ascii=False, separators=(",", ":"), default=str)


def is_ending() -> bool:
    """Say whether an exception that nobody catches ends the process: only in the main thread.

    In another thread `sys.excepthook` is called by a library's native code: Bytewax's threads do so for panics that
    follow a failure, even after `run` has raised it.
    """
    return threading.current_thread() is threading.main_thread()


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if is_ending():
        _unhandled(kind, error, trace, exit_code=1)
    else:
        LOG.warning("%s", _named(error), exc_info=(kind, error, trace))


def _unhandled(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, **fields: int
) -> None:
    """Tell of an exception that nobody caught."""
    if error is not None and not issubclass(kind, KeyboardInterrupt):
        what = "a defect of Freshet's or a library's, not of your data: please report it"
        LOG.critical("%s. Hint: %s", _named(error), what, exc_info=(kind, error, trace), extra=fields)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _root(error: BaseException) -> BaseException:
    """Return what led to an exception, first."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error
