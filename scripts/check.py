"""Compare a sample of online rows with their offline versions, and the freshness with its target, once.

Great Expectations decides, by a suite made from the declaration. Exits 0 if all is well, 1 on a violation, 3 if nothing
can be said, 4 if the validator itself failed.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from freshet.flows.edges import kafka
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.redis import OnlineStore
from freshet.flows.live import LagCollector, Workspace
from freshet.flows.settings import Settings
from freshet.flows.validator import Lags, check_round, exit_code
from freshet.schemas.finding import Verdict
from freshet.scripts.cli import wrong_use


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--sample", type=int, default=200, metavar="N", help="entities of each view and store (200)")
    words.add_argument("--seed", type=int, default=0, help="which entities; the same for the same seed and stores")
    words.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Do one round."""
    if words.sample < 1:
        raise wrong_use("--sample", f"is {words.sample}", "write a number of at least 1")
    workspace = Workspace.open(settings)
    verdicts = check(workspace, sample_count=words.sample, seed=words.seed)
    if words.json:
        print(json.dumps([_plain(verdict) for verdict in verdicts], indent=2, default=str))
    else:
        report(verdicts)
    return exit_code(verdicts)


def check(workspace: Workspace, *, sample_count: int = 200, seed: int = 0) -> tuple[Verdict, ...]:
    """Do one round on a project's stores."""
    online = workspace.online()
    if not isinstance(online, OnlineStore):
        hint = "check works on redis://; other online stores keep no version to compare by"
        raise wrong_use("onlineStore", "cannot be sampled", hint)
    contracts = workspace.contracts
    streams = {made.stream.topic: name for name, made in contracts.items()}
    counts = {topic: kafka.partitions_count(workspace.kafka, topic) for topic in streams}
    lag = LagCollector(workspace.kafka, workspace.group, counts)

    target = workspace.source.declaration.servingRequirements.freshnessTarget

    def lags() -> Lags:
        """A lower bound says something only where it is over the target already."""
        return {
            (streams[topic], partition): one.age_s
            if one.is_exact or (one.age_s or 0.0) > target.bound.total_seconds()
            else None
            for (topic, partition), one in lag.lags(time.time()).items()
        }

    return check_round(
        workspace.pipeline,
        online,
        OfflineStore(workspace.offline_root),
        lags,
        Judge(),
        freshness_target=target,
        sample_count=sample_count,
        seed=seed,
        grace=workspace.settings.epoch * 2 + timedelta(seconds=1),
        wait=lambda grace: time.sleep(grace.total_seconds()),
    )


def report(verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts for people."""
    for verdict in verdicts:
        print(f"{verdict.view}: {verdict.outcome}, {verdict.compared} rows compared")
        for finding in verdict.findings:
            print(f"  {finding.cause}: {finding.message}")
            for line in finding.evidence[:5]:
                print("    " + ", ".join(f"{name}={value}" for name, value in line.items()))
        for reason in verdict.reasons:
            print(f"  {reason}")


def _plain(verdict: Verdict) -> dict[str, Any]:
    return dataclasses.asdict(verdict)
