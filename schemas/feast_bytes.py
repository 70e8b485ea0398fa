"""Feast's bytes: entity keys, times and values as its online stores keep them, made and read without protobuf objects.

Sources: feast/infra/key_encoding_utils.py (entity keys, serialization version 3), feast/protos/feast/types/Value.proto,
google/protobuf/timestamp.proto, and feast/type_map.py for what stands for null. Columns are encoded at once.
"""

import contextlib
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import to_json

from freshet.schemas.dtypes import INSTANT

_BROKEN = (LookupError, ValueError, OverflowError, struct.error)
"""What reading bytes raises that another wrote."""
_SHOWN_BYTES = 40


class NoValue(ValueError):
    """Bytes that stand in the place of a `Value` or a `Timestamp`, and are none."""

    def __init__(self, what: str, raw: bytes) -> None:
        super().__init__(f"{raw[:_SHOWN_BYTES]!r} is no Feast {what}")


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STRING = 2
_ENTITY_KINDS = {pa.string(): _STRING, pa.int32(): 3, pa.int64(): 4}
"""What an entity's column may be; Feast takes bytes and times as well, the declaration does not."""
_ENTITY_HEAD = struct.Struct("<II")
_ENTITY_NUMBERS = {pa.int32(): (struct.Struct("<IIi"), 1 << 31), pa.int64(): (struct.Struct("<IIq"), 1 << 63)}
_BYTES, _TEXT, _INT32, _INT64, _DOUBLE, _FLOAT, _BOOL, _TIME = range(1, 9)
"""Fields of `Value` that hold one value; the list of the same type is ten further."""
_DOUBLE_FORM, _FLOAT_FORM = struct.Struct("<xd"), struct.Struct("<xf")
"""A value behind its tag."""
_NO_TIME = np.iinfo(np.int64).min
"""Feast's null inside a list of times."""
_WIRE = {_BYTES: 2, _TEXT: 2, _INT32: 0, _INT64: 0, _DOUBLE: 1, _FLOAT: 5, _BOOL: 0, _TIME: 0}
_KINDS = {
    pa.binary(): _BYTES, pa.string(): _TEXT, pa.int32(): _INT32, pa.int64(): _INT64, pa.float64(): _DOUBLE,
    pa.float32(): _FLOAT, pa.bool_(): _BOOL, INSTANT: _TIME,
}  # fmt: skip


def key_prefix(names: Sequence[str]) -> bytes:
    """Return what every key of these join keys begins with; `names` are sorted.

    >>> key_prefix(["user_id"]).hex()
    '010000000200000007000000757365725f6964'
    """
    words = (struct.pack("<II", _STRING, len(name.encode())) + name.encode() for name in names)
    return struct.pack("<I", len(names)) + b"".join(words)


def encode_entity(column: pa.Array) -> list[bytes]:
    """Encode one of an entity's columns as it stands in keys: type, length and bytes of each value."""
    assert column.null_count == 0, "a row without an entity"
    kind = _ENTITY_KINDS[column.type]
    if kind == _STRING:
        raws = column.cast(pa.binary()).to_pylist()
        return [struct.pack("<II", kind, len(raw)) + raw for raw in raws]
    numbers = numbers_of(column)
    return _fixed(numbers, struct.pack("<II", kind, numbers.itemsize))


def entity_encoder(kind: pa.DataType) -> Callable[[Any], bytes | None]:
    """Return what encodes one value of an entity's column as it stands in keys; None where it is not of that type.

    >>> encode = entity_encoder(pa.int64())
    >>> encode(7).hex(), encode("7"), encode(True), encode(2**63)
    ('04000000080000000700000000000000', None, None, None)
    """
    if kind == pa.string():
        return _text_of_entity
    form, bound = _ENTITY_NUMBERS[kind]
    number, size = _ENTITY_KINDS[kind], form.size - _ENTITY_HEAD.size

    def encode(value: Any) -> bytes | None:
        return form.pack(number, size, value) if type(value) is int and -bound <= value < bound else None

    return encode


