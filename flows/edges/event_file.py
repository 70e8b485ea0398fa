"""Files of events: newline-delimited JSON, gzipped or not, or parquet, read as if each were a topic.

A line of JSON is partition 0 at the offset of its line. A parquet file's own `_partition` and `_offset` columns are
taken where it has them, as the event archive does, and so is the version of the contract that its metadata name. An
archive's events are taken as they stand there: they followed their contract. A file has no Kafka time.
"""

import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, VERSION_KEY
from freshet.schemas.poll import Poll

_BATCH_EVENTS, _BATCH_BYTES = 40_000, 1 << 26
"""A batch of JSON ends with whichever is reached first."""
_ARCHIVED_EVENTS_MAX = 400_000
"""So many events are read at once, so that each of several partitions has some."""


def lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Give the events of a file one by one, as JSON, each with its line, from 1 on; of parquet with its place.

    `-` is standard input. Raises `Refused` if it cannot be read.
    """
    places = itertools.count(1) if path.endswith(".parquet") else None
    for poll in polls(path, "", batch_events=1000):
        for offset, value in zip(poll.offsets.tolist(), poll.values, strict=True):
            if value is not None:
                yield offset + 1 if places is None else next(places), value


def polls(
    path: str,
    topic: str,
    *,
    batch_events: int = _BATCH_EVENTS,
    version: int | None = None,
    form: pa.Schema | None = None,
) -> Iterator[Poll]:
    """Give the events of a file in batches, each partition's in the file's order; `version` says which they are of.

    `form` is the newest schema of the stream's archive: events that are in it already are not written as JSON.
    """
    sign = None if version is None else str(version).encode()
    try:
        yield from (
            _parquet(Path(path), topic, batch_events, sign, form)
            if path.endswith(".parquet")
            else _json(path, topic, batch_events, sign)
        )
    except FileNotFoundError:
        raise _refused(path, "is not there") from None
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        raise _refused(path, f"cannot be read: {error}") from error


def _refused(path: str, fact: str) -> Refused:
    return Refused([Problem("file", path, fact, hint="give newline-delimited JSON (.gz or not) or parquet")])


def _json(path: str, topic: str, batch_events: int, sign: bytes | None) -> Iterator[Poll]:
    with _opened(path) as file:
        numbered = ((number, line.strip()) for number, line in enumerate(file))
        events = ((number, text) for number, text in numbered if text)
        while batch := list(_batch(events, batch_events)):
            offsets = np.array([number for number, _ in batch], np.int64)
            yield _poll(topic, 0, 1, [text for _, text in batch], offsets, sign)


def _batch(events: Iterator[tuple[int, bytes]], events_count: int) -> Iterator[tuple[int, bytes]]:
    """Give the next events, so many or fewer large ones."""
    bytes_count = 0
    for number, text in islice(events, events_count):
        yield number, text
        bytes_count += len(text)
        if bytes_count >= _BATCH_BYTES:
            return


def _opened(path: str) -> IO[bytes]:
    if path == "-":
        return sys.stdin.buffer
    raw = Path(path).open("rb")  # noqa: SIM115  # handed to the caller, who closes it
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if gzipped else raw


def _parquet(path: Path, topic: str, batch_events: int, sign: bytes | None, form: pa.Schema | None) -> Iterator[Poll]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    sign = sign or (file.schema_arrow.metadata or {}).get(VERSION_KEY)
    placed = PARTITION in names and OFFSET in names
    count = 1
    if placed:
        partitions = file.read([PARTITION]).column(0)
        count = (pa.compute.max(partitions).as_py() or 0) + 1
    if form is not None and file.schema_arrow.equals(form) and sign == form.metadata[VERSION_KEY]:
        yield from _archived(file, topic, count, batch_events, form)
        return
    start = 0
    for batch in file.iter_batches(batch_events):
        table = pa.Table.from_batches([batch])
        offsets = table.column(OFFSET).to_numpy() if placed else np.arange(start, start + table.num_rows)
        owners = table.column(PARTITION).to_numpy() if placed else np.zeros(table.num_rows, np.int32)
        start += table.num_rows
        events = table.drop([name for name in names if name.startswith("_")]).to_pylist()
        for owner in np.unique(owners):
            mine = np.flatnonzero(owners == owner)
            values: list[bytes | None] = [json.dumps(events[index], default=_plain).encode() for index in mine]
            yield _poll(topic, int(owner), count, values, offsets[mine].astype(np.int64), sign)


def _archived(file: pq.ParquetFile, topic: str, count: int, batch_events: int, form: pa.Schema) -> Iterator[Poll]:
    """Give events as their contract has them, but for what a file does not tell: they were there at once."""
    for batch in file.iter_batches(min(batch_events * count, _ARCHIVED_EVENTS_MAX)):
        table = pa.Table.from_batches([batch])
        table = table.set_column(form.get_field_index(AVAILABLE_AT), AVAILABLE_AT, table.column(EVENT_TIME)).cast(form)
        owners = table.column(PARTITION).to_numpy()
        for owner in np.unique(owners):
            mine = table.take(pa.array(np.flatnonzero(owners == owner)))
            for start in range(0, mine.num_rows, batch_events):
                events = mine.slice(start, batch_events)
                values: list[bytes | None] = [None] * events.num_rows
                offsets = events.column(OFFSET).to_numpy()
                yield replace(
                    _poll(topic, int(owner), count, values, offsets, form.metadata[VERSION_KEY]), events=events
                )


def _poll(topic: str, partition: int, count: int, values: list[bytes | None], offsets: Any, sign: bytes | None) -> Poll:
    nothing: list[bytes | None] = [None] * len(values)
    signs = [sign] * len(values)
    unknown_ms = np.full(len(values), -1, np.int64)
    return Poll(
        topic, partition, count, values, nothing, signs, unknown_ms, offsets, int(offsets[-1]) + 1, at_end=False
    )


def _plain(value: object) -> object:
    """Write in JSON what JSON has no word for, as the event contracts read it."""
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise pa.ArrowTypeError(f"there is no JSON for {type(value).__name__}")
