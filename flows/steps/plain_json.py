"""JSON to columns at once, where a parser of columns cannot but agree with the contract's own model.

The model decides what an event is, message by message, which is most of what it costs to read one. Where it asks for no
more than JSON's own types, and messages are plain, Arrow's parser finds the same values: all that is read here, the
model would have read alike. Whatever might differ (a literal that is no JSON, a key that stands twice, another spelling
of a time, a null that might be a default) is left to the model, with the messages around it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from freshet.schemas.event import Contract

_BYTES_MAX = 1 << 26
_NESTED_MAX = 100
"""A message with more objects and lists than this may be deeper than the model reads."""
_NO_JSON = re.compile(rb"[\s:,\[-](?:Inf|NaN)")
"""Arrow has more literals for what JSON has no numbers for than the model."""
_TIME = r"^(?:0[1-9]|[1-8]\d|9[0-8])\d{2}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:Z|[+-]\d{2}:\d{2})$"
"""In years that no offset moves out of the calendar."""
_TIMESTAMP = pa.timestamp("us", "UTC")
_COLUMNS: Mapping[str, pa.DataType] = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "datetime": _TIMESTAMP,
}


class PlainJson:
    """Reads plain messages of a contract whose fields are text, numbers, truth values and times with a zone."""

    def __init__(self, schema: pa.Schema, needed: Sequence[str]) -> None:
        self._schema, self._needed = schema, needed
        self._times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
        read = pa.schema([pa.field(field.name, _spelled(field.type)) for field in schema])
        self._parsing = pa.json.ParseOptions(explicit_schema=read, unexpected_field_behavior="ignore")

    @classmethod
    def of(cls, contract: Contract) -> Self | None:
        """Return the reader of a contract's messages; None if its model asks for more than types."""
        model: Mapping[str, Any] = contract.model.__pydantic_core_schema__
        fields = model["schema"]
        by_model = {"type", "cls", "config", "custom_init", "metadata", "ref", "root_model", "schema"}
        asked = {"extra_fields_behavior", "strict", "frozen", "title"}
        if (
            not by_model.issuperset(model)
            or model["custom_init"] or model["root_model"]
            or not asked.issuperset(model["config"]) or model["config"].get("extra_fields_behavior") != "ignore"
            or fields["type"] != "model-fields" or fields.get("computed_fields")
        ):  # fmt: skip
            return None
        kinds = {name: _kind(field) for name, field in fields["fields"].items()}
        if not {"type", "fields", "computed_fields", "model_name"}.issuperset(fields) or None in kinds.values():
            return None
        schema = pa.schema([contract.schema.field(name) for name in kinds])
        if any(_COLUMNS[kind[0]] != schema.field(name).type for name, kind in kinds.items() if kind is not None):
            return None
        optional = [name for name, kind in kinds.items() if kind is not None and kind[1]]
        return cls(schema, [name for name in kinds if name not in optional or name == contract.stream.key])

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
                read = read.set_column(self._schema.get_field_index(name), name, times.cast(_TIMESTAMP))
            except pa.ArrowInvalid:
                return None
        return pa.Table.from_arrays(read.columns, schema=self._schema)


def _spelled(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_timestamp(kind) else kind


def _kind(field: Mapping[str, Any]) -> tuple[str, bool] | None:
    """Return the type that a model's field asks for, and whether null is as good as nothing; None if there is more."""
    if {*field} - {"type", "schema", "metadata"} or field["type"] != "model-field" or field.get("metadata"):
        return None
    schema, optional = field["schema"], False
    if schema["type"] == "default" and {*schema} == {"type", "schema", "default"} and schema["default"] is None:
        schema, optional = schema["schema"], True
    if schema["type"] == "nullable" and {*schema} == {"type", "schema"}:
        schema = schema["schema"]
    elif optional:
        return None
    plain = {"type": schema["type"]}
    if schema["type"] == "datetime":
        plain |= {"microseconds_precision": "truncate", "tz_constraint": "aware"}
    return (schema["type"], optional) if schema == plain and schema["type"] in _COLUMNS else None


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
    ):
        return False
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False