def _text_of_entity(value: Any) -> bytes | None:
    if type(value) is not str:
        return None
    raw = value.encode()
    return _ENTITY_HEAD.pack(_STRING, len(raw)) + raw


def decode_entity(types: Sequence[pa.DataType], raw: bytes) -> tuple[list[Any], bytes] | None:
    """Read values of the given types; return them and the bytes that follow, or None where other types stand."""
    found: list[Any] = []
    for each in types:
        if len(raw) < 8:
            return None
        kind, length = struct.unpack_from("<II", raw)
        value, raw = raw[8 : 8 + length], raw[8 + length :]
        if kind != _ENTITY_KINDS[each] or len(value) != length:
            return None
        found.append(value.decode() if kind == _STRING else int.from_bytes(value, "little", signed=True))
    return found, raw


def encode(column: pa.Array) -> list[bytes]:
    """Encode a feature's column, each value as a serialized `Value`; null and NaN become empty."""
    if pa.types.is_list(column.type):
        values = _lists(column)
    else:
        kind = _KINDS[column.type]
        values = _singles(column, kind, bytes([kind << 3 | _WIRE[kind]]))
    for place in np.flatnonzero(pc.is_null(column, nan_is_null=True).to_numpy(zero_copy_only=False)):
        values[place] = b""
    return values


def _singles(column: pa.Array, kind: int, head: bytes) -> list[bytes]:
    """Encode values one by one, each after `head`; what stands for null is Feast's zero for the type."""
    if kind in (_BYTES, _TEXT):
        return [head + _varint(len(raw)) + raw for raw in column.cast(pa.binary()).fill_null(b"").to_pylist()]
    if kind == _BOOL:
        words = (head + b"\0", head + b"\1")
        return [words[value] for value in numbers_of(column).tolist()]
    if kind in (_DOUBLE, _FLOAT):
        return _fixed(numbers_of(column), head)
    if kind == _TIME:
        microseconds = numbers_of(column)
        seconds = microseconds // 1_000_000
        if not head:  # Feast rounds one time down, and times in a list towards 1970
            seconds = np.where(microseconds < 0, -(-microseconds // 1_000_000), seconds)
        return _varints(np.where(column.is_null().to_numpy(zero_copy_only=False), _NO_TIME, seconds), head)
    return _varints(numbers_of(column), head)


def _lists(column: pa.Array) -> list[bytes]:
    """Encode lists: a message whose field 1 repeats, packed for numbers and left out where the list is empty."""
    kind = _KINDS[column.type.value_type]
    packed = _WIRE[kind] != 2
    head = _varint((kind + 10) << 3 | 2)
    items = _singles(column.flatten(), kind, b"" if packed else b"\x0a")
    ends = accumulate(pc.list_value_length(column).fill_null(0).to_pylist(), initial=0)
    values = []
    for start, end in pairwise(ends):
        body = b"".join(items[start:end])
        if packed and body:
            body = b"\x0a" + _varint(len(body)) + body
        values.append(head + _varint(len(body)) + body)
    return values


def encode_times(column: pa.Array) -> list[bytes]:
    """Encode instants as `google.protobuf.Timestamp`: fields that are zero are left out."""
    seconds, rest = np.divmod(numbers_of(column), 1_000_000)
    parts = zip(_varints(seconds, b"\x08", b""), _varints(rest * 1000, b"\x10", b""), strict=True)
    return [seconds + nanos for seconds, nanos in parts]


def numbers_of(column: pa.Array) -> npt.NDArray[Any]:
    """Return a column's numbers; times are microseconds, and null is zero, or NaN in a column of floats."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    if column.null_count:
        column = column.fill_null(pa.scalar(float("nan") if pa.types.is_floating(column.type) else 0).cast(column.type))
    return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _fixed(numbers: npt.NDArray[Any], head: bytes) -> list[bytes]:
    """Put `head` before each number's own bytes."""
    width = len(head) + numbers.itemsize
    octets = np.empty((len(numbers), width), np.uint8)
    octets[:, : len(head)] = np.frombuffer(head, np.uint8)
    octets[:, len(head) :] = np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), numbers.itemsize)
    return octets.view(f"V{width}").ravel().tolist()


