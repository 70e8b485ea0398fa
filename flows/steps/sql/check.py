"""What is wrong with one definition, all of it, each with its place and what to write instead."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql.columns import Columns, captured
from freshet.flows.steps.sql.engine import CHECK_SECONDS_MAX, deadline, explain
from freshet.flows.steps.sql.frames import (
    DEFAULT_FRAME,
    FrameOptions,
    FrameProblem,
    bucket_of,
    frame,
    frame_words,
    is_default,
)
from freshet.flows.steps.sql.functions import (
    ALLOWED,
    ASKED,
    COUNT_DISTINCT,
    ENDS,
    INSTEAD,
    MOVING,
    OPERATORS,
    TIMES,
    WINDOWED,
    Form,
    Windowed,
    is_carried,
)
from freshet.flows.steps.sql.parse import (
    NOWHERE,
    Node,
    Statement,
    SyntaxProblem,
    children,
    expression,
    is_bound,
    is_lambda,
    location,
    moved,
    parameters,
    parse,
    quoted,
    rewrite,
    walk,
    write,
)
from freshet.schemas.declaration import Definition
from freshet.schemas.dtypes import DTYPES, Dtype
from freshet.schemas.errors import Problem, listed, nearest
from freshet.schemas.event import EVENT_TIME, Contract
from freshet.schemas.plan import Range, Rows

_REFUSED = {
    "SUBQUERY": ("has a subquery", "name columns of the event and aggregates OVER windows; joins belong upstream"),
    "STAR": ("has a *", "name the columns; only count(*) has a star"),
    "PARAMETER": ("has a parameter", "write the value itself"),
    "DEFAULT": ("has DEFAULT", "write the value itself"),
    "POSITIONAL_REFERENCE": ("names a column by its position", "write the column's name"),
    "COLLATE": ("has a COLLATE", "compare lower(…) or strip_accents(…)"),
}
_PASSED = frozenset(["CONSTANT", "CAST", "CASE", "COMPARISON", "CONJUNCTION", "BETWEEN", "LAMBDA", "TYPE"])
_ASCENDING = ("ORDER_DEFAULT", "ASCENDING")
_NOWHERE = {"query_location": NOWHERE, "query_location_length": 0}


_WINDOW_TYPES = ("WINDOW_AGGREGATE", "WINDOW_FIRST_VALUE", "WINDOW_LAST_VALUE", "WINDOW_LAG")
_EARLIER = "write last_value({} IGNORE NULLS) OVER (… ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"


@dataclass(frozen=True)
class Events:
    """The events that definitions are about: of one stream, or of several with one shared key.

    `columns` is what SQL may name, `schema` all that accepted events have.
    """

    contracts: tuple[Contract, ...]
    columns: pa.Schema
    schema: pa.Schema

    @property
    def names(self) -> tuple[str, ...]:
        """The streams."""
        return tuple(contract.name for contract in self.contracts)

    @property
    def name(self) -> str:
        """The streams, as one word."""
        return "_".join(self.names)

    @property
    def key(self) -> str:
        """The shared key."""
        return self.contracts[0].stream.key

    @property
    def times(self) -> frozenset[str]:
        """The names that mean the event time, in lower case."""
        own = {contract.stream.event_time.casefold() for contract in self.contracts}
        return frozenset({EVENT_TIME, *(own if len(own) == 1 else ())})

    def ids(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """Return the SQL of each stream's event id, of one type for all; nothing if no stream has one."""
        names = [contract.stream.event_id for contract in self.contracts]
        kinds = set(types_of(connection, [quoted(name) for name in names if name is not None]))
        kind = kinds.pop() if len(kinds) == 1 else "VARCHAR"
        return [f"CAST({'NULL' if name is None else quoted(name)} AS {kind})" for name in names] if any(names) else []


