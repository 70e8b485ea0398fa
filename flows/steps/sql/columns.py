"""The declared `columns:`, expressions by name, put in the place of their names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import duckdb

from freshet.flows.steps.sql.functions import MOVING
from freshet.flows.steps.sql.parse import (
    Node,
    Statement,
    SyntaxProblem,
    children,
    is_bound,
    is_lambda,
    location,
    moved,
    parameters,
    parse,
    rewrite,
    statement,
    walk,
)
from freshet.schemas.declaration import Source
from freshet.schemas.errors import Problem, listed, nearest

_NO_NODE: Node = {"class": "CONSTANT"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Declared columns by name, in lower case, each with no other declared column in it.

    `lagging` are those with lag in them: they depend on earlier events.
    """

    nodes: Mapping[str, Node]
    lagging: frozenset[str]
    broken: frozenset[str] = frozenset()

    def named_in(self, node: Node) -> frozenset[str]:
        """Return the declared columns that an expression names."""
        return frozenset(name for name in _names(node) if name in self.nodes)

    def is_broken(self, node: Node) -> bool:
        """Say whether an expression needs a column that was refused."""
        return not self.broken.isdisjoint(_names(node))

    def captured_in(self, node: Node) -> Iterator[tuple[Node, str]]:
        """Return where a column would take a lambda's parameter for its own input, and that parameter."""
        for part, bound in _references(node):
            for name in sorted(bound & set(_names(self.nodes.get(part["column_names"][0].casefold(), _NO_NODE)))):
                yield part, name

    def put(self, node: Node) -> Node:
        """Return an expression with columns in the place of their names; those with lag stay inside windows."""

        def substituted(part: Node, *, inside: bool) -> Node | None:
            if part["class"] == "COLUMN_REF" and len(part["column_names"]) == 1:
                name = part["column_names"][0].casefold()
                if name in self.nodes and not (inside and name in self.lagging):
                    return moved(self.nodes[name], part)
            if part["class"] == "WINDOW" and not inside:
                inner = {key: part[key] for key in ("arguments", "filter_expr")}
                return {**part, **rewrite(inner, lambda node: substituted(node, inside=part["type"] != "WINDOW_LAG"))}
            return None

        return rewrite(node, lambda part: substituted(part, inside=False))


def captured(column: str, parameter: str) -> tuple[str, str, str]:
    """Return fact, got and hint of what `captured_in` finds."""
    fact = "names a column inside a lambda whose parameter has the name of something in it"
    return fact, f"{column} of {parameter}", f"rename the lambda's parameter {parameter}"


def _references(node: Node, bound: frozenset[str] = frozenset()) -> Iterator[tuple[Node, frozenset[str]]]:
    """Return where an expression names columns, and the lambda's parameters that are known there, which are none."""
    if node["class"] == "COLUMN_REF":
        if not is_bound(node, bound):
            yield node, bound
        return
    bound |= parameters(node) if is_lambda(node) else frozenset()
    for child in children(node):
        yield from _references(child, bound)


def _names(node: Node) -> list[str]:
    """Return the columns that an expression names, in lower case."""
    return [part["column_names"][0].casefold() for part, _ in _references(node)]


def read_columns(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    windows: Mapping[str, tuple[str, str]],
    fields: frozenset[str],
) -> tuple[Columns, list[Problem]]:
    """Return the declared columns, and what is wrong with those that are not SQL or name what nothing is called.

    `windows` are the named windows, `fields` the columns of all streams, in lower case; where `fields` is empty, the
    streams are not known.
    """
    reader = _Reader(connection, source, windows, fields)
    return reader.read(), reader.problems


class _Reader:
    """Reads the declared columns; `problems` holds what was found."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        source: Source,
        windows: Mapping[str, tuple[str, str]],
        fields: frozenset[str],
    ) -> None:
        self.problems: list[Problem] = []
        self._connection, self._source, self._windows, self._fields = connection, source, windows, fields
        self._statements: dict[str, Statement] = {}

    def read(self) -> Columns:
        """Put each column into those that name it, the ones that name none first."""
        waiting = self._parsed()
        declared = frozenset(map(str.casefold, self._source.declaration.columns))
        made = Columns({}, frozenset())
        while waiting:
            ready = [name for name, node in waiting.items() if waiting.keys().isdisjoint(_names(node))]
            if not ready:
                ready = _circle(waiting)
                got, hint = listed(ready), "take one of them out of the circle"
                self._say(ready[0], "depends on itself", got, hint)
                waiting = {name: node for name, node in waiting.items() if name not in ready}
                continue
            for name in ready:
                made = self._with(made, name, waiting.pop(name))
        return replace(made, broken=declared - made.nodes.keys())

    def _say(self, name: str, fact: str, got: str, hint: str, byte: int | None = None) -> None:
        place = self._source.place("columns", name) if byte is None else self._statements[name].place(byte)
        self.problems.append(Problem("column", name, fact, got, hint, place))

    def _parsed(self) -> dict[str, Node]:
        """Return the trees of the columns that are SQL."""
        parsed = {}
        for name, text in self._source.declaration.columns.items():
            place = self._source.place("columns", name)
            self._statements[name] = statement(text, place, self._windows, "", "")
            try:
                parsed[name.casefold()] = parse(self._connection, self._statements[name].sql)
            except SyntaxProblem as problem:
                self._say_syntax(name, problem)
        return parsed

    def _say_syntax(self, name: str, problem: SyntaxProblem) -> None:
        window = problem.window
        if window is None:
            self._say(name, "has SQL that does not parse", problem.message, "check the SQL there", problem.byte)
        elif window not in self._source.declaration.windows:  # others were refused already
            meant = nearest(window, self._windows)
            hint = f"did you mean {meant}?" if meant else f"`windows:` has {listed([*self._windows])}"
            self._say(name, "names an unknown window", window, hint, self._statements[name].find(window))

    def _with(self, made: Columns, name: str, node: Node) -> Columns:
        """Return the columns with one more, unless something is wrong with it."""
        before = len(self.problems)
        self._look(made, name, node)
        node = made.put(node)
        windows = [part for part in walk(node) if part["class"] == "WINDOW"]
        if any(part["type"] != "WINDOW_LAG" for part in windows):
            hint = "write the window in the definitions: columns are of one event, and lag of earlier ones"
            self._say(name, "has a window that is not lag", "", hint)
        if len(self.problems) > before:
            return made
        return Columns({**made.nodes, name: node}, made.lagging | ({name} if windows else set()))

    def _look(self, made: Columns, name: str, node: Node) -> None:
        """Check the names in a column; what else stands in it is checked where it is used."""
        declared = self._source.declaration.columns
        known = {*self._fields, *map(str.casefold, declared), *MOVING}
        for part, _ in _references(node):
            word = part["column_names"][0]
            if self._fields and len(part["column_names"]) == 1 and word.casefold() not in known:
                meant = nearest(word, [*self._fields, *declared])
                hint = f"did you mean {meant}?" if meant else "name a field of the stream, or another column"
                self._say(name, "names an unknown column", word, hint, location(part, None))
        for part, parameter in made.captured_in(node):
            self._say(name, *captured(part["column_names"][0], parameter), location(part, None))


def _circle(waiting: Mapping[str, Node]) -> list[str]:
    """Return columns that each name the next, and the last the first; each of `waiting` names one of them."""
    path = [next(iter(waiting))]
    while True:
        follower = next(name for name in _names(waiting[path[-1]]) if name in waiting)
        if follower in path:
            return path[path.index(follower) :]
        path.append(follower)