def _varints(numbers: npt.NDArray[np.int64], head: bytes, zero: bytes | None = None) -> list[bytes]:
    """Encode protobuf varints, each after `head`: 7 bits an octet, low ones first; `zero` stands for a whole zero."""
    width = len(head) + 10
    octets = np.zeros((len(numbers), width), np.uint8)
    octets[:, : len(head)] = np.frombuffer(head, np.uint8)
    rest = numbers.astype(np.int64).view(np.uint64)
    for place in range(len(head), width):
        low = rest & np.uint64(0x7F)
        rest = rest >> np.uint64(7)
        octets[:, place] = low | ((rest != 0).astype(np.uint64) << np.uint64(7))
        if not rest.any():
            break
    # numpy drops trailing zero octets from S: just the unused ones, as only zero itself ends with a zero octet.
    encoded: list[bytes] = octets.view(f"S{width}").ravel().tolist()
    for index in np.flatnonzero(numbers == 0):
        encoded[index] = head + b"\0" if zero is None else zero
    return encoded


@lru_cache(maxsize=1024)
def _varint(number: int) -> bytes:
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a signed 64-bit varint and the place after it."""
    number = shift = 0
    while True:
        octet = raw[at]
        at += 1
        number |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            return (number - (1 << 64) if number >> 63 else number), at


def decode_time(raw: bytes) -> tuple[int, int]:
    """Read seconds and nanoseconds from a `google.protobuf.Timestamp`; raises `NoValue` for what is none."""
    fields, at = {0x08: 0, 0x10: 0}, 0
    try:
        while at < len(raw):
            tag = raw[at]
            fields[tag], at = _read_varint(raw, at + 1)
        _EPOCH + timedelta(seconds=fields[0x08], microseconds=fields[0x10] // 1000)
    except _BROKEN as error:
        raise NoValue("time", raw) from error
    return fields[0x08], fields[0x10]


def decode(value: bytes | None) -> Any:
    """Read a serialized `Value` by its own tag, whatever the declaration says of it; raises `NoValue` for another."""
    if not value:
        return None
    try:
        return _decode(value)
    except _BROKEN as error:
        raise NoValue("value", value) from error


def _check_end(value: bytes, at: int) -> None:
    if at != len(value):
        raise ValueError("it has another length than it says")


def _decode(value: bytes) -> Any:
    tag, at = _read_varint(value, 0)
    kind = tag >> 3
    if kind not in _JSON or value[0] >> 3 != kind:
        raise ValueError("it has a tag that no value has")
    if kind < 10:
        found, at = _decode_single(kind, value, at)
        _check_end(value, at)
        return found
    (length, at), kind, items = _read_varint(value, at), kind - 10, []
    _check_end(value, at + length)
    if _WIRE[kind] != 2 and length:
        _, at = _read_varint(value, at + 1)
    while at < len(value):
        item, at = _decode_single(kind, value, at + (_WIRE[kind] == 2))
        items.append(item)
    return items


def _decode_single(kind: int, raw: bytes, at: int) -> tuple[Any, int]:
    """Read one value; return it and the place after it."""
    if kind == _DOUBLE:
        return struct.unpack_from("<d", raw, at)[0], at + 8
    if kind == _FLOAT:
        return struct.unpack_from("<f", raw, at)[0], at + 4
    number, at = _read_varint(raw, at)
    if kind in (_BYTES, _TEXT):
        part = raw[at : at + number]
        if len(part) != number:
            raise ValueError("it ends before its text does")
        return (part.decode() if kind == _TEXT else part), at + number
    if kind == _TIME:
        return (None if number == _NO_TIME else _EPOCH + timedelta(seconds=number)), at
    return (bool(number) if kind == _BOOL else number), at


def json_of(value: bytes | None) -> bytes:
    """Spell a serialized `Value` in JSON: times as whole seconds, bytes in base64, what is not finite as a string.

    Raises `NoValue` for what cannot be read as one.

    >>> [json_of(bytes.fromhex(word)) for word in ("2007", "1203414441", "", "0a0100", "29000000000000f0ff")]
    [b'7', b'"ADA"', b'null', b'"AA=="', b'"-Infinity"']
    """
    if not value:
        return b"null"
    try:
        return _JSON[value[0] >> 3](value)  # of a list's tag the first octet has all of its number
    except _BROKEN as error:
        raise NoValue("value", value) from error


def json_of_all(values: Sequence[bytes | None]) -> bytes:
    """Spell values of one feature as `json_of` does, with commas between them; many at once take less time than alone.

    >>> json_of_all([bytes.fromhex("29000000000000f83f"), None, bytes.fromhex("29000000000000f0ff")])
    b'1.5,null,"-Infinity"'
    """
    tag, *others = {value[0] for value in values if value} or {0}
    with contextlib.suppress(*_BROKEN):  # then `json_of` says which it is
        if not others and (form := _FORMS.get(tag)):
            numbers = [form.unpack(value)[0] if value else None for value in values]
            return to_json(numbers, inf_nan_mode="strings")[1:-1]
        if not others and (spell := _JSON.get(tag >> 3)):
            return b",".join([spell(value) if value else b"null" for value in values])
    return b",".join([json_of(value) for value in values])


_FORMS = {_DOUBLE << 3 | 1: _DOUBLE_FORM, _FLOAT << 3 | 5: _FLOAT_FORM}
_SMALL = tuple(b"%d" % number for number in range(0x80))


def _json_of_integer(value: bytes) -> bytes:
    return _SMALL[value[1]] if len(value) == 2 else _json_of_large(value)


@lru_cache(1 << 16)
def _json_of_large(value: bytes) -> bytes:
    number, at = _read_varint(value, 1)
    _check_end(value, at)
    return b"%d" % number


def _json_of_time(value: bytes) -> bytes:
    seconds = _json_of_integer(value)
    _EPOCH + timedelta(seconds=int(seconds))  # else it is beyond all years, and `decode` has none
    return seconds


def _json_of_text(value: bytes) -> bytes:
    return to_json(_part(value).decode())


def _part(value: bytes) -> bytes:
    """Return what follows a tag and a length."""
    length, at = (value[1], 2) if value[1] < 0x80 else _read_varint(value, 1)
    _check_end(value, at + length)
    return value[at:]


def _json_of_real(number: float) -> bytes:
    return to_json(number, inf_nan_mode="strings")


def _json_of_list(value: bytes) -> bytes:
    return b"[%b]" % b",".join(map(_json_of_item, decode(value)))


def _json_of_item(item: Any) -> bytes:
    match item:
        case bytes():
            return b'"%b"' % b64encode(item)
        case datetime():
            return b"%d" % ((item - _EPOCH) // timedelta(seconds=1))
        case _:
            return to_json(item, inf_nan_mode="strings")


_JSON: Mapping[int, Callable[[bytes], bytes]] = {
    _BYTES: lambda value: b'"%b"' % b64encode(_part(value)),
    _TEXT: _json_of_text,
    _INT32: _json_of_integer,
    _INT64: _json_of_integer,
    _DOUBLE: lambda value: _json_of_real(_DOUBLE_FORM.unpack(value)[0]),
    _FLOAT: lambda value: _json_of_real(_FLOAT_FORM.unpack(value)[0]),
    _BOOL: lambda value: b"false" if _json_of_integer(value) == b"0" else b"true",
    _TIME: _json_of_time,
    **dict.fromkeys(range(_BYTES + 10, _TIME + 11), _json_of_list),
}
"""By the number of a `Value`'s field."""
