"""Values in Feast's bytes, and as JSON."""

import contextlib
import json
import math
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from freshet.schemas.feast_bytes import NoValue, decode, decode_time, encode, json_of, json_of_all

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # the zone follows
_KINDS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.float64(): st.floats(allow_nan=False),
    pa.float32(): st.floats(allow_nan=False, width=32),
    pa.string(): st.text(),
    pa.binary(): st.binary(),
    pa.bool_(): st.booleans(),
    pa.timestamp("us", "UTC"): _TIMES.map(lambda at: at.replace(microsecond=0)),
}


def spelled(value: Any) -> Any:
    match value:
        case bytes():
            return b64encode(value).decode()
        case datetime():
            return (value - _EPOCH) // timedelta(seconds=1)
        case float() if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        case list():
            return [spelled(item) for item in value]
    return value


VALUES = st.sampled_from([*_KINDS]).flatmap(lambda kind: _KINDS[kind].map(lambda one: encode(pa.array([one], kind))[0]))


def of_one_kind(kind: pa.DataType) -> st.SearchStrategy[list[bytes | None]]:
    return st.lists(st.none() | _KINDS[kind]).map(lambda values: encode(pa.array(values, kind)))


@pytest.mark.parametrize("kind", _KINDS, ids=str)
@given(data=st.data())
def test_a_value_is_the_same_in_json_as_it_was_stored(kind: pa.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(_KINDS[kind], min_size=1, max_size=4))

    assert [json.loads(json_of(one)) for one in encode(pa.array(values, kind))] == spelled(values)
    (whole,) = encode(pa.array([values], pa.list_(kind)))
    assert json.loads(json_of(whole)) == spelled(values)


@given(values=st.lists(st.none() | st.just(b"") | VALUES) | st.sampled_from([*_KINDS]).flatmap(of_one_kind))
def test_many_values_are_the_same_in_json_as_each_alone(values: list[bytes | None]) -> None:
    assert json_of_all(values) == b",".join(map(json_of, values))


@given(values=st.sampled_from([*_KINDS]).flatmap(of_one_kind), broken=st.binary(max_size=2), place=st.integers(0, 9))
def test_among_many_values_what_is_none_is_named(values: list[bytes | None], broken: bytes, place: int) -> None:
    values.insert(place, b"\x29" + broken)

    with pytest.raises(NoValue, match="is no Feast value"):
        json_of_all(values)


def test_what_no_number_can_be_is_null_in_the_store_and_in_json_and_inside_a_list_a_word() -> None:
    assert [json_of(one) for one in encode(pa.array([math.nan, None], pa.float64()))] == [b"null", b"null"]
    assert json_of(encode(pa.array([[math.nan]], pa.list_(pa.float64())))[0]) == b'["NaN"]'


def is_read(read: Callable[[bytes], object], raw: bytes) -> bool:
    try:
        read(raw)
    except NoValue:
        return False
    return True


@given(raw=st.binary(max_size=24) | st.builds(lambda value, more: value[:-1] + more, VALUES, st.binary(max_size=2)))
@example(raw=b"\0\0")
@example(raw=b"\xa0\0\0")
@example(raw=b"\x12\x03abcd")
@example(raw=b"\x12\x05ab")
@example(raw=b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
def test_whatever_bytes_another_stored_they_are_a_value_or_said_to_be_none(raw: bytes) -> None:
    said = [is_read(read, raw) for read in (lambda one: json.loads(json_of(one)), decode)]
    assert said[0] == said[1]
    with contextlib.suppress(NoValue):
        seconds, nanos = decode_time(raw)
        assert _EPOCH + timedelta(seconds=seconds, microseconds=nanos // 1000)


@pytest.mark.parametrize("raw", [b"garbage", b"\x12\xff", b"\x29\0"])
def test_what_is_no_value_is_named(raw: bytes) -> None:
    for read in (json_of, decode):
        with pytest.raises(NoValue, match="is no Feast value"):
            read(raw)
