"""The offline store: `<root>/<name>/part-….parquet`, only ever added to, read by Feast as a directory.

A part is staged in `<root>/_staged/<name>/` and renamed once all of its epoch is durable: a reader sees the whole part
or nothing, and never one that is taken back. All parts of a folder have one schema; Feast's readers take it from the
first part, so a part without rows is there from the start. Times are microseconds in UTC. A part's name has the epoch
that made it and the run: no two runs ever write the same name.

Which folder that is, `_generations.json` says (schemas/generations.py): all here read the current generation. A part
that is published is linked into every other one that is alive, and only then seen in the current one.

A row may stand there in several versions. The final one has the greatest (`_version`, `created`) of its entity and
time. Feast chooses by `created` alone, which rises with `_version`; its Dask store sorts by it unstably (feast/infra/
offline_stores/dask.py, `_drop_duplicates`) and may give a superseded version, its DuckDB store does not.
"""

import contextlib
import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from freshet.flows.edges import disk
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.generations import Generation, Generations, folder_name
from freshet.schemas.part import PartSummary, epoch_of
from freshet.schemas.view import CREATED, VERSION, View

_T = TypeVar("_T")
_FIRST_PART = "part-0.parquet"
_READ_ATTEMPTS = 5
_SAMPLE_ROWS, _FEW_OF = 1000, 8
GENERATIONS, _STAGED = "_generations.json", "_staged"


class Form(Protocol):
    """How the parts of a folder are read that were written under older schemas than today's: all in one form."""

    @property
    def schema(self) -> pa.Schema:
        """The form."""

    def check(self, part: str, found: pa.Schema) -> None:
        """Refuse a part that cannot be brought into it."""

    def read(self, events: pa.Table) -> pa.Table:
        """Return a part's rows in it."""


