"""JSON to columns at once, where a parser of columns cannot but agree with the contract's own model.

The model decides what an event is, message by message, which is most of what it costs to read one. Where it asks for
JSON's own types, bounds of numbers, words to choose from, and no more, and messages are plain, Arrow's parser finds the
same values: all that is read here, the model would have read alike. Whatever might differ (a literal that is no JSON, a
key that stands twice, another spelling of a time, a null that might be a default) is left to the model, with the
messages around it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from freshet.schemas.dtypes import INSTANT
from freshet.schemas.event import Contract

_BYTES_MAX = 1 << 26
_NESTED_MAX = 100
"""A message with more objects and lists than this may be deeper than the model reads."""
_NO_JSON = re.compile(rb"[\s:,\[-](?:Inf|NaN)")
"""Arrow has more literals for what JSON has no numbers for than the model."""
_TIME = r"^(?:0[1-9]|[1-8]\d|9[0-8])\d{2}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})$"
"""In years that no offset moves out of the calendar."""
_COLUMNS: Mapping[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "datetime": INSTANT,
}
_BOUNDS = {"ge": pc.greater_equal, "gt": pc.greater, "le": pc.less_equal, "lt": pc.less}
_DIGITS_MAX = 4300
"""The model refuses a number of more."""
_LONG_NUMBER = re.compile(rb"\d{%d}" % (_DIGITS_MAX + 1))


@dataclass(frozen=True, slots=True)
class _Field:
    """What a model asks of a field: its type, whether null is as good as nothing, bounds, words to choose from."""

    kind: str
    optional: bool
    bounds: tuple[tuple[str, pa.Scalar], ...] = ()
    words: pa.Array | None = None

    @classmethod
    def of(cls, field: Mapping[str, Any]) -> Self | None:
        """Read what pydantic says of a model's field; None if it asks for more."""
        schema, is_null_default = _bare(field["schema"]), False
        if {*_bare(field)} != {"type", "schema"}:
            return None
        if schema["type"] == "default" and {*schema} == {"type", "schema", "default"}:
            schema, is_null_default = _bare(schema["schema"]), schema["default"] is None
        optional = schema["type"] == "nullable" and is_null_default
        if schema["type"] == "nullable" and {*schema} == {"type", "schema"}:
            schema = _bare(schema["schema"])
        asked = {name: value for name, value in schema.items() if name != "type"}
        match schema["type"]:
            case "literal" if {*asked} == {"expected"} and all(isinstance(word, str) for word in asked["expected"]):
                return cls("str", optional, words=pa.array([*asked["expected"], None], pa.string()))
            case "int" | "float" as kind if all(name in _BOUNDS and _is_exact(kind, asked[name]) for name in asked):
                bounds = ((name, pa.scalar(bound, _COLUMNS[kind])) for name, bound in asked.items())
                return cls(kind, optional, tuple(bounds))
            case "datetime" if asked == {"microseconds_precision": "truncate", "tz_constraint": "aware"}:
                return cls("datetime", optional)
            case "str" | "bool" as kind if not asked:
                return cls(kind, optional)
        return None

    def holds(self, values: pa.ChunkedArray) -> bool:
        """Say whether all values that are there are what the model asks for."""
        found = [_BOUNDS[name](values, bound) for name, bound in self.bounds]
        if self.words is not None:
            found.append(pc.is_in(values, self.words))
        if self.kind == "float":  # of a zero with a sign the model has read the whole number -0
            numbers = values.to_numpy()
            found.append(pa.array([not (np.signbit(numbers) & (numbers == 0)).any()]))
        return all(pc.all(each, min_count=0).as_py() for each in found)


def _is_exact(kind: str, bound: object) -> bool:
    """Say whether a column of a kind holds a bound as it is."""
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        return False
    if kind == "int":
        return isinstance(bound, int) and -(2**63) <= bound < 2**63
    return not isinstance(bound, int) or abs(bound) <= 2**53


