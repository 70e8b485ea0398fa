"""What is wrong with one definition, all of it, each with its place and what to write instead."""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from freshet.flows.steps.sql.engine import CHECK_SECONDS_MAX, deadline, explain
from freshet.flows.steps.sql.functions import AGGREGATES, ALLOWED, FOLDED_TYPES, OPERATORS
from freshet.flows.steps.sql.parse import (
    Node,
    Statement,
    SyntaxProblem,
    children,
    is_bound,
    is_lambda,
    location,
    parameters,
    parse,
    rewrite,
    walk,
    write,
)
from freshet.schemas.declaration import Definition
from freshet.schemas.dtypes import DTYPES, Dtype
from freshet.schemas.errors import Problem, listed, nearest
from freshet.schemas.event import EVENT_TIME, Contract
from freshet.schemas.plan import Range

_PRECEDING_DAYS_MAX = 36_500
_MICROSECONDS_PER_DAY = 86_400_000_000

_REFUSED = {
    "SUBQUERY": ("has a subquery", "name columns of the event and aggregates OVER windows; joins belong upstream"),
    "STAR": ("has a *", "name the columns; only count(*) has a star"),
    "PARAMETER": ("has a parameter", "write the value itself"),
    "DEFAULT": ("has DEFAULT", "write the value itself"),
    "POSITIONAL_REFERENCE": ("names a column by its position", "write the column's name"),
    "COLLATE": ("has a COLLATE", "compare lower(…) or strip_accents(…)"),
}
_PASSED = frozenset(["CONSTANT", "CAST", "CASE", "COMPARISON", "CONJUNCTION", "BETWEEN", "LAMBDA", "TYPE"])
_MOVING = (
    "now today current_date current_time current_timestamp localtime localtimestamp current_localtime "
    "current_localtimestamp get_current_time get_current_timestamp transaction_timestamp ago age random uuid "
    "gen_random_uuid current_setting"
)
_MOVING_NAMES = frozenset(_MOVING.split())
_UNKNOWN_WINDOW = re.compile(r'window "(.*)" does not exist')
_FRAME = "RANGE BETWEEN INTERVAL '10 minutes' PRECEDING AND CURRENT ROW"
_ASCENDING = ("ORDER_DEFAULT", "ASCENDING")


@dataclass(frozen=True, slots=True)
class Expression:
    """A definition that nothing is wrong with: its tree, with columns spelled as in the contract.

    `entity` names the columns of PARTITION BY; the stream's own key where there is no window.
    """

    definition: Definition
    dtype: Dtype
    node: Node
    entity: tuple[str, ...]


