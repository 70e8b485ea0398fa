"""The whole dataflow on in-memory twins, however its topic is cut, spread over partitions and shards."""

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event, get_ident
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freshet.flows import settings as settings_
from freshet.flows.edges import bytewax
from freshet.flows.edges.metrics import Metrics
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.materializer import Edges, Journal, build
from freshet.flows.replay import Afresh
from freshet.flows.steps.accept import PartitionJudge
from freshet.flows.steps.fold import ShardFold
from freshet.flows.steps.oracle import compare
from freshet.flows.steps.shards import hashes
from freshet.flows.workspace import Workspace
from freshet.flows.write_behind import Submit, at_once
from freshet.schemas.errors import RejectLimit, Unavailable
from freshet.schemas.event import archive_name
from freshet.schemas.ledger import source_key
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reject
from freshet.schemas.view import View

START = datetime(2026, 3, 1, tzinfo=UTC)
SOURCE = json.loads((Path(__file__).parent.parent / "schemas/samples/wiki_edits/good-edit.json").read_text())


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    return Workspace.open(settings_.Settings(project=Path(__file__).parent.parent))


@dataclass
class Script:
    """Gives the polls it was made of, then ends."""

    polls: list[Poll]
    at: int = 0
    polled_again: Event = field(default_factory=Event)

    def poll(self) -> Poll | None:
        self.at += 1
        if self.at > 1:
            self.polled_again.set()
        return self.polls[self.at - 1] if self.at <= len(self.polls) else None

    def finished(self) -> bool:
        return self.at >= len(self.polls)

    def close_epoch(self) -> None:
        pass

    def epoch_durable(self) -> None:
        pass

    def close(self) -> None:
        pass


@dataclass
class World:
    """What the dataflow left behind."""

    online: MemoryOnlineStore
    offline: MemoryOfflineStore
    metrics: Metrics
    rejects: list[Reject] = field(default_factory=list)
    staged_by: dict[str, set[int]] = field(default_factory=dict)
    """Which threads wrote to each folder."""

    def put(self, rejects: Sequence[Reject]) -> None:
        self.rejects.extend(rejects)

    def flush(self) -> None:
        pass

    def stage(self, name: str, table: pa.Table, epoch: int = 0) -> str | None:
        del epoch
        self.staged_by.setdefault(name, set()).add(get_ident())
        self.offline.append(name, table)
        return None


def edit(seconds: float, user: str = "ada", page: str = "Freshet", added: int = 1) -> bytes:
    time = (START + timedelta(seconds=seconds)).isoformat()
    return json.dumps({**SOURCE, "time": time, "user": user, "page": page, "added": added, "delta": added}).encode()


def polls(topic: str, partition: int, count: int, values: Sequence[bytes], cut: int) -> list[Poll]:
    made, kafka_ms = [], int((START + timedelta(days=1)).timestamp() * 1000)
    for start in range(0, len(values), cut):
        part: list[Any] = list(values[start : start + cut])
        nothing: list[bytes | None] = [None] * len(part)
        offsets = np.arange(start, start + len(part))
        times = np.full(len(part), kafka_ms)
        made.append(Poll(topic, partition, count, part, nothing, nothing, times, offsets, len(values), at_end=False))
    return made


class WaitingStore(MemoryOnlineStore):
    """Writes nothing before the second poll."""

    polled: Event
    waits_s = 60.0

    def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
        if not self.polled.wait(self.waits_s):
            raise Unavailable("nothing was polled meanwhile")
        return super().write(view, rows, overwrite=overwrite)


def run(
    workspace: Workspace,
    partitions: Sequence[Sequence[bytes]],
    *,
    cut: int,
    shards: int,
    idle_us: int | None = None,
    online: type[MemoryOnlineStore] = MemoryOnlineStore,
    submit: Submit = at_once,
    epoch: timedelta = timedelta(0),
    workers: int = 1,
    journal: Journal | None = None,
) -> World:
    """Run the flow over some partitions; then, with `idle_us`, let it be idle until that time."""
    pipeline, contracts = workspace.pipeline, workspace.contracts
    offline, made = MemoryOfflineStore(), Metrics(list(contracts), [view.name for view in pipeline.views])
    for view in pipeline.views:
        offline.prepare(view.name, view.row_schema)
    offline.prepare(archive_name("wiki_edits"), contracts["wiki_edits"].schema)
    world = World(online(pipeline.project, pipeline.views), offline, made)
    readers = {
        source_key("wiki_edits", number): Script(
            [
                *polls("wiki_edits", number, len(partitions), values, cut),
                *([] if idle_us is None else [Poll.of_nothing("wiki_edits", number, len(partitions), 0, idle_us)]),
            ]
        )
        for number, values in enumerate(partitions)
    }
    edges = Edges(
        keys=list(readers),
        open_reader=lambda key: readers[key],
        online=world.online,
        offline=world,
        dead_letters=world,
        journal=journal or Afresh(pipeline, contracts),
        now_us=lambda: int(START.timestamp() * 10**6) + 2 * 86400 * 10**6,
        metrics=made,
        reject_limit=50,
        submit=submit,
        place=bytewax.Place(workers_count=workers),
    )
    if isinstance(world.online, WaitingStore):
        world.online.polled = next(iter(readers.values())).polled_again
    bytewax.run(build(pipeline, contracts, edges, shards), edges.failure, epoch=epoch, place=edges.place)
    return world


