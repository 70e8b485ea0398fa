"""What is read without the model is what the model reads; whatever might differ is left to it."""

import json
import struct
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AwareDatetime,
    ConfigDict,
    Field,
    Json,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from freshet.flows.steps.plain_json import PlainJson
from freshet.schemas.event import Event, Stream, contract

STREAM = Stream(topic="trips", key="rider", event_time="at")


class Trip(Event):
    stream = STREAM

    at: AwareDatetime
    rider: str
    metres: int
    fare: float
    shared: bool
    note: str | None = None
    rating: int | None = None
    tip: float | None = None
    ended: AwareDatetime | None = None


def reader(model: type[Event]) -> PlainJson | None:
    made, problems = contract("trips", model)
    assert made is not None, problems
    return PlainJson.of(made)


PLAIN = reader(Trip)
assert PLAIN is not None
MODEL: TypeAdapter[Any] = TypeAdapter(Json[Trip])
GOOD = {"at": "2026-03-01T12:00:00Z", "rider": "ada", "metres": 900, "fare": 7.5, "shared": False}


def document(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def columns(*values: bytes) -> list[dict[str, Any]] | None:
    assert PLAIN is not None
    read = PLAIN.columns(values)
    return None if read is None else read.to_pylist()


def bits(row: dict[str, Any]) -> dict[str, Any]:
    """A row with doubles as their bits, which tell zeros apart."""
    return {name: struct.pack("d", value) if isinstance(value, float) else value for name, value in row.items()}


PLAIN_MESSAGES = [
    document(),
    document(note='naïve 🚲 \\ " \u2028', rating=5, tip=0.1),
    document(rating=None, note=None, ended=None),
    document(ended="2026-03-01T12:20:00.5+01:00", tip=-1e-300),
    document(extra={"deep": [1, {"er": None}]}, metres=2**63 - 1),
    document(fare=3, note="Information"),
    json.dumps(GOOD, separators=(",", ":")).encode(),
    b'{ "rider" : "\\u0061da\\u0000" , "at":"0100-01-01T00:00:00Z","metres":-0,"fare":0,"shared":true\t}',
]


@pytest.mark.parametrize("value", PLAIN_MESSAGES, ids=lambda value: repr(value)[:60])
def test_a_plain_message_is_read_as_the_model_reads_it(value: bytes) -> None:
    read = columns(value)

    assert read is not None
    assert [bits(row) for row in read] == [bits(MODEL.validate_python(value).__dict__)]


def test_plain_messages_are_read_together_in_their_order() -> None:
    read = columns(*PLAIN_MESSAGES)

    assert read == [MODEL.validate_python(value).__dict__ for value in PLAIN_MESSAGES]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        document()[:-1],
        document() + document(),
        document() + b"\n",
        b" " + document(),
        b"\xef\xbb\xbf" + document(),
        document().replace(b"ada", b"\xff"),
        document(extra=0).replace(b'"extra": 0', b'"extra": "\xff"'),
        document().replace(b"ada", b"\\ud800"),
        document().replace(b"900", b"900.0"),
        document().replace(b"900", b"9e2"),
        document().replace(b"7.5", b"NaN"),
        document().replace(b"7.5", b"-Infinity"),
        document().replace(b"7.5", b"1e999"),
        document().replace(b"7.5", b"-0"),
        document().replace(b"7.5", b"9" * 4301),
        document(extra=0).replace(b"0}", b"9" * 4301 + b"}"),
        document(extra=0).replace(b'"extra": 0', b'"extra": Inf'),
        document(extra=0).replace(b'"extra": 0', b'"extra":[-Inf]'),
        document().replace(b'"rider"', b'"rider": "bob", "rider"'),
        document(metres=2**63),
        document(metres="900"),
        document(metres=True),
        document(metres=None),
        document(rider=None),
        document(rider=7),
        document(shared=1),
        document(at=1_772_366_400),
        document(at="2026-03-01 12:00:00Z"),
        document(at="2026-03-01T12:00:00"),
        document(at="2026-03-01T12:00Z"),
        document(at="0000-01-01T00:00:00Z"),
        document(at="0001-01-01T00:00:00+23:59"),
        document(at="9999-12-31T23:59:59-00:01"),
        document(at="2026-02-30T12:00:00Z"),
        document(at="2026-03-01T12:00:60Z"),
        document(at="2026-03-01T12:00:00.1234567Z"),
        document(at="2026-03-01T12:00:00Z\n"),
        document(extra=[[[]]] * 200),
        document(extra=0).replace(b"0}", b"[" * 100_000 + b"]" * 100_000 + b"}"),
        document(extra=0).replace(b"0}", b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_message_that_is_not_plain_is_left_to_the_model_with_those_around_it(value: bytes) -> None:
    assert columns(value) is None
    assert columns(document(), value, document()) is None


def test_no_message_borrows_from_its_neighbour() -> None:
    assert columns(b'{"x":[{}', b"{}]}") is None
    assert columns(document()[:-1] + b',"x":{}', b'{"y":1}}') is None
    assert columns(document() + document(), b"{}") is None


def _positive(value: int) -> int:
    assert value > 0
    return value


class _Checked(Trip):
    metres: Annotated[int, AfterValidator(_positive)]


class _Divided(Trip):
    metres: int = Field(multiple_of=10)


class _Renamed(Trip):
    note: str | None = Field(default=None, alias="remark")


class _Made(Trip):
    note: str = Field(default_factory=str)


class _Far(Trip):
    metres: int = Field(ge=-(2**70))


class _Halves(Trip):
    metres: int = Field(le=1e6)


class _Fine(Trip):
    fare: float = Field(ge=2**60 + 1)


class _New(Trip):
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)


class _Short(Trip):
    rider: str = Field(max_length=3)


class _Listed(Trip):
    tags: list[str]


class _Closed(Trip):
    model_config = ConfigDict(extra="forbid")


class _Stripped(Trip):
    model_config = ConfigDict(str_strip_whitespace=True)


class _Whole(Trip):
    @model_validator(mode="before")
    @classmethod
    def changed(cls, data: Any) -> Any:
        return data


class _After(Trip):
    def model_post_init(self, context: Any, /) -> None:
        del context


@pytest.mark.parametrize(
    "model",
    [
        _Checked,
        _Divided,
        _Far,
        _Halves,
        _Fine,
        _New,
        _Renamed,
        _Made,
        _Short,
        _Listed,
        _Closed,
        _Stripped,
        _Whole,
        _After,
    ],
    ids=lambda model: model.__name__,
)
def test_a_model_that_asks_for_what_columns_do_not_show_decides_itself(model: type[Event]) -> None:
    assert reader(model) is None


class Fare(Event):
    """A trip whose model asks for what columns show."""

    stream = STREAM

    at: AwareDatetime
    rider: str = Field(description="who rides")
    metres: int = Field(ge=0, lt=100_000)
    fare: float = Field(gt=0, le=99.5)
    way: Literal["bus", "tram"]
    zone: Literal["a", "b"] | None = None
    tip: Annotated[float, Field(ge=0)] | None = None
    paid: float | None
    device: str = "web"
    seats: int | None = 1


RIDE = {
    "at": "2026-03-01T12:00:00Z",
    "rider": "ada",
    "metres": 0,
    "fare": 99.5,
    "way": "bus",
    "paid": 1,
    "device": "app",
    "seats": 2,
}
RIDES = [
    RIDE,
    {**RIDE, "zone": "b", "tip": 0},
    {**RIDE, "zone": None, "tip": None, "metres": 99_999, "fare": 1e-9, "way": "tram"},
]


def test_a_model_that_asks_for_bounds_words_and_defaults_is_read_where_they_hold() -> None:
    plain, model = reader(Fare), TypeAdapter(Json[Fare])
    assert plain is not None
    values = [json.dumps(ride).encode() for ride in RIDES]

    read = plain.columns(values)

    assert read is not None
    assert read.to_pylist() == [model.validate_python(value).__dict__ for value in values]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metres", -1), ("metres", 100_000), ("fare", 0), ("fare", 99.500001), ("way", "boat"), ("way", None),
        ("zone", "c"), ("tip", -0.5), ("paid", None), ("device", None), ("seats", None),
    ],
)  # fmt: skip
def test_a_value_out_of_bounds_another_word_and_a_null_that_may_not_be_are_left_to_the_model(
    name: str, value: object
) -> None:
    plain = reader(Fare)
    assert plain is not None

    assert plain.columns([json.dumps({**RIDE, name: value}).encode()]) is None


