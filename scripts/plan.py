"""Read the declaration and print the deployment it becomes; with --json exactly as the user's output schema has it."""

import argparse
import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from freshet.flows.edges.feast import store_config
from freshet.flows.live import Workspace
from freshet.flows.settings import Settings
from freshet.flows.steps.deployment import deployment
from freshet.schemas import units
from freshet.schemas.deployment import Deployment

_SIZES = ("bytesPerEvent", "parquetBytesPerRow", "redisBytesPerEntity")


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--json", action="store_true", help="print the deployment as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Print the plan."""
    workspace = Workspace.open(settings)
    planned = planned_deployment(workspace)
    if words.json:
        print(planned.model_dump_json(indent=2))
        return 0
    _print(planned, workspace)
    return 0


def planned_deployment(workspace: Workspace) -> Deployment:
    """Return the deployment of a project."""
    pipeline, url = workspace.pipeline, workspace.online_url
    store = store_config(pipeline.project, url, workspace.project.registry)
    epoch = units.spell(workspace.settings.epoch)
    return deployment(
        workspace.source.declaration, pipeline, workspace.contracts, store, without_credentials(url), epoch
    )


def without_credentials(url: str) -> str:
    """Return a URL that may be shown.

    >>> without_credentials("rediss://app:secret@redis.example:6380/0?password=x")
    'rediss://redis.example:6380/0'
    """
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def changes(planned: dict[str, Any], applied: dict[str, Any] | None) -> list[str]:
    """Say what applying would change, view by view and topic by topic."""
    said = []
    for section, kind in (("topics", "topic"), ("featureViews", "feature view")):
        before = {entry["name"]: entry for entry in (applied or {}).get(section, [])}
        after = {entry["name"]: entry for entry in planned[section]}
        said += [f"+ {kind} {name}" for name in after if name not in before]
        said += [f"- {kind} {name}" for name in before if name not in after]
        said += [f"~ {kind} {name}" for name in after if name in before and after[name] != before[name]]
    return said


def applied_deployment(workspace: Workspace) -> dict[str, Any] | None:
    """Return what was applied last, None if nothing was."""
    path = workspace.project.root / ".freshet" / "applied.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _print(planned: Deployment, workspace: Workspace) -> None:
    for warning in workspace.source.warnings:
        print(f"warning: {warning}")
    print(f"project {workspace.pipeline.project}")
    for topic in planned.topics:
        print(f"  topic {topic['name']}: {topic['partitions']} partitions, group {topic['consumerGroup']}")
    for view in planned.featureViews:
        entity = ", ".join(f"{column['name']} {column['dtype']}" for column in view.entities)
        print(f"  feature view {view.name} by {entity}, ttl {view.ttl}, reach {view.state['reach']}")
        for feature in view.features:
            print(f"    {feature['name']} {feature['dtype']}")
        state, parquet, redis = (view.state[name] for name in _SIZES)
        sizes = f"{state} B of state an event in reach, {parquet} B of parquet a row"
        print(f"    about {sizes}, {redis} B of Redis an entity")
    print(f"  online   {planned.servingSetup.onlineEndpoint} ({planned.featureStoreConfig.onlineStore['type']})")
    print(f"  offline  {planned.featureStoreConfig.offlineStore['path']} (parquet, read by Feast's DuckDB store)")
    checks, alerts = planned.monitoringConfig.consistencyChecks, planned.monitoringConfig.freshnessAlerts
    print(f"  {len(checks)} consistency checks, {len(alerts)} alert rules")
    differences = changes(planned.model_dump(mode="json"), applied_deployment(workspace))
    print("to apply:" if differences else "nothing to apply: this is what was applied last")
    for line in differences:
        print(f"  {line}")
