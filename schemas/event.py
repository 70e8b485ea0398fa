"""The event contract: a pydantic model that also says where its events live and what time means for them.

```python
class WikiEdit(Event):
    stream = Stream(topic="wiki_edits", key="user", event_time="time")
    time: AwareDatetime
    user: str
```

A field's name is its key in the JSON document and its column in SQL. Unknown keys in a document are ignored (a
tolerant reader); types are strict: a number in quotes is not a number.

A changed contract is a new version. Events of the versions before it are read by upcasts, each from one version to the
next:

```python
def in_seconds(event: Document) -> Document:
    return {**event, "seconds": event["milliseconds"] / 1000}

    stream = Stream(topic="clicks", …, version=3, upcasts={1: in_seconds, 2: as_is})
```
"""

import types
import typing
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from freshet.schemas.dtypes import INSTANT
from freshet.schemas.errors import Problem, listed, nearest

VERSION_HEADER = "freshet-version"
"""The Kafka header, a decimal in UTF-8, that says which version of the contract an event follows."""

SCHEMA_ID_HEADER = "__value_schema_id"
"""Confluent's Kafka header that names a schema of a registry: byte 1 and a GUID of 16, or byte 0 and an id of 4."""

CANARY_HEADER = "freshet-canary"
"""The Kafka header, a decimal in UTF-8 that rises, by which consumers tell the validator's own events from others."""

EVENT_TIME = "event_timestamp"
PARTITION, OFFSET, AVAILABLE_AT = "_partition", "_offset", "_available_at"
NEVER_US = -(2**62)
"""Before every event time, with room to subtract a lateness."""
ARCHIVE = "_events/"
"""Where, below the offline store, the archives are."""
STREAM = "_stream"
"""In the union of several streams' events, the place of an event's own stream among them."""
_SYSTEM = (
    pa.field(EVENT_TIME, INSTANT, nullable=False),
    pa.field(PARTITION, pa.int32(), nullable=False),
    pa.field(OFFSET, pa.int64(), nullable=False),
    pa.field(AVAILABLE_AT, INSTANT, nullable=False),
)
VERSION_KEY = b"freshet.version"
"""In the metadata of archived events' Arrow schema, the contract's version that they have the form of, in decimal."""

Document = dict[str, Any]
"""An event as JSON tells it: a time is text."""

Upcast = Callable[[Document], Document]
"""Makes an event of one version an event of the next. It is pure, and what is absent means the same to it as null."""


def archive_name(stream: str) -> str:
    """Return where, below the offline store, a stream's accepted events are kept."""
    return f"{ARCHIVE}{stream}"


def as_is(event: Document) -> Document:
    """Return an event as it is: the next version reads it without a change."""
    return event


class Compatibility(StrEnum):
    """Which versions of a contract must read each other's events, in the words of schema registries.

    BACKWARD: the new version reads the old one's events. FORWARD: the old one reads the new one's. FULL: both.
    TRANSITIVE: not of the version before alone, but of every one.
    """

    BACKWARD = "BACKWARD"
    BACKWARD_TRANSITIVE = "BACKWARD_TRANSITIVE"
    FORWARD = "FORWARD"
    FORWARD_TRANSITIVE = "FORWARD_TRANSITIVE"
    FULL = "FULL"
    FULL_TRANSITIVE = "FULL_TRANSITIVE"
    NONE = "NONE"

    @property
    def is_backward(self) -> bool:
        """Whether the new version must read old events."""
        return self.startswith(("BACKWARD", "FULL"))

    @property
    def is_forward(self) -> bool:
        """Whether old versions must read new events."""
        return self.startswith(("FORWARD", "FULL"))

    @property
    def is_transitive(self) -> bool:
        """Whether this holds for all old versions, and not for the last one alone."""
        return self.endswith("_TRANSITIVE")


