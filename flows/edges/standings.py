"""Where a consumer group stands, asked of Kafka itself, whether or not the group is well."""

from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, OffsetSpec, ResourceType

from freshet.flows.edges.kafka import Client, Heard, Kafka
from freshet.schemas.errors import Unavailable
from freshet.schemas.standing import Standing

T = TypeVar("T")

_RETENTION = "retention.ms"
_MARGIN_S = 5.0
"""So much later than it should an answer may come."""
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
        first, end = (self._offsets(wanted, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))
        found = {}
        for commit in commits:
            if commit.error is not None:
                raise self._kafka.unavailable(f"{topic}/{commit.partition}: {commit.error.str()}")
            part = commit.partition
            is_there = commit.offset != OFFSET_INVALID
            at_s = _seconds(commit.metadata) if is_there else None
            found[part] = Standing(first[part], end[part], commit.offset if is_there else None, at_s)
        return found

    def _offsets(self, wanted: list[TopicPartition], spec: OffsetSpec) -> dict[int, int]:
        try:
            asked = self._admin.list_offsets(dict.fromkeys(wanted, spec), request_timeout=self._kafka.answer_limit_s)
            return {part.partition: self._result(answer).offset for part, answer in asked.items()}
        except KafkaException as error:
            raise self._unanswered(error) from error

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
            raise self._unanswered(error) from error
        return _retention_s(found)

    def _result(self, answer: "Future[T]") -> T:
        """Wait for an answer. One may never come, whatever request_timeout says."""
        try:
            return answer.result(self._kafka.answer_limit_s + _MARGIN_S)
        except TimeoutError as error:
            raise self._unanswered(None) from error

    def _unanswered(self, error: KafkaException | None) -> Unavailable:
        """Return what to raise; the next question is asked by a new client.

        Once a broker came back, one goes on asking for offsets under the epoch that the partition's leader had before,
        and is refused, until what it knows of the cluster is a quarter of an hour old.
        """
        self._admin.poll(0)  # the way to hear what was said in passing
        said = (self._heard.newest or "no answer") if error is None else self._heard.behind(error)
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