class OfflineStore:
    """Folders of parquet parts below `root`; each instance names its parts by a run id of its own.

    All parts of a folder have one schema, unless `forms` says how those of others are read.
    """

    def __init__(self, root: Path, forms: Mapping[str, Form] | None = None) -> None:
        self.root, self._forms = root.absolute(), forms or {}
        self._run = uuid.uuid4().hex[:16]
        self._seq = itertools.count()
        self._generations: tuple[object, Generations] = (None, Generations())

    def generations(self) -> Generations:
        """Return which generations there are; raises `Unavailable` for a file that cannot be read."""
        path = self.root / GENERATIONS
        try:
            found = path.stat()
            known = (found.st_ino, found.st_mtime_ns, found.st_size)
            if known != self._generations[0]:  # replaced since, so it is another file
                self._generations = known, Generations.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return Generations()
        except (OSError, ValidationError) as error:
            hint = "bring the file back from a copy of the offline store"
            raise Unavailable(f"generations {path} cannot be read: {error}. Hint: {hint}") from error
        return self._generations[1]

    def generations_number(self) -> int:
        """Return the number of what `generations` returns; what is published from now on goes by it, or by a later."""
        return self.generations().number

    def generation(self, name: str) -> Generation:
        """Return a folder's current generation."""
        return self.generations().of(name).generation

    def path(self, name: str) -> Path:
        """Return where a folder's current generation stands."""
        return self.root / folder_name(name, self.generation(name).number)

    def paths(self, name: str) -> list[Path]:
        """Return all places where a reader may find the rows of a folder, the current one first."""
        folder = self.generations().of(name)
        return [self.root / folder_name(name, number) for number in (folder.current, *folder.former)]

    def anew_count(self, name: str) -> int:
        """Return how often a folder's rows were made anew, by another declaration."""
        return self.generations().of(name).anew

    def folder(self, view: str) -> str:
        """Return the name of a view's current folder, which stays this one's where the view's becomes another."""
        return folder_name(view, self.generation(view).number)

    def next_generation(self, view: str) -> int:
        """Return a number that no generation of a view has."""
        return self.generations().of(view).unused

    def begin(self, view: str, generation: int, schema: pa.Schema) -> str:
        """Make the empty folder of a generation that nobody reads, whatever is left of it; return its name."""
        name = folder_name(view, generation)
        assert name != self.folder(view), name
        shutil.rmtree(self.root / name, ignore_errors=True)
        self.prepare(name, schema)
        return name

    def switch(self, generations: Mapping[str, int]) -> None:
        """Make generations current, all at once; those of before get no more. Raises `Unavailable`."""
        self.write_generations(self.generations().replaced(generations))

    def write_generations(self, generations: Generations) -> None:
        """Replace what says which generations there are, durably; raises `Unavailable` when the disk refuses."""
        content = generations.model_dump_json().encode()
        try:
            disk.replace(self.root / GENERATIONS, lambda file: file.write(content))
        except OSError as error:
            raise Unavailable(f"offline store at {self.root} cannot be written: {_reason(error)}") from error

    def prepare(self, name: str, schema: pa.Schema) -> None:
        """Make the folder `name` with a part that has the schema and no rows; a second time changes nothing.

        Raises `Refused` if the folder cannot be written, or holds rows of another schema.
        """
        first = self.path(name) / _FIRST_PART
        try:
            first.parent.mkdir(parents=True, exist_ok=True)
            if not first.exists():
                self._write(first, schema.empty_table())
        except OSError as error:
            fact, hint = f"cannot be written: {_reason(error)}", "name a folder that this user may write"
            raise Refused([Problem("offline store", str(first.parent), fact, hint=hint)]) from error
        for part in self._parts(name):
            check_part(part, open_part(part, lambda file: file.schema_arrow), schema, self._forms.get(name))

    def append(self, name: str, table: pa.Table) -> str | None:
        """Make a table's rows durable and visible, all at once; return the new part, or None if there are no rows.

        Raises as `stage` does; then nothing of it is visible.
        """
        part = self.stage(name, table)
        if part is not None:
            self.publish({name: [part]})
        return part

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        """Make a table's rows durable, unseen; return the part that `publish` makes visible, None if there are no rows.

        `name` has been prepared with the table's schema. Raises `Unavailable` when the disk does not take the part.
        """
        if table.num_rows == 0:
            return None
        part = f"part-{epoch:010d}-{self._run}-{next(self._seq):06d}.parquet"
        try:
            self._staging(name).mkdir(parents=True, exist_ok=True)
            self._write(self._staging(name) / _staged(part), table)
        except OSError as error:
            raise Unavailable(f"offline store at {self.root / name} cannot be written: {_reason(error)}") from error
        return part

    def publish(self, parts: Mapping[str, Iterable[str]]) -> None:
        """Make staged parts visible, by folder; one that is visible already stays so.

        Raises `Unavailable` for a part that is neither, and when the disk refuses.
        """
        generations = self.generations()
        for name, of_folder in parts.items():
            place = generations.of(name)
            current = self.root / folder_name(name, place.current)
            others = [self.root / folder_name(name, number) for number in place.others]
            try:
                for part in of_folder:
                    self._publish(name, part, current, others)
                for folder in (*others, current):
                    disk.sync(folder)
            except OSError as error:
                raise Unavailable(f"offline store at {current} cannot be written: {_reason(error)}") from error

    def _publish(self, name: str, part: str, current: Path, others: Sequence[Path]) -> None:
        """Make a part visible everywhere; last in the current generation: what is seen there, others have."""
        staged = self._staged_file(name, part)
        for other in others:
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # of one that is nowhere the end says it
                (other / part).hardlink_to(current / part if staged is None else staged)
        if staged is not None:
            staged.replace(current / part)
        if not (current / part).exists():
            hint = "a part that was committed is lost: bring it back, or start anew in another folder"
            raise Unavailable(f"offline store part {current / part} is not there. Hint: {hint}")

    def bytes_counts(self, parts: Mapping[str, Iterable[str]]) -> dict[str, int]:
        """Return how large those of some parts, by folder, are that are visible. Raises `Unavailable`."""
        return {name: self._bytes_count(name, of_folder) for name, of_folder in parts.items()}

    def _bytes_count(self, name: str, parts: Iterable[str]) -> int:
        count = 0
        for part in parts:
            try:
                count += (self.path(name) / part).stat().st_size
            except FileNotFoundError:
                continue  # taken away since, as the validator will say
            except OSError as error:
                raise Unavailable(f"offline store at {self.root / name} cannot be read: {_reason(error)}") from error
        return count

    def discard_staged(self, name: str) -> int:
        """Delete what was staged in a folder, or half written, and never published; return how many files."""
        places = (self._staging(name), self.path(name))
        left = [
            file for place in places for one in (_staged("part-*"), ".part-*.inprogress") for file in place.glob(one)
        ]
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)

    def parts_after(self, name: str, epoch: int) -> list[tuple[int, str]]:
        """Return the visible parts that were made after an epoch, each with its epoch, in that order."""
        found = [(made, part.name) for part in self._parts(name) if (made := epoch_of(part.name)) is not None]
        return sorted(pair for pair in found if pair[0] > epoch)

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some; raises `Unavailable` naming one torn or gone."""
        form = self._forms.get(name)
        return pa.concat_tables(
            self._opened_anywhere(name, part, lambda file: _formed(file, form, columns)) for part in parts
        )

    def visible_parts(self, name: str) -> list[str]:
        """Return the names of all visible parts, whoever made them; of a folder that is not there, none."""
        return listed(self.path(name))

    def summary(self, name: str, part: str) -> PartSummary | None:
        """Return what a visible part's footer says, None if the part is gone; raises `Unavailable` for a torn one."""
        try:
            found = open_part(self.path(name) / part, lambda file: summary_of_file(file.metadata, file.schema_arrow))
        except FileNotFoundError:
            return None
        form = self._forms.get(name)
        return found if form is None else replace(found, schema=form.schema)

    def is_staged(self, name: str, part: str) -> bool:
        """Say whether a part still waits to be published."""
        return self._staged_file(name, part) is not None

    def read(self, name: str) -> pa.Table:
        """Return all rows, in every version.

        Raises `Refused` naming a part of another schema, and `Unavailable` naming a torn part.
        """
        form = self._forms.get(name)
        for _ in range(_READ_ATTEMPTS):
            parts = self._parts(name)
            try:
                tables = [open_part(part, lambda file: _formed(file, form)) for part in parts]
            except FileNotFoundError:
                continue  # a part was replaced or expired since the folder was listed: list it again
            if not tables:
                break
            for part, table in zip(parts, tables, strict=True):
                check_part(part, table.schema, tables[0].schema)
            return pa.concat_tables(tables)
        raise Unavailable(f"offline store at {self.root / name} has no part that stays. Hint: run `freshet apply`")

    def matching(
        self, name: str, schema: pa.Schema, values: Mapping[str, Any], since: datetime | None = None
    ) -> pa.Table:
        """Return the rows whose columns have these values, in every version, from a time on.

        `schema` is the folder's; of a folder that is not there, there are none. A part whose footer says that it has
        none is not read. Raises `Unavailable` for a part that is torn or gone.
        """
        import pyarrow.dataset as ds  # noqa: PLC0415  # slow, and only here

        wanted, form, parts = _wanted(values, since), self._forms.get(name), self._parts(name)
        try:
            others = [] if form is None else [part for part in parts if not open_part(part, _has_form(form))]
            alike = [str(part) for part in parts if part not in others]
            found = ds.dataset(alike, schema=schema, format="parquet").to_table(filter=wanted)
            found.validate(full=True)
            tables = [open_part(part, lambda file: _formed(file, form)).filter(wanted) for part in others]
        except (pa.ArrowInvalid, pa.ArrowTypeError, OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"offline store at {self.root / name} cannot be read: {error}") from error
        return pa.concat_tables([found, *tables])

    def final(self, view: View) -> pa.Table:
        """Return the final version of each row, ordered by entity and time."""
        return last_versions(self.read(view.name), view)

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row, ordered by entity."""
        return _newest(self.read(view.name), view)

    def expirable(self, name: str, column: str, older_than: datetime, epoch: int) -> dict[str, int]:
        """Return the parts made up to an epoch whose newest `column` is older, with their rows' numbers."""
        made = {part for _, part in self.parts_after(name, epoch)}
        return {
            part.name: open_part(part, lambda file: file.metadata.num_rows)
            for part in self._parts(name)
            if part.name not in made and _all_older(part, column, older_than)
        }

    def delete(self, name: str, parts: Iterable[str]) -> None:
        """Delete parts, in every generation; one that is gone already is no matter. Raises `Unavailable`."""
        folder, parts = self.generations().of(name), [*parts]
        for number in (*folder.others, folder.current):
            place = self.root / folder_name(name, number)
            try:
                for part in parts:
                    (place / part).unlink(missing_ok=True)
                if place.is_dir():
                    disk.sync(place)
            except OSError as error:
                raise Unavailable(f"offline store at {place} cannot be written: {_reason(error)}") from error

    def _staging(self, name: str) -> Path:
        return self.root / _STAGED / name

    def _staged_file(self, name: str, part: str) -> Path | None:
        """Return where a part is staged; earlier versions of Freshet did it beside the visible ones."""
        places = (self._staging(name) / _staged(part), self.root / name / _staged(part))
        return next((place for place in places if place.exists()), None)

    def _parts(self, name: str) -> list[Path]:
        place = self.path(name)
        return [place / part for part in listed(place)]

    def _opened_anywhere(self, name: str, part: str, take: Callable[[pq.ParquetFile], _T]) -> _T:
        """Take something from a part of the current generation, or of a former one that was listed."""
        for place in self.paths(name):
            with contextlib.suppress(FileNotFoundError):
                return open_part(place / part, take)
        raise Unavailable(f"offline store part {self.path(name) / part} is not there")

    def _write(self, part: Path, table: pa.Table) -> None:
        disk.replace(part, lambda file: pq.write_table(table, file, use_dictionary=_repeating(table)), self._run)


