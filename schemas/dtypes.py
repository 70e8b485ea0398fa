"""The feature types: one table that ties a declared name to Feast's, Arrow's and DuckDB's type.

Names are Feast's, in any case: `int64`, `Int64`, `Array(Int64)`. Feast keeps UNIX_TIMESTAMP features as whole seconds
online (feast/type_map.py), so both stores hold whole seconds.
"""

import re
from dataclasses import dataclass

import pyarrow as pa

INSTANT = pa.timestamp("us", "UTC")
"""What instants are in every table of ours: µs since the epoch."""


@dataclass(frozen=True, slots=True)
class Dtype:
    """One feature type. `duckdb` is what a value is cast to; `fits` are the result types that need no narrowing."""

    name: str
    feast: str
    arrow: pa.DataType
    duckdb: str
    fits: frozenset[str]
    element: "Dtype | None" = None

    @property
    def is_float(self) -> bool:
        """Whether a value may be NaN, which Feast cannot hold and both stores keep as null."""
        return bool(pa.types.is_floating(self.arrow))


_SMALL = ("TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT")
_WIDE = (*_SMALL, "BIGINT", "UINTEGER", "UBIGINT", "HUGEINT", "UHUGEINT")
_TIMES = ("TIMESTAMP WITH TIME ZONE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "DATE")


def _scalar(name: str, feast: str, arrow: pa.DataType, duckdb: str, fits: tuple[str, ...]) -> Dtype:
    return Dtype(name, feast, arrow, duckdb, frozenset((*fits, '"NULL"')))


_SCALARS = (
    _scalar("bytes", "Bytes", pa.binary(), "BLOB", ("BLOB",)),
    _scalar("string", "String", pa.string(), "VARCHAR", ("VARCHAR", "ENUM", "UUID")),
    _scalar("int32", "Int32", pa.int32(), "INTEGER", _SMALL),
    _scalar("int64", "Int64", pa.int64(), "BIGINT", _WIDE),
    _scalar("float32", "Float32", pa.float32(), "FLOAT", ("FLOAT", "TINYINT", "SMALLINT", "UTINYINT", "USMALLINT")),
    _scalar("float64", "Float64", pa.float64(), "DOUBLE", ("DOUBLE", "FLOAT", "DECIMAL", *_WIDE)),
    _scalar("bool", "Bool", pa.bool_(), "BOOLEAN", ("BOOLEAN",)),
    _scalar("unix_timestamp", "UnixTimestamp", INSTANT, "TIMESTAMP WITH TIME ZONE", _TIMES),
)


def _array(element: Dtype) -> Dtype:
    fits = frozenset((*(f"{fit}[]" for fit in element.fits), '"NULL"'))
    return Dtype(
        f"array({element.name})",
        f"Array({element.feast})",
        pa.list_(element.arrow),
        f"{element.duckdb}[]",
        fits,
        element,
    )


DTYPES: dict[str, Dtype] = {dtype.name: dtype for scalar in _SCALARS for dtype in (scalar, _array(scalar))}
_OTHER_SPELLINGS = {
    "double": "float64", "float": "float32", "boolean": "bool", "unixtimestamp": "unix_timestamp",
    "timestamp": "unix_timestamp", "varchar": "string", "bigint": "int64", "integer": "int32",
}  # fmt: skip
_ARRAY = re.compile(r"(?:array|list)[(\[<]\s*(\w+)\s*[)\]>]|(\w+)\s*\[\]")


def dtype(text: str) -> Dtype | None:
    """Return the feature type that `text` names, or None.

    >>> dtype("Int64").name, dtype("Array(String)").name, dtype("float64[]").name, dtype("money")
    ('int64', 'array(string)', 'array(float64)', None)
    """
    word = text.strip().lower()
    found = _ARRAY.fullmatch(word)
    if found:
        element = dtype(found[1] or found[2])
        return DTYPES.get(f"array({element.name})") if element and element.element is None else None
    return DTYPES.get(_OTHER_SPELLINGS.get(word, word))
