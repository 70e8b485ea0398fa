"""Feast: its objects made from the views, its registry, its reads, and its own write path.

Nothing else imports Feast, and what can do without does not import this: it takes seconds. Feast's registry is a file
that it writes in place; here it is written aside and renamed, so that no reader sees half of one.
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import prometheus_client  # noqa: F401  # before Feast reads: feast.metrics switches a later import to multiprocess mode
import pyarrow as pa
import typeguard
from google.protobuf.message import DecodeError

from freshet.schemas import feast_bytes
from freshet.schemas.dtypes import Dtype
from freshet.schemas.errors import FreshetError, Problem, Refused, Unavailable
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.progress import Progress
from freshet.schemas.registration import Entry
from freshet.schemas.view import CREATED, StoredRow, View


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Have Feast imported without typeguard's rewriting of its functions: three of the four seconds that it takes.

    What that would check is how Feast is called; mypy checks our calls.
    """
    checked = typeguard.typechecked

    def as_is(target: Any = None, **_: Any) -> Any:
        return as_is if target is None else target

    typeguard.typechecked = as_is
    try:
        yield
    finally:
        typeguard.typechecked = checked


with _unchecked():
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        Project,
        PushSource,
        RepoConfig,
    )
    from feast import types as feast_types
    from feast.data_format import ParquetFormat
    from feast.errors import FeatureViewNotFoundException
    from feast.protos.feast.core.Registry_pb2 import Registry
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.type_map import feast_value_type_to_python_type
    from feast.value_type import ValueType

for _name in ("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"):
    if Path(os.environ.get(_name, "")).name.startswith("feast_metrics_"):
        del os.environ[_name]  # Feast's import set it; every process started from here would share its counters

_TAG = "freshet"
"""On every view of ours, so that those no longer declared can be told from the user's own."""
_FILES = "_files"
"""What follows a view's name in the name of its parquet folder's source."""
_ENTITY_TYPES = {
    pa.string(): (ValueType.STRING, feast_types.String),
    pa.int32(): (ValueType.INT32, feast_types.Int32),
    pa.int64(): (ValueType.INT64, feast_types.Int64),
}


class Files(Protocol):
    """Where the offline store has its folders, as `edges.parquet` does."""

    def paths(self, name: str) -> list[Path]:
        """Return all places where a reader may find the rows of a folder, the current one first."""


