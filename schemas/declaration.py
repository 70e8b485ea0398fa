"""The declaration: the user's whole input, `feature_repo/features.yaml`.

The first three sections are the user's own schema, spelled as there; `project`, `windows`, `columns`, `views` and the
keys of a definition beyond `name`, `dtype`, `source` and `transformation` are Freshet's. `read` takes the text and
gives a `Declaration`, or refuses with every problem found. It reads no file and runs no SQL.
"""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)

from freshet.schemas import units
from freshet.schemas.dtypes import DTYPES, Dtype, dtype
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.expected import Distance, Distribution, Expected, Reference

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names become folders, metrics and files."""


def _parsed(parse: Any, example: str) -> Any:
    """Take the words people write, keep the parsed value, and write the words back."""

    def read(value: object) -> object:
        if isinstance(value, timedelta | units.Objective | units.Volume | units.Rate):
            return value
        if not isinstance(value, str):  # pydantic would take a number for seconds
            raise ValueError(f'text, such as "{example}"')  # noqa: TRY004  # the form that pydantic gathers
        return parse(value)

    return (
        BeforeValidator(read),
        PlainSerializer(
            lambda value: units.spell(value) if isinstance(value, timedelta) else str(value), when_used="json"
        ),
        WithJsonSchema({"type": "string", "examples": [example]}),
    )


OFF = timedelta(0)


def _decay(text: str) -> timedelta:
    if text.strip().lower() == "off":
        return OFF
    try:
        return units.duration(text)
    except ValueError as error:
        raise ValueError(f"{error}, or off") from None


def _unquoted_off(value: object) -> object:
    return "off" if value is False else value  # YAML's own idea of the word


def _zero(value: object) -> object:
    return "0" if value == 0 and not isinstance(value, bool) else value


def _number(value: object) -> object:
    """Take a finite number; `1e-6` is text to YAML 1.1."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a finite number")
    return value


def _allowed(value: object) -> object:
    """Take a list of values; of which type, the definition's rules say."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a list of the allowed values")
    if not all(isinstance(one, str | int | float) for one in value):
        raise ValueError("values that are text, numbers, true or false")
    return tuple(value)


def _reference(value: object) -> Reference | str:
    """Take a path, or `{bins, weights}`, or `{values, weights}`."""
    if isinstance(value, Reference) or (isinstance(value, str) and value.strip()):
        return value
    if not isinstance(value, Mapping) or {*map(str, value)} not in ({"bins", "weights"}, {"values", "weights"}):
        raise ValueError("the path of a parquet or JSON file, or bins and weights, or values and weights")
    kind = "bins" if "bins" in value else "values"
    places, weights = value[kind], value["weights"]
    if not isinstance(places, list) or not isinstance(weights, list):
        raise ValueError(f"lists of {kind} and weights")  # noqa: TRY004  # the form that pydantic gathers
    if not all(_is_number(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
        raise ValueError("weights that are numbers of at least 0, not all 0")
    if kind == "values":
        if len(places) != len(weights) or not places:
            raise ValueError("one weight for each of the values")
        if not all(isinstance(one, str | int) for one in places) or len({*map(repr, places)}) < len(places):
            raise ValueError("different values that are text, whole numbers, true or false")
        return Reference(tuple(map(float, weights)), categories=tuple(places))
    if not all(map(_is_number, places)) or any(one >= after for one, after in itertools.pairwise(places)):
        raise ValueError("bins that are rising numbers")
    if len(places) != len(weights) + 1:
        raise ValueError("one more of bins, which are edges, than of weights")
    return Reference(tuple(map(float, weights)), bins=tuple(map(float, places)))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spelled(reference: Reference | str) -> object:
    if isinstance(reference, str):
        return reference
    places = {"bins": [*reference.bins]} if reference.bins else {"values": [*reference.categories]}
    return {**places, "weights": [*reference.weights]}


def _streams(value: object) -> object:
    """Take one stream's name or a list of them."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError("the name of a stream, or a list of different ones")
    return names


