"""SQL to DuckDB's own syntax tree and back, and from a byte of a statement to the place in what the user wrote.

A node is the JSON of `json_serialize_sql`: a mapping with a `class`. Named windows come inlined into the calls that use
them. The format belongs to one version of DuckDB, which is why that is pinned.
"""

# ruff: noqa: S608  # only what `check` has passed is put into SQL

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from freshet.flows.steps.sql.engine import CHECK_SECONDS_MAX, deadline

Node = dict[str, Any]

NOWHERE = 2**64 - 1
"""The place of what nobody wrote."""
_UNKNOWN_WINDOW = re.compile(r'window "(.*)" does not exist')
_NO_MORE = {"modifiers": [], "cte_map": {"map": []}, "aggregate_handling": "STANDARD_HANDLING"}
_WHOLE_STATEMENT = ("where_clause", "having", "qualify", "sample", "group_expressions", "modifiers")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a statement that the user wrote: where it starts, in bytes, and where it stands in their file."""

    start: int
    text: str
    place: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One expression of the user's, made into a statement."""

    sql: str
    pieces: tuple[Piece, ...]
    windows: tuple[str, ...]

    def find(self, window: str) -> int | None:
        """Return the byte where the expression first names a window."""
        expression = self.pieces[0]
        found = re.search(rf'\bOVER\s*\(?\s*"?({re.escape(window)})\b', expression.text, re.IGNORECASE)
        return found and expression.start + len(expression.text[: found.start(1)].encode())

    def words(self, node: Node) -> str:
        """Return a node as the user wrote it; nothing of one that they did not write."""
        start = node["query_location"]
        if start == NOWHERE:
            return ""
        return self.sql.encode()[start : start + node["query_location_length"]].decode(errors="replace")

    def place(self, byte: int | None = None) -> str:
        """Return the place of a byte, as `features.yaml:12 (column 5)`; columns count characters of the expression."""
        for piece in self.pieces:
            raw = piece.text.encode()
            if byte is not None and 0 <= byte - piece.start <= len(raw):
                before = raw[: byte - piece.start].decode(errors="ignore")
                line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
                spelled = f"column {column}" if "\n" not in piece.text.strip() else f"line {line}, column {column}"
                return f"{piece.place} ({spelled})"
        return self.pieces[0].place


def statement(text: str, place: str, windows: Mapping[str, tuple[str, str]], opening: str, closing: str) -> Statement:
    """Put an expression between brackets, and the windows it may name behind it.

    `windows` has text and place by name. Brackets, since nothing well-formed leaves them: `1) AS v FROM x; SELECT (2`
    does leave parentheses.
    """
    sql = f"SELECT [{opening}\n"
    pieces = [Piece(len(sql.encode()), text, place)]
    sql += f"{text}\n{closing}] FROM events"
    for index, (name, (window, window_place)) in enumerate(windows.items()):
        sql += f"{', ' if index else ' WINDOW '}{quoted(name)} AS (\n"
        pieces.append(Piece(len(sql.encode()), window, window_place))
        sql += f"{window}\n)"
    return Statement(sql, tuple(pieces), tuple(windows))


class SyntaxProblem(Exception):
    """The text is not one SQL expression; `byte` is where DuckDB noticed, if it says so."""

    def __init__(self, message: str, byte: int | None = None) -> None:
        super().__init__(message)
        self.message, self.byte = message, byte

    @property
    def window(self) -> str | None:
        """The named window that is not there, if that is the problem."""
        found = _UNKNOWN_WINDOW.fullmatch(self.message)
        return found and found[1]


