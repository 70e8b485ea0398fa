"""Definitions into views, and each view around its windows: what goes in, what is folded, what comes out."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql.check import Checker, Expression, frame, types_of
from freshet.flows.steps.sql.engine import engine
from freshet.flows.steps.sql.parse import (
    Node,
    SyntaxProblem,
    expression,
    parse,
    quoted,
    rewrite,
    statement,
    walk,
    write,
)
from freshet.schemas.declaration import NAME, Source, ViewOptions
from freshet.schemas.dtypes import Dtype
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, Contract
from freshet.schemas.plan import Aggregate, Pipeline, ViewPlan
from freshet.schemas.view import CREATED, VERSION, Feature, View


def compile_views(source: Source, contracts: Mapping[str, Contract]) -> Pipeline:
    """Return the plan of every view of a declaration; `contracts` has the streams by name.

    Raises `Refused` with every problem of every definition.
    """
    with closing(engine()) as connection:
        windows, problems = _windows(connection, source)
        broken = {name for name in source.declaration.windows if name not in windows}
        expressions: list[Expression] = []
        for index in range(len(source.declaration.featureDefinitions)):
            read, found = _read(connection, source, contracts, index, windows, broken)
            problems += found
            expressions += [] if read is None else [read]
        views, found = _views(source, contracts, expressions)
        problems += found
        if problems:
            raise Refused(problems)
        plans = []
        for view, members in views:
            _offer(connection, contracts[view.source].schema)
            plans.append(_plan(connection, view, members))
        return Pipeline(source.declaration.project, tuple(plans))


def _offer(connection: duckdb.DuckDBPyConnection, columns: pa.Schema) -> None:
    """Make an empty table `events` of these columns."""
    connection.register("events", columns.empty_table())


# Reading


def _windows(connection: duckdb.DuckDBPyConnection, source: Source) -> tuple[dict[str, tuple[str, str]], list[Problem]]:
    """Return text and place of the named windows that are SQL, and what is wrong with the others."""
    windows: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    for name, text in source.declaration.windows.items():
        place = source.place("windows", name)
        alone = statement(text, place, {}, "count(*) OVER (", ")")
        hint = "write PARTITION BY … ORDER BY event_timestamp RANGE BETWEEN … PRECEDING AND CURRENT ROW"
        try:
            node = parse(connection, alone.sql)
        except SyntaxProblem as problem:
            fact = "has SQL that does not parse"
            problems.append(Problem("window", name, fact, problem.message, hint, alone.place(problem.byte)))
            continue
        if node["class"] != "WINDOW":
            problems.append(Problem("window", name, "is more than a window", "", hint, place))
            continue
        windows[name] = (text, place)
    return windows, problems


def _read(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    contracts: Mapping[str, Contract],
    index: int,
    windows: Mapping[str, tuple[str, str]],
    broken: set[str],
) -> tuple[Expression | None, list[Problem]]:
    """Check one definition."""
    definition = source.declaration.featureDefinitions[index]
    at = ("featureDefinitions", index)
    contract = contracts.get(definition.source)
    if contract is None:
        meant = nearest(definition.source, contracts)
        hint = f"did you mean {meant}?" if meant else f"there is {listed([*contracts])}"
        got = repr(definition.source)
        return None, [
            Problem("feature", definition.name, "has an unknown source", got, hint, source.place(*at, "source"))
        ]
    folded = [column.casefold() for column in contract.columns.names]
    twice = [name for name in contract.columns.names if folded.count(name.casefold()) > 1]
    if twice:
        hint = "rename one: SQL cannot tell them apart"
        fact = "has columns that differ only in case"
        return None, [Problem("stream", contract.name, fact, listed(twice), hint, source.place(*at, "source"))]
    place = source.place(*at, "transformation")
    text = statement(definition.transformation, place, windows, "", "")
    _offer(connection, contract.columns)
    checker = Checker(connection, definition, source.declaration.dtype_of(definition), contract, text, broken)
    return checker.check(), checker.problems


# Grouping


def _views(
    source: Source, contracts: Mapping[str, Contract], expressions: Sequence[Expression]
) -> tuple[list[tuple[View, list[Expression]]], list[Problem]]:
    """Group definitions by source and entity, or by the view they name."""
    places = {made.name: index for index, made in enumerate(source.declaration.featureDefinitions)}
    groups: dict[str, list[Expression]] = {}
    problems: list[Problem] = []

    def say(one: Expression, fact: str, got: str, hint: str, key: str) -> None:
        name = one.definition.name
        place = source.place("featureDefinitions", places[name], key)
        problems.append(Problem("feature", name, fact, got, hint, place))

    for one in expressions:
        definition = one.definition
        name = definition.view or f"{definition.source}_by_{'_'.join(one.entity)}".lower()
        if not NAME.fullmatch(name):
            say(
                one,
                "makes a view whose name cannot name a folder",
                repr(name),
                "name it with `view:`",
                "transformation",
            )
        group = groups.setdefault(name, [])
        first = (group or [one])[0]
        if (first.definition.source, first.entity) != (definition.source, one.entity):
            fact = f"shares view {name} with {first.definition.name}, but neither stream nor entity may differ there"
            got = (
                f"{definition.source} by {listed(one.entity)}, not {first.definition.source} by {listed(first.entity)}"
            )
            say(one, fact, got, "give it another `view:`", "view" if definition.view else "transformation")
        if definition.name in {column.casefold() for column in (*one.entity, EVENT_TIME, CREATED)}:
            say(one, "has the name of one of the view's own columns", definition.name, "rename the feature", "name")
        if CREATED in {column.casefold() for column in one.entity}:
            got = listed(one.entity)
            say(
                one,
                f"has an entity with the name of the view's own column {CREATED}",
                got,
                "rename the field",
                "source",
            )
        group.append(one)
    complete = len(expressions) == len(source.declaration.featureDefinitions)
    for name in source.declaration.views if complete else ():
        if name not in groups:
            meant = nearest(name, groups)
            hint = f"did you mean {meant}?" if meant else f"there is {listed([*groups])}"
            problems.append(Problem("view", name, "has options but no feature", "", hint, source.place("views", name)))
    return [(_view(source, contracts, name, group), group) for name, group in groups.items()], problems


def _view(source: Source, contracts: Mapping[str, Contract], name: str, group: Sequence[Expression]) -> View:
    columns = contracts[group[0].definition.source].columns
    return View(
        name,
        group[0].definition.source,
        tuple(pa.field(column, columns.field(column).type) for column in group[0].entity),
        tuple(
            Feature(one.definition.name, one.dtype, one.definition.transformation, one.definition.description)
            for one in group
        ),
        source.declaration.views.get(name, ViewOptions()).ttl,
    )


# Splitting


@dataclass
class _Split:
    """What the features of a view ask of their events: each argument, aggregate and row-level value once.

    Arguments and row-level values are kept with the features that need them: who is told when one fails on an event.
    """

    connection: duckdb.DuckDBPyConnection
    arguments: dict[str, list[str]] = field(default_factory=dict)
    aggregates: dict[Aggregate, int] = field(default_factory=dict)
    payload: dict[str, list[str]] = field(default_factory=dict)

    def outer(self, one: Expression) -> str:
        """Return a feature's expression over window values `_w…` and row-level values `_p…`.

        One without windows is row-level as a whole: it is computed with the arguments, and an event that it fails on is
        rejected. Around windows only plain columns are kept of the event.
        """
        if is_row_level(one):
            return self._row_level(f"CAST({write(self.connection, one.node)} AS {one.dtype.duckdb})", one)

        def replace(node: Node) -> Node | None:
            if node["class"] == "WINDOW":
                aggregate = self._aggregate(node, one.definition.name)
                index = self.aggregates.setdefault(aggregate, len(self.aggregates))
                return expression(self.connection, f"CAST(_w{index} AS {aggregate.result_type})")
            if node["class"] == "COLUMN_REF":
                return {**node, "column_names": [self._row_level(quoted(node["column_names"][0]), one)]}
            return None

        return write(self.connection, rewrite(one.node, replace))

    def _row_level(self, sql: str, one: Expression) -> str:
        features = self.payload.setdefault(sql, [])
        if one.definition.name not in features:
            features.append(one.definition.name)
        return f"_p{[*self.payload].index(sql)}"

    def _aggregate(self, window: Node, feature: str) -> Aggregate:
        function = window["function_name"].casefold()
        result = types_of(self.connection, [write(self.connection, window)])[0]
        argument = self._argument(window, function)
        index = None
        if argument is not None:
            features = self.arguments.setdefault(argument, [])
            if feature not in features:
                features.append(feature)
            index = [*self.arguments].index(argument)
        return Aggregate(function, index, result, frame(self.connection, window, partial(write, self.connection)))

    def _argument(self, window: Node, function: str) -> str | None:
        """Return what is folded of each event; FILTER makes it NULL, which every aggregate skips.

        CASE computes the argument only where FILTER lets it: one that would fail elsewhere does not.
        """
        value = write(self.connection, window["arguments"][0]["expression"]) if window["arguments"] else None
        if function == "count":
            value = None if value is None else f"CASE WHEN {value} IS NOT NULL THEN true END"
        elif value is not None and types_of(self.connection, [value]) == ["HUGEINT"]:
            value = f"CAST({value} AS DECIMAL(38, 0))"  # Arrow has no such integer
        if window["filter_expr"] is None:
            return value
        kept = write(self.connection, window["filter_expr"])
        return f"CASE WHEN {kept} THEN {'true' if value is None else value} END"


def is_row_level(one: Expression) -> bool:
    """Say whether a definition has no window: its value is its event's."""
    return all(part["class"] != "WINDOW" for part in walk(one.node))