class Checker:
    """Checks one definition against the contract of its stream; `problems` holds what was found."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        definition: Definition,
        dtype: Dtype,
        contract: Contract,
        statement: Statement,
        broken_windows: AbstractSet[str] = frozenset(),
    ) -> None:
        """The connection must have the contract's columns as an empty table `events`.

        `broken_windows` are declared, but were refused already.
        """
        self.problems: list[Problem] = []
        self._connection, self._definition, self._dtype = connection, definition, dtype
        self._contract, self._statement, self._broken_windows = contract, statement, broken_windows
        self._columns = {field.name.casefold(): field for field in contract.columns}
        self._windows: list[Node] = []

    def check(self) -> Expression | None:
        """Return the definition if it can be used; else `problems` says why not."""
        try:
            node = parse(self._connection, self._statement.sql)
        except SyntaxProblem as problem:
            self._say_syntax(problem)
            return None
        self._look(node, None, frozenset(), inside=None)
        entity = self._entity()
        if self.problems:
            return None
        node = self._spelled(node)
        self._check_types(node)
        return None if self.problems else Expression(self._definition, self._dtype, node, entity)

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
        elif found := _UNKNOWN_WINDOW.fullmatch(problem.message):
            name = found[1]
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
            self._say("has a lambda with an arrow", self._statement.words(node), "write lambda x: …", byte)
        else:
            self._look_at_call(node, byte, bound)
            for child in children(node):
                self._look(child, byte, bound, inside)

    def _look_at_call(self, node: Node, byte: int | None, bound: frozenset[str]) -> None:
        """Check a node by itself."""
        kind = node["class"]
        if kind == "COLUMN_REF":
            if not is_bound(node, bound):
                self._look_at_column(node, byte)
        elif kind == "FUNCTION":
            self._look_at_function(node, byte)
        elif kind not in _PASSED and node["type"] not in OPERATORS:
            self._say("has SQL that is not allowed", self._statement.words(node), "write it with functions", byte)

    def _is_old_lambda(self, node: Node) -> bool:
        """Say whether `x -> …` cannot be JSON's arrow, since there is no column x."""
        names = [part["column_names"][0] for part in walk(node["lhs"]) if part["class"] == "COLUMN_REF"]
        return bool(names) and not any(name.casefold() in self._columns for name in names)

    def _look_at_column(self, node: Node, byte: int | None) -> None:
        names = node["column_names"]
        known = [field.name for field in self._columns.values()]
        if len(names) > 1:
            self._say("names a column with a table", ".".join(names), f"write {names[-1]}", byte)
        elif names[0].casefold() not in self._columns:
            if names[0].casefold() in _MOVING_NAMES:
                self._say(*_moving(names[0]), byte)
                return
            meant = nearest(names[0], known)
            hint = f"did you mean {meant}?" if meant else f"{self._contract.name} has {listed(known)}"
            self._say("names an unknown column", names[0], hint, byte)

    def _look_at_function(self, node: Node, byte: int | None) -> None:
        name = node["function_name"].casefold()
        if node["schema"] or node["catalog"]:
            self._say("calls a function with a dot", f"{node['schema']}.{name}", f"write {name}(…)", byte)
        elif name in AGGREGATES:
            window = f"PARTITION BY {self._contract.stream.key} ORDER BY {EVENT_TIME} {_FRAME}"
            self._say("has an aggregate without OVER", name, f"write {name}(…) OVER ({window})", byte)
        elif name in _MOVING_NAMES:
            self._say(*_moving(name), byte)
        elif name not in ALLOWED:
            meant = nearest(name, [*ALLOWED, *AGGREGATES])
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
        if node["type"] != "WINDOW_AGGREGATE" or name not in AGGREGATES or node["schema"]:
            meant = nearest(name, AGGREGATES)
            hint = f"did you mean {meant}?" if meant else f"write one of {listed(AGGREGATES)}"
            self._say("has a window of a function that is not computed over windows", name, hint, byte)
        if node["distinct"]:
            self._say("has DISTINCT in a window", name, f"write {name}(…) without it", byte)
        if node["arg_orders"]:
            self._say(
                "has ORDER BY among the arguments of a window", name, "leave it out: the result is the same", byte
            )
        if len(node["arguments"]) > 1:
            self._say("has a window of several arguments", name, f"write {name}(…) of one argument", byte)
        for part in (*(argument["expression"] for argument in node["arguments"]), node["filter_expr"]):
            if part is not None:
                self._look(part, byte, bound, node)
        self._look_at_partition(node, byte)
        if self._look_at_order(node, byte):
            try:
                frame(self._connection, node, self._statement.words)
            except FrameProblem as problem:
                at = location(node["start_expr"] or node, byte)
                self._say(problem.fact, problem.got, problem.hint, at)

    def _look_at_partition(self, node: Node, byte: int | None) -> None:
        key = self._contract.stream.key
        if not node["partitions"]:
            self._say("has a window without PARTITION BY", "", f"write PARTITION BY {key}", byte)
        for part in node["partitions"]:
            at = location(part, byte)
            if part["class"] != "COLUMN_REF":
                hint = "partition by columns of the event; compute others where it is produced"
                self._say("has PARTITION BY an expression", self._statement.words(part), hint, at)
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
            hint = f"write ORDER BY {EVENT_TIME} {_FRAME}: without it later events count"
            self._say("has a window without ORDER BY", "", hint, byte)
            return False
        only = orders[0]["expression"]
        names: list[str] = only["column_names"] if only["class"] == "COLUMN_REF" else []
        own = self._contract.stream.event_time
        by_time = len(names) == 1 and names[0].casefold() in (EVENT_TIME, own.casefold())
        if len(orders) > 1 or not by_time or orders[0]["type"] not in _ASCENDING:
            spelled = ", ".join(
                self._statement.words(order["expression"]) + (" DESC" if order["type"] == "DESCENDING" else "")
                for order in orders
            )
            self._say(
                "has a window in another order than time", spelled, f"write ORDER BY {EVENT_TIME}", location(only, byte)
            )
            return False
        return True

    def _entity(self) -> tuple[str, ...]:
        """Return the columns that all windows are partitioned by."""
        key = self._contract.stream.key
        if not self._windows:
            self._look_at_entity_type(self._columns[key.casefold()], None)
            return (key,)
        entities: list[tuple[str, ...]] = []
        for window in self._windows:
            names = [part.get("column_names", [""])[0].casefold() for part in window["partitions"]]
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
                return {**part, "column_names": [self._columns[part["column_names"][0].casefold()].name]}
            if part["class"] == "WINDOW":
                order = [{**part["orders"][0], "expression": time}]
                inner = {
                    key: rewrite({"inner": part[key]}, spell)["inner"]
                    for key in ("partitions", "arguments", "filter_expr")
                }
                return {**part, **inner, "orders": order}
            return None

        return rewrite(node, spell)

    # Types

    def _check_types(self, node: Node) -> None:
        """Let DuckDB bind the expression, and hold its type against the dtype."""
        if not self._binds():
            return
        got = self._type_of(node)
        for window in (part for part in walk(node) if part["class"] == "WINDOW"):
            name = window["function_name"].casefold()
            if name in FOLDED_TYPES:
                kind = self._type_of(window["arguments"][0]["expression"])
                if base_type(kind) not in FOLDED_TYPES[name]:
                    to = "VARCHAR" if name in ("min", "max") else "BIGINT"
                    hint = f"cast it, such as {name}(CAST(… AS {to}))"
                    self._say(f"has {name} of a type that windows do not fold", kind, hint, location(window, None))
        if base_type(got) not in self._dtype.fits:
            fitting = next((dtype.name for dtype in DTYPES.values() if base_type(got) in dtype.fits), None)
            cast = f"CAST(… AS {self._dtype.duckdb}) in the transformation"
            hint = f"write dtype: {fitting}, or {cast}" if fitting else f"write {cast}"
            self._say(f"has dtype {self._dtype.name}, but another type comes out", got, hint)

    def _type_of(self, node: Node) -> str:
        return types_of(self._connection, [write(self._connection, node)])[0]

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