@dataclass(frozen=True, slots=True)
class Stream:
    """What a topic promises beyond the shape of its events.

    `key` and `event_time` name fields of the contract. An event older than its partition's newest by more than
    `lateness` is late; one more than `max_future` past its own Kafka time lies in the future. `event_id` names the
    field by which repeated deliveries are told; None means that nothing is repeated.

    A message says its version by the header `freshet-version`; else by the id of its schema in a registry, if
    `schema_ids` gives ids (numbers, GUIDs) their versions; else by the field `version_field`, if one is named. One that
    does not say it is of `unsigned_version`. `upcasts` leads from older versions to `version`, step by step.
    """

    topic: str
    key: str
    event_time: str
    event_id: str | None = None
    lateness: timedelta = timedelta(minutes=5)
    max_future: timedelta = timedelta(minutes=5)
    version: int = 1
    partitions: int = 8
    upcasts: Mapping[int, Upcast] = field(default_factory=dict, hash=False)
    unsigned_version: int = 1
    version_field: str | None = None
    schema_ids: Mapping[int | str, int] = field(default_factory=dict, hash=False)
    compatibility: Compatibility = Compatibility.BACKWARD_TRANSITIVE

    @property
    def versions(self) -> range:
        """The versions whose events can be read."""
        return range(self.version - len(self.upcasts), self.version + 1)


class Event(BaseModel):
    """Base of all event contracts."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    stream: ClassVar[Stream]


@dataclass(frozen=True, slots=True)
class Contract:
    """One stream as the flow knows it: its name, its model, and the Arrow schema of its accepted events."""

    name: str
    model: type[Event]
    schema: pa.Schema

    @property
    def stream(self) -> Stream:
        """Topic, key, event time and bounds."""
        return self.model.stream

    @property
    def columns(self) -> pa.Schema:
        """What SQL may name: the contract's fields and `event_timestamp`."""
        return pa.schema([field for field in self.schema if not field.name.startswith("_")])


_ARROW: Mapping[type, pa.DataType] = {
    bool: pa.bool_(),
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bytes: pa.binary(),
    datetime: INSTANT,
    date: pa.date32(),
    Decimal: pa.decimal128(38, 9),
}


UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError)
"""What Arrow raises for a value that a column cannot hold."""
_ENDS = (datetime.min, datetime.max)  # noqa: DTZ901  # the zone is put on in the next line
CALENDAR_US = tuple(pa.scalar(end.replace(tzinfo=UTC), INSTANT).value for end in _ENDS)
"""The first and the last instant that Python and Feast hold: an offset can move a time out of the years there are."""
BEYOND = "in UTC it is not between the years 1 and 9999"


def misfit(value: object, kind: pa.DataType) -> str:
    """Say why a column cannot hold a value that a contract's model takes; nothing if it can.

    >>> misfit(2**63, pa.int64()), misfit(1.5, pa.float64())
    ('Python int too large to convert to C long', '')
    >>> misfit(datetime.fromisoformat("9999-12-31T23:00:00-14:00"), INSTANT)
    'in UTC it is not between the years 1 and 9999'
    """
    try:
        held = pa.array([value], kind)
    except UNFIT as error:
        return str(error)
    first_us, last_us = CALENDAR_US
    is_beyond = value is not None and pa.types.is_timestamp(kind) and not first_us <= held[0].value <= last_us
    return BEYOND if is_beyond else ""