def _plan(connection: duckdb.DuckDBPyConnection, view: View, members: Sequence[Expression]) -> ViewPlan:
    """Split a view; `events` has the contract's whole schema."""
    split = _Split(connection)
    outers = [split.outer(one) for one in members]
    entity = [quoted(name) for name in view.entity_names]
    inputs = [*entity, EVENT_TIME, PARTITION, OFFSET, AVAILABLE_AT]
    inputs += [f"{argument} AS _a{index}" for index, argument in enumerate(split.arguments)]
    inputs += [f"{value} AS _p{index}" for index, value in enumerate(split.payload)]
    inputs_sql = f"SELECT {', '.join(inputs)} FROM events"
    finish_sql = _finish_sql(view, outers, "rows", (CREATED, VERSION, PARTITION, OFFSET))
    longest = max((aggregate.frame.preceding_us for aggregate in split.aggregates), default=None)
    return ViewPlan(
        view,
        inputs_sql,
        connection.sql(inputs_sql).to_arrow_table().schema,
        tuple(split.aggregates),
        tuple(f"_p{index}" for index in range(len(split.payload))),
        finish_sql,
        _oracle_sql(connection, view, members),
        None if any(map(is_row_level, members)) or split.payload else longest,
        tuple(listed(features) for features in (*split.arguments.values(), *split.payload.values())),
    )


