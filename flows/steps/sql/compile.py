"""Definitions into views, and each view around its windows: what goes in, what is folded, what comes out."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql.check import Checker, Events, Expression, frame_of, quantile, types_of, windowed
from freshet.flows.steps.sql.columns import Columns, read_columns
from freshet.flows.steps.sql.engine import engine
from freshet.flows.steps.sql.finish import finish_sql
from freshet.flows.steps.sql.frames import FrameOptions
from freshet.flows.steps.sql.functions import ASKED, ENDS, Form
from freshet.flows.steps.sql.oracle import oracle_sql
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
from freshet.schemas.declaration import NAME, Definition, Source, ViewOptions
from freshet.schemas.errors import Problem, Refused, listed, nearest
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, STREAM, Contract
from freshet.schemas.plan import PARTITION_BITS, Aggregate, Lag, Pipeline, Range, Rows, ViewPlan
from freshet.schemas.units import count_us
from freshet.schemas.view import CREATED, VERSION, Feature, View


@dataclass(frozen=True, slots=True)
class _Declared:
    """What definitions may use: streams, named windows, columns."""

    source: Source
    contracts: Mapping[str, Contract]
    windows: Mapping[str, tuple[str, str]]
    broken_windows: frozenset[str]
    columns: Columns


def compile_views(source: Source, contracts: Mapping[str, Contract]) -> Pipeline:
    """Return the plan of every view of a declaration; `contracts` has the streams by name.

    Raises `Refused` with every problem of every definition.
    """
    with closing(engine()) as connection:
        windows, problems = _windows(connection, source)
        columns, found = read_columns(connection, source, windows, _fields(source, contracts))
        problems += found
        broken = frozenset(name for name in source.declaration.windows if name not in windows)
        declared = _Declared(source, contracts, windows, broken, columns)
        expressions: list[Expression] = []
        for index in range(len(source.declaration.featureDefinitions)):
            read, found = _read(connection, declared, index)
            problems += found
            expressions += read
        views, found = _views(source, expressions)
        problems += found
        if problems:
            raise Refused(dict.fromkeys(problems))
        plans = []
        for view, members in views:
            _offer(connection, members[0].events.schema)
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


def _fields(source: Source, contracts: Mapping[str, Contract]) -> frozenset[str]:
    """Return what the streams of all definitions call their columns, in lower case; nothing if one is unknown."""
    names = {name for definition in source.declaration.featureDefinitions for name in definition.streams}
    if not names <= contracts.keys():
        return frozenset()
    return frozenset(column.casefold() for name in names for column in contracts[name].columns.names)


def _read(
    connection: duckdb.DuckDBPyConnection, declared: _Declared, index: int
) -> tuple[list[Expression], list[Problem]]:
    """Check one definition: one feature, or one for each duration of `over`."""
    source = declared.source
    definition, at = source.declaration.featureDefinitions[index], ("featureDefinitions", index)
    events, problems = _events(declared, definition, source.place(*at, "source"))
    if events is None:
        return [], problems
    place = source.place(*at, "transformation")
    text = statement(definition.transformation, place, declared.windows, "", "")
    _offer(connection, events.columns)
    options = _options(source, definition)
    dtype = source.declaration.dtype_of(definition)
    read: list[Expression] = []
    for name, length in zip(definition.names, definition.over or (None,), strict=True):
        over_us = None if length is None else count_us(length)
        own = definition.model_copy(update={"name": name, "over": ()})
        checker = Checker(
            connection, own, dtype, events, text, declared.columns, options, declared.broken_windows, over_us
        )
        found = checker.check()
        if found is not None and definition.resolution is not None and not _takes_resolution(connection, found):
            hint = "take it out: only windows of a duration have one"
            where = source.place(*at, "resolution")
            problems.append(Problem("feature", name, "has a resolution that no window takes", "", hint, where))
        problems += checker.problems
        read += [] if found is None else [found]
    return read, problems


def _options(source: Source, definition: Definition) -> FrameOptions:
    """Return what a definition, its view and the requirements say of its frames."""
    decay = definition.decay
    resolution = 1 if definition.resolution is None else count_us(definition.resolution)
    target = count_us(source.declaration.servingRequirements.freshnessTarget.bound)
    return FrameOptions(resolution, None if decay is None else count_us(decay), target)


def _takes_resolution(connection: duckdb.DuckDBPyConnection, one: Expression) -> bool:
    frames = [frame_of(connection, part, one) for part in walk(one.node) if part["class"] == "WINDOW"]
    return any(isinstance(frame, Range) and frame.preceding_us and frame.resolution_us > 1 for frame in frames)


def _events(declared: _Declared, definition: Definition, place: str) -> tuple[Events | None, list[Problem]]:
    """Return the events of a definition's streams, or what is wrong with them."""
    for name in definition.streams:
        if name not in declared.contracts:
            meant = nearest(name, declared.contracts)
            hint = f"did you mean {meant}?" if meant else f"there is {listed([*declared.contracts])}"
            return None, [Problem("feature", definition.name, "has an unknown source", repr(name), hint, place)]
    made = tuple(declared.contracts[name] for name in definition.streams)
    columns, problems = _joined(made, definition.name, place)
    problems += _ambiguous(columns, declared, made, place)
    if len(made) > 1:
        columns = [*columns, pa.field(STREAM, pa.int32(), nullable=False)]
    visible = pa.schema([column for column in columns if not column.name.startswith("_")])
    return (None if problems else Events(made, visible, pa.schema(columns))), problems


