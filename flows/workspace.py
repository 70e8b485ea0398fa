"""A project, read and compiled, with the settings of a process: what every command begins with."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from freshet.flows.edges import kafka
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.project import Project, expand
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.edges.standings import Standings
from freshet.flows.edges.store_config import store_config
from freshet.flows.lag import LagExporter, LagReader
from freshet.flows.settings import Settings
from freshet.flows.steps.alerts import consumer_group
from freshet.flows.steps.archived import ArchiveForm
from freshet.flows.steps.monitoring import RUNBOOKS, Deployed
from freshet.flows.steps.sql import compile_views
from freshet.schemas import declaration
from freshet.schemas.applied import DeclarationStatus, Declared, DeclaredView
from freshet.schemas.declaration import Source
from freshet.schemas.errors import Refused
from freshet.schemas.event import Contract, archive_name
from freshet.schemas.plan import Pipeline
from freshet.schemas.progress import Progress
from freshet.schemas.units import instant_at
from freshet.schemas.view import StoredRow, View

_ANSWER_LIMIT_S = 10.0


@dataclass(frozen=True)
class Workspace:
    """A project, read and compiled, with the settings of this process. `declared` is its declaration as it stands."""

    project: Project
    source: Source
    contracts: Mapping[str, Contract]
    pipeline: Pipeline
    settings: Settings
    declared: Declared

    @classmethod
    def open(cls, settings: Settings) -> "Workspace":
        """Read and compile a project as it is written; raises `Refused` with everything that is wrong with it."""
        project = Project(settings.project.absolute())
        return cls._of(project, settings, *project.written())

    @classmethod
    def applied(cls, settings: Settings) -> "Workspace":
        """Read and compile a project as it was applied last; as it is written, if it never was.

        So what is started again in the midst of an edit goes on. Raises `Refused` and `Unavailable`.
        """
        written = cls.open(settings)
        return written.in_force() or written

    def in_force(self) -> "Workspace | None":
        """Return the project as it was applied last; None if it never was. Raises `Refused` and `Unavailable`."""
        declared = self.applied_last()
        return None if declared is None else self.of(declared)

    def applied_last(self) -> Declared | None:
        """Return what was applied last, as noted then; None if nothing was. Raises `Refused` and `Unavailable`."""
        files = AppliedFile(self.offline_root)
        ledger = LedgerFile(self.offline_root).read()
        if ledger is not None and ledger.pending is not None:  # decided, so it is
            return files.declared(ledger.pending.declaration)
        applied = files.read()
        return None if applied is None else applied.declared

    def of(self, declared: Declared) -> "Workspace":
        """Return the project as it was declared at another time, by the contracts of today; raises `Refused`."""
        if declared.text == self.declared.text and self.project.contract_ids(self.contracts) == self.declared.contracts:
            return self
        return self._of(self.project, self.settings, declared.place, declared.text)

    def is_in_force(self) -> bool:
        """Say whether this is in force, by its text, and nobody is changing that; raises `Unavailable`, `Refused`."""
        files = AppliedFile(self.offline_root)
        if files.is_being_changed():
            return False
        applied = files.read()
        return applied is None or applied.declared.text == self.declared.text

    def status(self) -> DeclarationStatus:
        """Say which declaration is in force, and which files were edited since it was applied.

        Raises `Unavailable` and, where what is in force cannot be read, `Refused`.
        """
        applied = AppliedFile(self.offline_root).read()
        declared = self.declared if applied is None else applied.declared
        try:
            place, text = self.project.written()
        except Refused:  # whatever is wrong with it, it is not what was applied
            place, text = declared.place, ""
        edited = [place] if text != declared.text else []
        edited += self.project.edited(declared.contracts)
        since_us = None if applied is None else applied.since_us
        return DeclarationStatus(
            id=declared.id,
            place=place,
            is_applied=applied is not None,
            since=None if since_us is None else instant_at(since_us),
            edited=() if applied is None else tuple(edited),
        )

    @classmethod
    def _of(cls, project: Project, settings: Settings, place: str, text: str) -> "Workspace":
        source = declaration.read(text, place)
        streams = {name for made in source.declaration.featureDefinitions for name in made.streams}
        contracts = project.contracts(streams)
        pipeline = project.with_references(compile_views(source, contracts), source)
        views = {plan.view.name: DeclaredView.of(plan) for plan in pipeline.plans}
        declared = Declared(place=place, text=text, views=views, contracts=project.contract_ids(contracts))
        return cls(project, source, contracts, pipeline, settings, declared)

    @property
    def declared_online_url(self) -> str:
        """The online store's URL as it is written, `${NAME}` and all: what may stand in a file."""
        return self.settings.online_store or self.source.declaration.infrastructure.onlineStore

    @property
    def online_url(self) -> str:
        """The online store's URL, with what the environment fills in."""
        return expand(self.declared_online_url, "onlineStore")

    @property
    def offline_root(self) -> Path:
        """The offline store's folder; a relative one is the project's."""
        declared = self.settings.offline_store or self.source.declaration.infrastructure.offlineStore
        return self.project.root / expand(declared, "offlineStore")

    def offline(self) -> OfflineStore:
        """Open the offline store; archived events are read in their contracts' form, whichever version wrote them."""
        forms = {archive_name(stream): ArchiveForm(contract) for stream, contract in self.contracts.items()}
        return OfflineStore(self.offline_root, forms)

    @property
    def recovery_root(self) -> Path:
        """The recovery folder; a relative one is the project's."""
        return self.project.root / self.settings.recovery

    @property
    def kafka(self) -> kafka.Kafka:
        """How to reach Kafka."""
        return kafka.Kafka(self.settings.brokers, self.settings.kafka, self.settings.patience.total_seconds())

    @property
    def webhook(self) -> str | None:
        """The URL that findings are posted to, with what the environment fills in; None if there is none."""
        return self.settings.webhook and expand(self.settings.webhook, "FRESHET_WEBHOOK")

    @property
    def data_docs_root(self) -> Path:
        """The folder of Data Docs; a relative one is the project's."""
        return self.project.root / self.settings.data_docs

    @property
    def group(self) -> str:
        """The consumer group under which progress is committed."""
        return consumer_group(self.pipeline.project)

    def lag_reader(self, patience_s: float = _ANSWER_LIMIT_S) -> LagReader:
        """Connect to what tells how far the materializer is behind. Raises `Refused` and `Unavailable`."""
        cluster = replace(self.kafka, patience_s=patience_s)
        topics = [contract.stream.topic for contract in self.contracts.values()]
        counts = kafka.PartitionCounts(cluster)
        for topic in topics:
            counts.of(topic)
        target = self.source.declaration.servingRequirements.freshnessTarget
        return LagReader(Standings(cluster, self.group), topics, counts.of, target.bound.total_seconds())

    @property
    def deployed(self) -> Deployed:
        """What is deployed, as settings say."""
        told = self.settings
        return Deployed(
            told.materializer_processes,
            told.server_workers,
            told.has_validator,
            told.runbook_url or RUNBOOKS,
            told.grafana_url or "",
        )

    def lag_exporter(self, process: str) -> LagExporter | None:
        """Return what exports lag, not yet begun, if that is a process's task."""
        return LagExporter(self.group, self.lag_reader) if self.settings.lag_exporter == process else None

    def online(self, patience_s: float = _ANSWER_LIMIT_S) -> "OnlineFilled":
        """Open the online store: our own writer for Redis, Feast's for any other. Raises `Unavailable`.

        An outage is waited out as long as `patience_s` says: a command that somebody waits for has little.
        """
        if self.online_url.startswith("sqlite:"):
            from freshet.flows.edges.feast import FeastOnlineStore, open_store  # noqa: PLC0415  # slow, and only here

            config = store_config(self.pipeline.project, self.online_url, self.project.registry)
            return FeastOnlineStore(open_store(config), self.pipeline.views)
        store = OnlineStore(self.online_url, self.pipeline.project, self.pipeline.views, patience_s)
        store.ping()
        return store


class OnlineFilled(Protocol):
    """An online store that notices what it lost."""

    @property
    def writes_count(self) -> int:
        """How many writes it has counted."""

    @property
    def trouble(self) -> str:
        """What is being waited out."""

    def ping(self) -> None:
        """Make sure that the store answers; raises `Unavailable`."""

    def expect(self, writes_count: int) -> None:
        """Raise `StoreLost` if the store has counted fewer writes."""

    def catch_up(self, writes_count: int) -> None:
        """Have the store count at least so many writes."""

    def write_progress(self, progress: Mapping[str, Progress]) -> None:
        """Keep how far it is, by source partition, for whoever serves from it."""

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        """Write rows; return how many replaced what was there."""

    def read(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        """Return what is stored for each entity, in order."""

    def drop(self, view: View, features: Collection[str] | None) -> int:
        """Delete what is stored of some features of a view; None for whole rows."""

    def delete(self, view: View, entities: Sequence[tuple[Any, ...]]) -> int:
        """Delete the view's rows of some entities; return how many there were."""