def agrees(workspace: Workspace, world: World, idle_us: int = 0) -> None:
    """Both stores hold what DuckDB says of the accepted events, ticks until then."""
    events = world.offline.read(archive_name("wiki_edits"))
    times = events.column("event_timestamp").cast(pa.int64()).to_pylist()
    for plan in workspace.pipeline.plans:
        answer = compare(plan, events, world.offline.final(plan.view), max([*times, idle_us]))
        assert answer.differing == ()
        newest = world.offline.newest(plan.view).to_pylist()
        served = world.online.read(plan.view, [tuple(row[name] for name in plan.view.entity_names) for row in newest])
        for row, stored in zip(newest, served, strict=True):
            assert stored is not None
            assert row["event_timestamp"] == stored.event_timestamp
            assert row["_version"] == stored.version
            assert {feature.name: row[feature.name] for feature in plan.view.features} == dict(stored.features)


EDITS = st.builds(
    edit,
    st.integers(0, 4000) | st.sampled_from([0, 600, 3600, 60]),
    st.sampled_from(["ada", "bob", "кот"]),
    st.sampled_from(["Freshet", "Flood"]),
    st.integers(-5, 5),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    partitions=st.lists(st.lists(EDITS | st.binary(max_size=9), max_size=25), min_size=1, max_size=3),
    cut=st.integers(1, 30),
    shards=st.integers(1, 4),
    idle_s=st.none() | st.sampled_from([1, 700, 4000, 9000]),
)
def test_both_stores_hold_what_the_declared_sql_says(
    workspace: Workspace, partitions: list[list[bytes]], cut: int, shards: int, idle_s: int | None
) -> None:
    idle_us = None if idle_s is None else int((START + timedelta(seconds=idle_s)).timestamp()) * 10**6
    world = run(workspace, partitions, cut=cut, shards=shards, idle_us=idle_us)

    agrees(workspace, world, idle_us or 0)
    accepted = world.offline.read(archive_name("wiki_edits")).num_rows
    assert sum(map(len, partitions)) == accepted + len(world.rejects)


@pytest.mark.parametrize("shards", [1, 4, 16])
def test_any_number_of_shards_gives_the_same_rows(workspace: Workspace, shards: int) -> None:
    partitions = [
        [edit(number * 7 + part, f"user {number % 5}", f"page {number % 3}", number) for number in range(200)]
        for part in range(3)
    ]

    world = run(workspace, partitions, cut=20, shards=shards)

    agrees(workspace, world)
    final = world.offline.final(workspace.pipeline.views[0])
    assert final.filter(pa.compute.greater(final["_version"], 0)).num_rows >= 600
    assert world.metrics.value("freshet_events_total", stream="wiki_edits", outcome="accepted") == 600


@dataclass(frozen=True)
class Watched(Afresh):
    """Notes which thread took up what."""

    judged_by: dict[int, int] = field(default_factory=dict)
    folded_by: dict[tuple[str, int], int] = field(default_factory=dict)

    def judge(self, stream: str, partition: int) -> PartitionJudge:
        self.judged_by[partition] = get_ident()
        return super().judge(stream, partition)

    def fold(self, view: str, shard: int) -> ShardFold:
        self.folded_by[view, shard] = get_ident()
        return super().fold(view, shard)