def _joined(made: Sequence[Contract], feature: str, place: str) -> tuple[list[pa.Field], list[Problem]]:
    """Return the columns of several streams together, and where they do not go together."""
    fields: dict[str, tuple[pa.Field, Contract]] = {}
    problems: list[Problem] = []
    for contract in made:
        for column in contract.schema:
            first, whose = fields.setdefault(column.name, (column, contract))
            if first.type != column.type:
                got = f"{first.type} in {whose.name} and {column.type} in {contract.name}"
                fact, hint = f"joins streams whose {column.name} differs in type", "rename one, or give both one type"
                problems.append(Problem("feature", feature, fact, got, hint, place))
    if len({contract.stream.key for contract in made}) > 1:
        got = listed([f"{contract.stream.key} of {contract.name}" for contract in made])
        hint = "join streams of one key"
        problems.append(Problem("feature", feature, "joins streams with different keys", got, hint, place))
    return [column for column, _ in fields.values()], problems


def _ambiguous(
    columns: Sequence[pa.Field], declared: _Declared, made: Sequence[Contract], place: str
) -> Iterator[Problem]:
    """Say which names SQL cannot tell apart."""
    folded = [column.name.casefold() for column in columns]
    twice = [column.name for column in columns if folded.count(column.name.casefold()) > 1]
    streams = "_".join(contract.name for contract in made)
    if twice:
        hint = "rename one: SQL cannot tell them apart"
        yield Problem("stream", streams, "has columns that differ only in case", listed(twice), hint, place)
    for name in (name for name in declared.columns.nodes if name in folded):
        owner = next(one.name for one in made if name in map(str.casefold, one.columns.names))
        hint, where = f"rename it: {owner} has {name}", declared.source.place("columns", name)
        yield Problem("column", name, "has the name of a field of the stream", "", hint, where)


# Grouping


