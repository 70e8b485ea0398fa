"""Reading a live partition: what came, and that time passes where nothing comes."""

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.recovery import MemoryLedger, MemoryRecovery
from freshet.flows.journal import Journal, Places
from freshet.flows.live import Alignment, LiveReader
from freshet.schemas.plan import Pipeline
from freshet.schemas.poll import Poll


class World:
    """A partition in memory, its reader, and a clock."""

    def __init__(self, *, until: int | None = None) -> None:
        self.log, self.now_us = MemoryLog(), 1_000_000
        self.log.create_topics({"clicks": 1})
        places = Places(MemoryLedger(), MemoryRecovery(), MemoryOfflineStore())
        journal = Journal(places, Pipeline("test", ()), {}, 1)
        partition = self.log.reader("clicks", 0)
        self.reader = LiveReader("clicks/0", partition, journal, Alignment(), lambda: None, until, lambda: self.now_us)

    def polled(self, *, after_us: int = 0) -> Poll | None:
        self.now_us += after_us
        return self.reader.poll()


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


def test_a_run_that_ends_at_what_is_there_lets_no_time_pass() -> None:
    world = World(until=1)
    world.log.append("clicks", 0, b"a")

    polled = world.polled()

    assert polled is not None
    assert polled.caught_up_us is None
    assert world.polled(after_us=10**7) is None
    assert world.reader.finished()