def _finish_sql(view: View, outers: Sequence[str], table: str, rest: Sequence[str]) -> str:
    """Return the SQL of the features from their outer expressions over `table`.

    An expression that fails on a row is NULL there (TRY); so is a cast to the dtype that does not fit.
    """
    entity = [quoted(name) for name in view.entity_names]
    typed = [
        f"TRY(CAST({outer} AS {feature.dtype.duckdb})) AS _f{index}"
        for index, (feature, outer) in enumerate(zip(view.features, outers, strict=True))
    ]
    kept = [
        f"{_kept(f'_f{index}', feature.dtype)} AS {quoted(feature.name)}" for index, feature in enumerate(view.features)
    ]
    inner = f"SELECT {', '.join([*entity, EVENT_TIME, *typed, *rest])} FROM {table}"
    return f"SELECT {', '.join([*entity, EVENT_TIME, *kept, *rest])} FROM ({inner})"


def _kept(value: str, dtype: Dtype) -> str:
    """Return a value as both stores keep it: NaN is NULL, times are whole seconds."""
    if dtype.element is not None:
        kept = _kept("_x", dtype.element)
        return value if kept == "_x" else f"list_transform({value}, lambda _x: {kept})"
    if dtype.is_float:
        return f"CASE WHEN NOT isnan({value}) THEN {value} END"
    if dtype.name == "unix_timestamp":
        return f"date_trunc('second', {value})"
    return value


def _oracle_sql(connection: duckdb.DuckDBPyConnection, view: View, members: Sequence[Expression]) -> str:
    """Return the declared SQL in DuckDB's own windows over `events`: a row for each entity and time that has one.

    Windows are computed as they stand in the declaration, FILTER and all; only then come the expressions around them,
    since DuckDB has no TRY around windows. Of events tied in time the last by partition and offset gives the plain
    columns. TRY inside of windows is for arguments that FILTER drops: DuckDB computes those too.
    """
    computed: list[str] = []

    def guarded(node: Node) -> Node:
        return {"class": "OPERATOR", "type": "OPERATOR_TRY", "alias": "", "children": [node]}

    def replace(node: Node) -> Node | None:
        if node["class"] != "WINDOW":
            return None
        arguments = [{**part, "expression": guarded(part["expression"])} for part in node["arguments"]]
        kept = None if node["filter_expr"] is None else guarded(node["filter_expr"])
        window = write(connection, {**node, "arguments": arguments, "filter_expr": kept})
        computed.append(f"{window} AS _o{len(computed)}")
        return expression(connection, f"_o{len(computed) - 1}")

    outers = [write(connection, rewrite(one.node, replace)) for one in members]
    entity = [quoted(name) for name in view.entity_names]
    last = (
        f"row_number() OVER (PARTITION BY {', '.join(entity)}, {EVENT_TIME} ORDER BY {PARTITION} DESC, {OFFSET} DESC)"
    )
    known = " AND ".join(f"{name} IS NOT NULL" for name in entity)
    windowed = f"SELECT *, {', '.join([*computed, f'{last} AS _last'])} FROM events WHERE {known}"
    return _finish_sql(view, outers, f"({windowed}) WHERE _last = 1", ())
