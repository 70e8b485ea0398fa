"""The declared `columns:`, expressions by name, put in the place of their names."""

from collections.abc import Mapping
from dataclasses import dataclass

import duckdb

from freshet.flows.steps.sql.parse import (
    Node,
    SyntaxProblem,
    children,
    is_bound,
    is_lambda,
    moved,
    parameters,
    parse,
    rewrite,
    statement,
    walk,
)
from freshet.schemas.declaration import Source
from freshet.schemas.errors import Problem, listed


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

    def put(self, node: Node) -> Node:
        """Return an expression with columns in the place of their names; those with lag stay inside windows."""

        def replace(part: Node, *, inside: bool) -> Node | None:
            if part["class"] == "COLUMN_REF" and len(part["column_names"]) == 1:
                name = part["column_names"][0].casefold()
                if name in self.nodes and not (inside and name in self.lagging):
                    return moved(self.nodes[name], part)
            if part["class"] == "WINDOW" and not inside:
                inner = {key: part[key] for key in ("arguments", "filter_expr")}
                return {**part, **rewrite(inner, lambda node: replace(node, inside=part["type"] != "WINDOW_LAG"))}
            return None

        return rewrite(node, lambda part: replace(part, inside=False))


def _names(node: Node, bound: frozenset[str] = frozenset()) -> list[str]:
    """Return the columns that an expression names, in lower case; a lambda's parameters are none."""
    if node["class"] == "COLUMN_REF":
        return [] if is_bound(node, bound) else [node["column_names"][0].casefold()]
    bound |= parameters(node) if is_lambda(node) else frozenset()
    return [name for child in children(node) for name in _names(child, bound)]


def read_columns(connection: duckdb.DuckDBPyConnection, source: Source) -> tuple[Columns, list[Problem]]:
    """Return the declared columns, and what is wrong with those that are not SQL, or name each other in a circle."""
    problems: list[Problem] = []
    raw: dict[str, Node] = {}
    declared = source.declaration.columns

    def say(name: str, fact: str, got: str, hint: str, place: str | None = None) -> None:
        problems.append(Problem("column", name, fact, got, hint, place or source.place("columns", name)))

    for name, text in declared.items():
        alone = statement(text, source.place("columns", name), {}, "", "")
        try:
            raw[name.casefold()] = parse(connection, alone.sql)
        except SyntaxProblem as problem:
            say(name, "has SQL that does not parse", problem.message, "check the SQL there", alone.place(problem.byte))
    made: dict[str, Node] = {}
    lagging: set[str] = set()
    waiting = dict(raw)
    while waiting:
        ready = [name for name, node in waiting.items() if not set(_names(node)) & waiting.keys()]
        if not ready:
            name = next(iter(waiting))
            say(name, "depends on itself", listed(sorted(waiting)), "take one of them out of the circle")
            break
        for name in ready:
            node = Columns(made, frozenset()).put(waiting.pop(name))
            windows = [part for part in walk(node) if part["class"] == "WINDOW"]
            if any(part["type"] != "WINDOW_LAG" for part in windows):
                hint = "write the window in the definitions: columns are of one event, and lag of earlier ones"
                say(name, "has a window that is not lag", "", hint)
                continue
            made[name] = node
            if windows:
                lagging.add(name)
    broken = frozenset(name.casefold() for name in declared if name.casefold() not in made)
    return Columns(made, frozenset(lagging), broken), problems
