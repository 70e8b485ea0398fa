"""Dead letters in Kafka: events that were not accepted are kept in `<topic>.dlq`, and sent again from there.

What such a record looks like is said in schemas/rejects.py.
"""

from collections.abc import Sequence

from freshet.flows.edges.kafka import Kafka, Outbox, partitions_count
from freshet.schemas.rejects import Reject, dead_letter, dead_letter_topic, receipt, redriven

# librdkafka refuses what is larger than a mere default of its own, though the cluster has taken the event before.
_TUNED = {"message.max.bytes": 100_000_000}


class DeadLetters:
    """Keeps the events that a consumer group did not accept; none is lost once `flush` returns."""

    def __init__(self, kafka: Kafka, group: str) -> None:
        self._kafka, self._group = kafka, group
        self._known: set[str] = set()
        self._outbox = Outbox(kafka, "dead letter", _TUNED)

    def put(self, rejects: Sequence[Reject]) -> None:
        """Send rejects to the dead letters of their topics; it may wait for room in the queue.

        Raises `Refused` for a topic that is not there and an event that is too large, `Unavailable` once one is lost.
        """
        for topic in {dead_letter_topic(reject.topic) for reject in rejects} - self._known:
            partitions_count(self._kafka, topic)  # a producer would wait long for a topic that nobody made
            self._known.add(topic)
        for reject in rejects:
            self._outbox.send(dead_letter(reject, self._group), str(reject.origin))

    def flush(self) -> None:
        """Wait until the cluster has confirmed every one, no longer than its patience.

        Raises `Unavailable` with the root cause if one was not delivered, and `Refused` if it is too large: the flow
        must not pass an event that nobody keeps.
        """
        self._outbox.flush()
        self._outbox.raise_failed()


class Redriver:
    """Sends dead letters to where they came from, each together with its receipt: both are there, or neither.

    There is one at a time of a group: opening it ends the transactions of any other, so what is read after that is
    sent again by nobody else. The embedded broker knows no such isolation.
    """

    def __init__(self, kafka: Kafka, group: str) -> None:
        limit_ms = int(kafka.patience_s * 1000) + 10_000  # librdkafka wants it longer than a delivery may take
        identity = f"{group}-redrive"
        self._outbox = Outbox(kafka, "dead letter", _TUNED, transactional_id=identity, transaction_timeout_ms=limit_ms)
        self._outbox.take_over()

    def send(self, rejects: Sequence[Reject]) -> None:
        """Send events and receipts in one transaction. Raises `Refused` if one is too large, and `Unavailable`."""
        with self._outbox.transaction():
            for reject in rejects:
                for record in (redriven(reject), receipt(reject)):
                    self._outbox.send(record, str(reject.origin))

    def close(self) -> None:
        """Let go of nothing: whatever is open is aborted by whoever comes next."""
