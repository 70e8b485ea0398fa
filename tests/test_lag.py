"""How far a group is behind, as Prometheus is told: on the twin of Kafka, with a clock of our own."""

import itertools
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry
from stack import until

from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.lag import LagExporter, LagReader
from freshet.flows.steps.burrow import Status
from freshet.schemas.errors import FreshetError, Problem, Refused, Unavailable

GROUP, TOPIC = "freshet-shop-materializer", "edits"


@dataclass
class Shop:
    """A topic of two partitions, its group, and what exports its lag."""

    now_s: float = 1_700_000_000.0
    log: MemoryLog = field(init=False)

    def __post_init__(self) -> None:
        self.log = MemoryLog(lambda: int(self.now_s * 1000))
        self.log.create_topics({TOPIC: 2})
        self.offsets = self.log.offsets(GROUP)
        self.reader = LagReader(self.log.standings(GROUP), [TOPIC], self.log.partitions_count, target_s=10.0)
        self.exporter = LagExporter(GROUP, lambda: self.reader)
        self.registry = CollectorRegistry()
        self.registry.register(self.exporter)

    def passes(self, seconds: int, *, sent: int = 0, committed: int = 0) -> None:
        """Let time pass: each second some messages are sent to the second partition, and so many committed more."""
        for _ in range(seconds):
            self.now_s += 1
            for _ in range(sent):
                self.log.append(TOPIC, 1, b"edit")
            if committed:
                done = (self.offsets.committed(TOPIC, 2)[1] or 0) + committed
                self.offsets.commit({(TOPIC, 1): done})
            self.exporter.note(self.reader.look(self.now_s), self.now_s)

    def value(self, name: str, partition: int | None = 1, **labels: str) -> float | None:
        place = {"consumergroup": GROUP, "topic": TOPIC, **labels}
        return self.registry.get_sample_value(
            name, place if partition is None else {**place, "partition": f"{partition}"}
        )

    def status(self, partition: int = 1) -> list[str]:
        shown = {one: self.value("freshet_lag_status", partition, status=one.value) for one in Status}
        assert set(shown.values()) == {0.0, 1.0}, "every status is shown, one of them holds"
        return [one.value for one, value in shown.items() if value]


def test_of_an_idle_topic_everything_is_well() -> None:
    shop = Shop()

    shop.passes(30)

    assert [shop.value("kafka_consumergroup_lag", part) for part in (0, 1)] == [0.0, 0.0]
    assert shop.value("kafka_consumergroup_lag_sum", None) == 0.0
    assert (shop.value("freshet_lag_seconds"), shop.value("freshet_lag_drain_seconds")) == (0.0, 0.0)
    assert shop.value("freshet_lag_breach_seconds") == shop.value("freshet_retention_left_seconds") == float("inf")
    assert (shop.status(0), shop.status(1)) == (["OK"], ["OK"])


def test_a_materializer_that_stops_is_told_of_and_so_is_when_it_goes_on() -> None:
    shop = Shop()
    shop.passes(30, sent=10, committed=10)
    assert (shop.value("kafka_consumergroup_lag_sum", None), shop.status()) == (0.0, ["OK"])

    shop.passes(6, sent=10)
    assert shop.value("kafka_consumergroup_lag") == shop.value("kafka_consumergroup_lag_sum", None) == 60.0
    assert shop.value("freshet_lag_seconds") == 6.0
    shop.passes(14, sent=10)
    assert (shop.value("freshet_lag_seconds"), shop.value("freshet_lag_breach_seconds")) == (20.0, 0.0)
    assert (shop.status(0), shop.status(1)) == (["OK"], ["STOP"])

    shop.passes(20, sent=10, committed=20)
    assert (shop.value("kafka_consumergroup_lag"), shop.status()) == (0.0, ["OK"])


def test_when_the_last_message_came_is_known_of_a_topic_that_stands_still_and_a_flow_that_is_down() -> None:
    shop = Shop()
    shop.passes(3, sent=1)
    last_s = shop.now_s

    shop.passes(500)

    newest = shop.reader.newest_at_s(shop.reader.look(shop.now_s))
    assert newest == {(TOPIC, 0): None, (TOPIC, 1): last_s}


def test_while_kafka_does_not_answer_only_when_it_last_did_is_shown() -> None:
    shop = Shop()
    shop.passes(3, sent=1)

    shop.exporter.note({}, None)

    assert shop.value("kafka_consumergroup_lag") is None
    assert shop.registry.get_sample_value("freshet_lag_sampled_timestamp_seconds") == shop.now_s


@pytest.mark.parametrize(
    "error",
    [Unavailable('kafka "nowhere" is not available'), Refused([Problem("topic", TOPIC, "cannot be read at nowhere")])],
    ids=["kafka is away", "the topic is not made yet"],
)
def test_an_exporter_connects_when_it_can_and_looks_until_it_is_ended(error: FreshetError) -> None:
    shop, attempts = Shop(), itertools.count()
    shop.log.append(TOPIC, 1, b"edit")

    def connect() -> LagReader:
        if next(attempts) < 1:
            raise error
        return shop.reader

    exporter = LagExporter(GROUP, connect)
    registry = CollectorRegistry()
    registry.register(exporter)
    exporter.start()
    try:
        until(lambda: registry.get_sample_value("freshet_lag_sampled_timestamp_seconds") is not None)
        place = {"consumergroup": GROUP, "topic": TOPIC, "partition": "1"}
        assert registry.get_sample_value("kafka_consumergroup_lag", place) == 1.0
    finally:
        exporter.end()


def test_an_exporter_that_follows_looks_at_other_topics() -> None:
    shop, other = Shop(), Shop()
    for one, count in ((shop, 1), (other, 2)):
        one.passes(1, sent=count)
    exporter = LagExporter(GROUP, lambda: shop.reader)
    registry = CollectorRegistry()
    registry.register(exporter)
    place = {"consumergroup": GROUP, "topic": TOPIC, "partition": "1"}
    exporter.start()
    try:
        until(lambda: registry.get_sample_value("kafka_consumergroup_lag", place) == 1)

        exporter.follow(lambda: other.reader)

        until(lambda: registry.get_sample_value("kafka_consumergroup_lag", place) == 2)
    finally:
        exporter.end()