def contract(name: str, model: type[Event]) -> tuple[Contract | None, list[Problem]]:
    """Check a contract's own words; return it, or every problem found."""
    problems: list[Problem] = []
    stream: Stream = getattr(model, "stream", None)  # type: ignore[assignment]  # a ClassVar the user may have left out
    if not isinstance(stream, Stream):
        hint = 'stream = Stream(topic="…", key="…", event_time="…")'
        return None, [Problem("stream", name, "does not say where its events live", hint=f"add `{hint}`")]
    fields: list[pa.Field] = []
    for field_name, info in model.model_fields.items():
        if field_name.startswith("_") or (field_name.casefold() == EVENT_TIME and field_name != stream.event_time):
            problems.append(Problem("field", f"{name}.{field_name}", "has a reserved name", hint="rename it"))
            continue
        arrow, optional = _arrow_type(info.annotation)
        if arrow is None:
            known = "str, int, float, bool, datetime, date, Decimal, bytes, list of these, Optional of these"
            problems.append(
                Problem(
                    "field", f"{name}.{field_name}", "has a type with no column", str(info.annotation), f"use {known}"
                )
            )
            continue
        fields.append(pa.field(field_name, arrow, nullable=optional))
    by_name = {field.name: field for field in fields}
    for role, word in (("key", stream.key), ("event_time", stream.event_time), ("event_id", stream.event_id)):
        if word is not None and word not in model.model_fields:
            meant = nearest(word, model.model_fields)
            hint = f"did you mean {meant}?" if meant else f"use one of {listed(tuple(model.model_fields))}"
            problems.append(Problem("stream", name, f"names an unknown field as {role}", repr(word), hint))
    told_by = by_name.get(stream.event_id or "")
    if told_by is not None and pa.types.is_list(told_by.type):
        hint = "use a field of one value"
        problems.append(Problem("stream", name, "tells repeated events by a list", told_by.name, hint))
    at = by_name.get(stream.event_time)
    if at is not None and (not pa.types.is_timestamp(at.type) or at.nullable):
        problems.append(
            Problem("stream", name, "needs an event time that is always there", str(at), "use AwareDatetime")
        )
    problems += _version_problems(name, stream)
    if problems:
        return None, problems
    system = [field for field in _SYSTEM if field.name not in by_name]
    told = {VERSION_KEY: str(stream.version).encode()}
    return Contract(name, model, pa.schema([*fields, *system], told)), []


def json_schemas(contracts: Mapping[str, Contract]) -> dict[str, Any]:
    """Return the JSON Schema of every stream's events, and of what it names, as components of a document."""
    found: dict[str, Any] = {}
    for name, made in contracts.items():
        schema = made.model.model_json_schema(ref_template=f"#/components/schemas/{name}.{{model}}")
        found |= {f"{name}.{part}": own for part, own in schema.pop("$defs", {}).items()}
        found[name] = schema
    return found


def _version_problems(name: str, stream: Stream) -> list[Problem]:
    """Return what is wrong with what a stream says of its versions."""
    problems: list[Problem] = []

    def problem(fact: str, got: object, hint: str) -> None:
        problems.append(Problem("stream", name, fact, str(got), hint))

    if not _is_version(stream.version):
        problem("has a version that is none", repr(stream.version), "count versions from 1")
    elif {*stream.upcasts} != {*range(stream.version - len(stream.upcasts), stream.version)} - {0}:
        last = stream.version - 1
        hint = f"write one from each version to the next, up to {last}" if last else "raise `version`, or drop them"
        got = listed([f"from {version}" for version in stream.upcasts])
        problem(f"has upcasts that do not lead to version {stream.version}", got, hint)
    if not _is_version(stream.unsigned_version):
        problem("has an unsigned version that is none", repr(stream.unsigned_version), "count versions from 1")
    for id_, version in stream.schema_ids.items():
        if not _is_schema_id(id_) or not _is_version(version):
            hint = "write the registry's number or GUID of a schema, and which version it is: {100042: 2}"
            problem("has a schema id that is none", f"{id_!r}: {version!r}", hint)
    return problems


def _is_version(value: object) -> bool:
    return isinstance(value, int) and value >= 1


def _is_schema_id(value: object) -> bool:
    """Say whether something is a registry's number of a schema, or its GUID as text."""
    if isinstance(value, int):
        return 0 <= value < 2**32
    try:
        return str(uuid.UUID(str(value))) == value
    except ValueError:
        return False


def _arrow_type(annotation: Any) -> tuple[pa.DataType | None, bool]:
    """Return the column type of a field's annotation, and whether it may be null."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _arrow_type(args[0])
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        arrow, _ = _arrow_type(inner[0]) if len(inner) == 1 else (None, False)
        return arrow, len(inner) < len(args)
    if origin is Literal:
        kinds = {type(value) for value in args}
        return (_ARROW.get(kinds.pop()) if len(kinds) == 1 else None), False
    if origin is list:
        arrow, _ = _arrow_type(args[0])
        return (pa.list_(arrow) if arrow is not None else None), False
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return (pa.string() if issubclass(annotation, str) else None), False
        for python, arrow in _ARROW.items():
            if annotation is python:
                return arrow, False
        if annotation.__module__ == "pydantic.types" and "Datetime" in annotation.__name__:
            return _ARROW[datetime], False
    return None, False
