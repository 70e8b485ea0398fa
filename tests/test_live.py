"""Reading a live partition: what came, and that time passes where nothing comes; filling an online store again."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.recovery import MemoryLedger, MemoryRecovery, RecoveryFolder
from freshet.flows.edges.redis import MemoryOnlineStore
from freshet.flows.journal import Journal, Places
from freshet.flows.live_reader import Alignment, LiveReader
from freshet.flows.refill import refill
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.ledger import Ledger, ShardMark, Update
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll
from freshet.schemas.units import instant_us
from freshet.schemas.view import Feature, View


class World:
    """A partition in memory, its reader, and a clock."""

    def __init__(self, *, until: int | None = None, tick_every_us: int = 10**12) -> None:
        self.log, self.now_us = MemoryLog(), 1_000_000
        self.log.create_topics({"clicks": 1})
        places = Places(MemoryLedger(), MemoryRecovery(), MemoryOfflineStore())
        journal = Journal(places, Pipeline("test", ()), {}, 1)
        self.through_us: list[int] = []
        journal.on_through = lambda through: self.through_us.append(through["clicks/0"])
        partition = self.log.reader("clicks", 0)
        now_us, limit = (lambda: self.now_us), timedelta(seconds=2)
        self.reader = LiveReader(
            "clicks/0", partition, journal, Alignment(), lambda: None, until, now_us, limit,
            lambda after_us: (after_us // tick_every_us + 1) * tick_every_us,
        )  # fmt: skip

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

    def through(self) -> int | None:
        """Close an epoch, have it durable, and return what was told of it: None if nothing was."""
        told_count = len(self.through_us)
        self.reader.close_epoch()
        for _ in range(3):  # every partition of a process has its epoch committed
            self.reader.epoch_durable()
        told = self.through_us[told_count:]
        assert len(told) <= 1
        return told[0] if told else None


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


def test_at_the_end_time_is_told_as_soon_as_it_may_make_a_row() -> None:
    world = World(tick_every_us=300_000)

    told = [world.polled(after_us=10_000) for _ in range(100)]

    times = [poll.caught_up_us for poll in told if poll is not None]
    assert times == [1_010_000, 1_200_000, 1_500_000, 1_800_000]


def test_at_the_end_time_is_told_ten_times_a_second_at_most() -> None:
    world = World(tick_every_us=1)

    told = [world.polled(after_us=30_000) for _ in range(20)]

    times = [poll.caught_up_us for poll in told if poll is not None]
    assert times == [1_030_000, 1_150_000, 1_270_000, 1_390_000, 1_510_000]


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


def test_of_a_partition_that_is_idle_all_is_known_up_to_the_begin_of_the_look_before_the_last() -> None:
    """The first is looked back from to when it was opened."""
    world = World()

    told = []
    for _ in range(4):
        world.polled(after_us=100_000)
        world.now_us += 7  # while nobody looks
        told.append(world.through())
    world.polled(after_us=2_000)
    told.append(world.through())

    assert told == [1_000_000, 1_100_000, 1_200_007, 1_300_014, 1_352_028]
    assert told[-1] == world.now_us - 50_000, "what came since may be on its way"


def test_of_a_partition_that_is_behind_all_is_known_that_came_before_what_was_read() -> None:
    world = World()
    for time_ms in range(500, 500 + 2001):  # one more than a look takes
        world.log.append("clicks", 0, b"a", timestamp_ms=time_ms)
    world.now_us = 9_000_000

    world.polled()
    assert world.through() == 2_499_000 - 1
    assert world.through() == 2_499_000 - 1  # no look, nothing new
    world.polled(after_us=100_000)
    assert world.through() == 9_000_000


def test_a_partition_that_is_behind_holds_those_ahead_also_while_nothing_of_it_is_here() -> None:
    world, alignment = World(), Alignment()
    world.reader.alignment = alignment
    for time_ms in range(2001):  # one more than a look takes
        world.log.append("clicks", 0, b"a", timestamp_ms=time_ms)
    world.polled()
    alignment.read("clicks/1", 10**6)
    assert alignment.must_wait("clicks/1")

    world.log.delivers = False
    assert world.polled() is None
    assert alignment.must_wait("clicks/1")

    world.log.delivers = True
    assert world.polled() is not None
    assert not alignment.must_wait("clicks/1"), "it is at its end"


def test_a_partition_in_an_outage_holds_nobody() -> None:
    world, alignment = World(), Alignment()
    world.reader.alignment = alignment
    for time_ms in range(2001):
        world.log.append("clicks", 0, b"a", timestamp_ms=time_ms)
    world.polled()
    alignment.read("clicks/1", 10**6)
    world.log.well = False

    assert world.polled() is None

    assert not alignment.must_wait("clicks/1")


def test_an_epoch_tells_nothing_of_what_is_read_after_it() -> None:
    world = World()
    world.polled(after_us=100_000)
    world.reader.close_epoch()
    world.polled(after_us=100_000)

    world.reader.epoch_durable()

    assert world.through_us == [1_000_000]
    assert world.through() == 1_100_000


def test_what_another_process_tells_of_a_later_epoch_waits_for_it(tmp_path: Path) -> None:
    folder, told = RecoveryFolder(tmp_path), list[dict[str, int]]()
    folder.begin()
    places = Places(MemoryLedger(), folder, MemoryOfflineStore())
    leader = Journal(places, Pipeline("test", ()), {}, 1, others=[folder.told(1)])
    leader.on_through = lambda through: told.append(dict(through))
    other = Journal(places, Pipeline("test", ()), {}, 1, leader=folder.told(1))
    leader.tell(Update(offsets={1: {"clicks/0": 1}}, through={1: {"clicks/0": 10}}))
    other.tell(Update(offsets={1: {"clicks/1": 2}}, through={1: {"clicks/1": 20}}))
    other.tell(Update(offsets={2: {"clicks/1": 3}}, through={2: {"clicks/1": 30}}))

    leader.commit(1)
    leader.commit(2)
    leader.commit(2)

    assert told == [{"clicks/0": 10, "clicks/1": 20}, {"clicks/1": 30}]


def test_of_a_partition_of_which_nothing_is_read_or_no_message_has_a_time_nothing_is_told() -> None:
    world = World()
    for _ in range(2001):
        world.log.append("clicks", 0, b"a", timestamp_ms=-1)
    assert world.through() is None

    world.polled()

    assert world.through() is None


@pytest.mark.parametrize("time_ms", [100, 10**9])
def test_times_that_producers_made_up_take_nothing_back_and_tell_of_no_future(time_ms: int) -> None:
    world = World()
    world.polled(after_us=50_000)
    assert world.through() == 1_000_000
    for _ in range(2001):
        world.log.append("clicks", 0, b"a", timestamp_ms=time_ms)

    world.polled(after_us=50)

    assert world.through() == (1_000_000 if time_ms == 100 else 1_050_050)


def test_in_an_outage_nothing_more_is_known() -> None:
    world = World()
    world.polled(after_us=50_000)
    world.log.well = False

    world.polled(after_us=10**6)

    assert world.through() == 1_000_000


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
