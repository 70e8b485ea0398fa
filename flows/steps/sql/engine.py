"""A DuckDB for expressions of others: no files, no network, no extensions, no settings, bounded memory and time."""

import atexit
import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import duckdb

Engine: TypeAlias = duckdb.DuckDBPyConnection

CHECK_SECONDS_MAX = 5.0
"""How long reading and checking one expression may take."""

BATCH_SECONDS_MAX = 60.0
"""How long one batch of rows may take."""

_SETTINGS = """
    SET threads = 1;                                -- results keep their input's order; the flow has workers of its own
    SET temp_directory = '';                        -- nothing spills to disk
    SET GLOBAL TimeZone = 'UTC';                    -- global: for all connections to it
    SET GLOBAL errors_as_json = true;               -- for the place of an error in the text
    SET GLOBAL python_enable_replacements = false;  -- a table's name never means a Python variable
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET enable_external_access = false;
    SET lock_configuration = true;
"""


def engine(*, memory_limit: str = "512MB") -> Engine:
    """Return a connection to a new locked DuckDB in memory; its TimeZone is UTC, and no setting can be changed again.

    It still runs functions that are not pure: only expressions that `check` has passed belong here.
    """
    connection = duckdb.connect(":memory:")
    connection.execute("SET memory_limit = ?", [memory_limit])
    connection.execute(_SETTINGS)
    return connection


def connected(database: Engine | None) -> Engine:
    """Return another connection to the database of an `engine`, and one to a new database without any.

    It ends with the one it was made from, has the same settings, and shares the memory limit, but sees nothing of what
    is registered or prepared by the other. A new database takes 25 ms and 4 MB, another connection nothing.
    """
    return engine() if database is None else database.cursor()


class _Watchdog:
    """One thread that counts ticks for all connections: a `threading.Timer` a call would cost more than the call."""

    TICK_SECONDS, IDLE_TICKS_MAX = 0.1, 10
    """After so many with nothing to count the thread ends: each time it wakes it holds up whoever serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ticks_left: dict[duckdb.DuckDBPyConnection, int] = {}
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def arm(self, connection: duckdb.DuckDBPyConnection, seconds: float) -> None:
        """Start counting."""
        with self._lock:
            self._ticks_left[connection] = math.ceil(seconds / self.TICK_SECONDS)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="sql-deadlines", daemon=True)
                self._thread.start()

    def disarm(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Stop counting; afterwards the connection is not interrupted any more."""
        with self._lock:
            self._ticks_left.pop(connection, None)

    def stop(self) -> None:
        """Count no more."""
        self._stopped.set()
        if (thread := self._thread) is not None:
            thread.join()

    def _watch(self) -> None:
        idle_ticks = 0
        while not self._stopped.wait(self.TICK_SECONDS):
            with self._lock:
                idle_ticks = 0 if self._ticks_left else idle_ticks + 1
                if idle_ticks > self.IDLE_TICKS_MAX:
                    self._thread = None
                    return
            self._tick()

    def _tick(self) -> None:
        with self._lock:
            for connection, left in [*self._ticks_left.items()]:
                self._ticks_left[connection] = left - 1
                if left == 0:
                    del self._ticks_left[connection]
                    connection.interrupt()


_WATCHDOG = _Watchdog()
atexit.register(_WATCHDOG.stop)  # else the interpreter ends with its frame, and DuckDB's objects in it, alive


@contextmanager
def deadline(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what runs on the connection after so long; it then raises `duckdb.InterruptException`.

    DuckDB looks for interrupts between vectors of rows, not within one call of a function: functions that can work or
    grow without bound are therefore not on the allow-list.
    """
    _WATCHDOG.arm(connection, seconds)
    try:
        yield
    finally:
        _WATCHDOG.disarm(connection)


def explain(error: duckdb.Error) -> tuple[str, int | None]:
    """Return what DuckDB says of an error, on one line, and the byte of the statement where it stands, if known."""
    text = str(error)
    if isinstance(error, duckdb.InterruptException):
        return "takes too long", None
    start = text.find("{")
    try:
        found: dict[str, Any] = json.loads(text[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        found = {}
    message = str(found.get("exception_message", text)).split("\n", 1)[0].strip(" .")
    position = found.get("position")
    return message, int(position) if position is not None else None