def _repeating(table: pa.Table) -> list[str]:
    """Return the columns that a dictionary makes smaller: text that repeats, and whole numbers of which there are few.

    Of all columns, as is usual, they take twice the time, and no less room.
    """
    first, found = table.slice(0, _SAMPLE_ROWS), []
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
            repeats = _count(first, field.name) < first.num_rows and 2 * _count(table, field.name) <= table.num_rows
        else:
            repeats = pa.types.is_integer(field.type) and _FEW_OF * _count(first, field.name) <= first.num_rows
        found += [field.name] if repeats else []
    return found


def _count(table: pa.Table, name: str) -> int:
    """Return how many values of a column are different."""
    return pc.count_distinct(table.column(name)).as_py()  # type: ignore[no-any-return]  # pyarrow is untyped


class MemoryOfflineStore:
    """The twin of `OfflineStore`, kept in this process."""

    def __init__(self, forms: Mapping[str, Form] | None = None) -> None:
        self.forms = forms or {}
        self._visible: dict[str, dict[str, pa.Table]] = {}
        self._staged: dict[str, dict[str, pa.Table]] = {}
        self._seq = itertools.count()
        self._generations = Generations()

    def generations_number(self) -> int:
        """Return the number of which generations there are."""
        return self._generations.number

    def generation(self, name: str) -> Generation:
        """Return a folder's current generation."""
        return self._generations.of(name).generation

    def anew_count(self, name: str) -> int:
        """Return how often a folder's rows were made anew, by another declaration."""
        return self._generations.of(name).anew

    def folder(self, view: str) -> str:
        """Return the name of a view's current folder, which stays this one's where the view's becomes another."""
        return folder_name(view, self.generation(view).number)

    def next_generation(self, view: str) -> int:
        """Return a number that no generation of a view has."""
        return self._generations.of(view).unused

    def begin(self, view: str, generation: int, schema: pa.Schema) -> str:
        """Make the empty folder of a generation that nobody reads, whatever is left of it; return its name."""
        name = folder_name(view, generation)
        assert name != self.folder(view), name
        self._visible.pop(name, None)
        self._staged.pop(name, None)
        self.prepare(name, schema)
        return name

    def switch(self, generations: Mapping[str, int]) -> None:
        """Make generations current, all at once; those of before get no more."""
        self._generations = self._generations.replaced(generations)

    @property
    def names(self) -> list[str]:
        """The folders that were made."""
        return list(self._visible)

    def prepare(self, name: str, schema: pa.Schema) -> None:
        """Make the folder `name`; raises `Refused` if it holds rows of another schema."""
        folder = self.folder(name)
        for part, table in self._visible.setdefault(folder, {_FIRST_PART: schema.empty_table()}).items():
            check_part(Path(name) / part, table.schema, schema, self.forms.get(name))
        self._staged.setdefault(folder, {})

    def append(self, name: str, table: pa.Table) -> str | None:
        """Keep a table's rows; return the name of the new part, or None if there are no rows."""
        part = self.stage(name, table)
        if part is not None:
            self.publish({name: [part]})
        return part

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        """Keep a table's rows unseen; return the part that `publish` makes visible, None if there are no rows."""
        if table.num_rows == 0:
            return None
        part = f"part-{epoch:010d}-memory-{next(self._seq):06d}.parquet"
        self._staged[self.folder(name)][part] = table
        return part

    def publish(self, parts: Mapping[str, Iterable[str]]) -> None:
        """Make staged parts visible, by folder; one that is visible already stays so."""
        for name, of_folder in parts.items():
            for part in of_folder:
                table = self._staged[self.folder(name)].pop(part, None)
                if table is not None:
                    self._visible[self.folder(name)][part] = table
                elif part not in self._visible[self.folder(name)]:
                    raise Unavailable(f"offline store part {name}/{part} is not there")

    def bytes_counts(self, parts: Mapping[str, Iterable[str]]) -> dict[str, int]:
        """Return how large those of some parts, by folder, are that are visible, in memory."""
        there = {
            name: [self._visible[self.folder(name)].get(part) for part in of_folder]
            for name, of_folder in parts.items()
        }
        return {name: sum(table.nbytes for table in tables if table is not None) for name, tables in there.items()}

    def discard_staged(self, name: str) -> int:
        """Let go of what was staged in a folder and never published; return how many parts."""
        count = len(self._staged[self.folder(name)])
        self._staged[self.folder(name)] = {}
        return count

    def parts_after(self, name: str, epoch: int) -> list[tuple[int, str]]:
        """Return the visible parts that were made after an epoch, each with its epoch, in that order."""
        found = [(made, part) for part in self._visible[self.folder(name)] if (made := epoch_of(part)) is not None]
        return sorted(pair for pair in found if pair[0] > epoch)

    def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of some parts, all their columns or some; raises `Unavailable` naming one that is gone."""
        try:
            found = pa.concat_tables([self._formed(name, self._visible[self.folder(name)][part]) for part in parts])
        except KeyError as error:
            raise Unavailable(f"offline store part {name}/{error.args[0]} is not there") from error
        return found if columns is None else found.select(list(columns))

    def visible_parts(self, name: str) -> list[str]:
        """Return the names of all visible parts; of a folder that is not there, none."""
        return list(self._visible.get(self.folder(name), ()))

    def summary(self, name: str, part: str) -> PartSummary | None:
        """Return what a visible part's footer would say, None if the part is gone."""
        table = self._visible[self.folder(name)].get(part)
        return None if table is None else _summary_of(self._formed(name, table))

    def is_staged(self, name: str, part: str) -> bool:
        """Say whether a part still waits to be published."""
        return part in self._staged[self.folder(name)]

    def read(self, name: str) -> pa.Table:
        """Return all rows, in every version."""
        if self.folder(name) not in self._visible:
            raise Unavailable(f"offline store in memory has no {name}")
        return pa.concat_tables(self._formed(name, table) for table in self._visible[self.folder(name)].values())

    def _formed(self, name: str, table: pa.Table) -> pa.Table:
        return self.forms[name].read(table) if name in self.forms else table

    def matching(
        self, name: str, schema: pa.Schema, values: Mapping[str, Any], since: datetime | None = None
    ) -> pa.Table:
        """Return the rows whose columns have these values, in every version, from a time on."""
        tables = [self._formed(name, table) for table in self._visible.get(self.folder(name), {}).values()]
        return pa.concat_tables([schema.empty_table(), *tables]).filter(_wanted(values, since))

    def final(self, view: View) -> pa.Table:
        """Return the final version of each row, ordered by entity and time."""
        return last_versions(self.read(view.name), view)

    def newest(self, view: View) -> pa.Table:
        """Return each entity's newest final row, ordered by entity."""
        return _newest(self.read(view.name), view)

    def expirable(self, name: str, column: str, older_than: datetime, epoch: int) -> dict[str, int]:
        """Return the parts made up to an epoch whose newest `column` is older, with their rows' numbers."""
        made = {part for _, part in self.parts_after(name, epoch)}
        return {
            part: table.num_rows
            for part, table in self._visible[self.folder(name)].items()
            if part not in made and table.num_rows and pc.max(table[column]).as_py() < older_than
        }

    def delete(self, name: str, parts: Iterable[str]) -> None:
        """Delete parts; one that is gone already is no matter."""
        for part in parts:
            self._visible[self.folder(name)].pop(part, None)