def _views(
    source: Source, expressions: Sequence[Expression]
) -> tuple[list[tuple[View, list[Expression]]], list[Problem]]:
    """Group definitions by source and entity, or by the view they name."""
    definitions = source.declaration.featureDefinitions
    places = {name: index for index, made in enumerate(definitions) for name in made.names}
    groups: dict[str, list[Expression]] = {}
    problems: list[Problem] = []

    def say(one: Expression, fact: str, got: str, hint: str, key: str) -> None:
        name = one.definition.name
        place = source.place("featureDefinitions", places[name], key)
        problems.append(Problem("feature", name, fact, got, hint, place))

    for one in expressions:
        definition = one.definition
        name = definition.view or f"{one.events.name}_by_{'_'.join(one.entity)}".lower()
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
        if (first.events.names, first.entity) != (one.events.names, one.entity):
            fact = f"shares view {name} with {first.definition.name}, but neither stream nor entity may differ there"
            streams, others = listed(one.events.names), listed(first.events.names)
            got = f"{streams} by {listed(one.entity)}, not {others} by {listed(first.entity)}"
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
    complete = len(expressions) == sum(len(made.names) for made in definitions)
    for name in source.declaration.views if complete else ():
        if name not in groups:
            meant = nearest(name, groups)
            hint = f"did you mean {meant}?" if meant else f"there is {listed([*groups])}"
            problems.append(Problem("view", name, "has options but no feature", "", hint, source.place("views", name)))
    views = []
    for name, group in groups.items():
        options = source.declaration.views.get(name, ViewOptions())
        views.append((_view(options, name, group), [_with_decay(one, options) for one in group]))
    return views, problems


def _with_decay(one: Expression, options: ViewOptions) -> Expression:
    """Let a view's decay stand for that of its definitions which have none."""
    if options.decay is None or one.definition.decay is not None:
        return one
    return replace(one, options=replace(one.options, decay_us=count_us(options.decay)))


def _view(options: ViewOptions, name: str, group: Sequence[Expression]) -> View:
    events = group[0].events
    return View(
        name,
        events.names,
        tuple(pa.field(column, events.columns.field(column).type) for column in group[0].entity),
        tuple(
            Feature(made.name, one.dtype, made.transformation, made.description, made.expect.expected)
            for one in group
            for made in (one.definition,)
        ),
        options.ttl,
    )


# Splitting


