"""Compare a sample of online rows with their offline versions, and the freshness with its target, once.

Great Expectations decides, by a suite made from the declaration. Exits 0 if all is well, 1 on a violation, 3 if nothing
can be said, 4 if the validator itself failed, 5 if a system that it needs does not answer.
"""

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from freshet.flows.edges.quality import Judge
from freshet.flows.live_validator import open_observer, sampling_of
from freshet.flows.settings import Settings
from freshet.flows.validator import check_once, exit_code
from freshet.flows.workspace import Workspace
from freshet.schemas.finding import Finding, Verdict, worst
from freshet.scripts.cli import wrong_use

_LIMIT = timedelta(seconds=20)


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--sample", type=int, default=200, metavar="N", help="entities of each view (200)")
    words.add_argument("--seed", type=int, default=0, help="which entities; the same for the same seed and stores")
    words.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Do one round."""
    if words.sample < 1:
        raise wrong_use("--sample", f"is {words.sample}", "write a number of at least 1")
    workspace = Workspace.applied(settings)
    verdicts = check(workspace, sample_count=words.sample, seed=words.seed)
    if words.json:
        print(json.dumps(as_json(workspace.pipeline.project, verdicts, datetime.now(UTC)), indent=2, allow_nan=False))
    else:
        report(verdicts)
    return exit_code(verdicts)


def check(workspace: Workspace, *, sample_count: int = 200, seed: int = 0) -> tuple[Verdict, ...]:
    """Do one round on a project's stores."""
    sampling = sampling_of(workspace.settings, sample_count, _LIMIT, seed)
    observer = open_observer(workspace, sampling)
    target = workspace.source.declaration.servingRequirements.freshnessTarget
    return check_once(observer, Judge(), target, _wait, grace=sampling.grace)


def _wait(length: timedelta) -> None:
    time.sleep(length.total_seconds())


def report(verdicts: Sequence[Verdict]) -> None:
    """Print the verdicts for people."""
    for verdict in verdicts:
        print(f"{verdict.view}: {verdict.outcome}, {verdict.compared} rows compared")
        for finding in verdict.findings:
            show(finding)
        for reason in verdict.reasons:
            print(f"  {reason}")


def show(finding: Finding, lines_count: int = 5) -> None:
    """Print a finding for people, with so many lines of its evidence."""
    print(f"  {finding.cause}: {finding.message}")
    for line in finding.evidence[:lines_count]:
        print("    " + ", ".join(f"{name}={value}" for name, value in line.items()))


def as_json(project: str, verdicts: Sequence[Verdict], at: datetime) -> dict[str, Any]:
    """Return what --json prints: the round's `outcome` is the worst of its `verdicts`, each as `Verdict.as_json`."""
    return {
        "project": project,
        "at": at.isoformat(timespec="milliseconds"),
        "outcome": worst(verdict.outcome for verdict in verdicts).value,
        "verdicts": [verdict.as_json() for verdict in verdicts],
    }
