"""A DuckDB for expressions of others: no files, no network, no extensions, no settings, bounded memory and time."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

CHECK_SECONDS_MAX = 5.0
"""How long reading and checking one expression may take."""

BATCH_SECONDS_MAX = 60.0
"""How long one batch of rows may take."""

_SETTINGS = """
    SET threads = 1;                          -- results keep the order of their input; the flow has workers of its own
    SET memory_limit = '512MB';
    SET temp_directory = '';                  -- nothing spills to disk
    SET TimeZone = 'UTC';
    SET errors_as_json = true;                -- for the place of an error in the text
    SET python_enable_replacements = false;   -- a table's name never means a Python variable
    SET autoinstall_known_extensions = false;
    SET autoload_known_extensions = false;
    SET enable_external_access = false;
    SET lock_configuration = true;
"""


def engine() -> duckdb.DuckDBPyConnection:
    """Return a new locked DuckDB in memory; its TimeZone is UTC and its configuration cannot be changed again.

    It still runs functions that are not pure: only expressions that `check` has passed belong here.
    """
    connection = duckdb.connect(":memory:")
    connection.execute(_SETTINGS)
    return connection


@contextmanager
def deadline(connection: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
    """Interrupt what runs on the connection after so long; it then raises `duckdb.InterruptException`.

    DuckDB looks for interrupts between vectors of rows, not within one call of a function: functions that can work or
    grow without bound are therefore not on the allow-list.
    """
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def explain(error: duckdb.Error) -> tuple[str, int | None]:
    """Return what DuckDB says of an error, on one line, and the byte in the statement where it stands, if it says so."""
    text = str(error)
    if isinstance(error, duckdb.InterruptException):
        return "takes too long", None
    start = text.find("{")
    try:
        found: dict[str, Any] = json.loads(text[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        found = {}
    message = str(found.get("exception_message", text)).split("\n", 1)[0].strip()
    position = found.get("position")
    return message, int(position) if position is not None else None