Duration = Annotated[timedelta, *_parsed(units.duration, "10 minutes")]
Decay = Annotated[
    timedelta,
    *_parsed(_decay, "30 s"),
    BeforeValidator(_unquoted_off),
    PlainSerializer(lambda length: units.spell(length) if length else "off", when_used="json"),
]
Streams = Annotated[
    tuple[str, ...],
    BeforeValidator(_streams),
    PlainSerializer(lambda names: names[0] if len(names) == 1 else list(names), when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
Objective = Annotated[units.Objective, *_parsed(units.objective, "p99 < 10ms")]
Volume = Annotated[units.Volume, *_parsed(units.volume, "50GB/day")]
Rate = Annotated[units.Rate, *_parsed(units.rate, "< 1%"), BeforeValidator(_zero)]
Values = Annotated[
    tuple[Any, ...],
    PlainValidator(_allowed),
    PlainSerializer(list, when_used="json"),
    WithJsonSchema({"type": "array"}),
]
Number = Annotated[int | float, PlainValidator(_number), WithJsonSchema({"type": "number"})]


class _Section(BaseModel):
    """A part of the declaration; keys it does not know are told apart by `_unknown_keys`."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class DistributionExpected(_Section):
    """How far a feature's values may be from a reference; a path is the project's, of a file with a column each."""

    reference: Annotated[
        Reference | str,
        PlainValidator(_reference),
        PlainSerializer(_spelled, when_used="json"),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
    ]
    distance: Distance = Distance.PSI
    limit: Number = 0.2


class Expect(_Section):
    """What is expected of a feature's values: `Expected`, as it is written."""

    min: Number | None = None
    max: Number | None = None
    values: Values | None = None
    nulls: Rate | None = None
    tolerance: Number | None = None
    mismatches: Rate = units.Rate(0)
    distribution: DistributionExpected | None = None

    @property
    def expected(self) -> Expected:
        """The same as a value, apart from how it is written."""
        drawn = self.distribution
        return Expected(
            self.min,
            self.max,
            self.values,
            None if self.nulls is None else self.nulls.share,
            self.tolerance,
            self.mismatches.share,
            None if drawn is None else Distribution(drawn.reference, drawn.distance, drawn.limit),
        )


class Definition(_Section):
    """One declared feature, or several: one for each duration of `over`.

    `resolution` makes its windows begin at multiples of it; `decay` is how often its rows follow them by time alone,
    `OFF` for never, None for the default of each window. `expect` is what the validator holds its values against.
    """

    name: str
    dtype: str
    source: Streams
    transformation: str
    view: str | None = None
    description: str = ""
    over: tuple[Duration, ...] = ()
    resolution: Duration | None = None
    decay: Decay | None = None
    expect: Expect = Expect()

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that feed the feature."""
        return self.source

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features it makes."""
        return tuple(f"{self.name}_{units.spell(length)}" for length in self.over) or (self.name,)


class ServingRequirements(_Section):
    """What the features must keep: how fast they are read, how much is written, how fresh they are."""

    onlineLatency: Objective = units.Objective(99, timedelta(milliseconds=10))
    offlineVolume: Volume = units.Volume(10 * 10**9, timedelta(days=1))
    freshnessTarget: Objective = units.Objective(99, timedelta(seconds=2))


class Infrastructure(_Section):
    """Where the features are kept. URLs may use ${ENV}; a relative folder is the project's."""

    onlineStore: str = "redis://localhost:6379/0"
    offlineStore: str = "data/offline"
    computeEngine: str = "bytewax"


class ViewOptions(_Section):
    """What is said of a feature view as a whole."""

    ttl: Duration = timedelta(0)
    decay: Decay | None = None


class Declaration(_Section):
    """Everything the user declared, checked in itself; streams and SQL are checked where they are known."""

    featureDefinitions: tuple[Definition, ...] = Field(min_length=1)
    servingRequirements: ServingRequirements
    infrastructure: Infrastructure = Infrastructure()
    project: str = "freshet"
    windows: Mapping[str, str] = {}
    columns: Mapping[str, str] = {}
    views: Mapping[str, ViewOptions] = {}

    def dtype_of(self, definition: Definition) -> Dtype:
        """The type a definition names; `read` has made sure that there is one."""
        found = dtype(definition.dtype)
        assert found is not None, definition.dtype
        return found


@dataclass(frozen=True)
class Places:
    """Where in the text every key stands, so that a refusal can say it."""

    file: str
    lines: Mapping[tuple[str | int, ...], int]

    def __call__(self, *path: str | int) -> str:
        """Say where a key stands, as `features.yaml:12`; for one that does not, where the key around it does."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}:{self.lines[path]}" if path in self.lines else self.file


@dataclass(frozen=True)
class Source:
    """A declaration, the places of its keys, and what is odd about it but not wrong."""

    declaration: Declaration
    place: Places
    warnings: tuple[Problem, ...]


def read(text: str, file: str = "features.yaml") -> Source:
    """Read a declaration from YAML or JSON text.

    Raises `Refused` with every problem: text that is not YAML, unknown keys close to known ones, incomplete
    definitions, unparsable requirements, repeated names.

    >>> read("featureDefinitions: []")
    Traceback (most recent call last):
    freshet.schemas.errors.Refused: features.yaml:1: declaration "features.yaml" declares no feature. Hint: add a \
definition with name, dtype, source, transformation
    features.yaml: declaration "features.yaml" has no servingRequirements. Hint: add `servingRequirements: {}` to take \
the defaults, or say onlineLatency, offlineVolume, freshnessTarget
    """
    data, place, problems = _load(text, file)
    if problems:
        raise Refused(problems)
    unknown = [*_unknown_keys(data, place)]
    warnings = tuple(problem for problem in unknown if problem.fact == _IGNORED)
    problems = [problem for problem in unknown if problem.fact != _IGNORED]
    if not data.get("featureDefinitions"):
        hint = f"add a definition with {listed(_COMPLETE)}"
        problems.append(Problem("declaration", file, "declares no feature", "", hint, place("featureDefinitions")))
    if "servingRequirements" not in data:
        hint = (
            "add `servingRequirements: {}` to take the defaults, or say onlineLatency, offlineVolume, freshnessTarget"
        )
        problems.append(Problem("declaration", file, "has no servingRequirements", "", hint, file))
    declaration = None
    try:
        declaration = Declaration.model_validate(data)
    except ValidationError as error:
        problems.extend(_explain(error, data, place))
    problems.extend(_definition_rules(_readable_definitions(data), place))
    if declaration is not None:
        problems.extend(_other_rules(declaration, place))
    if problems or declaration is None:
        raise Refused(problems)
    return Source(declaration, place, warnings)


_IGNORED = "is not a key Freshet knows; it is ignored"
_COMPLETE = ("name", "dtype", "source", "transformation")


def _load(text: str, file: str) -> tuple[dict[str, Any], Places, list[Problem]]:
    """Read YAML (JSON is YAML) into plain data, and note the line of every key."""
    lines: dict[tuple[str | int, ...], int] = {}
    places = Places(file, lines)
    problems: list[Problem] = []

    def walk(node: yaml.Node, path: tuple[str | int, ...]) -> None:
        lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                word = str(getattr(key, "value", key))
                if word in seen:
                    place = f"{file}:{key.start_mark.line + 1}"
                    problems.append(Problem("key", word, "stands twice", hint="keep one of them", place=place))
                seen.add(word)
                lines[(*path, word)] = key.start_mark.line + 1
                walk(value, (*path, word))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                walk(value, (*path, index))

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            walk(node, ())
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else file
        fact = f"is not YAML: {getattr(error, 'problem', None) or error}"
        return (
            {},
            places,
            [Problem("declaration", file, fact, hint="check the indentation and quotes there", place=place)],
        )
    if not isinstance(data, dict):
        got = "nothing" if data is None else type(data).__name__
        hint = "start with `featureDefinitions:` and `servingRequirements:`"
        return {}, places, [Problem("declaration", file, "is not a mapping of keys", got, hint, file)]
    return data, places, problems


def _unknown_keys(data: Mapping[str, Any], place: Places) -> Iterator[Problem]:
    """Refuse a key that is probably a misspelling; pass over `x-…`; say of any other that it is ignored."""

    def check(found: object, model: type[BaseModel], *path: str | int) -> Iterator[Problem]:
        for word in map(str, found) if isinstance(found, Mapping) else ():
            if word in model.model_fields or word.startswith("x-"):
                continue
            meant = nearest(word, model.model_fields)
            if meant:
                yield Problem("key", word, "is unknown", "", f"did you mean {meant}?", place(*path, word))
            else:
                yield Problem("key", word, _IGNORED, "", "start it with x- to keep it for yourself", place(*path, word))

    yield from check(data, Declaration)
    definitions = data.get("featureDefinitions")
    for index, definition in enumerate(definitions if isinstance(definitions, list) else ()):
        yield from check(definition, Definition, "featureDefinitions", index)
        expect = definition.get("expect") if isinstance(definition, Mapping) else None
        yield from check(expect, Expect, "featureDefinitions", index, "expect")
        drawn = expect.get("distribution") if isinstance(expect, Mapping) else None
        yield from check(drawn, DistributionExpected, "featureDefinitions", index, "expect", "distribution")
    yield from check(data.get("servingRequirements"), ServingRequirements, "servingRequirements")
    yield from check(data.get("infrastructure"), Infrastructure, "infrastructure")
    views = data.get("views")
    for name, options in views.items() if isinstance(views, Mapping) else ():
        yield from check(options, ViewOptions, "views", str(name))


def _explain(error: ValidationError, data: Mapping[str, Any], place: Places) -> Iterator[Problem]:
    """Turn pydantic's findings into ours, each with its feature, its place and what to write."""
    for found in error.errors():
        path, key = found["loc"], str(found["loc"][-1])
        if len(path) == 1 and found["type"] in ("missing", "too_short"):
            continue  # `read` has said it, in better words
        kind, name = "key", key
        if path[0] == "featureDefinitions" and len(path) > 1 and isinstance(path[1], int):
            definition = data["featureDefinitions"][path[1]]
            own = definition.get("name") if isinstance(definition, Mapping) else None
            kind, name = "feature", str(own or f"number {path[1] + 1}")
        got = "" if found["type"] == "missing" else repr(found["input"])[:80]
        if found["type"] == "missing":
            needs = f"a definition needs {listed(_COMPLETE)}"
            needs = "a distribution is compared with one" if key == "reference" else needs
            fact, hint = f"has no {key}", f"add `{key}:`; {needs}"
        elif found["type"] == "value_error":
            within = f"has {'.'.join(map(str, path[2:]))} that " if "expect" in path else ""
            fact, hint = f"{within}cannot be read", f"write {found['ctx']['error']}"
        elif found["type"] == "enum":
            fact, hint = f"has an unknown {key}", f"use one of {listed([*Distance])}"
        else:
            what, _, article = found["type"].partition("_type")
            wanted = {"tuple": "a list", "model": "a mapping of keys", "mapping": "a mapping of keys", "string": "text"}
            whole = kind == "key" or isinstance(path[-1], int)
            fact = ("is of the wrong kind" if whole else f"has {key} of the wrong kind") + article
            hint = f"write {wanted.get(what, what)}" + (" in quotes" if what == "string" else "")
        yield Problem(kind, name, fact, got, hint, place(*path))


def _readable_definitions(data: Mapping[str, Any]) -> Iterator[tuple[int, Definition]]:
    """Return the definitions that are complete, whatever is wrong with the others."""
    definitions = data.get("featureDefinitions")
    for index, definition in enumerate(definitions if isinstance(definitions, list) else ()):
        try:
            yield index, Definition.model_validate(definition)
        except ValidationError:
            continue  # `_explain` says why


def _definition_rules(definitions: Iterable[tuple[int, Definition]], place: Places) -> Iterator[Problem]:
    """Check what pydantic cannot: names, types, and names that stand twice."""
    first: dict[str, str] = {}
    for index, definition in definitions:
        name = definition.name

        def problem(key: str, fact: str, got: str, hint: str, name: str = name, index: int = index) -> Problem:
            return Problem("feature", name, fact, got, hint, place("featureDefinitions", index, key))

        if not NAME.fullmatch(name):
            yield problem("name", "has a name that cannot name a metric or a file", "", f"write {_repaired(name)}")
        for made in definition.names:
            if made in first:
                fact = "is declared twice" if made == name else f"makes {made}, which is declared twice"
                yield problem("name", f"{fact}, first at {first[made]}", "", "rename one of them")
            first.setdefault(made, place("featureDefinitions", index, "name"))
        if dtype(definition.dtype) is None:
            meant = nearest(definition.dtype, DTYPES)
            hint = f"did you mean {meant}?" if meant else f"use one of {listed(tuple(DTYPES))}"
            yield problem("dtype", "has an unknown dtype", repr(definition.dtype), hint)
        if not definition.transformation.strip():
            hint = "write a SQL expression, such as count(*) OVER (…)"
            yield problem("transformation", "has an empty transformation", "", hint)
        if definition.view is not None and not NAME.fullmatch(definition.view):
            hint = f"write {_repaired(definition.view)}"
            yield problem("view", "names a view that cannot name a folder", repr(definition.view), hint)
        for key, fact, got, hint in _expect_rules(definition):
            where = place("featureDefinitions", index, "expect", *key.split("."))
            yield Problem("feature", name, f"expects {fact}", got, hint, where)


_INTEGERS, _FLOATS = ("int32", "int64"), ("float32", "float64")
_KINDS: Mapping[str, type] = {"string": str, "bool": bool, "int32": int, "int64": int}


def _expect_rules(definition: Definition) -> Iterator[tuple[str, str, str, str]]:
    """Say what of `expect` does not go with the dtype, or with itself: key, fact, what was got, hint."""
    known, expect = dtype(definition.dtype), definition.expect
    if known is None:
        return  # said already
    is_number, of = known.name in (*_INTEGERS, *_FLOATS), f"of {known.name} values"
    bounds = {"min": expect.min, "max": expect.max}
    for key in (key for key, bound in bounds.items() if bound is not None and not is_number):
        yield key, f"a {key} {of}", "", "take it out: only numbers have one"
    if expect.min is not None and expect.max is not None and expect.min > expect.max:
        yield "min", "a min above its max", f"{expect.min} and {expect.max}", "exchange them"
    if expect.values is not None and known.name not in _KINDS:
        hint = "write min and max" if is_number else "take it out: only text, whole numbers and booleans are listed"
        yield "values", f"single values {of}", "", hint
    elif expect.values is not None and not _are_of(known, expect.values):
        got = listed([*map(repr, expect.values)])
        yield "values", f"values that are no {known.name}", got, f"write values of type {known.name}"
    if expect.tolerance is not None and known.name not in _FLOATS:
        yield "tolerance", f"a tolerance {of}", "", "take it out: only floats have one"
    elif expect.tolerance is not None and not 0 <= expect.tolerance < 1:
        yield "tolerance", "a tolerance that is no share", str(expect.tolerance), "write a number such as 1e-6"
    if expect.distribution is not None:
        yield from _distribution_rules(known, expect.distribution)


def _distribution_rules(known: Dtype, drawn: DistributionExpected) -> Iterator[tuple[str, str, str, str]]:
    is_number = known.name in (*_INTEGERS, *_FLOATS)
    key, of, reference = "distribution", f"of {known.name} values", drawn.reference
    if not is_number and known.name not in _KINDS:
        yield key, f"a distribution {of}", "", "take it out: only numbers, text and booleans have one"
        return
    if isinstance(reference, Reference) and reference.bins and not is_number:
        yield f"{key}.reference", f"bins {of}", "", "write values and weights"
    if isinstance(reference, Reference) and reference.categories and not _are_of(known, reference.categories):
        got = listed([*map(repr, reference.categories)])
        hint = "write bins and weights" if known.name in _FLOATS else f"write values of type {known.name}"
        yield f"{key}.reference", f"shares of values that are no {known.name}", got, hint
    ordered = is_number and not (isinstance(reference, Reference) and reference.categories)
    if drawn.distance is Distance.KS and not ordered:
        yield f"{key}.distance", "a ks distance of values without order", "", "write psi or js, or bins"
    if not 0 < drawn.limit or (drawn.limit >= 1 and drawn.distance is not Distance.PSI):
        hint = "write a number above 0, such as 0.2" + ("" if drawn.distance is Distance.PSI else ", below 1")
        yield f"{key}.limit", "a distance that cannot be", str(drawn.limit), hint


def _are_of(known: Dtype, values: Iterable[object]) -> bool:
    """Say whether single values are of a type; a boolean is no number."""
    kind = _KINDS.get(known.name)
    return all(type(value) is kind for value in values)


def _other_rules(declaration: Declaration, place: Places) -> Iterator[Problem]:
    """Check the sections beside the definitions."""
    named = [("project", declaration.project, place("project"))]
    named += [("window", name, place("windows", name)) for name in declaration.windows]
    named += [("column", name, place("columns", name)) for name in declaration.columns]
    for kind, name, where in named:
        if not NAME.fullmatch(name):
            yield Problem(kind, name, "has a name of other letters", "", f"write {_repaired(name)}", where)
    engine = declaration.infrastructure.computeEngine
    if engine.lower() != "bytewax":
        where = place("infrastructure", "computeEngine")
        yield Problem(
            "key", "computeEngine", "names an engine Freshet does not run", repr(engine), "write bytewax", where
        )


def _repaired(name: str) -> str:
    """Offer the nearest name that is allowed.

    >>> _repaired("User-Edits 10m"), _repaired("10m_edits")
    ('user_edits_10m', 'f_10m_edits')
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "feature"
    return words if words[0].isalpha() else f"f_{words}"