@pytest.mark.parametrize("name", ["paid", "device", "seats"])
def test_a_value_that_is_absent_is_left_to_the_model_unless_null_is_its_default(name: str) -> None:
    plain = reader(Fare)
    assert plain is not None

    assert plain.columns([json.dumps({of: value for of, value in RIDE.items() if of != name}).encode()]) is None


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64),
    st.floats(),
    st.text(max_size=6),
    st.datetimes(timezones=st.sampled_from([UTC])).map(datetime.isoformat),
    st.sampled_from(["2026-03-01T12:00:00Z", "2026-03-01T23:59:59.999999-23:59", "0000-01-01T00:00:00Z"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
)
DOCUMENTS = st.one_of(
    st.fixed_dictionaries(
        {
            "at": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
            "rider": st.text(max_size=4),
            "metres": st.integers(-(2**63), 2**63 - 1),
            "fare": st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
            "shared": st.booleans(),
        },
        optional={
            "note": st.none() | st.text(max_size=4),
            "rating": st.none() | st.integers(-9, 9),
            "tip": st.none() | st.floats(),
            "ended": st.none() | st.sampled_from(["2026-03-01T12:00:00+05:30", "2026-03-01T12:00:00.1Z"]),
            "extra": VALUES,
        },
    ),
    st.builds(lambda name, value: {**GOOD, name: value}, st.sampled_from([*GOOD, "tip", "ended", "note"]), VALUES),
).map(lambda value: json.dumps(value).encode())
PIECES = st.sampled_from([b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"-", b"0", b".", b"e1", b"\n", b" "])
MESSAGES = st.one_of(
    DOCUMENTS,
    st.builds(
        lambda text, at, cut, piece: text[: at % len(text)] + piece + text[at % len(text) + cut :],
        DOCUMENTS, st.integers(0, 300), st.integers(0, 2), PIECES | st.binary(max_size=2),
    ),
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(values=st.lists(MESSAGES, min_size=1, max_size=4))
def test_what_is_read_without_the_model_is_what_the_model_reads(values: list[bytes]) -> None:
    read = columns(*values)

    if read is not None:
        try:
            expected = [MODEL.validate_python(value).__dict__ for value in values]
        except ValidationError as error:
            pytest.fail(f"the model refuses {values}: {error}")
        assert [bits(row) for row in read] == [bits(row) for row in expected]