Words = Callable[[Node], str]
"""Spells a node."""


class FrameProblem(Exception):
    """A window's frame that is not computed."""

    def __init__(self, fact: str, got: str, hint: str = f"write {_FRAME}") -> None:
        super().__init__(fact)
        self.fact, self.got, self.hint = fact, got, hint


def frame(connection: duckdb.DuckDBPyConnection, window: Node, words: Words) -> Range:
    """Return the frame of a window, or raise `FrameProblem`, which says it in the words of the user."""
    read = _FRAMES.get((window["start"], window["end"]))
    if read is None:
        raise FrameProblem("has a frame that is not computed", _frame_words(window, words))
    if window["exclude_clause"] != "NO_OTHER":
        got = "EXCLUDE " + window["exclude_clause"].replace("_", " ")
        raise FrameProblem("has a frame that is not computed", got)
    return read(connection, window, words)


def _range(connection: duckdb.DuckDBPyConnection, window: Node, words: Words) -> Range:
    """RANGE BETWEEN a duration PRECEDING AND CURRENT ROW."""
    node = window["start_expr"]
    got = words(node)
    for part in walk(node):
        name = part.get("function_name", "").casefold()
        if part["class"] not in (*_PASSED, "FUNCTION") or (part["class"] == "FUNCTION" and name not in ALLOWED):
            raise FrameProblem("has a frame that is not constant", got)
    try:
        with deadline(connection, CHECK_SECONDS_MAX):
            found = connection.sql(f"SELECT {write(connection, node)} AS preceding").to_arrow_table().column(0)
    except duckdb.Error as error:
        raise FrameProblem("has a frame that DuckDB cannot read", explain(error)[0]) from None
    if found.type != pa.month_day_nano_interval() or found[0].as_py() is None:
        raise FrameProblem("has a frame that is not a duration", got)
    length = found[0].as_py()
    if length.months:
        hint = "write days: months differ in length"
        raise FrameProblem("has a frame of months", got, hint)
    preceding_us = length.days * _MICROSECONDS_PER_DAY + length.nanoseconds // 1000
    if preceding_us <= 0:
        raise FrameProblem("has a frame that is not longer than zero", got)
    if preceding_us > _PRECEDING_DAYS_MAX * _MICROSECONDS_PER_DAY:
        raise FrameProblem("has a frame of more than 100 years", got)
    return Range(preceding_us)


_FRAMES: Mapping[tuple[str, str], Callable[[duckdb.DuckDBPyConnection, Node, Words], Range]] = {
    ("EXPR_PRECEDING_RANGE", "CURRENT_ROW_RANGE"): _range,
}


def _frame_words(window: Node, words: Words) -> str:
    """Return a frame as SQL spells it; DuckDB's names of bounds end in the unit."""

    def bound(word: str, node: Node | None) -> str:
        first, second = word.split("_")[:2]
        if node is None:
            return f"{first} {second}"
        return f"{words(node)} {second}"

    ends = (window["start"], window["end"])
    unit = next((unit for unit in ("ROWS", "GROUPS") if any(word.endswith(unit) for word in ends)), "RANGE")
    start, end = bound(ends[0], window["start_expr"]), bound(ends[1], window["end_expr"])
    return f"{unit} BETWEEN {start} AND {end}"
