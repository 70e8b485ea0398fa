"""Declared SQL: read, checked, split into row-level parts and windows, and the row-level parts computed.

- `engine` is a DuckDB that reaches nothing outside itself;
- `functions` is the allow-list: what an expression may call, and why the rest may not be called;
- `parse` turns SQL into DuckDB's own syntax tree, and the tree back into SQL;
- `check` says everything that is wrong with one definition;
- `compile` groups definitions into views and splits each around its windows;
- `rows` runs the row-level parts over batches of events and rows.
"""

from freshet.flows.steps.sql.compile import compile_views
from freshet.flows.steps.sql.engine import Engine, engine
from freshet.flows.steps.sql.rows import Arguments, Failure, Finisher, Projector

__all__ = ["Arguments", "Engine", "Failure", "Finisher", "Projector", "compile_views", "engine"]
