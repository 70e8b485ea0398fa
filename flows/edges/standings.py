"""Where a consumer group stands, asked of Kafka itself, whether or not the group is well."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from freshet.flows.edges.kafka import Client, Heard, Kafka
from freshet.schemas.errors import Unavailable
from freshet.schemas.standing import Standing

T = TypeVar("T")

_RETENTION = "retention.ms"
_MARGIN_S = 5.0
"""So much later than it should an answer may come."""
_LEADERLESS = (KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION)
_UNTOLD = frozenset(
    {
        KafkaError._UNSUPPORTED_FEATURE,  # noqa: SLF001  # the client's own name; the embedded broker has no such call
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


class Standings:
    """What a group without members has committed, beside what its partitions hold."""

    def __init__(self, kafka: Kafka, group: str) -> None:
        self._kafka, self._heard = kafka, Heard()
        self._client = Client(kafka, group_id=group, enable_partition_eof=True, auto_offset_reset="earliest")
        self._admin = kafka.client(AdminClient, error_cb=self._heard)

    def of(self, topic: str, count: int) -> dict[int, Standing]:
        """Return the standing of each of a topic's partitions, in three questions for all. Raises `Unavailable`.

        Commits are asked for first, so that none is ever past its partition's end.
        """
        wanted = [TopicPartition(topic, partition) for partition in range(count)]
        commits = self._client.ask(lambda consumer, limit_s: consumer.committed(wanted, timeout=limit_s))
        try:
            first, end = (self._listed(wanted, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
        except KafkaException as error:
            raise self._unanswered(error, topic) from error
        found = {}
        for commit in commits:
            if commit.error is not None:
                raise self._kafka.unavailable(f"{topic}/{commit.partition}: {commit.error.str()}")
            part = commit.partition
            is_there = commit.offset != OFFSET_INVALID
            at_s = _seconds(commit.metadata) if is_there else None
            found[part] = Standing(first[part].offset, end[part].offset, commit.offset if is_there else None, at_s)
        return found

    def newest_at_s(self, topic: str, ends: Mapping[int, int]) -> dict[int, float | None]:
        """Return when each partition's newest message was written, by the time that it carries; None if unknown.

        `ends` are the offsets after the last messages. Kafka is asked for the greatest time, of all partitions at
        once, in which a transaction's end counts, too; where it does not know that (before 3.0, the embedded broker)
        the last messages are read. Raises `Unavailable`.
        """
        wanted = [TopicPartition(topic, part) for part, end in ends.items() if end > 0]
        found = dict.fromkeys(ends, 0)
        try:
            told = self._listed(wanted, OffsetSpec.max_timestamp()) if wanted else {}
            found |= {part: one.timestamp for part, one in told.items()}
        except KafkaException as error:
            if error.args[0].code() not in _UNTOLD:
                raise self._unanswered(error, topic) from error
        untold = [TopicPartition(topic, part.partition, ends[part.partition] - 1) for part in wanted]
        untold = [part for part in untold if found[part.partition] <= 0]
        if untold:
            found |= self._client.ask(lambda consumer, limit_s: self._read_last(consumer, untold, limit_s))
        return {part: at_ms / 1000 if at_ms > 0 else None for part, at_ms in found.items()}

    def _listed(self, wanted: Sequence[TopicPartition], spec: OffsetSpec) -> dict[int, Any]:
        asked = self._admin.list_offsets(dict.fromkeys(wanted, spec), request_timeout=self._kafka.answer_limit_s)
        return {part.partition: self._result(answer) for part, answer in asked.items()}

    def _leaderless(self, topic: str) -> str:
        """Say which partitions have no leader; nothing if all have one by now, or nobody says."""
        try:
            parts = self._admin.list_topics(topic, timeout=self._kafka.answer_limit_s).topics[topic].partitions
        except KafkaException:
            return ""
        found = [f"{topic}/{part}" for part, told in sorted(parts.items()) if told.leader < 0]
        return f"no leader for {', '.join(found)} ({len(found)} of {len(parts)} partitions)" if found else ""

    def _read_last(self, consumer: Consumer, wanted: list[TopicPartition], limit_s: float) -> dict[int, int]:
        """Return the time in milliseconds of the last message of each partition that still has it."""
        deadline, found, ended = time.monotonic() + limit_s, dict[int, int](), set[int]()
        consumer.assign(wanted)
        try:
            while len(ended) < len(wanted):
                message = consumer.poll(max(0.0, deadline - time.monotonic()))
                if message is None:
                    raise self._kafka.unavailable(self._client.heard.newest or "no answer")
                error = message.error()
                if error is None:
                    found[message.partition()] = message.timestamp()[1]
                elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001  # the client's own name
                    raise self._kafka.unavailable(error.str())
                ended.add(message.partition())
        finally:
            consumer.unassign()
        return found

    def written_at_s(self, topic: str, partition: int, offset: int) -> float | None:
        """Return when a message was written, or the next that is there; None if there is none. Raises `Unavailable`."""
        message = self._client.ask(lambda consumer, limit_s: _read(consumer, topic, partition, offset, limit_s))
        if message is None:
            raise self._kafka.unavailable(f"{topic}/{partition}: {self._client.heard.newest or 'no answer'}")
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001  # the client's own name
            raise self._kafka.unavailable(f"{topic}/{partition}: {error.str()}")
        at_ms = 0 if error is not None else message.timestamp()[1]
        return float(at_ms) / 1000 if at_ms > 0 else None

    def retention_s(self, topic: str) -> float | None:
        """Return how long Kafka keeps a topic's messages; None if for ever, or if it does not say."""
        asked = self._admin.describe_configs(
            [ConfigResource(ResourceType.TOPIC, topic)], request_timeout=self._kafka.answer_limit_s
        )
        try:
            (found,) = map(self._result, asked.values())
        except KafkaException as error:
            if error.args[0].code() in _UNTOLD:
                return None
            raise self._unanswered(error, topic) from error
        return _retention_s(found)

    def _result(self, answer: "Future[T]") -> T:
        """Wait for an answer. One may never come, whatever request_timeout says."""
        try:
            return answer.result(self._kafka.answer_limit_s + _MARGIN_S)
        except TimeoutError as error:
            raise self._unanswered(None) from error

    def _unanswered(self, error: KafkaException | None, topic: str = "") -> Unavailable:
        """Return what to raise; the next question is asked by a new client.

        Once a broker came back, one goes on asking for offsets under the epoch that the partition's leader had before,
        and is refused, until what it knows of the cluster is a quarter of an hour old.
        """
        self._admin.poll(0)  # the way to hear what was said in passing
        if error is None:
            said = self._heard.newest or "no answer"
        else:
            leaderless = self._leaderless(topic) if error.args[0].code() in _LEADERLESS else ""
            said = leaderless or self._heard.behind(error)
        self._admin, self._heard.newest = self._kafka.client(AdminClient, error_cb=self._heard), ""
        return self._kafka.unavailable(said)

    def close(self) -> None:
        """Let go of the connection."""
        self._client.consumer.close()


def _read(consumer: Any, topic: str, partition: int, offset: int, limit_s: float) -> Any:
    consumer.assign([TopicPartition(topic, partition, offset)])
    try:
        return consumer.poll(limit_s)
    finally:
        consumer.unassign()


def _retention_s(config: Mapping[str, Any]) -> float | None:
    kept_ms = int(config[_RETENTION].value) if _RETENTION in config else -1
    is_deleted = "delete" in config["cleanup.policy"].value if "cleanup.policy" in config else True
    return kept_ms / 1000 if kept_ms >= 0 and is_deleted else None


def _seconds(metadata: str | None) -> float | None:
    """Read when a commit was made, as `kafka.GroupOffsets` writes it; other groups may write what they like.

    >>> _seconds("1767225600123"), _seconds("by hand"), _seconds(None)
    (1767225600.123, None, None)
    """
    return int(metadata) / 1000 if metadata and metadata.isdecimal() else None
