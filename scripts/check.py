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

from freshet.flows.edges.quality import Judge
from freshet.flows.live import Workspace
from freshet.flows.live_validator import open_observer
from freshet.flows.observer import Sampling
from freshet.flows.settings import Settings
from freshet.flows.validator import check_once, exit_code
from freshet.schemas.finding import Finding, Verdict
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
    workspace = Workspace.open(settings)
    verdicts = check(workspace, sample_count=words.sample, seed=words.seed)
    if words.json:
        print(json.dumps([_plain(verdict) for verdict in verdicts], indent=2, default=str))
    else:
        report(verdicts)
    return exit_code(verdicts)


def check(workspace: Workspace, *, sample_count: int = 200, seed: int = 0) -> tuple[Verdict, ...]:
    """Do one round on a project's stores."""
    sampling = Sampling(
        rows_count=-(-sample_count * 2 // 3),
        keys_count=-(-sample_count // 3),
        grace=workspace.settings.epoch * 2 + timedelta(seconds=1),
        limit=_LIMIT,
        seed=seed,
    )
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


def _plain(verdict: Verdict) -> dict[str, Any]:
    return dataclasses.asdict(verdict)
