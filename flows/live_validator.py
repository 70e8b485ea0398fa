"""The validator on real parts: Kafka, the online store, the offline store."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime

from freshet.flows.edges import kafka
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.live import LagCollector, Workspace
from freshet.flows.observer import Lags, Observer, Outside, Sampling
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.ledger import source_key


def open_observer(workspace: Workspace, sampling: Sampling) -> Observer:
    """Connect a project's observer. Raises `Refused` and `Unavailable`."""
    online = workspace.online()
    if not isinstance(online, OnlineStore):
        hint = "the validator works on redis://; other online stores keep no version to compare by"
        raise Refused([Problem("key", "onlineStore", "cannot be sampled", hint=hint)])
    streams = {contract.stream.topic: name for name, contract in workspace.contracts.items()}
    counts = {topic: kafka.partitions_count(workspace.kafka, topic) for topic in streams}
    offsets = kafka.GroupOffsets(workspace.kafka, workspace.group)
    lag = LagCollector(workspace.kafka, workspace.group, counts)
    target_s = workspace.source.declaration.servingRequirements.freshnessTarget.bound.total_seconds()

    def ends() -> Mapping[str, int]:
        return {
            source_key(streams[topic], part): end
            for topic, count in counts.items()
            for part, end in offsets.end_offsets(topic, count).items()
        }

    def lags() -> Lags:
        """A lower bound says something only where it is over the target already."""
        return {
            (streams[topic], partition): one.age_s if one.is_exact or (one.age_s or 0.0) > target_s else None
            for (topic, partition), one in lag.lags(time.time()).items()
        }

    offline = OfflineStore(workspace.offline_root)
    ledger = LedgerFile(workspace.offline_root)
    return Observer(
        workspace.pipeline, Outside(online, offline, ledger, ends, lags, lambda: datetime.now(UTC)), sampling
    )
