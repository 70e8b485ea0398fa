"""The offline store: `<root>/<name>/part-….parquet`, only ever added to, read by Feast as a directory.

A part is written under a name that begins with a dot, which Dask and DuckDB pass over, and renamed when all of it is
on the disk: a reader sees the whole part or nothing. All parts of a folder have one schema; Feast's readers take it
from the first part, so a part without rows is there from the start. Times are microseconds in UTC.

A row may stand there in several versions. The final one has the greatest (`_version`, `created`) of its entity and
time. Feast chooses by `created` alone, which rises with `_version`; its Dask store sorts by it unstably (feast/infra/
offline_stores/dask.py, `_drop_duplicates`) and may give a superseded version, its DuckDB store does not.
"""

import itertools
import os
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.view import CREATED, VERSION, View

_T = TypeVar("_T")
_FIRST_PART = "part-0.parquet"
_READ_ATTEMPTS = 5


class OfflineStore:
    """Folders of parquet parts below `root`; each instance names its parts by a run id of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._run = uuid.uuid4().hex[:16]
        self._seq = itertools.count()

    def prepare(self, name: str, schema: pa.Schema) -> None:
        """Make the folder `name` with a part that has the schema and no rows; a second time changes nothing.

        Raises `Refused` if the folder cannot be written, or holds rows of another schema.
        """
        first = self._root / name / _FIRST_PART
        try:
            first.parent.mkdir(parents=True, exist_ok=True)
            if not first.exists():
                self._write(first, schema.empty_table())
        except OSError as error:
            fact, hint = f"cannot be written: {_reason(error)}", "name a folder that this user may write"
            raise Refused([Problem("offline store", str(first.parent), fact, hint=hint)]) from error
        for part in self._parts(name):
            _check(part, _opened(part, lambda file: file.schema_arrow), schema)

    def append(self, name: str, table: pa.Table) -> Path | None:
        """Make a table's rows durable and visible, all at once; return the new part, or None if there are no rows.

        `name` has been prepared with the table's schema. Raises `Unavailable` when the disk does not take the part;
        then nothing of it is visible.
        """
        if table.num_rows == 0:
            return None
        part = self._root / name / f"part-{self._run}-{next(self._seq):08d}.parquet"
        try:
            self._write(part, table)
        except OSError as error:
            raise Unavailable(f"offline store at {part.parent} cannot be written: {_reason(error)}") from error
        return part

    def read(self, name: str) -> pa.Table:
        """Return all rows, in every version.

        Raises `Refused` naming a part of another schema, and `Unavailable` naming a torn part.
        """
        for _ in range(_READ_ATTEMPTS):
            parts = self._parts(name)
            try:
                tables = [_opened(part, lambda file: file.read()) for part in parts]
            except FileNotFoundError:
                continue  # a part was replaced or expired since the folder was listed: list it again
            if not tables:
                break
            for part, table in zip(parts, tables, strict=True):
                _check(part, table.schema, tables[0].schema)
            return pa.concat_tables(tables)
        raise Unavailable(f"offline store at {self._root / name} has no part that stays. Hint: run `freshet apply`")

    def final(self, view: View) -> pa.Table:
        """Return the final version of each row, ordered by entity and time."""
        return _final(self.read(view.name), view)

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row, ordered by entity."""
        return _newest(self.read(view.name), view)

    def expire(self, name: str, column: str, older_than: datetime) -> int:
        """Delete every part whose newest `column` is older; return how many. Parts without rows stay."""
        expired = [part for part in self._parts(name) if _all_older(part, column, older_than)]
        for part in expired:
            part.unlink(missing_ok=True)
        if expired:
            _sync(self._root / name)
        return len(expired)

    def _parts(self, name: str) -> list[Path]:
        return sorted((self._root / name).glob("part-*.parquet"))

    def _write(self, part: Path, table: pa.Table) -> None:
        unfinished = part.with_name(f".{part.name}.{self._run}.inprogress")
        try:
            with unfinished.open("wb") as file:
                pq.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(part)
        finally:
            unfinished.unlink(missing_ok=True)
        _sync(part.parent)