def parse(connection: duckdb.DuckDBPyConnection, sql: str) -> Node:
    """Return the tree of the one expression between the brackets of a `statement`; raises `SyntaxProblem`."""
    with deadline(connection, CHECK_SECONDS_MAX):
        found = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    tree = json.loads(found[0][0])
    if tree["error"]:
        position = tree.get("position")
        raise SyntaxProblem(tree["error_message"], None if position is None else int(position))
    select = tree["statements"][0]["node"]
    several = SyntaxProblem("is not one expression")
    if len(tree["statements"]) != 1 or select["type"] != "SELECT_NODE" or len(select["select_list"]) != 1:
        raise several
    if select["from_table"].get("table_name") != "events" or any(select.get(key) for key in _WHOLE_STATEMENT):
        raise several
    brackets: Node = select["select_list"][0]
    if brackets["class"] != "FUNCTION" or brackets["function_name"] != "list_value" or len(brackets["arguments"]) > 1:
        raise several
    if not brackets["arguments"]:
        raise SyntaxProblem("is empty")
    inner: Node = brackets["arguments"][0]["expression"]
    return inner


def expression(connection: duckdb.DuckDBPyConnection, sql: str) -> Node:
    """Return the tree of an expression of our own."""
    return parse(connection, f"SELECT [{sql}] FROM events")


def write(connection: duckdb.DuckDBPyConnection, node: Node) -> str:
    """Return a tree as SQL."""
    select = {"type": "SELECT_NODE", "select_list": [node], "from_table": {"type": "EMPTY"}, **_NO_MORE}
    tree = json.dumps({"statements": [{"node": select}]})
    found = connection.execute("SELECT json_deserialize_sql(?::JSON)", [tree]).fetchall()
    return str(found[0][0]).removeprefix("SELECT ")


def quoted(name: str) -> str:
    """Return a name as SQL reads it whatever it is: `user` and `order` too.

    >>> quoted("user")
    '"user"'
    """
    return '"' + name.replace('"', '""') + '"'


def location(node: Node, around: int | None) -> int | None:
    """Return the byte where a node stands; of one that stands nowhere, where the one around it does."""
    byte = node.get("query_location", NOWHERE)
    return around if byte == NOWHERE else int(byte)


def moved(node: Node, to: Node) -> Node:
    """Return a copy of a node, all of which stands where another does."""

    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        copied = {key: copy(inner) for key, inner in value.items()}
        return copied | {key: to[key] for key in ("query_location", "query_location_length") if key in value}

    result: Node = copy(node)
    return result


def children(node: Node) -> Iterator[Node]:
    """Return the nodes directly inside a node."""

    def nodes_in(value: object) -> Iterator[Node]:
        if isinstance(value, dict):
            if "class" in value:
                yield value
            else:
                for inner in value.values():
                    yield from nodes_in(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from nodes_in(inner)

    for value in node.values():
        yield from nodes_in(value)


def walk(node: Node) -> Iterator[Node]:
    """Return a node and all nodes inside it."""
    yield node
    for child in children(node):
        yield from walk(child)


def is_lambda(node: Node) -> bool:
    """Say whether a node is `lambda x: …`. The other arrow, `->`, is JSON's."""
    return bool(node["class"] == "LAMBDA" and node["syntax_type"] == "LAMBDA_KEYWORD")


def parameters(node: Node) -> frozenset[str]:
    """Return the names that a lambda binds, as they are compared."""
    return frozenset(name.casefold() for part in walk(node["lhs"]) for name in part.get("column_names", ()))


def is_bound(node: Node, bound: frozenset[str]) -> bool:
    """Say whether a column's name is a lambda's parameter."""
    names: Sequence[str] = node["column_names"]
    return names[0].casefold() in bound


def rewrite(node: Node, replace: Callable[[Node], Node | None]) -> Node:
    """Return a copy with what `replace` returns in the place of each node; None keeps it. Parameters are no columns."""

    def copy(value: Any, bound: frozenset[str]) -> Any:
        if isinstance(value, list):
            return [copy(inner, bound) for inner in value]
        if not isinstance(value, dict):
            return value
        if "class" in value:
            if is_lambda(value):
                return {**value, "expr": copy(value["expr"], bound | parameters(value))}
            if not (value["class"] == "COLUMN_REF" and is_bound(value, bound)):
                replaced = replace(value)
                if replaced is not None:
                    return replaced
        return {key: copy(inner, bound) for key, inner in value.items()}

    result: Node = copy(node, frozenset())
    return result