def _wanted(values: Mapping[str, Any], since: datetime | None) -> pc.Expression:
    """Return the condition under which a row has these values, and is not of before a time."""
    wanted = pc.scalar(True)
    for column, value in values.items():
        wanted &= pc.field(column) == value
    return wanted if since is None else wanted & (pc.field(EVENT_TIME) >= since)


def summary_of_file(metadata: pq.FileMetaData, schema: pa.Schema) -> PartSummary:
    """Read a footer; times are known only if every row group says them."""
    if EVENT_TIME not in schema.names or metadata.num_rows == 0:
        return PartSummary(metadata.num_rows, schema)
    place = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(EVENT_TIME)
    said = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    if not all(one is not None and one.has_min_max and isinstance(one.min, datetime) for one in said):
        return PartSummary(metadata.num_rows, schema)
    return PartSummary(metadata.num_rows, schema, min(one.min for one in said), max(one.max for one in said))


def _summary_of(table: pa.Table) -> PartSummary:
    if EVENT_TIME not in table.schema.names or table.num_rows == 0:
        return PartSummary(table.num_rows, table.schema)
    bounds = pc.min_max(table[EVENT_TIME]).as_py()
    return PartSummary(table.num_rows, table.schema, bounds["min"], bounds["max"])


def listed(place: Path) -> list[str]:
    """Return the names of the parts in a folder; of one that is not there, none."""
    try:
        names = os.listdir(place)  # noqa: PTH208  # a Path for each of a hundred thousand parts is slow
    except FileNotFoundError:
        return []
    return sorted(part for part in names if part.startswith("part-") and part.endswith(".parquet"))