class MemoryOfflineStore:
    """The twin of `OfflineStore`, kept in this process."""

    def __init__(self) -> None:
        self._tables: dict[str, list[pa.Table]] = {}

    def prepare(self, name: str, schema: pa.Schema) -> None:
        """Make the folder `name`; raises `Refused` if it holds rows of another schema."""
        for table in self._tables.setdefault(name, [schema.empty_table()]):
            _check(Path(name), table.schema, schema)

    def append(self, name: str, table: pa.Table) -> Path | None:
        """Keep a table's rows; return the name of the new part, or None if there are no rows."""
        if table.num_rows == 0:
            return None
        parts = self._tables[name]
        parts.append(table)
        return Path(name) / f"part-{len(parts) - 1}.parquet"

    def read(self, name: str) -> pa.Table:
        """Return all rows, in every version."""
        if name not in self._tables:
            raise Unavailable(f"offline store in memory has no {name}")
        return pa.concat_tables(self._tables[name])

    def final(self, view: View) -> pa.Table:
        """Return the final version of each row, ordered by entity and time."""
        return _final(self.read(view.name), view)

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row, ordered by entity."""
        return _newest(self.read(view.name), view)

    def expire(self, name: str, column: str, older_than: datetime) -> int:
        """Delete every part whose newest `column` is older; return how many. Parts without rows stay."""
        kept = [part for part in self._tables[name] if not part.num_rows or pc.max(part[column]).as_py() >= older_than]
        expired = len(self._tables[name]) - len(kept)
        self._tables[name] = kept
        return expired


def _final(rows: pa.Table, view: View) -> pa.Table:
    return _last_of_each(rows, (*view.entity_names, EVENT_TIME), (VERSION, CREATED))


def _newest(rows: pa.Table, view: View) -> pa.Table:
    return _last_of_each(rows, view.entity_names, (EVENT_TIME, VERSION, CREATED))


def _last_of_each(rows: pa.Table, key: Sequence[str], order: Sequence[str]) -> pa.Table:
    """Sort by key and order, and keep the last row of each key."""
    rows = rows.take(pc.sort_indices(rows.select([*key, *order]), [(name, "ascending") for name in (*key, *order)]))
    if rows.num_rows == 0:
        return rows
    last = pa.array([True])
    for name in key:
        column = rows[name].combine_chunks()
        differs = pa.concat_arrays([pc.not_equal(column[:-1], column[1:]), pa.array([True])])
        last = differs if name == key[0] else pc.or_(last, differs)
    return rows.filter(last)


def _opened(part: Path, take: Callable[[pq.ParquetFile], _T]) -> _T:
    """Take something from a part; raises `Unavailable` naming a torn one, FileNotFoundError for one that is gone."""
    try:
        with part.open("rb") as file:
            return take(pq.ParquetFile(file))
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        what = f"offline store part {part} is torn or not parquet: {error}. Hint: move it out of the folder"
        raise Unavailable(what) from error


def _check(part: Path, found: pa.Schema, expected: pa.Schema) -> None:
    """Refuse a part that differs from what the folder is for."""
    if found.equals(expected):
        return
    other = sorted(set(found) ^ set(expected), key=str)
    got = ", ".join(f"{field.name} {field.type}" for field in other) or "another order of columns"
    hint = "one folder keeps one schema: give the view another name, or move the folder away"
    raise Refused([Problem("offline store part", str(part), "has another schema", got, hint)])


def _all_older(part: Path, column: str, older_than: datetime) -> bool:
    metadata = _opened(part, lambda file: file.metadata)
    if metadata.num_rows == 0:
        return False
    place = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(column)
    newest = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    return all(found is not None and found.has_min_max and found.max < older_than for found in newest)


def _sync(folder: Path) -> None:
    """Make renames in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
