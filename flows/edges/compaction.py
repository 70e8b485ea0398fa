"""Compaction on the disk: a folder's parts are merged into its next generation (schemas/generations.py), and old
ones are removed.

Rows are merged by DuckDB, which keeps what is too large for its memory on the disk, and sorted by entity and time: a
reader who looks for an entity skips the row groups without it.
"""

import contextlib
import itertools
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from freshet.flows.edges import disk
from freshet.flows.edges.parquet import GENERATIONS, OfflineStore, check_part, listed, open_part, summary_of_file
from freshet.schemas.compaction import Kind, Sized, Slice, kind_of
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.generations import Generations, folder_name
from freshet.schemas.part import epoch_of, run_of
from freshet.schemas.purge import FILE as PURGE
from freshet.schemas.purge import Decided
from freshet.schemas.view import CREATED, VERSION, View

_FIRST_PART = "part-0.parquet"
_MEMORY, _THREADS = "1GB", 2
_ROW_GROUP_ROWS = 100_000


class CompactionFolder:
    """The generations of an offline store's folders, made and removed. What the disk refuses is `Unavailable`."""

    def __init__(self, store: OfflineStore) -> None:
        self._store, self._root = store, store.root
        self._run, self._seq = uuid.uuid4().hex[:16], itertools.count()
        self._lock: IO[bytes] | None = None

    def lock(self, *, purges: bool = False) -> None:
        """Be the only one who makes generations; raises `Refused` while another does, or a purge is not done."""
        with self._writing():
            held = disk.lock((self._root / GENERATIONS).with_suffix(".lock"))
        if held is None:
            hint = "wait until it is done; `freshet apply` makes folders, too"
            raise Refused(
                [Problem("offline store", str(self._root), "is being compacted or purged already", hint=hint)]
            )
        if not purges and self.decided() is not None:
            held.close()
            fact, hint = "has a purge that was begun and is not done", "run the same `freshet purge` again"
            raise Refused([Problem("offline store", str(self._root), fact, hint=hint)])
        self._lock = held
        with self._writing():
            shutil.rmtree(self._removed, ignore_errors=True)  # what a killed one left

    def unlock(self) -> None:
        """Let another process do it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def generations(self) -> Generations:
        """Return which generations there are."""
        return self._store.generations()

    def write(self, generations: Generations) -> None:
        """Replace what says which generations there are, durably."""
        self._store.write_generations(generations)

    def found(self, name: str) -> set[int]:
        """Return of which generations there is a folder."""
        first = self._place(name, 0)
        found = {0} if first.is_dir() else set()
        later = (path.name.removeprefix(f"{first.name}-") for path in first.parent.glob(f"{first.name}-*"))
        return found | {int(number) for number in later if number.isdigit()}

    def begin(self, name: str, generation: int, schema: pa.Schema) -> None:
        """Make a generation's folder, with nothing in it that compaction made; what the flow put there stays.

        Raises `Refused` where files cannot have two names.
        """
        place = self._place(name, generation)
        with self._writing():
            place.mkdir(parents=True, exist_ok=True)
            for part in self.parts(name, generation):
                if kind_of(run_of(part)) is not None:
                    (place / part).unlink()
            for unfinished in place.glob(".*.inprogress"):
                unfinished.unlink()
            first = place / _FIRST_PART
            disk.replace(first, lambda file: pq.write_table(schema.empty_table(), file), self._run)
        probe = place / f".probe-{self._run}"
        try:
            probe.hardlink_to(first)
        except OSError as error:
            fact, hint = f"has no hard links: {error.strerror}", "keep the offline store on another file system"
            raise Refused([Problem("offline store", str(self._root), fact, hint=hint)]) from error
        probe.unlink()

    def parts(self, name: str, generation: int) -> list[str]:
        """Return the names of all visible parts of a generation."""
        return listed(self._place(name, generation))

    def sized(self, view: View, generation: int, parts: Iterable[str]) -> dict[str, Sized]:
        """Return what is known of parts; raises `Refused` for one of another schema, `Unavailable` for a torn one."""
        return {part: self._sized(view, self._place(view.name, generation) / part) for part in parts}

    def _sized(self, view: View, path: Path) -> Sized:
        def known(file: pq.ParquetFile) -> Sized:
            check_part(path, file.schema_arrow, view.row_schema)
            told, groups = file.metadata, range(file.metadata.num_row_groups)
            found = summary_of_file(told, file.schema_arrow)
            bytes_count = sum(
                told.row_group(group).column(column).total_compressed_size
                for group in groups
                for column in range(told.num_columns)
            )
            return Sized(found.rows_count, bytes_count, found.oldest, found.newest, kind_of(run_of(path.name)))

        try:
            return open_part(path, known)
        except FileNotFoundError as error:
            raise Unavailable(f"offline store part {path} is not there") from error

    def link(self, name: str, source: int, target: int, parts: Iterable[str]) -> None:
        """Give parts of one generation to another."""
        here, there = self._place(name, source), self._place(name, target)
        with self._writing():
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    (there / part).hardlink_to(here / part)
            disk.sync(there)

    def merge(
        self, view: View, source: int, target: int, one: Slice, *, final: bool, alive_after: datetime | None = None
    ) -> int:
        """Make a slice of one generation's rows a part of another; return how many rows it has.

        With `final` only each row's final version is taken. Of a slice that is carried, each entity's last row is,
        unless it is older than `alive_after`.
        """
        here, there = self._place(view.name, source), self._place(view.name, target)
        kind = Kind.CARRIED if one.carried else Kind.FINAL if final else Kind.ALL
        part = there / f"part-{0:010d}-{kind}.{self._run}-{next(self._seq):06d}.parquet"
        rows = ds.dataset([str(here / name) for name in one.parts], schema=view.row_schema, format="parquet")
        count = 0

        def write(file: IO[bytes]) -> None:
            nonlocal count
            with pq.ParquetWriter(file, view.row_schema) as writer:
                for batch in self._sorted(view, rows, one, kind, alive_after):
                    table = pa.Table.from_batches([batch]).cast(view.row_schema)
                    count += table.num_rows
                    writer.write_table(table)

        with self._writing():
            disk.replace(part, write, self._run)
            if count == 0:
                part.unlink()
        return count

    def _sorted(
        self, view: View, rows: ds.Dataset, one: Slice, kind: Kind, alive_after: datetime | None
    ) -> Iterator[pa.RecordBatch]:
        spill = self._store.root / "_staged" / ".spilled"
        config = {"memory_limit": _MEMORY, "threads": _THREADS, "temp_directory": str(spill)}
        try:
            with duckdb.connect(config=config) as database:
                database.register("rows", rows)
                sql, told = _query(view, one, kind, alive_after)
                yield from database.sql(sql, params=told).to_arrow_reader(_ROW_GROUP_ROWS)
        except (duckdb.Error, pa.ArrowInvalid) as error:
            raise Unavailable(f"offline store at {self._root / view.name} cannot be merged: {error}") from error
        finally:
            shutil.rmtree(spill, ignore_errors=True)

    def remove(self, name: str, generation: int) -> None:
        """Remove a generation's folder: at one instant it is not there any more; one that is gone is no matter."""
        gone = self._removed / uuid.uuid4().hex
        with self._writing():
            gone.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                self._place(name, generation).replace(gone)
            disk.sync(self._root)
            shutil.rmtree(self._removed)

    def rewrite(
        self, name: str, source: int, target: int, schema: pa.Schema, is_of: Callable[[pa.Table], pa.Array]
    ) -> int:
        """Make a generation of all parts of another, without some rows; return how many.

        Parts keep the form they were written in, and their epoch and kind, but no part without its rows has its name.
        """
        here, there = self._place(name, source), self._place(name, target)
        with self._writing():
            shutil.rmtree(there, ignore_errors=True)
        self.begin(name, target, schema)
        count = 0
        for part in self.parts(name, source):
            mine = is_of(self._store.read_parts(name, [part]))
            removed = pc.sum(mine).as_py() or 0
            count += removed
            if part == _FIRST_PART:
                continue
            if not removed:
                self.link(name, source, target, [part])
                continue
            rows = open_part(here / part, lambda file: file.read()).filter(pc.invert(mine))
            if rows.num_rows:
                kind, epoch = kind_of(run_of(part)) or "purged", epoch_of(part) or 0
                new = there / f"part-{epoch:010d}-{kind}.{self._run}-{next(self._seq):06d}.parquet"
                with self._writing():
                    disk.replace(new, partial(pq.write_table, rows), self._run)
        return int(count)

    def decided(self) -> Decided | None:
        """Return what a purge has decided and not yet done; None if there is no such."""
        try:
            return Decided.model_validate_json((self._root / PURGE).read_bytes())
        except FileNotFoundError:
            return None

    def decide(self, decided: Decided | None) -> None:
        """Note what a purge has decided, durably; None once it is done."""
        path = self._root / PURGE
        with self._writing():
            if decided is None:
                path.unlink(missing_ok=True)
                disk.sync(self._root)
            else:
                content = decided.model_dump_json().encode()
                disk.replace(path, lambda file: file.write(content))

    @property
    def _removed(self) -> Path:
        return self._root / "_staged" / ".removed"

    def _place(self, name: str, generation: int) -> Path:
        return self._root / folder_name(name, generation)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._root.is_dir():
                hint = "run `freshet apply`, which makes it"
                raise Refused([Problem("offline store", str(self._root), "is not there yet", hint=hint)]) from error
            what = f"offline store at {self._root} cannot be written: {error.strerror or error}"
            raise Unavailable(what) from error