@dataclass
class _Split:
    """What the features of a view ask of their events: each argument, aggregate and row-level value once.

    Arguments and row-level values are kept with the features that need them: who is told when one fails on an event.
    """

    connection: duckdb.DuckDBPyConnection
    arguments: dict[str, list[str]] = field(default_factory=dict)
    lagged: set[str] = field(default_factory=set)
    """Those of the arguments that need earlier events."""
    aggregates: dict[Aggregate, int] = field(default_factory=dict)
    payload: dict[str, list[str]] = field(default_factory=dict)
    raw: dict[str, list[str]] = field(default_factory=dict)
    lags: dict[Lag, int] = field(default_factory=dict)

    def outer(self, one: Expression) -> str:
        """Return a feature's expression over window values `_w…` and row-level values `_p…`.

        One without windows is row-level as a whole: it is computed with the arguments, and an event that it fails on is
        rejected. Around windows only plain columns are kept of the event.
        """
        if is_row_level(one):
            return self._named(
                self.payload, "_p", f"CAST({write(self.connection, one.node)} AS {one.dtype.duckdb})", one
            )

        def replaced(node: Node) -> Node | None:
            if node["class"] == "WINDOW":
                return self._window(node, one, replaced)
            if node["class"] == "COLUMN_REF":
                return {**node, "column_names": [self._named(self.payload, "_p", quoted(node["column_names"][0]), one)]}
            return None

        return write(self.connection, rewrite(one.node, replaced))

    def _named(self, values: dict[str, list[str]], prefix: str, sql: str, one: Expression) -> str:
        """Return the name of a value that is computed of each event, once."""
        features = values.setdefault(sql, [])
        if one.definition.name not in features:
            features.append(one.definition.name)
        return f"{prefix}{[*values].index(sql)}"

    def _window(self, window: Node, one: Expression, replaced: Callable[[Node], Node | None]) -> Node:
        """Return what stands for a window in the outer expression."""
        made = self._aggregate(window, one)
        value = f"CAST(_w{self._place(made)} AS {made.result_type})"
        if window["type"] == "WINDOW_LAG" and len(window["arguments"]) == 3:
            default = write(self.connection, rewrite(window["arguments"][2]["expression"], replaced))
            events = self._place(Aggregate("count", None, "BIGINT", made.frame))
            value = f"CASE WHEN _w{events} = 0 THEN CAST({default} AS {made.result_type}) ELSE {value} END"
        return expression(self.connection, value)

    def _place(self, made: Aggregate) -> int:
        return self.aggregates.setdefault(made, len(self.aggregates))

    def _aggregate(self, window: Node, one: Expression) -> Aggregate:
        made = windowed(window)
        assert made is not None, window["function_name"]
        result = one.type_of(self.connection, window)
        frame = frame_of(self.connection, window, one)
        parameter = made.parameter
        if parameter == ASKED:
            parameter = quantile(self.connection, window["arguments"][-1]["expression"])
        argument = self._argument(window, made.form, one)
        return Aggregate(made.function, argument, result, frame, parameter)

    def _argument(self, window: Node, form: Form, one: Expression) -> int | None:
        """Return the place of what is folded of each event; FILTER makes it NULL, which every aggregate skips.

        CASE computes the argument only where FILTER lets it: one that would fail elsewhere does not.
        """
        lower = self._over_raw if needs_earlier(window, one) else self._over_event
        inputs = [lower(part["expression"], one) for part in window["arguments"]]
        kept = None if window["filter_expr"] is None else lower(window["filter_expr"], one)
        if not inputs:
            if kept is None:
                return None
            return self._kept(f"CASE WHEN {kept} THEN true END", window, one)
        conditions = [] if kept is None else [f"({kept})"]
        value = inputs[0]
        if form is Form.PRESENT:
            conditions, value = [*conditions, f"({value}) IS NOT NULL"], "true"
        elif form is Form.BOX:
            conditions += [f"({value}) IS NOT NULL"] if window["ignore_nulls"] else []
            value = f"struct_pack(v := {value})"
        elif form is Form.RANKED:
            conditions += [f"({one_input}) IS NOT NULL" for one_input in inputs[:2]]
            value = f"struct_pack(v := {value}, k := {inputs[1]})"
        elif form is Form.DOUBLE:
            value = f"CAST({value} AS DOUBLE)"
        elif form is Form.HASH:
            value = f"md5_number_lower(CAST({self._one_zero(window, value, one)} AS VARCHAR))"
        elif one.type_of(self.connection, window["arguments"][0]["expression"]) == "HUGEINT":
            value = f"CAST({value} AS DECIMAL(38, 0))"  # Arrow has no such integer
        condition = " AND ".join(conditions)
        return self._kept(f"CASE WHEN {condition} THEN {value} END" if condition else value, window, one)

    def _one_zero(self, window: Node, value: str, one: Expression) -> str:
        """Return a value such that -0.0 is 0.0, as SQL compares them."""
        kind = one.type_of(self.connection, window["arguments"][0]["expression"])
        return f"({value} + 0.0::{kind})" if kind in ("FLOAT", "DOUBLE") else value

    def _kept(self, sql: str, window: Node, one: Expression) -> int:
        self._named(self.arguments, "_a", sql, one)
        if needs_earlier(window, one):
            self.lagged.add(sql)
        return [*self.arguments].index(sql)

    def _over_event(self, node: Node, one: Expression) -> str:
        """Write an input over the event's own columns."""
        del one
        return write(self.connection, node)

    def _over_raw(self, node: Node, one: Expression) -> str:
        """Write an input over the event's values `_r…`, and earlier events' `_l…`."""

        def replaced(part: Node) -> Node | None:
            if part["class"] == "WINDOW":
                return expression(self.connection, self._lag(part, one))
            if part["class"] == "COLUMN_REF":
                name = part["column_names"][0]
                if name in one.lagged:
                    return rewrite(one.lagged[name], replaced)
                return {**part, "column_names": [self._named(self.raw, "_r", quoted(name), one)]}
            return None

        return write(self.connection, rewrite(node, replaced))

    def _lag(self, window: Node, one: Expression) -> str:
        """Return the earlier event's value that a lag is."""
        frame = frame_of(self.connection, window, one)
        assert isinstance(frame, Rows)
        arguments = [write(self.connection, part["expression"]) for part in window["arguments"]]
        kind = types_of(self.connection, [arguments[0]])[0]
        column = self._named(self.raw, "_r", f"CAST({arguments[0]} AS {kind})", one)
        default = None
        if len(arguments) == 3:
            default = self._named(self.raw, "_r", f"CAST({arguments[2]} AS {kind})", one)
        lag = Lag(column, frame.ending, default)
        return f"CAST(_l{self.lags.setdefault(lag, len(self.lags))} AS {kind})"


