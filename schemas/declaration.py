"""The declaration: the user's whole input, `feature_repo/features.yaml`.

The first three sections are the user's own schema, spelled as there; `project`, `windows`, `views` and the keys of a
definition beyond `name`, `dtype`, `source` and `transformation` are Freshet's. `read` takes the text and gives a
`Declaration`, or refuses with every problem found. It reads no file and runs no SQL.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema

from freshet.schemas import units
from freshet.schemas.dtypes import DTYPES, Dtype, dtype
from freshet.schemas.errors import Problem, Refused, listed, nearest

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""Names become folders, metrics and files."""


def _parsed(parse: Any, example: str) -> Any:
    """Take the words people write, keep the parsed value, and write the words back."""

    def read(value: object) -> object:
        return parse(value) if isinstance(value, str) else value

    return (
        BeforeValidator(read),
        PlainSerializer(lambda value: units.spell(value) if isinstance(value, timedelta) else str(value), when_used="json"),
        WithJsonSchema({"type": "string", "examples": [example]}),
    )


Duration = Annotated[timedelta, *_parsed(units.duration, "10 minutes")]
Objective = Annotated[units.Objective, *_parsed(units.objective, "p99 < 10ms")]
Volume = Annotated[units.Volume, *_parsed(units.volume, "50GB/day")]


class _Section(BaseModel):
    """A part of the declaration; keys it does not know are told apart by `_unknown_keys`."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)


class Definition(_Section):
    """One declared feature."""

    name: str
    dtype: str
    source: str
    transformation: str
    view: str | None = None
    description: str = ""


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


class Declaration(_Section):
    """Everything the user declared, checked in itself; streams and SQL are checked where they are known."""

    featureDefinitions: tuple[Definition, ...] = Field(min_length=1)
    servingRequirements: ServingRequirements
    infrastructure: Infrastructure = Infrastructure()
    project: str = "freshet"
    windows: Mapping[str, str] = {}
    views: Mapping[str, ViewOptions] = {}

    def dtype_of(self, definition: Definition) -> Dtype:
        """The type a definition names; `read` has made sure that there is one."""
        found = dtype(definition.dtype)
        assert found is not None, definition.dtype
        return found


@dataclass(frozen=True)
class Source:
    """A declaration with the text it came from, so that a later refusal can say where."""

    declaration: Declaration
    file: str
    lines: Mapping[tuple[str | int, ...], int]
    warnings: tuple[Problem, ...]

    def place(self, *path: str | int) -> str:
        """Say where a key stands, as `features.yaml:12`.

        Falls back to the nearest enclosing key.
        """
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.file}:{self.lines[path]}" if path in self.lines else self.file


def read(text: str, file: str = "features.yaml") -> Source:
    """Read a declaration from YAML or JSON text.

    Raises `Refused` with every problem: text that is not YAML, unknown keys close to known ones, incomplete
    definitions, unparsable requirements, repeated names.

    >>> read("featureDefinitions: []")
    Traceback (most recent call last):
    freshet.schemas.errors.Refused: features.yaml:1: declaration "features.yaml" declares no feature; got \
featureDefinitions: []. Hint: add a definition with name, dtype, source and transformation
    features.yaml: declaration "features.yaml" has no servingRequirements. Hint: add `servingRequirements: {}` to take \