def _bare(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out what is for JSON Schema alone, such as a description."""
    if all(name.startswith("pydantic_js_") for name in schema.get("metadata") or ()):
        return {name: value for name, value in schema.items() if name != "metadata"}
    return schema


class PlainJson:
    """Reads plain messages of a contract: text, numbers within bounds, truth values, times with a zone, given words."""

    def __init__(self, schema: pa.Schema, fields: Mapping[str, _Field], key: str) -> None:
        self._schema = schema
        self._needed = [name for name, field in fields.items() if not field.optional or name == key]
        self._fields = fields
        self._times = [name for name, field in fields.items() if field.kind == "datetime"]
        read = pa.schema([pa.field(field.name, _spelled(field.type)) for field in schema])
        self._parsing = pa.json.ParseOptions(explicit_schema=read, unexpected_field_behavior="ignore")

    @classmethod
    def of(cls, contract: Contract) -> Self | None:
        """Return the reader of a contract's messages; None if its model asks for what columns do not show."""
        model: Mapping[str, Any] = contract.model.__pydantic_core_schema__
        by_model = {"type", "cls", "config", "custom_init", "metadata", "ref", "root_model", "schema"}
        by_fields = {"type", "fields", "computed_fields", "model_name"}
        by_config = {"extra_fields_behavior", "strict", "frozen", "title"}
        fields, config = model.get("schema", {}), model.get("config", {})
        if (
            model["type"] != "model" or not by_model.issuperset(model)
            or model.get("custom_init") or model.get("root_model") or contract.model.__new__ is not object.__new__
            or not by_config.issuperset(config) or config.get("extra_fields_behavior") != "ignore"
            or fields["type"] != "model-fields" or not by_fields.issuperset(fields) or fields.get("computed_fields")
        ):  # fmt: skip
            return None
        found: dict[str, _Field] = {}
        for name, field in fields["fields"].items():
            plain = _Field.of(field)
            if plain is None or contract.schema.field(name).type != _COLUMNS[plain.kind]:
                return None
            found[name] = plain
        return cls(pa.schema([contract.schema.field(name) for name in found]), found, contract.stream.key)

    def columns(self, values: Sequence[bytes]) -> pa.Table | None:
        """Return the fields of all messages, or None if one of them is not plain."""
        text = b"\n".join(values)
        if not _is_plain(text, values):
            return None
        reading = pa.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
        try:
            read = pa.json.read_json(pa.BufferReader(text), reading, self._parsing)
        except pa.ArrowInvalid:
            return None
        if read.num_rows != len(values) or any(read.column(name).null_count for name in self._needed):
            return None
        for name in self._times:
            times = read.column(name)
            if not pc.all(pc.match_substring_regex(times, _TIME), min_count=0).as_py():
                return None
            try:
                read = read.set_column(self._schema.get_field_index(name), name, times.cast(INSTANT))
            except pa.ArrowInvalid:
                return None
        if not all(field.holds(read.column(name)) for name, field in self._fields.items()):
            return None
        return pa.Table.from_arrays(read.columns, schema=self._schema)


def _spelled(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _is_plain(text: bytes, values: Sequence[bytes]) -> bool:
    """Say whether each line is one message: an object, in UTF-8, not deep, of JSON's own literals."""
    joints_count, nested_count = len(values) - 1, text.count(b"{") + text.count(b"[") - len(values)
    if (
        len(text) > _BYTES_MAX
        or not (text.startswith(b"{") and text.endswith(b"}"))
        or text.count(b"\n") != joints_count
        or text.count(b"}\n{") != joints_count
        or (nested_count > _NESTED_MAX and max(one.count(b"{") + one.count(b"[") for one in values) > _NESTED_MAX)
        or ((b"Inf" in text or b"NaN" in text) and _NO_JSON.search(text))
        or (max(map(len, values)) > _DIGITS_MAX and _LONG_NUMBER.search(text))
    ):
        return False
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False
