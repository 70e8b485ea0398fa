"""News of findings in Kafka, one record each, in the topic `freshet.findings`: what others act on.

Its key is `<project>/<check>`, so that all news of one finding are in one partition and in order, and a compacted topic
keeps the newest of each. Its value is JSON, `Alarm.as_json`. After an outage a record may be there twice.
"""

from collections.abc import Sequence

from freshet.flows.edges.kafka import Kafka, Outbox, partitions_count
from freshet.schemas.finding import FINDINGS_TOPIC, Alarm


class Findings:
    """Publishes alarms of a project, in their order."""

    def __init__(self, kafka: Kafka, project: str) -> None:
        self._kafka, self._project = kafka, project
        self._outbox: Outbox | None = None

    def deliver(self, alarms: Sequence[Alarm]) -> None:
        """Return once the cluster has confirmed every one.

        Raises `Unavailable` if it does not within its patience, and `Refused` for a topic that is not there; then all
        are to be delivered again.
        """
        if self._outbox is None:
            partitions_count(self._kafka, FINDINGS_TOPIC)  # a producer would wait long for a topic that nobody made
        # One that has lost a record goes on for ever saying so: it is not kept.
        outbox, self._outbox = self._outbox or Outbox(self._kafka, "finding"), None
        for alarm in alarms:
            outbox.send(alarm.as_record(self._project), alarm.finding.check)
        outbox.flush()
        outbox.raise_failed()
        self._outbox = outbox
