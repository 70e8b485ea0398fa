"""Why a feature of an entity has its value: online, offline, by DuckDB; the events in its frame, and those left out.

KEY is the entity: the values of the view's join keys in their order, or each as NAME=VALUE. Without --at the newest row
is explained, with it the one that held then. Only looks, and works while parts are down. Exits 0 if online, offline and
DuckDB agree, 1 if they do not, 3 if events of the entity wait still, 5 if a system does not answer.
"""

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime

from freshet.flows.edges.partitions import Log
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.explain import Explainer, Outside
from freshet.flows.settings import Settings
from freshet.flows.steps.explain import as_json, asked_entity, asked_plan, explain, screen
from freshet.flows.workspace import Workspace
from freshet.scripts.cli import time_of, wrong_use

_LIMIT_S = 3.0
"""How long one system may take to answer."""


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("view", metavar="VIEW", help="the feature view")
    words.add_argument("feature", metavar="FEATURE", help="one of its features")
    words.add_argument("key", nargs="+", metavar="KEY", help="the entity: a value, or NAME=VALUE, for each join key")
    words.add_argument(
        "--at", metavar="TIME", help="the row that held at a time, as 2026-03-01T12:00Z; else the newest"
    )
    words.add_argument("--events", type=int, default=20, metavar="N", help="how many events of each kind to show (20)")
    words.add_argument("--json", action="store_true", help="print all of it as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Look, and explain."""
    at = None if words.at is None else time_of("--at", words.at)
    if words.events < 0:
        raise wrong_use("--events", f"is {words.events}", "write a number of at least 0")
    workspace = Workspace.applied(settings)
    plan = asked_plan(workspace.pipeline, words.view, words.feature)
    entity = asked_entity(plan.view, words.key)
    explainer = Explainer(workspace.pipeline.project, plan, workspace.contracts, outside_of(workspace))
    told = explain(explainer.gather(words.feature, entity, at))
    if words.json:
        print(json.dumps(as_json(told), indent=2, allow_nan=False))
    else:
        print(screen(told, words.events))
    return told.exit_code


def outside_of(workspace: Workspace) -> Outside:
    """Return what a project's explanations are made of, none of it asked yet."""
    return Outside(
        online=lambda: workspace.online(_LIMIT_S),
        offline=workspace.offline(),
        ledger=LedgerFile(workspace.offline_root),
        log=lambda: Log(replace(workspace.kafka, patience_s=_LIMIT_S)),
        now=lambda: datetime.now(UTC),
    )