@dataclass(frozen=True)
class Expression:
    """A definition that nothing is wrong with: its tree, with columns spelled as in the contract.

    `entity` names the columns of PARTITION BY; the stream's own key where there is no window. `lagged` has the declared
    columns that need earlier events, and stand by name inside of windows; `lagged_types` their types.
    """

    definition: Definition
    dtype: Dtype
    node: Node
    entity: tuple[str, ...]
    events: Events
    options: FrameOptions
    lagged: Mapping[str, Node] = field(default_factory=dict)
    lagged_types: Mapping[str, str] = field(default_factory=dict)

    def typed(self, connection: duckdb.DuckDBPyConnection, node: Node) -> Node:
        """Return a part of the tree that DuckDB can bind: columns that need earlier events are NULLs of their type."""

        def replace(part: Node) -> Node | None:
            if part["class"] == "COLUMN_REF" and part["column_names"][0] in self.lagged_types:
                return expression(connection, f"CAST(NULL AS {self.lagged_types[part['column_names'][0]]})")
            return None

        return rewrite(node, replace)

    def type_of(self, connection: duckdb.DuckDBPyConnection, node: Node) -> str:
        """Return the DuckDB type of a part of the tree."""
        return types_of(connection, [write(connection, self.typed(connection, node))])[0]


def frame_of(connection: duckdb.DuckDBPyConnection, window: Node, one: Expression) -> Range | Rows:
    """Return the frame of a window of a definition that was checked."""
    return frame(connection, window, lambda node: write(connection, node), one.options)


def windowed(window: Node) -> Windowed | None:
    """Return what computes a window; None if nothing does."""
    name = window["function_name"].casefold()
    if window["type"] not in _WINDOW_TYPES or window["schema"]:
        return None
    if name == "count" and window["distinct"]:
        return COUNT_DISTINCT
    return WINDOWED.get(name)


