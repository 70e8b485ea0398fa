"""What reads what, told from two schemas: as jsonsubschema says on generated pairs, and each time with a reason."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.flows.steps.compatibility import Gap, Rule, Schema, gaps

NAMES = "abc"


def rules(reader: Schema, writer: Schema) -> set[tuple[str, Rule]]:
    return {(gap.path, gap.rule) for gap in gaps(reader, writer)}


def record(required: str = "", *, closed: bool = False, **properties: Any) -> dict[str, Any]:
    made = {"type": "object", "properties": properties, "required": [*required]}
    return made | ({"additionalProperties": False} if closed else {})


TEXT, WHOLE, NUMBER, NULL = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "null"}


def either(*schemas: Schema) -> Schema:
    return {"anyOf": [*schemas]}


@pytest.mark.parametrize(
    ("reader", "writer", "found"),
    [
        (record(a=TEXT, b=TEXT), record(a=TEXT), set()),
        (record("b", a=TEXT, b=TEXT), record(a=TEXT), {("$.b", Rule.FIELD_REQUIRED)}),
        (record("a", a=TEXT), record(a=TEXT), {("$.a", Rule.FIELD_REQUIRED)}),
        (record(a=TEXT), record("a", a=TEXT, b=WHOLE), set()),
        (record(a=TEXT, closed=True), record(a=TEXT, b=WHOLE), {("$.b", Rule.FIELD_REFUSED)}),
        (record(a=NUMBER), record(a=WHOLE), set()),
        (record(a=WHOLE), record(a=NUMBER), {("$.a", Rule.TYPE_NARROWED)}),
        (record(a=TEXT), record(a=either(TEXT, NULL)), {("$.a", Rule.TYPE_NARROWED)}),
        (record(a=either(TEXT, NULL)), record(a=TEXT), set()),
        (record(a={"enum": ["x", "y"]}), record(a={"enum": ["x"]}), set()),
        (record(a={"enum": ["x"]}), record(a={"enum": ["x", "y", 1]}), {("$.a", Rule.VALUE_REMOVED), ("$.a", Rule.TYPE_NARROWED)}),
        (record(a={"const": 1}), record(a=WHOLE), {("$.a", Rule.VALUE_REMOVED)}),
        (record(a={"enum": [1, 2, 3]}), record(a={"type": "integer", "minimum": 1, "maximum": 3}), set()),
        (record(a={"type": "boolean"}), record(a={"enum": [True, False]}), set()),
        (record(a={"type": "integer", "minimum": 1}), record(a={"type": "integer", "minimum": 0}), {("$.a", Rule.BOUND_TIGHTENED)}),
        (record(a={"type": "integer", "minimum": 1}), record(a={"type": "integer", "exclusiveMinimum": 0}), set()),
        (record(a={"type": "number", "minimum": 1}), record(a={"type": "number", "exclusiveMinimum": 0}), {("$.a", Rule.BOUND_TIGHTENED)}),
        (record(a={"type": "integer", "multipleOf": 2}), record(a={"type": "integer", "multipleOf": 4}), set()),
        (record(a={"type": "integer", "multipleOf": 4}), record(a={"type": "integer", "multipleOf": 2}), {("$.a", Rule.BOUND_TIGHTENED)}),
        (record(a={"type": "string", "maxLength": 3}), record(a=TEXT), {("$.a", Rule.BOUND_TIGHTENED)}),
        (record(a={"type": "string", "pattern": "^x"}), record(a={"enum": ["xy"]}), set()),
        (record(a={"type": "string", "pattern": "^x"}), record(a={"enum": ["xy", "z"]}), {("$.a", Rule.VALUE_REMOVED)}),
        (record(a={"type": "string", "pattern": "^x"}), record(a={"type": "string", "pattern": "^xy"}), {("$.a", Rule.TEXT_NARROWED)}),
        (record(a={"type": "string", "format": "date-time"}), record(a=TEXT), {("$.a", Rule.TEXT_NARROWED)}),
        (record(a=TEXT), record(a={"type": "string", "format": "date-time"}), set()),
        (record(a={"type": "string", "format": "binary"}), record(a=TEXT), set()),
        (record(a={"type": "array", "items": NUMBER}), record(a={"type": "array", "items": TEXT}), {("$.a[]", Rule.TYPE_NARROWED)}),
        (record(a={"type": "array", "items": NUMBER}), record(a={"type": "array", "items": TEXT, "maxItems": 0}), set()),
        (record(a={"type": "array", "uniqueItems": True}), record(a={"type": "array"}), {("$.a", Rule.BOUND_TIGHTENED)}),
        (record(a=record("b", b=TEXT)), record(a=record(b=WHOLE)), {("$.a.b", Rule.FIELD_REQUIRED), ("$.a.b", Rule.TYPE_NARROWED)}),
        (record(a={"not": TEXT}), record(a=WHOLE), {("$.a", Rule.NOT_COMPARABLE)}),
        (record(a={"oneOf": [NUMBER, WHOLE]}), record(a=WHOLE), {("$.a", Rule.NOT_COMPARABLE)}),
        (record(a={"oneOf": [TEXT, WHOLE]}), record(a=WHOLE), set()),
        (record(a={"allOf": [NUMBER, {"minimum": 3}]}), record(a=WHOLE), {("$.a", Rule.BOUND_TIGHTENED)}),
        (True, record(a=WHOLE), set()),
        (record(a=WHOLE), True, {("$", Rule.TYPE_NARROWED), ("$.a", Rule.TYPE_NARROWED)}),
        (record(a=False), record(a=WHOLE), {("$.a", Rule.TYPE_NARROWED)}),
        (record(a=WHOLE), record(a=False), set()),
    ],
)  # fmt: skip
def test_what_a_reader_takes_of_a_closed_writer(reader: Schema, writer: Schema, found: set[tuple[str, Rule]]) -> None:
    assert rules(reader, writer) == found


def test_references_are_followed_and_may_lead_back() -> None:
    def tree(value: Schema) -> Schema:
        node = record("a", a=value, b={"$ref": "#/$defs/Node"})
        return {"$ref": "#/$defs/Node", "$defs": {"Node": node}}

    assert gaps(tree(NUMBER), tree(WHOLE)) == []
    assert rules(tree(WHOLE), tree(NUMBER)) == {("$.a", Rule.TYPE_NARROWED), ("$.b.a", Rule.TYPE_NARROWED)}


def test_a_gap_says_what_the_writer_has_and_the_reader_takes() -> None:
    (gap,) = gaps(record(a={"type": "integer", "minimum": 5}), record(a={"type": "integer", "minimum": 0}))

    assert gap == Gap("$.a", Rule.BOUND_TIGHTENED, "{R} takes nothing below 5, and {W} may go down to 0")


# --- against jsonsubschema, and the documents themselves --------------------------------------------------------------


@pytest.fixture(scope="module")
def lies_in() -> Iterator[Any]:
    """jsonsubschema's own answer to whether all documents of one schema are ones of another."""
    script = Path(__file__).parents[1] / "oracles" / "subschemas.py"
    command = [oracle("jsonsubschema") / "python", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def ask(one: Schema, other: Schema) -> bool:
            stdin.write(json.dumps([one, other]) + "\n")
            stdin.flush()
            answer = json.loads(stdout.readline())
            assert isinstance(answer, bool), answer
            return answer

        yield ask
        stdin.close()


def draft_4(schema: Any, *, closed: bool) -> Any:
    """Return a schema as jsonsubschema reads it; a closed one allows no properties but those that it names."""
    if isinstance(schema, list):
        return [draft_4(one, closed=closed) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {word: draft_4(value, closed=closed) for word, value in schema.items() if (word, value) != ("required", [])}
    return {"additionalProperties": False, **made} if closed and "properties" in schema else made


numbers = st.integers(-3, 3)
whole_numbers = st.fixed_dictionaries(
    {"type": st.just("integer")}, optional={"minimum": st.integers(-3, 0), "maximum": st.integers(0, 3)}
)
all_numbers = st.fixed_dictionaries(
    {"type": st.just("number")}, optional={"minimum": st.integers(-3, 0), "maximum": st.integers(1, 3)}
)
texts = st.fixed_dictionaries(
    {"type": st.just("string")}, optional={"minLength": st.integers(0, 2), "maxLength": st.integers(2, 4)}
)
plain = st.sampled_from([{"type": "boolean"}, {"type": "null"}])
choices = st.lists(st.sampled_from(["x", "y", "zz", ""]), min_size=1, max_size=3, unique=True).map(
    lambda values: {"type": "string", "enum": values}
)
numbered = st.lists(numbers, min_size=1, max_size=3, unique=True).map(
    lambda values: {"type": "integer", "enum": values}
)
scalars = st.one_of(whole_numbers, all_numbers, texts, plain, choices, numbered)


def optional(schemas: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return schemas.filter(lambda schema: schema["type"] != "null").map(
        lambda schema: {"anyOf": [schema, {"type": "null"}]}
    )


lists = st.builds(
    lambda items, bounds: {"type": "array", "items": items, **bounds},
    scalars,
    st.fixed_dictionaries({}, optional={"minItems": st.integers(0, 2), "maxItems": st.integers(2, 4)}),
)
values = st.one_of(scalars, optional(scalars), lists, optional(lists))


def records(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda properties, required, is_closed: {
            "type": "object", "properties": properties, "required": [name for name in NAMES if name in required & {*properties}],
            **({"additionalProperties": False} if is_closed else {}),
        },
        st.dictionaries(st.sampled_from(NAMES), of, max_size=3),
        st.sets(st.sampled_from(NAMES)),
        st.booleans(),
    )  # fmt: skip


contracts = records(st.one_of(values, records(scalars)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """Return two schemas, of which one is often the other with a field or two changed, as contracts are."""
    one = draw(contracts)
    if draw(st.booleans()):
        return one, draw(contracts)
    other = json.loads(json.dumps(one))
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(NAMES))
        match draw(st.sampled_from(["add", "drop", "require", "relax", "close"])):
            case "add":
                other["properties"][name] = draw(values)
            case "drop":
                other["properties"].pop(name, None)
                other["required"] = [known for known in other["required"] if known != name]
            case "require" if name in other["properties"]:
                other["required"] = sorted({*other["required"], name})
            case "relax":
                other["required"] = [known for known in other["required"] if known != name]
            case "close":
                other["additionalProperties"] = False
    return one, other


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(pairs())
def test_the_checker_agrees_with_jsonsubschema_and_gives_a_reason_each_time(
    lies_in: Any, pair: tuple[Any, Any]
) -> None:
    for reader, writer in (pair, pair[::-1]):
        found = gaps(reader, writer)

        assert lies_in(draft_4(writer, closed=True), draft_4(reader, closed=False)) == (not found), found
        assert all(gap.path.startswith("$") and "{R}" in gap.fact for gap in found)