the defaults, or say onlineLatency, offlineVolume, freshnessTarget
    """
    data, lines, problems = _load(text, file)
    if problems:
        raise Refused(problems)
    where = _Places(file, lines)
    problems = [*_unknown_keys(data, source)]
    warnings = tuple(problem for problem in problems if problem.fact == _IGNORED)
    problems = [problem for problem in problems if problem.fact != _IGNORED]
    if not data.get("featureDefinitions"):
        problems.append(
            Problem(
                "declaration", file, "declares no feature", "featureDefinitions: []" if "featureDefinitions" in data else "",
                "add a definition with name, dtype, source and transformation", source.place("featureDefinitions"),
            )
        )  # fmt: skip
    if "servingRequirements" not in data:
        hint = "add `servingRequirements: {}` to take the defaults, or say onlineLatency, offlineVolume, freshnessTarget"
        problems.append(Problem("declaration", file, "has no servingRequirements", hint=hint, place=file))
    try:
        declaration = Declaration.model_validate(data)
    except ValidationError as error:
        problems.extend(_explain(error, data, source, known=bool(problems)))
        raise Refused(problems) from None
    problems.extend(_own_rules(declaration, source))
    if problems:
        raise Refused(problems)
    return Source(declaration, file, lines, warnings)


_IGNORED = "is not a key Freshet knows; it is ignored"
_COMPLETE = ("name", "dtype", "source", "transformation")


def _load(text: str, file: str) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int], list[Problem]]:
    """Read YAML (JSON is YAML) into plain data, and note the line of every key."""
    lines: dict[tuple[str | int, ...], int] = {}
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
        return {}, lines, [Problem("declaration", file, fact, hint="check the indentation and quotes there", place=place)]
    if not isinstance(data, dict):
        got = "nothing" if data is None else type(data).__name__
        hint = "start with `featureDefinitions:` and `servingRequirements:`"
        return {}, lines, [Problem("declaration", file, "is not a mapping of keys", got, hint, file)]
    return data, lines, problems


def _unknown_keys(data: Mapping[str, Any], source: Source) -> Iterator[Problem]:
    """Refuse a key that is probably a misspelling; pass over `x-…`; say of any other that it is ignored."""

    def check(found: object, model: type[BaseModel], path: tuple[str | int, ...]) -> Iterator[Problem]:
        if not isinstance(found, Mapping):
            return
        for key in found:
            word = str(key)
            if word in model.model_fields or word.startswith("x-"):
                continue
            meant = nearest(word, model.model_fields)
            place = source.place(*path, word)
            if meant:
                yield Problem("key", word, "is unknown", hint=f"did you mean {meant}?", place=place)
            else:
                yield Problem("key", word, _IGNORED, hint="start it with x- to keep it for yourself", place=place)

    yield from check(data, Declaration, ())
    definitions = data.get("featureDefinitions")
    for index, definition in enumerate(definitions if isinstance(definitions, list) else ()):
        yield from check(definition, Definition, ("featureDefinitions", index))
    yield from check(data.get("servingRequirements"), ServingRequirements, ("servingRequirements",))
    yield from check(data.get("infrastructure"), Infrastructure, ("infrastructure",))
    views = data.get("views")
    for name, options in views.items() if isinstance(views, Mapping) else ():
        yield from check(options, ViewOptions, ("views", str(name)))


def _explain(error: ValidationError, data: Mapping[str, Any], source: Source, *, known: bool) -> Iterator[Problem]:
    """Turn pydantic's findings into ours, each with its feature, its place and what to write."""
    for found in error.errors():
        path = found["loc"]
        if path and path[0] in ("featureDefinitions", "servingRequirements") and len(path) == 1:
            if found["type"] in ("missing", "too_short") and known:
                continue  # said already, in better words
        kind, name = "key", str(path[-1]) if path else source.file
        if path and path[0] == "featureDefinitions" and len(path) > 1 and isinstance(path[1], int):
            definition = data["featureDefinitions"][path[1]]
            own = definition.get("name") if isinstance(definition, Mapping) else None
            kind, name = "feature", str(own or f"number {path[1] + 1}")
        got = "" if found["type"] == "missing" else repr(found["input"])[:80]
        key = str(path[-1])
        if found["type"] == "missing":
            fact, hint = f"has no {key}", f"add `{key}:`; a definition needs {listed(_COMPLETE)}"
        elif found["type"] == "value_error":
            fact, hint = f"has an unreadable {key}", f"write {found['ctx']['error']}"
            if kind == "key":
                fact = "cannot be read"
        else:
            fact, hint = f"has a wrong {key}: {found['msg'].lower()}", "see the README for the form of a declaration"
        yield Problem(kind, name, fact, got, hint, source.place(*path))


def _own_rules(declaration: Declaration, source: Source) -> Iterator[Problem]:
    """Check what one section says against another."""
    first: dict[str, int] = {}
    for index, definition in enumerate(declaration.featureDefinitions):
        at = ("featureDefinitions", index)
        if not NAME.fullmatch(definition.name):
            hint = f"use small letters, digits and _: {_repaired(definition.name)}"
            yield Problem("feature", definition.name, "has a name that cannot name a file or a metric", "", hint, source.place(*at, "name"))
        if definition.name in first:
            line = source.place("featureDefinitions", first[definition.name])
            yield Problem("feature", definition.name, f"is declared twice, first at {line}", "", "rename one of them", source.place(*at, "name"))
        first.setdefault(definition.name, index)
        if dtype(definition.dtype) is None:
            meant = nearest(definition.dtype, DTYPES)
            hint = f"did you mean {meant}?" if meant else f"use one of {listed(tuple(DTYPES))}"
            yield Problem("feature", definition.name, "has an unknown dtype", repr(definition.dtype), hint, source.place(*at, "dtype"))
        if not definition.transformation.strip():
            yield Problem("feature", definition.name, "has an empty transformation", "", "write a SQL expression, such as count(*) OVER (…)", source.place(*at, "transformation"))
        if definition.view is not None and not NAME.fullmatch(definition.view):
            yield Problem("view", definition.view, "has a name that cannot name a folder", "", f"write {_repaired(definition.view)}", source.place(*at, "view"))
    for name, where in (("project", ("project",)),):
        if not NAME.fullmatch(declaration.project):
            yield Problem(name, declaration.project, "has a name that cannot name a file or a metric", "", f"write {_repaired(declaration.project)}", source.place(*where))
    for name in declaration.windows:
        if not NAME.fullmatch(name):
            yield Problem("window", name, "has a name that SQL may read otherwise", "", f"write {_repaired(name)}", source.place("windows", name))
    if declaration.infrastructure.computeEngine.lower() != "bytewax":
        yield Problem("key", "computeEngine", "names an engine Freshet does not run", repr(declaration.infrastructure.computeEngine), "write bytewax", source.place("infrastructure", "computeEngine"))


def _repaired(name: str) -> str:
    """Offer the nearest name that is allowed.

    >>> _repaired("User-Edits 10m"), _repaired("10m_edits")
    ('user_edits_10m', 'f_10m_edits')
    """
    words = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "feature"
    return words if words[0].isalpha() else f"f_{words}"
