"""The validator on real parts: Kafka, the online store, the offline store."""

from collections.abc import Mapping
from datetime import UTC, datetime

from freshet.flows.edges import kafka
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.live import Workspace
from freshet.flows.observer import Observer, Outside, Sampling
from freshet.flows.steps.freshness import Freshness, Progress, Source
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

    def ends() -> Mapping[str, int]:
        return {
            source_key(streams[topic], part): end
            for topic, count in counts.items()
            for part, end in offsets.end_offsets(topic, count).items()
        }

    def progress() -> Mapping[Source, Progress]:
        found: dict[Source, Progress] = {}
        for topic, count in counts.items():
            committed = offsets.committed(topic, count)  # first: what is read later may only be further on
            for part, end in offsets.end_offsets(topic, count).items():
                found[streams[topic], part] = Progress(committed[part], end)
        return found

    offline, ledger = OfflineStore(workspace.offline_root), LedgerFile(workspace.offline_root)
    outside = Outside(online, offline, ledger, ends, progress, lambda: datetime.now(UTC))
    freshness = Freshness(workspace.source.declaration.servingRequirements.freshnessTarget, workspace.settings.epoch)
    return Observer(workspace.pipeline, outside, sampling, freshness)