@pytest.mark.parametrize("shards", [1, 3, 6])
def test_shards_are_dealt_out_to_all_workers_and_each_writes_and_archives_what_it_has(
    workspace: Workspace, shards: int
) -> None:
    edits = [
        [edit(number * 7 + part, f"user {number % 40}", f"page {number % 30}") for number in range(60)]
        for part in range(6)
    ]
    journal = Watched(workspace.pipeline, workspace.contracts)

    world = run(workspace, edits, cut=20, shards=shards, workers=3, journal=journal)

    agrees(workspace, world)
    polling = Counter(journal.judged_by.values())
    assert [*polling.values()] == [2, 2, 2]
    assert world.staged_by[archive_name("wiki_edits")] == polling.keys()
    for view in workspace.pipeline.views:
        folding = Counter(journal.folded_by[view.name, shard] for shard in range(shards))
        assert set(folding.values()) == {max(1, shards // 3)}
        entities = world.offline.final(view).select(view.entity_names).group_by(view.entity_names).aggregate([])
        owners = {journal.folded_by[view.name, int(shard)] for shard in hashes(entities, view) % shards}
        assert world.staged_by[view.name] == owners
    if shards == 1:
        assert len(set(journal.folded_by.values())) == min(3, len(workspace.pipeline.views)), "views are dealt out, too"


def test_the_next_poll_is_taken_while_rows_are_written_online(workspace: Workspace) -> None:
    edits = [edit(second, user) for second in range(40) for user in ("ada", "bob")]
    with ThreadPoolExecutor() as threads:
        world = run(
            workspace, [edits], cut=20, shards=2, online=WaitingStore, submit=threads.submit, epoch=timedelta(days=1)
        )

    agrees(workspace, world)


def test_rows_that_cannot_be_written_beside_the_flow_end_it(workspace: Workspace) -> None:
    class AbsentStore(MemoryOnlineStore):
        def write(self, view: View, rows: pa.Table, *, overwrite: bool = False) -> int:
            del view, rows, overwrite
            raise Unavailable("the store is away")

    with ThreadPoolExecutor() as threads, pytest.raises(Unavailable, match="the store is away"):
        run(workspace, [[edit(0)]], cut=1, shards=1, online=AbsentStore, submit=threads.submit)


def test_garbage_among_events_harms_nothing_and_garbage_alone_stops_the_flow(workspace: Workspace) -> None:
    mixed = [edit(number) if number % 3 == 0 else b"\x00garbage" for number in range(300)]
    world = run(workspace, [mixed], cut=10, shards=2)
    agrees(workspace, world)
    assert len(world.rejects) == 200
    assert 0 < world.metrics.value("freshet_rejects_in_a_row", stream="wiki_edits") < 10, "as many as the last poll had"

    with pytest.raises(RejectLimit, match='stream "wiki_edits" gave 60 events in a row that cannot be used'):
        run(workspace, [[b"garbage"] * 300], cut=20, shards=2)


def test_a_value_falls_in_both_stores_though_no_event_comes(workspace: Workspace) -> None:
    later_us = int((START + timedelta(hours=2)).timestamp()) * 10**6
    world = run(workspace, [[edit(0), edit(1)], [edit(2, user="bob")]], cut=10, shards=2, idle_us=later_us)

    agrees(workspace, world, later_us)
    [stored] = world.online.read(workspace.pipeline.views[0], [("ada",)])
    assert stored is not None
    assert (stored.features["user_edits_10m"], stored.features["user_edits_1h"]) == (0, 0)
    assert stored.event_timestamp == START + timedelta(hours=1, seconds=36)
    assert stored.features["user_is_anonymous"] == SOURCE["isAnonymous"]
    kinds = {kind: world.metrics.freshness.quantile(0.5, "wiki_edits_by_user", kind) for kind in ("event", "decay")}
    assert None not in kinds.values()


def test_a_partition_that_is_not_at_its_end_holds_the_clock(workspace: Workspace) -> None:
    view, later = workspace.pipeline.views[0].name, START + timedelta(hours=2)
    world = run(workspace, [[edit(0)], [edit(1)]], cut=10, shards=1)
    idle = run(workspace, [[edit(0)], [edit(1)]], cut=10, shards=1, idle_us=int(later.timestamp()) * 10**6)

    assert world.metrics.value("freshet_clock_timestamp_seconds", feature_view=view) == START.timestamp() + 1
    assert idle.metrics.value("freshet_clock_timestamp_seconds", feature_view=view) == later.timestamp()


def test_a_clock_that_jumps_a_year_loses_what_the_rules_name_and_the_metrics_say_so(workspace: Workspace) -> None:
    year_s = 365 * 86_400
    jumping = [edit(0), edit(1), edit(year_s), edit(2), edit(-year_s), edit(3)]

    world = run(workspace, [jumping, [edit(4)]], cut=2, shards=2)

    agrees(workspace, world)
    assert world.offline.read(archive_name("wiki_edits")).num_rows == 5
    rejected = {
        reason: world.metrics.value("freshet_rejects_total", stream="wiki_edits", reason=reason)
        for reason in ("future", "late")
    }
    assert rejected == {"future": 1, "late": 1}