class Checker:
    """Checks one definition against the contract of its stream; `problems` holds what was found."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        definition: Definition,
        dtype: Dtype,
        events: Events,
        statement: Statement,
        columns: Columns,
        options: FrameOptions,
        broken_windows: AbstractSet[str] = frozenset(),
        over_us: int | None = None,
    ) -> None:
        """The connection must have the events' columns as an empty table `events`.

        `broken_windows` are declared, but were refused already. `over_us` is the frame of windows that have none.
        """
        self.problems: list[Problem] = []
        self._connection, self._definition, self._dtype = connection, definition, dtype
        self._events, self._statement, self._broken_windows = events, statement, broken_windows
        self._declared, self._options, self._over_us = columns, options, over_us
        self._columns = {field.name.casefold(): field for field in events.columns}
        self._windows: list[Node] = []
        self._lagged: dict[str, Node] = {}

    def check(self) -> Expression | None:
        """Return the definition if it can be used; else `problems` says why not."""
        try:
            node = parse(self._connection, self._statement.sql)
        except SyntaxProblem as problem:
            self._say_syntax(problem)
            return None
        for part, parameter in self._declared.captured_in(node):
            self._say(*captured(self._words(part), parameter), location(part, None))
        named = self._declared.named_in(node)
        node = self._declared.put(node if self._over_us is None else self._with_frames(node, self._over_us))
        self._look(node, None, frozenset(), inside=None)
        entity = self._entity()
        if self.problems or any(map(self._declared.is_broken, (node, *self._lagged.values()))):
            return None
        node = self._spelled(node)
        lagged = {name: self._spelled(column) for name, column in self._lagged.items()}
        try:
            types = {name: self._type_of(column) for name, column in lagged.items()}
        except duckdb.Error as error:
            self._say("has SQL that DuckDB refuses", explain(error)[0], "see DuckDB's documentation of that function")
            return None
        one = Expression(self._definition, self._dtype, node, entity, self._events, self._options, lagged, types)
        self._check_types(one, as_written=not named and self._over_us is None)
        return None if self.problems else one

    def _with_frames(self, node: Node, over_us: int) -> Node:
        """Give every window that has no frame the one of `over:`."""
        interval = expression(self._connection, f"INTERVAL '{over_us} microseconds'")
        given = 0

        def replace(part: Node) -> Node | None:
            nonlocal given
            if part["class"] != "WINDOW" or part["type"] == "WINDOW_LAG" or not is_default(part):
                return None
            given += 1
            return {**part, "start": "EXPR_PRECEDING_RANGE", "start_expr": moved(interval, _NOWHERE)}

        node = rewrite(node, replace)
        if not given:
            hint = (
                f"write OVER (PARTITION BY {self._events.key} ORDER BY {EVENT_TIME}), and over: gives it each duration"
            )
            self._say("has over:, but no window without a frame of its own", "", hint)
        return node

    def _say(self, fact: str, got: str = "", hint: str = "", byte: int | None = None) -> None:
        place = self._statement.place(byte)
        problem = Problem("feature", self._definition.name, fact, got, hint, place)
        if problem not in self.problems:
            self.problems.append(problem)

    def _say_syntax(self, problem: SyntaxProblem) -> None:
        if problem.message == "is empty":
            self._say("has an empty transformation", hint="write a SQL expression, such as count(*) OVER (…)")
        elif problem.message == "is not one expression":
            hint = "write one expression; each feature has a definition of its own"
            self._say(problem.message, hint=hint)
        elif name := problem.window:
            if name not in self._broken_windows:
                known = self._statement.windows
                meant = nearest(name, known)
                hint = f"did you mean {meant}?" if meant else f"`windows:` has {listed(known)}"
                self._say("names an unknown window", name, hint, self._statement.find(name))
        else:
            several = 'at or near ";"' in problem.message
            hint = "write one expression, without ;" if several else "check the SQL there"
            self._say("has SQL that does not parse", problem.message, hint, problem.byte)

    # What stands in the tree

    def _look(self, node: Node, around: int | None, bound: frozenset[str], inside: Node | None) -> None:
        """Check a node and all in it; `inside` is the window that it is an argument of."""
        byte, kind = location(node, around), node["class"]
        if kind == "WINDOW":
            self._look_at_window(node, byte, bound, inside)
        elif is_lambda(node):
            self._look(node["expr"], byte, bound | parameters(node), inside)
        elif kind in _REFUSED:
            fact, hint = _REFUSED[kind]
            self._say(fact, "", hint, byte)
        elif kind == "LAMBDA" and self._is_old_lambda(node):
            self._say("has a lambda with an arrow", self._words(node), "write lambda x: …", byte)
        else:
            self._look_at_call(node, byte, bound)
            for child in children(node):
                self._look(child, byte, bound, inside)

    def _look_at_call(self, node: Node, byte: int | None, bound: frozenset[str]) -> None:
        """Check a node by itself."""
        kind = node["class"]
        if kind == "COLUMN_REF":
            if is_bound(node, bound):
                return
            name = node["column_names"][0].casefold()
            if name in self._declared.lagging and len(node["column_names"]) == 1:
                self._look_at_lagged(name, node)
            else:
                self._look_at_column(node, byte)
        elif kind == "FUNCTION":
            self._look_at_function(node, byte)
        elif kind not in _PASSED and node["type"] not in OPERATORS:
            self._say("has SQL that is not allowed", self._words(node), "write it with functions", byte)

    def _look_at_lagged(self, name: str, node: Node) -> None:
        """Check a column of earlier events' values that stands inside a window."""
        if name not in self._lagged:
            self._lagged[name] = moved(self._declared.nodes[name], node)
            self._look(self._lagged[name], None, frozenset(), inside=None)

    def _is_old_lambda(self, node: Node) -> bool:
        """Say whether `x -> …` cannot be JSON's arrow, since there is no column x."""
        names = [part["column_names"][0] for part in walk(node["lhs"]) if part["class"] == "COLUMN_REF"]
        return bool(names) and not any(name.casefold() in self._columns for name in names)

    def _look_at_column(self, node: Node, byte: int | None) -> None:
        names = node["column_names"]
        known = [field.name for field in self._columns.values()]
        if len(names) > 1:
            self._say("names a column with a table", ".".join(names), f"write {names[-1]}", byte)
        elif names[0].casefold() in self._declared.broken:
            pass  # it was refused already
        elif names[0].casefold() not in self._columns:
            if names[0].casefold() in MOVING:
                self._say(*_moving(names[0]), byte)
                return
            meant = nearest(names[0], known)
            hint = f"did you mean {meant}?" if meant else f"{self._events.name} has {listed(known)}"
            self._say("names an unknown column", names[0], hint, byte)

    def _look_at_function(self, node: Node, byte: int | None) -> None:
        name = node["function_name"].casefold()
        if node["schema"] or node["catalog"]:
            self._say("calls a function with a dot", f"{node['schema']}.{name}", f"write {name}(…)", byte)
        elif name in WINDOWED:
            window = f"PARTITION BY {self._events.key} ORDER BY {EVENT_TIME} {DEFAULT_FRAME}"
            self._say("has an aggregate without OVER", name, f"write {name}(…) OVER ({window})", byte)
        elif name in INSTEAD:
            self._say("calls a function that is not on the list of allowed ones", name, INSTEAD[name], byte)
        elif name in MOVING:
            self._say(*_moving(name), byte)
        elif name not in ALLOWED:
            meant = nearest(name, [*ALLOWED, *WINDOWED])
            hint = f"did you mean {meant}?" if meant else "see the list of allowed functions in the README"
            self._say("calls a function that is not on the list of allowed ones", name, hint, byte)
        elif node["distinct"] or node["order_bys"]["orders"] or node["filter"]:
            self._say(
                "has DISTINCT, ORDER BY or FILTER in a function that takes one event", name, f"write {name}(…)", byte
            )

    # Windows

    def _look_at_window(self, node: Node, byte: int | None, bound: frozenset[str], inside: Node | None) -> None:
        name = node["function_name"].casefold()
        if inside is not None:
            hint = "make the inner one a feature of a stream of its own"
            self._say("has a window inside a window", f"{name} inside {inside['function_name']}", hint, byte)
            return
        self._windows.append(node)
        made = windowed(node)
        if made is None:
            meant = nearest(name, WINDOWED)
            hint = INSTEAD.get(name) or (f"did you mean {meant}?" if meant else f"write one of {listed([*WINDOWED])}")
            self._say("has a window of a function that is not computed over windows", name, hint, byte)
        else:
            self._look_at_arguments(node, made, byte)
        for part in (*self._inputs(node), node["filter_expr"]):
            if part is not None:
                self._look(part, byte, bound, node)
        self._look_at_partition(node, byte)
        if self._look_at_order(node, byte):
            try:
                found = frame(self._connection, self._timed(node), self._words, self._options)
            except FrameProblem as problem:
                where = None if node["type"] == "WINDOW_LAG" else node["start_expr"] or bucket_of(node)
                self._say(problem.fact, problem.got, problem.hint, location(where or node, byte))
            else:
                self._look_at_state(node, made, found, byte)

    def _words(self, node: Node) -> str:
        """Spell a node: as the user wrote it, if they did."""
        return self._statement.words(node) or write(self._connection, node)

    def _inputs(self, node: Node) -> list[Node]:
        """Return the inputs of a window's function, without constants such as a quantile's parameter."""
        made = windowed(node)
        arguments: list[Node] = [part["expression"] for part in node["arguments"]]
        if node["type"] == "WINDOW_LAG":
            return [arguments[0], *arguments[2:]] if arguments else []
        return arguments[: made.inputs_count] if made is not None and made.parameter == ASKED else arguments

    def _look_at_arguments(self, node: Node, made: Windowed, byte: int | None) -> None:
        name, count = node["function_name"].casefold(), len(node["arguments"])
        if node["distinct"] and made is not COUNT_DISTINCT:
            self._say("has DISTINCT in a window", name, f"write {name}(…) without it", byte)
        if node["arg_orders"]:
            self._say(
                "has ORDER BY among the arguments of a window", name, "leave it out: events are in order of time", byte
            )
        if node["ignore_nulls"] and name not in ENDS:
            hint = _EARLIER.format("…")
            self._say("has IGNORE NULLS in a function that does not take it", name, hint, byte)
        if node["filter_expr"] is not None and node["type"] != "WINDOW_AGGREGATE":
            hint = f"write {name}(CASE WHEN … THEN … END IGNORE NULLS) OVER (…)"
            hint = _EARLIER.format("CASE WHEN … THEN … END") if node["type"] == "WINDOW_LAG" else hint
            self._say("has FILTER in a function that does not take it", name, hint, byte)
        most = made.inputs_count + (made.parameter == ASKED) if node["type"] != "WINDOW_LAG" else 3
        least = 0 if name == "count" and not node["distinct"] else 1 if node["type"] == "WINDOW_LAG" else most
        if count > most and most == 1:
            self._say("has a window of several arguments", name, f"write {name}(…) of one argument", byte)
        elif not least <= count <= most:
            wanted = f"write {most}" if least == most else f"write {least} to {most}"
            self._say("has a window of another number of arguments", f"{name} of {count}", wanted, byte)
        elif made.parameter == ASKED:
            parameter = node["arguments"][-1]["expression"]
            if quantile(self._connection, parameter) is None:
                hint = f"write a number from 0 to 1, such as {name}(…, 0.9); several take a feature each"
                self._say("has a quantile that is not a constant share", self._words(parameter), hint, byte)

    def _look_at_state(self, node: Node, made: Windowed | None, found: Range | Rows, byte: int | None) -> None:
        """Refuse what cannot be kept in bounded state."""
        name = node["function_name"].casefold()
        if made is None or not made.keeps_all:
            return
        approximate = {"median": "approx_quantile(…, 0.5)", "count": "approx_count_distinct(…)"}.get(name)
        approximate = approximate or ("approx_quantile(…)" if made.parameter is not None else None)
        instead = f"write {approximate}, or " if approximate else ""
        if made.function == "list" and not (isinstance(found, Rows) and found.preceding is not None):
            got, hint = frame_words(node, self._words), "write the last n: ROWS BETWEEN n - 1 PRECEDING AND CURRENT ROW"
            self._say("has a list of unbounded length", got, hint, byte)
        elif (found.preceding if isinstance(found, Rows) else found.preceding_us) is None:
            hint = f"{instead or 'write '}a frame of a duration"
            self._say(f"has {name} over a lifetime, which keeps every value for ever", "", hint, byte)
        elif isinstance(found, Range) and found.resolution_us > 1 and bucket_of(node) is None:
            hint = f"{instead}leave `resolution:` out for it"
            self._say(f"has a resolution, but {name} needs every value", "", hint, byte)

    def _timed(self, node: Node) -> Node:
        """Spell the event time of a window's bucket as `event_timestamp`."""

        def spell(part: Node) -> Node | None:
            names = part.get("column_names", [])
            if len(names) == 1 and names[0].casefold() in self._events.times:
                return {**part, "column_names": [EVENT_TIME]}
            return None

        return {**node, "partitions": rewrite({"inner": node["partitions"]}, spell)["inner"]}

    def _look_at_partition(self, node: Node, byte: int | None) -> None:
        key = self._events.key
        bucket = bucket_of(node)
        if not node["partitions"]:
            self._say("has a window without PARTITION BY", "", f"write PARTITION BY {key}", byte)
        elif len(node["partitions"]) == 1 and bucket is not None:
            got = self._words(bucket)
            hint = f"write PARTITION BY {key}, {got}"
            self._say("has PARTITION BY a time_bucket, but no entity", got, hint, location(bucket, byte))
        for part in node["partitions"]:
            at = location(part, byte)
            if part is bucket:
                continue
            if part["class"] != "COLUMN_REF":
                hint = "partition by columns of the event; compute others where it is produced"
                self._say("has PARTITION BY an expression", self._words(part), hint, at)
                continue
            before = len(self.problems)
            self._look_at_column(part, at)
            if len(self.problems) == before:
                self._look_at_entity_type(self._columns[part["column_names"][0].casefold()], at)

    def _look_at_entity_type(self, field: "pa.Field[Any]", byte: int | None) -> None:
        if not (pa.types.is_string(field.type) or pa.types.is_int64(field.type)):
            got = f"{field.name} of type {field.type}"
            self._say(
                "has an entity that is neither text nor a whole number", got, "partition by str or int fields", byte
            )

    def _look_at_order(self, node: Node, byte: int | None) -> bool:
        """Say whether the order is right; a frame is judged only then."""
        orders = node["orders"]
        if not orders:
            hint = f"write ORDER BY {EVENT_TIME} {DEFAULT_FRAME}: without it later events count"
            self._say("has a window without ORDER BY", "", hint, byte)
            return False
        only = orders[0]["expression"]
        names: list[str] = only["column_names"] if only["class"] == "COLUMN_REF" else []
        by_time = len(names) == 1 and names[0].casefold() in self._events.times
        if len(orders) > 1 or not by_time or orders[0]["type"] not in _ASCENDING:
            spelled = ", ".join(
                self._words(order["expression"]) + (" DESC" if order["type"] == "DESCENDING" else "")
                for order in orders
            )
            self._say(
                "has a window in another order than time", spelled, f"write ORDER BY {EVENT_TIME}", location(only, byte)
            )
            return False
        return True

    def _entity(self) -> tuple[str, ...]:
        """Return the columns that all windows are partitioned by."""
        key = self._events.key
        if not self._windows:
            self._look_at_entity_type(self._columns[key.casefold()], None)
            return (key,)
        entities: list[tuple[str, ...]] = []
        for window in self._windows:
            bucket = bucket_of(window)
            parts = [part for part in window["partitions"] if part is not bucket]
            names = [part.get("column_names", [""])[0].casefold() for part in parts]
            if len(set(names)) < len(names):
                self._say("names a column twice in PARTITION BY", listed(names), "name it once", location(window, None))
            entity = tuple(self._columns[name].name for name in names if name in self._columns)
            if entities and entity != entities[0] and entity and entities[0]:
                hint = "give all windows of a feature the same PARTITION BY, or make two features"
                got = f"{listed(entities[0])} and {listed(entity)}"
                self._say("has windows with different PARTITION BY", got, hint, location(window, None))
            entities.append(entity)
        return entities[0]

    def _spelled(self, node: Node) -> Node:
        """Spell columns as the contract does, and the order of windows as `event_timestamp`."""
        time = {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "column_names": [EVENT_TIME]}

        def spell(part: Node) -> Node | None:
            if part["class"] == "COLUMN_REF":
                name = part["column_names"][0].casefold()
                return {**part, "column_names": [self._columns[name].name if name in self._columns else name]}
            if part["class"] == "WINDOW":
                part = self._timed(part)
                order = [{**part["orders"][0], "expression": time}]
                inner = rewrite({key: part[key] for key in ("partitions", "arguments", "filter_expr")}, spell)
                return {**part, **inner, "orders": order}
            return None

        return rewrite(node, spell)

    # Types

    def _check_types(self, one: Expression, *, as_written: bool) -> None:
        """Let DuckDB bind the expression, and hold its type against the dtype."""
        node = one.typed(self._connection, one.node)
        if not (self._binds() if as_written else self._binds_tree(node)):
            return
        for window in (part for part in walk(node) if part["class"] == "WINDOW"):
            self._check_window_types(window)
        for window in (part for column in one.lagged.values() for part in walk(column) if part["class"] == "WINDOW"):
            self._check_window_types(window)
        got = self._type_of(node)
        if base_type(got) not in self._dtype.fits:
            fitting = next((dtype.name for dtype in DTYPES.values() if base_type(got) in dtype.fits), None)
            cast = f"CAST(… AS {self._dtype.duckdb}) in the transformation"
            hint = f"write dtype: {fitting}, or {cast}" if fitting else f"write {cast}"
            self._say(f"has dtype {self._dtype.name}, but another type comes out", got, hint)

    def _check_window_types(self, window: Node) -> None:
        made, name = windowed(window), window["function_name"].casefold()
        inputs = self._inputs(window)
        if made is None or not inputs:
            return
        kinds = [self._type_of(part) for part in inputs]
        kind = kinds[made.inputs_count - 1]
        if made.types is not None and base_type(kind) not in made.types:
            to: str = next(to for to in ("VARCHAR", "BIGINT", "BOOLEAN") if to in made.types)
            to = "DOUBLE" if made.form is Form.DOUBLE else to
            hint = f"cast it, such as {name}(CAST(… AS {to}))"
            if kind in TIMES:
                hint = f"write {name}(epoch(…)), in seconds"
            fact = f"has {name} of a type that windows do not fold"
            self._say(fact, kind.strip('"'), hint, location(window, None))
        elif made.form in (Form.BOX, Form.RANKED) and not is_carried(kinds[0]):
            hint = f"cast it, such as {name}(CAST(… AS {'BIGINT' if 'HUGEINT' in kinds[0] else 'VARCHAR'}))"
            self._say(f"has {name} of a type that windows do not keep", kinds[0], hint, location(window, None))

    def _type_of(self, node: Node) -> str:
        return types_of(self._connection, [write(self._connection, node)])[0]

    def _binds_tree(self, node: Node) -> bool:
        """Let DuckDB bind an expression that differs from the text."""
        try:
            self._type_of(node)
        except duckdb.Error as error:
            self._say("has SQL that DuckDB refuses", explain(error)[0], "see DuckDB's documentation of that function")
            return False
        return True

    def _binds(self) -> bool:
        """Let DuckDB bind the text as the user wrote it: only that knows the place of what is wrong."""
        prefix = "DESCRIBE "
        try:
            with deadline(self._connection, CHECK_SECONDS_MAX):
                self._connection.execute(prefix + self._statement.sql).fetchall()
        except duckdb.Error as error:
            message, position = explain(error)
            byte = None if position is None else position - len(prefix)
            self._say("has SQL that DuckDB refuses", message, "see DuckDB's documentation of that function", byte)
            return False
        return True


