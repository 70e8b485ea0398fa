"""Whether one version of a contract reads what another one writes, told from their JSON Schemas. Pure.

A writer is closed: it writes the fields of its version, and no others. A reader is as open as it says. Read the other
way, with an open writer, no optional field could ever be added: old events might have it already, with any type.

The reader reads the writer if every document of the writer's schema is one of the reader's. Where that cannot be told,
as of two patterns, it counts as not so.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

Schema = Mapping[str, Any] | bool


class Rule(StrEnum):
    """What stands between a reader and a writer."""

    FIELD_REQUIRED = "field_required"
    FIELD_REFUSED = "field_refused"
    TYPE_NARROWED = "type_narrowed"
    VALUE_REMOVED = "value_removed"
    BOUND_TIGHTENED = "bound_tightened"
    TEXT_NARROWED = "text_narrowed"
    NOT_COMPARABLE = "not_comparable"


@dataclass(frozen=True, slots=True)
class Gap:
    """One way in which a writer's document may be none that the reader takes, and at which path of it."""

    path: str
    rule: Rule
    fact: str


@dataclass(frozen=True, slots=True)
class _Shape:
    """Values of one type: those listed, if some are, or all that keep to the keywords."""

    kind: str
    words: Mapping[str, Any]
    values: tuple[Any, ...] | None = None


_WORDS = {
    "null": frozenset[str](),
    "boolean": frozenset[str](),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}),
    "string": frozenset({"minLength", "maxLength", "pattern", "format"}),
    "array": frozenset({"items", "minItems", "maxItems", "uniqueItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
"""The types there are, and the keywords that are compared of each."""

_KINDS = tuple(kind for kind in _WORDS if kind != "integer")
_STRUCTURE = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})
_SILENT = frozenset(
    {
        "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema",
        "$id", "$defs", "definitions",
    }
)  # fmt: skip
"""Keywords that allow and forbid nothing."""

_KNOWN = _STRUCTURE | _SILENT | frozenset(word for words in _WORDS.values() for word in words)
_FREE_FORMATS = {None, "binary"}
_COUNTED_MAX = 200


def gaps(reader: Schema, writer: Schema) -> list[Gap]:
    """Return everything by which a closed writer may write what the reader does not take; nothing if it reads all."""
    return _Comparison(reader, writer).of(reader, writer, "$")


