"""A feature view: what is kept together because it shares a source and an entity.

A row of a view is one record of the Arrow schema `View.row_schema`, in that order:

| column | type | meaning |
| --- | --- | --- |
| the entity's columns | string, int32, int64 | whose row it is |
| `event_timestamp` | timestamp[us, UTC] | the instant q of the one rule (ARCHITECTURE.md) |
| the features | their dtypes | the declared SQL at that instant |
| `created` | timestamp[us, UTC] | when this version was made; unique and rising per shard |
| `_version` | int64 | accepted events in the row's reach; the greatest is the final one |
| `_partition`, `_offset` | int32, int64 | where the newest event in its reach stands in Kafka; -1 if there is none |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from functools import cached_property
from typing import Any

import pyarrow as pa

from freshet.schemas.dtypes import INSTANT, Dtype
from freshet.schemas.event import EVENT_TIME, OFFSET, PARTITION
from freshet.schemas.expected import NOTHING, Expected

CREATED, VERSION = "created", "_version"
NOWHERE = -1


@dataclass(frozen=True)
class Feature:
    """One declared feature: its name, its type, the SQL as the user wrote it, and what is expected of its values."""

    name: str
    dtype: Dtype
    transformation: str
    description: str = ""
    expected: Expected = NOTHING


@dataclass(frozen=True)
class View:
    """Features of one source and one entity: one Feast feature view, one Redis field group, one parquet folder.

    The source is a stream, or several streams with one shared key.
    """

    name: str
    sources: tuple[str, ...]
    entity: tuple[pa.Field, ...]
    features: tuple[Feature, ...]
    ttl: timedelta = timedelta(0)
    """How long a row may be served, from its event time; zero means for ever."""

    @property
    def entity_names(self) -> tuple[str, ...]:
        """The entity's columns, in the order of PARTITION BY."""
        return tuple(column.name for column in self.entity)

    @cached_property
    def row_schema(self) -> pa.Schema:
        """The one schema of this view's rows, in the flow and in every parquet part."""
        return pa.schema(
            [
                *(pa.field(column.name, column.type) for column in self.entity),
                pa.field(EVENT_TIME, INSTANT),
                *(pa.field(feature.name, feature.dtype.arrow) for feature in self.features),
                pa.field(CREATED, INSTANT),
                pa.field(VERSION, pa.int64()),
                pa.field(PARTITION, pa.int32()),
                pa.field(OFFSET, pa.int64()),
            ]
        )


class Kind(IntEnum):
    """What made a row: an event at its instant, the time alone, or an event elsewhere in its reach."""

    EVENT = 0
    DECAY = 1
    CORRECTION = 2


@dataclass(frozen=True)
class RowBatch:
    """Rows of one view, of any shards: `rows` has the view's `row_schema`.

    `available_at` says for each row when the event that made or corrected it became readable in Kafka, or when a tick
    was due (µs since the epoch, int64): freshness is counted from there. `kinds` has the number of each row's `Kind`.
    `newest` is true for the rows that go online: of one batch only an entity's newest row does.
    """

    view: str
    rows: pa.Table
    available_at: pa.Int64Array
    kinds: pa.Int8Array
    newest: pa.BooleanArray


@dataclass(frozen=True, slots=True)
class StoredRow:
    """What the online store holds of one view for one entity.

    `features` has the value of every feature of the view by name. `version` is 0 where another writer than Freshet
    stored the row. `expires_at` is when the store forgets it by itself, None if never; `kept_for` is the longest ttl of
    all rows that are forgotten together with it, None if one of them may be served for ever.
    """

    entity: tuple[Any, ...]
    event_timestamp: datetime
    version: int
    features: Mapping[str, Any]
    expires_at: datetime | None = None
    kept_for: timedelta | None = None