def _moving(name: str) -> tuple[str, str, str]:
    hint = f"use the event's own columns, such as {EVENT_TIME}: a replay must give the same value"
    return "asks for something that is not in the event", name, hint


def types_of(connection: duckdb.DuckDBPyConnection, expressions: Sequence[str]) -> list[str]:
    """Return the DuckDB types of expressions over `events`; raises `duckdb.Error` where they cannot be bound."""
    if not expressions:
        return []
    with deadline(connection, CHECK_SECONDS_MAX):
        found = connection.execute(f"DESCRIBE SELECT {', '.join(expressions)} FROM events").fetchall()
    return [str(row[1]) for row in found]


def base_type(text: str) -> str:
    """Return a type without its width, scale or members.

    >>> base_type("DECIMAL(10,2)[]"), base_type("STRUCT(a INTEGER)"), base_type("ENUM('(', 'b')")
    ('DECIMAL[]', 'STRUCT', 'ENUM')
    """
    return re.sub(r"\(.*\)", "", text)


def quantile(connection: duckdb.DuckDBPyConnection, node: Node) -> Fraction | None:
    """Return the constant share that a quantile asks for, exactly; None if it is none."""
    if node["class"] != "CONSTANT":
        return None
    text = write(connection, node)
    if not re.fullmatch(r"\d*\.?\d+", text):
        return None
    share = Fraction(text)
    return share if share <= 1 else None