class FilesBelow:
    """The folders of a store that was never compacted."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    def paths(self, name: str) -> list[Path]:
        """Return the only one."""
        return [self._root / name]


def repo_objects(project: str, views: Sequence[View], files: Path | Files) -> list[Any]:
    """Return the Feast objects that the views are: what `feast apply` registers.

    `files` has the views' folders, or is the root of those. A view becomes a plain feature view on a push source, whose
    batch source is the view's parquet folder as it is now; each join key
    becomes an entity; one feature service, named like the project, serves everything. Every column is declared, so
    Feast reads no data to infer it. Raises `Refused` if two views give one entity two types.
    """
    entities, below = _entities(views), FilesBelow(files) if isinstance(files, Path) else files
    made = [
        _feature_view(view, [entities[name] for name in view.entity_names], below.paths(view.name)[0]) for view in views
    ]
    return [Project(name=project), *entities.values(), *made, FeatureService(name=project, features=made)]


def _entities(views: Sequence[View]) -> dict[str, Entity]:
    types: dict[str, pa.DataType] = {}
    problems: list[Problem] = []
    for view in views:
        for column in view.entity:
            if types.setdefault(column.name, column.type) != column.type:
                got = f"{types[column.name]} and, in view {view.name}, {column.type}"
                hint = "Feast knows an entity by its name: rename the column in one of the streams"
                problems.append(Problem("entity", column.name, "has two types", got, hint))
    if problems:
        raise Refused(problems)
    return {
        name: Entity(name=name, join_keys=[name], value_type=_ENTITY_TYPES[kind][0]) for name, kind in types.items()
    }


def _feature_view(view: View, entities: Sequence[Entity], folder: Path) -> FeatureView:
    files = FileSource(
        name=f"{view.name}{_FILES}",
        path=str(folder.absolute()),  # DuckDB and Dask resolve a relative path against different places
        file_format=ParquetFormat(),  # without it DuckDB cannot read a directory
        timestamp_field=EVENT_TIME,
        created_timestamp_column=CREATED,
    )
    features = [
        Field(
            name=feature.name,
            dtype=_type(feature.dtype),
            description=feature.description,
            tags={"transformation": feature.transformation},
        )
        for feature in view.features
    ]
    return FeatureView(
        name=view.name,
        entities=list(entities),
        schema=[*(Field(name=column.name, dtype=_ENTITY_TYPES[column.type][1]) for column in view.entity), *features],
        source=PushSource(name=f"{view.name}_push_source", batch_source=files),
        ttl=view.ttl,
        online=True,
        offline=False,  # true makes `feast materialize` write what it read back into the parquet folder
        tags={_TAG: ",".join(view.sources)},
    )


def _type(dtype: Dtype) -> Any:
    if dtype.element is not None:
        return feast_types.Array(_type(dtype.element))
    return getattr(feast_types, dtype.feast)


def apply(config: Mapping[str, Any], objects: Sequence[Any]) -> None:
    """Register the objects, and take out views of ours that are no longer among them; the user's own stay.

    The registry changes all at once. What a view that leaves has online stays there. Raises `Unavailable` if the
    registry there cannot be read, `Refused` if it belongs to another user.
    """
    registry = Path(config["registry"]["path"])
    registry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _aside(registry) as unfinished:
        if registry.exists():
            _check_owner(registry)
            shutil.copyfile(registry, unfinished)
        try:
            store = FeatureStore(config=_repo_config(config, unfinished))
            kept = {made.name for made in objects if isinstance(made, FeatureView)}
            gone = [made for made in store.list_feature_views() if _TAG in made.tags and made.name not in kept]
            sources = [source for made in gone for source in (made.stream_source, made.batch_source)]
            store.apply(list(objects), objects_to_delete=[*gone, *sources], partial=False)
        except DecodeError as error:
            raise _torn(registry, error) from error
        unfinished.chmod(0o600)


def point(config: Mapping[str, Any], files: Files, views: Sequence[View]) -> set[str]:
    """Have the registry say where the current parquet folders of some views are; return the views for which it did not.

    Nothing else changes, and all of it at once; where nothing was applied yet, nothing does. Raises as `open_store`.
    """
    path = Path(config["registry"]["path"])
    if not path.exists():
        return set()
    open_store(config)  # says what is wrong with a registry
    registry = Registry.FromString(path.read_bytes())
    wanted = {f"{view.name}{_FILES}": (view.name, str(files.paths(view.name)[0])) for view in views}
    sources = [
        source for made in registry.feature_views for source in (made.spec.batch_source, made.spec.stream_source)
    ]
    moved = set()
    for source in [*sources, *registry.data_sources]:
        for one in (source, source.batch_source):
            name, uri = wanted.get(one.name, ("", one.file_options.uri))
            if uri != one.file_options.uri:
                one.file_options.uri = uri
                moved.add(name)
    if moved:
        registry.version_id = str(uuid.uuid4())
        registry.last_updated.GetCurrentTime()
        with _aside(path) as unfinished:
            unfinished.write_bytes(registry.SerializeToString())
            unfinished.chmod(0o600)
    return moved


def open_store(config: Mapping[str, Any]) -> FeatureStore:
    """Open the feature store that `apply` registered.

    Raises `Unavailable` if the registry is missing or cannot be read, `Refused` if it belongs to another user: it may
    hold pickled functions.
    """
    registry = Path(config["registry"]["path"])
    if not registry.exists():
        raise Unavailable(f"Feast registry {registry} is not there. Hint: run `freshet apply`")
    _check_owner(registry)
    try:
        store = FeatureStore(config=_repo_config(config, registry))
        store.refresh_registry()
    except DecodeError as error:
        raise _torn(registry, error) from error
    return store


def read_online(store: FeatureStore, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
    """Read a view as any Feast client does; None where there is no row.

    Feast tells of no version, so it is 0. It cannot tell a missing row from one at the epoch: both are None.
    """
    if not entities:
        return []
    response = store.get_online_features(
        features=_references(view),
        entity_rows=[dict(zip(view.entity_names, entity, strict=True)) for entity in entities],
    ).proto
    found = dict(zip(response.metadata.feature_names.val, response.results, strict=True))  # Feast's order is any order
    names = [feature.name for feature in view.features]
    rows: list[StoredRow | None] = []
    for place, entity in enumerate(entities):
        at = found[names[0]].event_timestamps[place]
        values = {
            name: feast_value_type_to_python_type(found[name].values[place])  # noqa: PD011
            for name in names
        }
        row = StoredRow(entity, at.ToDatetime(tzinfo=UTC), 0, values)
        rows.append(row if at.seconds or at.nanos else None)
    return rows


def read_history(store: FeatureStore, view: View, entities: pd.DataFrame, *, as_served: bool = False) -> pd.DataFrame:
    """Return for each row of `entities` (the entity's columns and event_timestamp) the features as of that time.

    With `as_served` only rows made by then are seen: what the online store would have given.
    """
    job = store.get_historical_features(
        entity_df=entities, features=_references(view), filter_by_created_timestamp=as_served
    )
    return job.to_df()  # type: ignore[no-any-return]


class FeastClient:
    """What Feast's clients get: the registry as it stands now, its online API, and its historical retrieval.

    An attempt to reach the online store lasts no longer than `patience_s`; Feast's Redis client makes four. Whatever
    Feast raises is `Unavailable`; a registry of another user is `Refused`.
    """

    def __init__(self, config: Mapping[str, Any], files: Path | Files, patience_s: float = 10.0) -> None:
        self._files = FilesBelow(files) if isinstance(files, Path) else files
        self._registry = Path(config["registry"]["path"])
        self._config = {**config, "online_store": _impatient(config["online_store"], patience_s)}
        import feast.infra.offline_stores.duckdb  # noqa: F401, PLC0415  # else Feast does, at the first question

    def registration(self, view: View) -> list[Entry]:
        """Return every entry of a view as it is declared and as it is registered; a view may be not there at all.

        While compaction puts another folder in place of the view's, either has all rows.
        """
        with _asked_of_feast(f"read the registration of {view.name}"):
            paths = self._files.paths(view.name)
            store = open_store(self._config)
            paths += self._files.paths(view.name)
            declared = _entries(_feature_view(view, [*_entities([view]).values()], paths[-1]))
            try:
                registered = _entries(store.get_feature_view(view.name))
            except FeatureViewNotFoundException:
                registered = {}
            if Path(registered.get("files", "")) in paths:
                declared["files"] = registered["files"]
            return [Entry(name, declared.get(name), registered.get(name)) for name in {**declared, **registered}]

    def online(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what Feast's online API serves for each entity, in order, None where there is no row."""
        with _asked_of_feast(f"serve {view.name} online"):
            return read_online(open_store(self._config), view, entities)

    def history(
        self, view: View, entities: Sequence[tuple[Any, ...]], at: datetime, parts: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        """Return what a trainer gets for each entity as of a time, in order; all None where there is no row.

        Feast reads every file of a view's folder. Here it is shown `parts` of the registered folder alone, so what it
        costs does not grow with the history; all else is as it is registered.
        """
        keys = [dict(zip(view.entity_names, entity, strict=True)) for entity in entities]
        asked = pa.Table.from_pylist(keys, pa.schema(view.entity)).to_pandas().assign(**{EVENT_TIME: pd.Timestamp(at)})
        with (
            _asked_of_feast(f"give the history of {view.name}"),
            tempfile.TemporaryDirectory(prefix="freshet-") as folder,
            _duckdb_of_its_own(),
        ):
            store = self._showing(view, parts, Path(folder))
            lines = store.get_historical_features(entity_df=asked, features=_references(view)).to_arrow().to_pylist()
        told = {tuple(line[name] for name in view.entity_names): line for line in lines}  # Feast's order is any order
        names = [feature.name for feature in view.features]
        return [{name: told.get(entity, {}).get(name) for name in names} for entity in entities]

    def _showing(self, view: View, parts: Sequence[str], folder: Path) -> FeatureStore:
        """Open the feature store with a view's files being links to some of its parts."""
        open_store(self._config)  # says what is wrong with a registry
        registry = Registry.FromString(self._registry.read_bytes())
        links = folder / "parts"
        links.mkdir()
        for made in registry.feature_views:
            if made.spec.name == view.name:
                files = made.spec.batch_source.file_options
                for part in parts:
                    places = [Path(files.uri).absolute(), *self._files.paths(view.name)]  # it may just have moved
                    (links / part).symlink_to(
                        next((at / part for at in places if (at / part).exists()), places[0] / part)
                    )
                files.uri = str(links)
        registry.version_id = uuid.uuid4().hex  # Feast knows a registry it has read by this, and its place in memory
        copy = folder / "registry.db"
        copy.write_bytes(registry.SerializeToString())
        return open_store({**self._config, "registry": {**self._config["registry"], "path": str(copy)}})


def _entries(view: FeatureView) -> dict[str, str]:
    """Return what decides how a view is served, spelled."""
    source = view.batch_source
    return {
        "ttl": str(view.ttl or timedelta(0)),
        "files": str(source.path),
        "timestamp field": source.timestamp_field,
        "created timestamp column": source.created_timestamp_column,
        "field mapping": ", ".join(f"{here} → {there}" for here, there in sorted(source.field_mapping.items())),
        **{f"entity {column.name}": str(column.dtype) for column in view.entity_columns},
        **{f"feature {feature.name}": str(feature.dtype) for feature in view.features},
    }


def _impatient(online_store: Mapping[str, Any], patience_s: float) -> dict[str, Any]:
    """Have Feast's Redis client give up: by itself it waits for ever."""
    if online_store["type"] != "redis":
        return dict(online_store)
    own = online_store["connection_string"]
    limits = {"socket_timeout": patience_s, "socket_connect_timeout": patience_s}
    more = (f"{name}={value}" for name, value in limits.items() if f",{name}=" not in own)
    return {**online_store, "connection_string": ",".join([own, *more])}


@contextlib.contextmanager
def _asked_of_feast(what: str) -> Iterator[None]:
    try:
        yield
    except FreshetError:
        raise
    except Exception as error:  # whatever so large a library raises is its failure, not a finding
        raise Unavailable(f"Feast cannot {what}: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _duckdb_of_its_own() -> Iterator[None]:
    """Give Feast's DuckDB store a database that ends here: in the default one each retrieval leaves a view behind."""
    import ibis  # noqa: PLC0415  # what Feast's DuckDB store is made of; slow

    before = ibis.options.default_backend
    ibis.options.default_backend = database = ibis.duckdb.connect()
    try:
        yield
    finally:
        ibis.options.default_backend = before
        database.disconnect()


class FeastOnlineStore:
    """The compatibility path: rows written through Feast's provider to whatever online store it is configured with.

    What a store does with an older row is its own: Feast's Redis drops rows that are not newer, corrections of the same
    instant too; SQLite keeps what was written last, its time in whole seconds. No version is kept.
    """

    def __init__(self, store: FeatureStore, views: Sequence[View]) -> None:
        self._store = store
        self._provider = store._get_provider()  # noqa: SLF001  # pushing drops batches of nulls and rereads the registry
        self._views = {view.name: store.get_feature_view(view.name) for view in views}
        self.writes_count = 0
        """Such a store counts no writes: what it loses is not noticed."""
        self.trouble = ""

    def ping(self) -> None:
        """Ask nothing: Feast has no such question."""

    def expect(self, writes_count: int) -> None:
        """Expect nothing."""

    def catch_up(self, writes_count: int) -> None:
        """Count nothing."""

    def write_progress(self, progress: Mapping[str, Progress]) -> None:
        """Keep nothing: Feast has no place for it, so who serves from such a store cannot tell idle from behind."""

    def read_progress(self) -> dict[str, Progress]:
        """Return nothing."""
        return {}

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Write rows in order; return how many were handed over, as Feast does not say which it kept.

        Whether an older row is overwritten is the store's to say. Raises `Unavailable`.
        """
        del overwrite
        if rows.num_rows == 0:
            return 0
        try:
            self._provider.online_write_batch(self._store.config, self._views[view.name], [*_protos(view, rows)], None)
        except (OSError, sqlite3.OperationalError) as error:
            kind = self._store.config.online_store.type
            raise Unavailable(f"online store {kind} cannot be written: {type(error).__name__}: {error}") from error
        return int(rows.num_rows)

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order, None where the view has no row."""
        return read_online(self._store, view, entities)

    def drop(self, view: View, features: Collection[str] | None) -> int:
        """Delete nothing: Feast can delete whole views only, and does so when the registry loses them."""
        del view, features
        return 0

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int:  # noqa: ARG002  # as Redis has it
        """Refuse: Feast has no way to delete an entity."""
        hint = "delete its rows in the store by its own means, and name none here: `freshet purge` knows Redis alone"
        kind = self._store.config.online_store.type
        raise Refused([Problem("online store", kind, "cannot be asked to delete an entity", hint=hint)])

    def close(self) -> None:
        """Do nothing: Feast keeps its connections."""


def _protos(view: View, rows: pa.Table) -> Iterator[tuple[EntityKey, dict[str, Value], datetime, datetime]]:
    """Make what Feast's online stores take, with the values that the Redis store would hold."""

    def column(name: str) -> list[Value]:
        return [Value.FromString(raw) for raw in feast_bytes.encode(rows[name].combine_chunks())]

    entities = zip(*map(column, view.entity_names), strict=True)
    names = [feature.name for feature in view.features]
    features = zip(*map(column, names), strict=True)
    times = zip(rows[EVENT_TIME].to_pylist(), rows[CREATED].to_pylist(), strict=True)
    for entity, values, (at, created) in zip(entities, features, times, strict=True):
        key = EntityKey(join_keys=view.entity_names, entity_values=entity)
        yield key, dict(zip(names, values, strict=True)), at, created


def _references(view: View) -> list[str]:
    return [f"{view.name}:{feature.name}" for feature in view.features]


def _repo_config(config: Mapping[str, Any], registry: Path) -> RepoConfig:
    return RepoConfig(**{**config, "registry": {**config["registry"], "path": str(registry)}})


def _check_owner(registry: Path) -> None:
    owner = registry.stat().st_uid
    if owner not in (os.geteuid(), 0):
        hint = "it may hold pickled functions: apply again as the user who runs Freshet"
        raise Refused([Problem("Feast registry", str(registry), "belongs to another user", f"uid {owner}", hint)])


def _torn(registry: Path, error: DecodeError) -> Unavailable:
    return Unavailable(
        f"Feast registry {registry} cannot be read: {error}. Hint: move it away and run `freshet apply`; it is derived"
    )


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Give a name to write to; what stands there replaces `path` at the end, or nothing does."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