class _Comparison:
    """Of two schemas, with what their references lead to."""

    def __init__(self, reader: Schema, writer: Schema) -> None:
        self._reader, self._writer = reader, writer
        self._open: set[tuple[int, int]] = set()

    def of(self, reader: Schema, writer: Schema, path: str) -> list[Gap]:
        """Return the gaps between two schemas at a path."""
        pair = id(reader), id(writer)
        if pair in self._open:
            return []  # a reference that comes back to where it is: what holds elsewhere holds here
        self._open.add(pair)
        try:
            reader, writer = _resolved(reader, self._reader), _resolved(writer, self._writer)
            if isinstance(reader, Mapping):
                parts = reader.get("allOf", ())
                found = [gap for part in parts for gap in self.of(part, writer, path)]
                found += [
                    Gap(path, Rule.NOT_COMPARABLE, f"{{R}} says `{word}`, which is not compared here")
                    for word in self._unclear(reader)
                    if not isinstance(writer, Mapping) or writer.get(word) != reader[word]
                ]
                if found:
                    return found
            return self._shapes(reader, writer, path)
        finally:
            self._open.discard(pair)

    def _unclear(self, reader: Mapping[str, Any]) -> list[str]:
        """Return the keywords of a reader by which it may take less than its types say."""
        found = {word for word in reader if not word.startswith("x-")} - _KNOWN
        branches = [word for word in ("anyOf", "oneOf") if word in reader]
        own = reader.keys() - _SILENT - {"anyOf", "oneOf", "allOf"}
        for word in branches:
            parts = [_resolved(part, self._reader) for part in reader[word]]
            kinds = [{shape.kind for shape in _shapes(part, self._reader)} for part in parts]
            counted = [kind for of in kinds for kind in {"number" if kind == "integer" else kind for kind in of}]
            is_exclusive = len(counted) == len(set(counted))
            if len(branches) > 1 or (word == "oneOf" and not is_exclusive):
                found.add(word)
            if any(isinstance(part, Mapping) and own & part.keys() for part in parts):
                found.add(word)
        return sorted(found)

    def _shapes(self, reader: Schema, writer: Schema, path: str) -> list[Gap]:
        taken = [*_shapes(reader, self._reader)]
        found: list[Gap] = []
        for shape in _shapes(writer, self._writer):
            if _is_empty(shape):
                continue
            fit = [one for one in taken if one.kind == shape.kind or (one.kind, shape.kind) == ("number", "integer")]
            tried = [self._of_shape(one, shape, path) for one in fit]
            if all(tried):
                found += self._of_values(fit, shape, path) if tried else [_narrowed(taken, shape, path)]
        return [*dict.fromkeys(found)]

    def _of_values(self, fit: Sequence[_Shape], shape: _Shape, path: str) -> list[Gap]:
        """Return which of a shape's values none of several shapes takes; of too many, what the nearest shape lacks."""
        values = _listed(shape, 0 if all(one.values is None for one in fit) else _COUNTED_MAX)
        if values is None:
            return min((self._of_shape(one, shape, path) for one in fit), key=len)
        lost = [value for value in values if not any(self._takes(one, value) for one in fit)]
        return [
            Gap(path, Rule.VALUE_REMOVED, f"{{W}} may have {json.dumps(value)}, which {{R}} does not take")
            for value in lost
        ]

    def _of_shape(self, reader: _Shape, writer: _Shape, path: str) -> list[Gap]:
        if writer.values is not None:
            return self._of_values_alone(reader, writer.values, path)
        if reader.values is not None:
            taken = ", ".join(map(json.dumps, reader.values))
            return [Gap(path, Rule.VALUE_REMOVED, f"{{W}} may have any {writer.kind}, and {{R}} takes {taken} only")]
        match writer.kind:
            case "integer" | "number":
                return [*_of_numbers(reader, writer, path)]
            case "string":
                return [*_of_texts(reader.words, writer.words, path)]
            case "array":
                return [*self._of_arrays(reader.words, writer.words, path)]
            case "object":
                return [*self._of_objects(reader.words, writer.words, path)]
        return []

    def _of_values_alone(self, reader: _Shape, values: Sequence[Any], path: str) -> list[Gap]:
        return [
            Gap(path, Rule.VALUE_REMOVED, f"{{W}} may have {json.dumps(value)}, which {{R}} does not take")
            for value in values
            if not self._takes(reader, value)
        ]

    def _takes(self, reader: _Shape, value: Any) -> bool:
        """Say whether a shape of the reader takes a value."""
        if reader.values is not None:
            return any(_is_same(one, value) for one in reader.values)
        kinds = _kinds_of(value)
        return reader.kind in kinds and not self._of_shape(reader, _Shape(kinds[0], _as_schema(value)), "$")

    def _of_arrays(self, reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[Gap]:
        yield from _of_lengths(reader, writer, "Items", "elements", path)
        count_max = writer.get("maxItems", math.inf)
        is_unique = writer.get("uniqueItems") or count_max <= 1 or _has_none_twice(writer.get("const"))
        if reader.get("uniqueItems") and not is_unique:
            yield Gap(path, Rule.BOUND_TIGHTENED, "{W} may repeat an element, and {R} takes each once")
        if count_max > 0:
            yield from self.of(reader.get("items", True), writer.get("items", True), f"{path}[]")

    def _of_objects(self, reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[Gap]:
        taken, written = reader.get("properties", {}), writer.get("properties", {})
        more_taken = reader.get("additionalProperties", True)
        more_written = writer.get("additionalProperties", "properties" not in writer)
        needed = {*writer.get("required", ())}
        for name in reader.get("required", ()):
            if name not in needed:
                yield Gap(f"{path}.{name}", Rule.FIELD_REQUIRED, "{R} needs it, and {W} may leave it out")
        for name, schema in written.items():
            if name in taken:
                yield from self.of(taken[name], schema, f"{path}.{name}")
            elif more_taken is False:
                yield Gap(f"{path}.{name}", Rule.FIELD_REFUSED, "{R} takes its own fields only, and {W} has it")
            else:
                yield from self.of(more_taken, schema, f"{path}.{name}")
        if more_written is False:
            return
        for name in taken.keys() - written.keys():
            yield from self.of(taken[name], more_written, f"{path}.{name}")
        if more_taken is False:
            yield Gap(f"{path}.*", Rule.FIELD_REFUSED, "{R} takes its own fields only, and {W} may have any")
        else:
            yield from self.of(more_taken, more_written, f"{path}.*")


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Follow references; only within one document, as pydantic writes them."""
    for _ in range(100):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        found: Any = root
        for word in str(schema["$ref"]).removeprefix("#/").split("/"):
            found = found[word.replace("~1", "/").replace("~0", "~")]
        schema = {**found, **{word: value for word, value in schema.items() if word not in {"$ref", *_SILENT}}}
    return True


def _shapes(schema: Schema, root: Schema) -> Iterator[_Shape]:
    """Give the types of values that a schema allows, each with its keywords; an `allOf` is not looked at."""
    schema = _resolved(schema, root)
    if schema is False:
        return
    if schema is True:
        schema = {}
    branches = [branch for word in ("anyOf", "oneOf") for branch in schema.get(word, ())]
    own = {word: value for word, value in schema.items() if word not in {"anyOf", "oneOf", "allOf", *_SILENT}}
    if branches:
        for branch in branches:
            resolved = _resolved(branch, root)
            if resolved is not False:
                yield from _shapes({**own, **(resolved if isinstance(resolved, Mapping) else {})}, root)
        return
    told = own.get("type", _KINDS)
    kinds = (told,) if isinstance(told, str) else tuple(told)
    values = [own["const"]] if "const" in own else own.get("enum")
    for kind in kinds:
        words = {word: own[word] for word in _WORDS[kind] if word in own}
        if values is not None:
            fit = [value for value in values if kind in _kinds_of(value) and _keeps_to(value, kind, words)]
            for narrowest in dict.fromkeys(_kinds_of(value)[0] for value in fit):
                yield _Shape(narrowest, {}, tuple(value for value in fit if _kinds_of(value)[0] == narrowest))
        elif kind in {"null", "boolean"}:
            yield _Shape(kind, {}, (None,) if kind == "null" else (False, True))
        else:
            yield _Shape(kind, words)


def _keeps_to(value: Any, kind: str, words: Mapping[str, Any]) -> bool:
    return not words or not _Comparison(True, True)._of_shape(_Shape(kind, words), _Shape(kind, _as_schema(value)), "$")  # noqa: SLF001


def _kinds_of(value: Any) -> tuple[str, ...]:
    """Return the types that a value is of, the narrowest first."""
    match value:
        case None:
            return ("null",)
        case bool():
            return ("boolean",)
        case int():
            return ("integer", "number")
        case float():
            return ("integer", "number") if value.is_integer() else ("number",)
        case str():
            return ("string",)
        case list():
            return ("array",)
    return ("object",)


def _is_same(one: Any, other: Any) -> bool:
    return bool(_kinds_of(one) == _kinds_of(other) and one == other)


def _as_schema(value: Any) -> Mapping[str, Any]:
    """Return the keywords that one value alone keeps to, as far as keywords say it."""
    match value:
        case bool() | None:
            return {}
        case int() | float():
            return {"minimum": value, "maximum": value, "multipleOf": abs(value) or None, "const": value}
        case str():
            return {"minLength": len(value), "maxLength": len(value), "const": value}
        case list():
            return {"minItems": len(value), "maxItems": len(value), "items": {"enum": value}, "const": value}
    properties = {name: {"const": inner} for name, inner in value.items()}
    return {"properties": properties, "required": [*value], "additionalProperties": False}


def _is_empty(shape: _Shape) -> bool:
    """Say whether there is no such value."""
    if shape.values is not None:
        return not shape.values
    if shape.kind in {"integer", "number"}:
        (low, low_open), (high, high_open) = _bounds(shape)
        return low > high or (low == high and (low_open or high_open))
    for word in ("Length", "Items"):
        if shape.words.get(f"min{word}", 0) > shape.words.get(f"max{word}", math.inf):
            return True
    return False


def _listed(shape: _Shape, count_max: int) -> Sequence[Any] | None:
    """Return all values of a shape, if they are so few."""
    if shape.values is not None:
        return shape.values
    if shape.kind == "integer":
        (low, _), (high, _) = _bounds(shape)
        if high - low < count_max:
            values = range(int(low), int(high) + 1)
            step = shape.words.get("multipleOf")
            return [value for value in values if not step or Fraction(value) % Fraction(str(step)) == 0]
    return None


def _narrowed(taken: Sequence[_Shape], shape: _Shape, path: str) -> Gap:
    kinds = " or ".join(dict.fromkeys(one.kind for one in taken)) or "nothing"
    return Gap(path, Rule.TYPE_NARROWED, f"{{W}} may have {shape.kind}, and {{R}} takes {kinds} only")


def _bounds(shape: _Shape) -> tuple[tuple[float, bool], tuple[float, bool]]:
    """Return the least and the greatest number, and whether each itself is left out."""
    words = shape.words
    lows = [(words.get("minimum", -math.inf), False), (words.get("exclusiveMinimum", -math.inf), True)]
    highs = [(words.get("maximum", math.inf), False), (words.get("exclusiveMaximum", math.inf), True)]
    low = max(lows, key=lambda bound: (bound[0], bound[1]))
    high = min(highs, key=lambda bound: (bound[0], not bound[1]))
    if shape.kind == "integer":
        if math.isfinite(low[0]):
            low = (math.floor(low[0]) + 1 if low[1] else math.ceil(low[0])), False
        if math.isfinite(high[0]):
            high = (math.ceil(high[0]) - 1 if high[1] else math.floor(high[0])), False
    return (low[0], low[1] and math.isfinite(low[0])), (high[0], high[1] and math.isfinite(high[0]))


def _of_numbers(reader: _Shape, writer: _Shape, path: str) -> Iterator[Gap]:
    (low, low_open), (high, high_open) = _bounds(reader)
    (own_low, own_low_open), (own_high, own_high_open) = _bounds(writer)
    if own_low < low or (own_low == low and low_open and not own_low_open):
        yield _beyond(path, own_low, "below", low)
    if own_high > high or (own_high == high and high_open and not own_high_open):
        yield _beyond(path, own_high, "above", high)
    step = reader.words.get("multipleOf")
    if step:
        own = writer.words.get("multipleOf")
        own_steps = [Fraction(str(own))] if own else []
        own_steps += [Fraction(1)] if writer.kind == "integer" else []
        is_zero = own_low == own_high == 0
        if not is_zero and not any(one % Fraction(str(step)) == 0 for one in own_steps):
            yield Gap(path, Rule.BOUND_TIGHTENED, f"{{R}} takes multiples of {step} only, and {{W}} may have others")


def _beyond(path: str, own: float, side: str, bound: float) -> Gap:
    reach = f"go {'down' if side == 'below' else 'up'} to {own}" if math.isfinite(own) else f"have any number {side} it"
    return Gap(path, Rule.BOUND_TIGHTENED, f"{{R}} takes nothing {side} {bound}, and {{W}} may {reach}")


def _of_lengths(reader: Mapping[str, Any], writer: Mapping[str, Any], word: str, what: str, path: str) -> Iterator[Gap]:
    least, own_least = reader.get(f"min{word}", 0), writer.get(f"min{word}", 0)
    if own_least < least:
        yield Gap(path, Rule.BOUND_TIGHTENED, f"{{R}} needs {least} {what}, and {{W}} may have {own_least}")
    most, own_most = reader.get(f"max{word}", math.inf), writer.get(f"max{word}", math.inf)
    if own_most > most:
        said = "any number" if own_most == math.inf else str(own_most)
        yield Gap(path, Rule.BOUND_TIGHTENED, f"{{R}} takes {most} {what}, and {{W}} may have {said}")


def _of_texts(reader: Mapping[str, Any], writer: Mapping[str, Any], path: str) -> Iterator[Gap]:
    yield from _of_lengths(reader, writer, "Length", "characters", path)
    for word in ("pattern", "format"):
        needed, own = reader.get(word), writer.get(word)
        if word == "format" and needed in _FREE_FORMATS:
            continue
        if word == "pattern" and needed is not None and _is_found(needed, writer.get("const")):
            continue
        if needed is not None and needed != own:
            said = f"has {json.dumps(own)}" if own is not None else "has none"
            yield Gap(path, Rule.TEXT_NARROWED, f"{{R}} needs the {word} {json.dumps(needed)}, and {{W}} {said}")


def _is_found(pattern: str, text: str | None) -> bool:
    """Say whether one text, if there is one, has a pattern; one that Python cannot read is in none."""
    try:
        return text is not None and re.search(pattern, text) is not None
    except re.error:
        return False


def _has_none_twice(elements: Sequence[Any] | None) -> bool:
    return elements is not None and len({json.dumps(one, sort_keys=True) for one in elements}) == len(elements)