def needs_earlier(window: Node, one: Expression) -> bool:
    """Say whether the inputs of a window need values of earlier events."""
    parts = [*(part["expression"] for part in window["arguments"]), window["filter_expr"]]
    nodes = (node for part in parts if part is not None for node in walk(part))
    return any(node["class"] == "COLUMN_REF" and node["column_names"][0] in one.lagged for node in nodes)


def is_row_level(one: Expression) -> bool:
    """Say whether a definition has no window: its value is its event's."""
    return all(part["class"] != "WINDOW" for part in walk(one.node))


def _plan(connection: duckdb.DuckDBPyConnection, view: View, members: Sequence[Expression]) -> ViewPlan:
    """Split a view; `events` has the whole schema of its events."""
    split, events = _Split(connection), members[0].events
    outers = [split.outer(one) for one in members]
    values = [
        (f"{prefix}{index}", sql, features)
        for prefix, made in (("_a", split.arguments), ("_p", split.payload), ("_r", split.raw))
        for index, (sql, features) in enumerate(made.items())
    ]
    late = {name: sql for name, sql, _ in values if sql in split.lagged}
    computed = {name: sql for name, sql, _ in values if name not in late}
    inputs_sql = tuple(_inputs_sql(connection, view, events, index, computed) for index in range(len(events.contracts)))
    inputs = connection.sql(inputs_sql[0]).to_arrow_table().schema
    lagged_sql, arguments = _lagged_sql(connection, late, split, inputs)
    frames = [made.frame for made in split.aggregates]
    whole_history = (
        bool(split.payload or split.lags)
        or any(isinstance(frame, Rows) or frame.preceding_us is None for frame in frames)
        or any(made.function in ENDS for made in split.aggregates)
    )
    return ViewPlan(
        view,
        inputs_sql,
        inputs,
        tuple(split.aggregates),
        tuple(f"_p{index}" for index in range(len(split.payload))),
        finish_sql(view, outers, "rows", (CREATED, VERSION, PARTITION, OFFSET)),
        oracle_sql(connection, view, members, whole_history=whole_history),
        whole_history,
        tuple(listed(features) for name, _, features in values if name not in late),
        pa.schema([column for column in events.schema if column.name != STREAM]),
        tuple(split.lags),
        lagged_sql,
        arguments,
    )


def _lagged_sql(
    connection: duckdb.DuckDBPyConnection, late: Mapping[str, str], split: _Split, inputs: pa.Schema
) -> tuple[str, pa.Schema]:
    """Return the SQL of the arguments that need earlier events, and what it gives; what fails is NULL."""
    if not late:
        return "", pa.schema([])
    items = [f"TRY({sql}) AS {name}" for name, sql in late.items()]
    sql = f"SELECT {', '.join(items)} FROM lagged"
    raw = [column for column in inputs if column.name.startswith("_r")]
    earlier = [pa.field(f"_l{index}", inputs.field(lag.column).type) for index, lag in enumerate(split.lags)]
    connection.register("lagged", pa.schema([*raw, *earlier]).empty_table())
    return sql, connection.sql(sql).to_arrow_table().schema


def _inputs_sql(
    connection: duckdb.DuckDBPyConnection, view: View, events: Events, index: int, computed: Mapping[str, str]
) -> str:
    """Return the SQL of what the windows need of the events of one stream."""
    partition = PARTITION
    if len(events.contracts) > 1:
        partition = f"CAST({PARTITION} + {index << PARTITION_BITS} AS INTEGER) AS {PARTITION}"
    items = [*(quoted(name) for name in view.entity_names), EVENT_TIME, partition, OFFSET, AVAILABLE_AT]
    items += [f"{sql} AS _id" for sql in events.ids(connection)[index : index + 1]]
    items += [f"{sql} AS {name}" for name, sql in computed.items()]
    return f"SELECT {', '.join(items)} FROM events"
