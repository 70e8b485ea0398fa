"""Event contracts: what a model's fields become, and what is refused of its own words."""

from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Optional

import pyarrow as pa
import pytest
from pydantic import AwareDatetime, Field, create_model

from freshet.schemas.errors import nearest
from freshet.schemas.event import Contract, Event, Stream, as_is, contract


class Colour(StrEnum):
    RED = "red"


def model(stream: Any = None, **fields: Any) -> type[Event]:
    """Make a contract's model of the given annotations."""
    made = create_model("Click", __base__=Event, **{name: (kind, ...) for name, kind in {**LEAST, **fields}.items()})
    made.stream = stream or Stream("clicks", "user", "at")
    return made


LEAST: dict[str, Any] = {"at": AwareDatetime, "user": str}


def accepted(**fields: Any) -> Contract:
    made, problems = contract("clicks", model(**fields))
    assert made is not None, problems
    return made


def refused(made: type[Event]) -> list[str]:
    found, problems = contract("clicks", made)
    assert found is None
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("kind", "arrow", "optional"),
    [
        (str, pa.string(), False),
        (int, pa.int64(), False),
        (float, pa.float64(), False),
        (bool, pa.bool_(), False),
        (bytes, pa.binary(), False),
        (date, pa.date32(), False),
        (datetime, pa.timestamp("us", "UTC"), False),
        (AwareDatetime, pa.timestamp("us", "UTC"), False),
        (Decimal, pa.decimal128(38, 9), False),
        (int | None, pa.int64(), True),
        (Optional[int], pa.int64(), True),  # noqa: UP045  # people write it
        (list[str], pa.list_(pa.string()), False),
        (list[int] | None, pa.list_(pa.int64()), True),
        (Literal["a", "b"], pa.string(), False),
        (Colour, pa.string(), False),
        (Annotated[int, Field(ge=0)], pa.int64(), False),
        (Annotated[int | None, Field()], pa.int64(), True),
    ],
    ids=str,
)
def test_a_fields_type_is_its_columns_type(kind: Any, arrow: pa.DataType, *, optional: bool) -> None:
    assert accepted(x=kind).schema.field("x") == pa.field("x", arrow, nullable=optional)


@pytest.mark.parametrize(
    "kind", [dict, dict[str, int], set[int], Any, object, int | str, tuple[int, int], Literal["a", 1], complex], ids=str
)
def test_a_type_with_no_column_is_refused(kind: Any) -> None:
    (message,) = refused(model(x=kind))

    assert message.startswith('field "clicks.x" has a type with no column; got ')
    assert "Hint: use str, int, float, bool" in message


def test_the_schema_is_the_fields_and_then_the_events_place() -> None:
    made = accepted(n=int)

    assert made.schema.names == ["at", "user", "n", "event_timestamp", "_partition", "_offset", "_available_at"]
    assert made.columns.names == ["at", "user", "n", "event_timestamp"]


def test_an_event_time_may_have_the_name_of_its_column() -> None:
    made = create_model("Click", __base__=Event, event_timestamp=(AwareDatetime, ...), user=(str, ...))
    made.stream = Stream("clicks", "user", "event_timestamp")
    found, problems = contract("clicks", made)

    assert problems == []
    assert found is not None
    assert found.schema.names.count("event_timestamp") == 1


def test_a_model_without_a_stream_is_refused_with_what_to_add() -> None:
    class Lost(Event):
        user: str

    (message,) = refused(Lost)
    assert 'stream "clicks" does not say where its events live. Hint: add `stream = Stream(' in message


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (
            Stream("clicks", "usr", "at"),
            "stream \"clicks\" names an unknown field as key; got 'usr'. Hint: did you mean user?",
        ),
        (
            Stream("clicks", "user", "zzz"),
            "stream \"clicks\" names an unknown field as event_time; got 'zzz'. Hint: use one of at, user",
        ),
        (Stream("clicks", "user", "at", "ide"), "stream \"clicks\" names an unknown field as event_id; got 'ide'"),
        (Stream("clicks", "user", "user"), 'stream "clicks" needs an event time that is always there'),
    ],
)
def test_a_stream_names_fields_that_are_there(stream: Stream, message: str) -> None:
    assert any(said.startswith(message) for said in refused(model(stream)))


def test_an_event_time_that_may_be_absent_is_refused() -> None:
    assert "needs an event time that is always there" in refused(model(at=AwareDatetime | None))[0]


def test_an_event_id_that_is_a_list_is_refused() -> None:
    (message,) = refused(model(Stream("clicks", "user", "at", "ids"), ids=list[str]))

    assert message.startswith('stream "clicks" tells repeated events by a list; got ids. Hint: ')


def test_reserved_names_are_refused() -> None:
    (message,) = refused(model(Event_Timestamp=str))

    assert message == 'field "clicks.Event_Timestamp" has a reserved name. Hint: rename it'


def test_all_that_is_wrong_with_a_contract_is_said_at_once() -> None:
    assert len(refused(model(Stream("clicks", "usr", "att", "idd"), x=dict, y=set[int]))) == 5


def test_what_was_meant_is_told_whatever_the_case() -> None:
    assert nearest("EventTime", ["event_time", "user"]) == "event_time"


class Annotation(Event):
    """A ClassVar is no field."""

    stream = Stream("clicks", "user", "at")
    version: ClassVar[int] = 3

    at: AwareDatetime
    user: str


def test_a_class_variable_is_no_column() -> None:
    made, _ = contract("clicks", Annotation)

    assert made is not None
    assert "version" not in made.schema.names


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"version": 0}, "has a version that is none; got 0. Hint: count versions from 1"),
        ({"version": "2"}, "has a version that is none; got '2'"),
        ({"upcasts": {0: as_is}}, "has upcasts that do not lead to version 1; got from 0. Hint: raise `version`"),
        ({"version": 3, "upcasts": {1: as_is}}, "do not lead to version 3; got from 1. Hint: write one from each"),
        ({"version": 2, "upcasts": {1: as_is, 2: as_is}}, "do not lead to version 2; got from 1, from 2"),
        ({"unsigned_version": 0}, "has an unsigned version that is none"),
        ({"schema_ids": {"not a GUID": 1}}, "has a schema id that is none; got 'not a GUID': 1"),
        ({"schema_ids": {2**32: 1}}, "has a schema id that is none"),
        ({"schema_ids": {7: 0}}, "has a schema id that is none; got 7: 0"),
    ],
)
def test_what_a_stream_says_of_its_versions_must_be_so(changes: dict[str, Any], fact: str) -> None:
    (problem,) = refused(model(Stream("clicks", "user", "at", **changes)))

    assert fact in problem


def test_a_stream_knows_the_versions_that_upcasts_lead_from() -> None:
    assert [*Stream("clicks", "user", "at", version=4, upcasts={2: as_is, 3: as_is}).versions] == [2, 3, 4]
    assert [*Stream("clicks", "user", "at", version=7).versions] == [7]
