"""Purging an entity: no trace of it is left, others' rows stay, and a purge that dies at any touch is completed by the next.

The disk is a real one; Redis and Kafka are their twins.
"""

import json
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from simulated import GIVEN, START, STREAM, Crash, World, touches
from test_compact import Touched, difference

from freshet.flows.compact import Choice, Compactor
from freshet.flows.compact import Outside as Compacting
from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile, MemoryRecovery
from freshet.flows.edges.served import FOLDER, ServedFiles
from freshet.flows.purge import Outside, Purger, lines_of
from freshet.flows.steps.oracle import compare
from freshet.schemas.errors import Refused
from freshet.schemas.event import archive_name
from freshet.schemas.purge import FILE, Receipt
from freshet.scripts.cli import main

(VIEW,) = GIVEN.pipeline.views
ARCHIVE = archive_name(STREAM)
NOW = datetime(2026, 3, 2, tzinfo=UTC)
ADA = {"user": "a"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


class Impatient(LedgerFile):
    """A ledger whose lock nobody waits for."""

    def lock(self, wait_s: float = 0) -> None:  # noqa: ARG002  # whatever is asked
        super().lock(0)


@dataclass
class DiskWorld(World):
    """A world whose offline store and ledger are on a disk."""

    root: Path = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.offline = OfflineStore(self.root)  # type: ignore[assignment]  # the real part in place of its twin
        self.ledger = Impatient(self.root)  # type: ignore[assignment]  # as above
        self.fates.watch = lambda: None

    def more(self, user: str, count: int) -> None:
        """Have events of a user come after all others."""
        for number in range(count):
            at = START + timedelta(seconds=200 + number)
            event = {"at": at.isoformat(), "user": user, "id": f"{user}{number}", "cost": "7"}
            self.log.append(STREAM, 0, json.dumps(event).encode(), timestamp_ms=self.now_us // 1000)

    def purge(self, key: dict[str, Any], touch: Callable[..., Any] = lambda call: call, **named: Any) -> Receipt:
        store, ledger = CompactionFolder(OfflineStore(self.root)), Impatient(self.root, purges=True)

        def touched(part: Any) -> Any:
            return Touched(part, touch)

        outside = Outside(
            store=touched(store),
            offline=touched(OfflineStore(self.root)),
            ledger=touched(ledger),
            states=touched(self.states),
            online=touched(self.online),
            served=touched(ServedFiles(self.root)),
            log=self.log,
            retention_s=lambda _: 3600.0,
            point=touch(lambda _: set()),
            keep=touch(lambda _: None),
            now=lambda: NOW,
        )
        try:
            return Purger(GIVEN.pipeline, GIVEN.contracts, outside).run(key, **named)
        finally:
            store.unlock()  # as the end of its process does
            ledger.unlock()

    def check_rows(self) -> None:
        """All rows are what DuckDB makes of the archived events, and the newest are online."""
        ledger = self.ledger.read()
        assert ledger is not None
        (clock_us,) = {mark.clock_us for mark in ledger.shards.values()}
        answer = compare(GIVEN.pipeline.plans[0], self.offline.read(ARCHIVE), self.offline.final(VIEW), clock_us)
        assert answer.differing == ()
        newest = self.offline.newest(VIEW).to_pylist()
        for row, stored in zip(newest, self.online.read(VIEW, [(row["user"],) for row in newest]), strict=True):
            assert stored is not None
            assert (row["event_timestamp"], row["_version"]) == (stored.event_timestamp, stored.version)
        marks = ledger.partitions_of(STREAM)
        assert self.offline.read(ARCHIVE).num_rows == sum(mark.accepted_count for mark in marks.values())
        assert self.offline.read(ARCHIVE).num_rows == ledger.rows_counts[ARCHIVE]
        dropped_count = self.offline.generation(VIEW.name).dropped_count
        assert self.offline.read(VIEW.name).num_rows == ledger.rows_counts[VIEW.name] - dropped_count

    def check_gone(self, ids: set[str]) -> None:
        """No trace of a is anywhere; all that was so named are ids of its events."""
        assert self.online.read(VIEW, [("a",)]) == [None]
        for path in self.root.rglob("*.parquet"):
            assert "a" not in pq.read_table(path)["user"].to_pylist(), path
        for text in self.states._states.values():  # noqa: SLF001  # what is kept
            state = pickle.loads(text)
            if isinstance(state, tuple):
                assert ids.isdisjoint(state[0])
            else:
                assert ("a",) not in state["shard"]["keys"]
        assert not (self.root / FILE).exists()


def filled(root: Path, seed: int = 1, **more: Any) -> DiskWorld:
    world = DiskWorld(seed, **{"events_count": 80, "is_live": False, "root": root, **more})
    world.epoch *= 0
    world.run()
    served = OfflineStore(root / FOLDER)
    served.prepare(VIEW.name, VIEW.row_schema)
    served.append(VIEW.name, world.offline.newest(VIEW))
    return world


def of_others(table: pa.Table) -> pa.Table:
    return table.filter(pc.not_equal(table["user"], "a"))


def ids_of_a(world: DiskWorld) -> set[str]:
    events = world.offline.read(ARCHIVE)
    return {*events.filter(pc.equal(events["user"], "a"))["id"].to_pylist()}


@pytest.mark.parametrize("seed", range(4))
def test_no_trace_is_left_others_rows_stay_and_the_flow_goes_on_as_if_the_entity_had_never_been(
    tmp_path: Path, seed: int
) -> None:
    world = filled(tmp_path, seed)
    rows, events, ids = (
        of_others(world.offline.read(VIEW.name)),
        of_others(world.offline.read(ARCHIVE)),
        ids_of_a(world),
    )
    online = world.online.read(VIEW, [("b",), ("c",)])

    receipt = world.purge(ADA)

    assert receipt.removed.events == {STREAM: len(ids)}
    assert receipt.removed.online_rows == {VIEW.name: 1} == receipt.removed.served_rows
    assert receipt.removed.rows[VIEW.name] > len(ids)
    world.check_gone(ids)
    assert difference(rows, world.offline.read(VIEW.name)) == 0
    assert difference(events, world.offline.read(ARCHIVE)) == 0
    assert online == world.online.read(VIEW, [("b",), ("c",)])
    world.check_rows()
    world.more("b", 3)
    world.more("a", 2)
    world.run()
    world.check_rows()
    assert world.offline.newest(VIEW)["user"].to_pylist() == ["a", "b", "c"]
    world.states = MemoryRecovery()
    world.run(rebuild=True)
    world.more("c", 2)
    world.run()
    world.check_rows()


@pytest.mark.parametrize("fate", ["dies before", "dies after"])
def test_a_purge_that_dies_at_any_touch_is_completed_by_the_next(tmp_path: Path, fate: str) -> None:
    numbers, reached = touches(fate), True
    while reached:
        number, reached = next(numbers), False
        world = filled(tmp_path / str(number), 1 + number // 2 % 2, events_count=20)
        ids, others = ids_of_a(world), of_others(world.offline.read(VIEW.name))
        count = [0]

        def touch(call: Callable[..., Any], count: list[int] = count, wanted: int = number) -> Callable[..., Any]:
            def touched(*words: Any, **named: Any) -> Any:
                count[0] += 1
                if count[0] == wanted and fate == "dies before":
                    raise Crash
                answer = call(*words, **named)
                if count[0] == wanted:
                    raise Crash
                return answer

            return touched

        try:
            world.purge(ADA, touch)
        except Crash:
            reached = True
        if (tmp_path / str(number) / FILE).exists():
            with pytest.raises(Refused, match="has a purge that was begun and is not done"):
                world.run()
        elif number % 3 == 0:  # a flow may go on between
            world.more("b", 1)
            world.run()
            others = of_others(world.offline.read(VIEW.name))
        if reached and not done(world, ids):
            world.purge(ADA)
        world.check_gone(ids)
        assert difference(others, world.offline.read(VIEW.name)) == 0
        world.check_rows()

    assert number > 20


def done(world: DiskWorld, ids: set[str]) -> bool:
    """Say whether a purge died when all of it was done."""
    try:
        world.check_gone(ids)
    except AssertionError:
        return False
    return True


def test_former_generations_go_at_once(tmp_path: Path) -> None:
    world = filled(tmp_path)
    compacting = Compacting(
        store=CompactionFolder(world.offline),  # type: ignore[arg-type]  # on the disk
        parts=world.offline,
        ledger=Impatient(tmp_path),
        point=lambda _: set(),
        now_us=lambda: 0,
        sleep=lambda _: None,
    )
    Compactor(compacting, Choice(5_000)).run([VIEW])
    assert (tmp_path / VIEW.name).is_dir()

    world.purge(ADA)

    assert {path.name for path in tmp_path.glob(f"{VIEW.name}*")} == {f"{VIEW.name}-2"}
    world.more("b", 3)
    world.run()
    world.check_rows()


def test_an_entity_that_is_not_known_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    world = filled(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}

    with pytest.raises(Refused, match='entity "user=nobody" is not known. Hint: check how it is spelled'):
        world.purge({"user": "nobody"})

    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    world.more("b", 3)
    world.run()
    world.check_rows()


def test_what_is_no_join_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="names no join key of a feature view; got page. Hint: write NAME=VALUE, of user"):
        filled(tmp_path).purge({"page": "a"})


def test_a_purge_beside_a_running_flow_is_refused(tmp_path: Path) -> None:
    world = filled(tmp_path)
    held = LedgerFile(tmp_path)
    held.lock()

    with pytest.raises(Refused, match="is being written by a materializer. Hint: stop it, and start it again"):
        world.purge(ADA)
    held.unlock()
    assert world.online.read(VIEW, [("a",)]) != [None]


def test_another_entity_has_to_wait_until_a_purge_is_done_and_compaction_too(tmp_path: Path) -> None:
    world = filled(tmp_path)

    def touch(call: Callable[..., Any]) -> Callable[..., Any]:
        def touched(*words: Any, **named: Any) -> Any:
            if (tmp_path / FILE).exists():
                raise Crash
            return call(*words, **named)

        return touched

    with pytest.raises(Crash):
        world.purge(ADA, touch)

    assert b'"a"' not in (tmp_path / FILE).read_bytes()
    with pytest.raises(Refused, match="of another entity is not done"):
        world.purge({"user": "b"})
    with pytest.raises(Refused, match="has a purge that was begun and is not done"):
        CompactionFolder(OfflineStore(tmp_path)).lock()
    ids = ids_of_a(world)
    world.purge(ADA)
    world.check_gone(ids)


def test_the_receipt_says_what_remains_and_names_the_key_only_if_it_may(tmp_path: Path) -> None:
    world = filled(tmp_path)

    receipt = world.purge(ADA, hashed=True)

    text = "\n".join(lines_of(receipt))
    assert len(receipt.key) == 64
    assert f"topic {STREAM}: its messages of before now, until 2026-03-02T01:00:00+00:00" in text
    assert f"topic {STREAM}.dlq" in text
    assert "user=a" not in text + receipt.model_dump_json()


def test_a_key_that_names_nothing_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.disable(logging.NOTSET)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "shop"]) == 0

    assert main(["-C", "shop", "purge", "ada"]) == 2
    assert 'argument "KEY" is ada. Hint: write NAME=VALUE' in capsys.readouterr().err
    assert main(["-C", "shop", "compact", "nothing"]) == 2
    assert 'argument "nothing" is no feature view. Hint: there is ' in capsys.readouterr().err
