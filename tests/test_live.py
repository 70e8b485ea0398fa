"""Reading a live partition: what came, and that time passes where nothing comes; filling an online store again."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.recovery import MemoryLedger, MemoryRecovery
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.journal import Journal, Places
from freshet.flows.live import refill
from freshet.flows.live_reader import Alignment, LiveReader
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.ledger import Ledger, ShardMark
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.units import instant_us
from freshet.schemas.view import Feature, View


class World:
    """A partition in memory, its reader, and a clock."""

    def __init__(self, *, until: int | None = None) -> None:
        self.log, self.now_us = MemoryLog(), 1_000_000
        self.log.create_topics({"clicks": 1})
        places = Places(MemoryLedger(), MemoryRecovery(), MemoryOfflineStore())
        journal = Journal(places, Pipeline("test", ()), {}, 1)
        partition = self.log.reader("clicks", 0)
        now_us, limit = (lambda: self.now_us), timedelta(seconds=2)
        self.reader = LiveReader("clicks/0", partition, journal, Alignment(), lambda: None, until, now_us, limit)

    def polled(self, *, after_us: int = 0) -> Poll | None:
        self.now_us += after_us
        return self.reader.poll()

    def epoch(self, *, lasts_us: int) -> bool:
        """Pass an epoch; say whether the reader has caught up."""
        self.reader.poll()
        self.reader.close_epoch()
        self.now_us += lasts_us
        self.reader.epoch_durable()
        return self.reader.caught_up


def test_what_was_read_up_to_the_end_says_when() -> None:
    world = World()
    world.log.append("clicks", 0, b"a")

    polled = world.polled()

    assert polled is not None
    assert (polled.values, polled.caught_up_us) == ([b"a"], 1_000_000)


def test_at_the_end_time_is_told_twice_a_second() -> None:
    world = World()

    told = [world.polled(after_us=100_000) for _ in range(20)]

    times = [poll.caught_up_us for poll in told if poll is not None]
    assert times == [1_100_000, 1_600_000, 2_100_000, 2_600_000]
    assert all(poll is None or poll.values == [] for poll in told)


def test_in_an_outage_time_stands_still() -> None:
    world = World()
    world.log.well = False

    assert [world.polled(after_us=600_000) for _ in range(5)] == [None] * 5

    world.log.well = True
    polled = world.polled(after_us=600_000)
    assert polled is not None
    assert polled.caught_up_us == 1_000_000 + 6 * 600_000


def test_a_partition_is_caught_up_once_all_it_had_at_a_moment_was_durable_in_time() -> None:
    world = World()
    world.log.append("clicks", 0, b"a")

    assert not world.epoch(lasts_us=2_000_001)
    world.log.append("clicks", 0, b"b")
    assert world.epoch(lasts_us=2_000_000)
    world.log.append("clicks", 0, b"c")
    assert world.epoch(lasts_us=9_000_000)  # ready is what it was once; how late it is, metrics say


def test_a_partition_of_which_something_waits_for_too_long_is_not_caught_up() -> None:
    world = World()
    world.log.append("clicks", 0, b"a")
    world.reader.partition = world.log.reader("clicks", 0)
    world.reader.__post_init__()  # it begins where one message waits

    world.reader.close_epoch()  # of which nothing was read
    world.reader.epoch_durable()

    assert not world.reader.caught_up
    assert not world.epoch(lasts_us=2_000_001)
    assert world.epoch(lasts_us=1)


def test_a_run_that_ends_at_what_is_there_lets_no_time_pass() -> None:
    world = World(until=1)
    world.log.append("clicks", 0, b"a")

    polled = world.polled()

    assert polled is not None
    assert polled.caught_up_us is None
    assert world.polled(after_us=10**7) is None
    assert world.reader.finished()


NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = View("v", ("clicks",), (pa.field("user", pa.string()),), (Feature("n", DTYPES["int64"], ""),), timedelta(days=1))


def clicks(*ages_h: float) -> pa.Table:
    """Return rows of users that are named by their age at noon, in hours."""
    more = {"n": 1, "created": NOON, "_version": 1, "_partition": 0, "_offset": 0}
    rows = [{"user": str(age), "event_timestamp": NOON - timedelta(hours=age), **more} for age in ages_h]
    return pa.Table.from_pylist(rows, VIEW.row_schema)


@pytest.mark.parametrize(
    ("clock_h", "kept"),
    [
        (0, ["1", "23"]),
        (-999, ["1", "23"]),  # an event of the future moved it
        (24 * 30, ["1", "23", "25", "740"]),  # events of long ago were replayed
        (None, ["1", "23", "25", "740"]),
    ],
)
def test_what_has_outlived_its_ttl_by_the_stream_s_clock_is_not_brought_back(
    clock_h: float | None, kept: list[str]
) -> None:
    online, offline = MemoryOnlineStore("p", [VIEW], lambda: NOON), MemoryOfflineStore()
    offline.prepare(VIEW.name, VIEW.row_schema)
    offline.append(VIEW.name, clicks(1, 23, 25, 740))
    now_us, clock = instant_us(NOON), timedelta(hours=clock_h or 0)
    marks = [ShardMark(clock_us=now_us), ShardMark(clock_us=instant_us(NOON - clock))]
    ledger = Ledger(id="", shards_count=2, shards={f"v/{shard}": mark for shard, mark in enumerate(marks)})

    counts = refill(online, offline, [VIEW], None if clock_h is None else ledger, now_us)

    assert counts == {"v": len(kept)}
    assert [(user,) for user in kept] == sorted(online.sample(VIEW, 9, seed=1))


def test_a_row_that_is_still_there_is_written_again_and_expires() -> None:
    now = [NOON - timedelta(hours=25)]
    online, offline = MemoryOnlineStore("p", [VIEW], lambda: now[0]), MemoryOfflineStore()
    offline.prepare(VIEW.name, VIEW.row_schema)
    offline.append(VIEW.name, clicks(25, 26))
    online.write(VIEW, clicks(25, 26))
    online._expiries_ms.clear()  # noqa: SLF001  # as when the view had no ttl
    now[0] = NOON
    ledger = Ledger(id="", shards_count=1, shards={"v/0": ShardMark(clock_us=instant_us(NOON))})

    assert {"v": 2} == refill(online, offline, [VIEW], ledger, instant_us(NOON))

    assert [NOON + VIEW.ttl] * 2 == [row and row.expires_at for row in online.read(VIEW, [("25",), ("26",)])]