def _query(view: View, one: Slice, kind: Kind, alive_after: datetime | None) -> tuple[str, list[datetime]]:
    """Return the SQL of a part's rows, and what its parameters are."""
    entity = ", ".join(f'"{name}"' for name in view.entity_names)
    told: list[datetime] = []

    def conditions(bounds: Iterable[tuple[str, datetime | None]]) -> str:
        given = [(sign, at) for sign, at in bounds if at is not None]
        told.extend(at for _, at in given)
        return " AND ".join(["true", *(f"{EVENT_TIME} {sign} ?" for sign, _ in given)])

    bounds = [(">=", one.begin), ("<", one.end), (">=", alive_after if one.carried else None)]
    source = f"SELECT * FROM rows WHERE {conditions(bounds)}"  # noqa: S608  # the view's own columns
    if one.carried:
        last = f"SELECT {entity}, max({EVENT_TIME}) AS {EVENT_TIME} FROM source GROUP BY {entity}"  # noqa: S608  # as above
        source = (
            f"WITH source AS ({source}) SELECT source.* FROM source SEMI JOIN ({last}) USING ({entity}, {EVENT_TIME})"  # noqa: S608
        )
    if kind is not Kind.ALL:
        newest = f"PARTITION BY {entity}, {EVENT_TIME} ORDER BY {VERSION} DESC, {CREATED} DESC"
        source = f"SELECT * FROM ({source}) QUALIFY row_number() OVER ({newest}) = 1"  # noqa: S608  # as above
    return f"SELECT * FROM ({source}) ORDER BY {entity}, {EVENT_TIME}, {VERSION}, {CREATED}", told  # noqa: S608