def _staged(part: str) -> str:
    """Return the name of a part until it is published."""
    return f".{part}.staged"


def last_versions(rows: pa.Table, view: View) -> pa.Table:
    """Return the final version of each row, ordered by entity and time."""
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


def open_part(part: Path, take: Callable[[pq.ParquetFile], _T]) -> _T:
    """Take something from a part; raises `Unavailable` naming a torn one, FileNotFoundError for one that is gone."""
    try:
        with part.open("rb") as file:
            return take(pq.ParquetFile(file))
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        what = f"offline store part {part} is torn or not parquet: {error}. Hint: move it out of the folder"
        raise Unavailable(what) from error


def _has_form(form: Form) -> Callable[[pq.ParquetFile], bool]:
    return lambda file: bool(file.schema_arrow.equals(form.schema, check_metadata=True))


def _formed(file: pq.ParquetFile, form: Form | None, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part, or some columns, in its folder's form if it has one.

    Raises ArrowInvalid for text that is none: that would show only where the text is made Python's.
    """
    is_formed = form is None or _has_form(form)(file)
    table = file.read(list(columns) if is_formed and columns is not None else None)
    table.validate(full=True)
    if is_formed:
        return table
    assert form is not None
    made = form.read(table)
    return made if columns is None else made.select(list(columns))


def check_part(part: Path, found: pa.Schema, expected: pa.Schema, form: Form | None = None) -> None:
    """Refuse a part that differs from what the folder is for."""
    if form is not None:
        form.check(str(part), found)
        return
    if found.equals(expected):
        return
    other = sorted(set(found) ^ set(expected), key=str)
    got = ", ".join(f"{field.name} {field.type}" for field in other) or "another order of columns"
    hint = "one folder keeps one schema: give the view another name, or move the folder away"
    raise Refused([Problem("offline store part", str(part), "has another schema", got, hint)])


def _all_older(part: Path, column: str, older_than: datetime) -> bool:
    metadata = open_part(part, lambda file: file.metadata)
    if metadata.num_rows == 0:
        return False
    place = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(column)
    newest = [metadata.row_group(group).column(place).statistics for group in range(metadata.num_row_groups)]
    return all(found is not None and found.has_min_max and found.max < older_than for found in newest)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
