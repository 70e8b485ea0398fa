"""Read the declaration and print the deployment it becomes; with --json exactly as the user's output schema has it.

State, parquet and Redis are estimated for the load that --rate and --entities say, or that the event archive shows, or
that the declared offlineVolume has room for.
"""

import argparse
import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.edges.store_config import store_config
from freshet.flows.live import Workspace
from freshet.flows.materializer import archive_name
from freshet.flows.settings import Settings
from freshet.flows.steps.deployment import deployment
from freshet.flows.steps.estimates import Load, allowed_load, estimate
from freshet.schemas import units
from freshet.schemas.deployment import Deployment
from freshet.schemas.event import EVENT_TIME
from freshet.schemas.plan import ViewPlan
from freshet.scripts.cli import wrong_use

_ENTITIES_COUNT = 1_000_000


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--json", action="store_true", help="print the deployment as JSON")
    words.add_argument("--rate", type=float, metavar="N", help="estimate for so many events a second of each stream")
    words.add_argument("--entities", type=int, metavar="N", help="and for so many entities of each view")
    words.add_argument(
        "--state-budget", default="4GB", metavar="SIZE", help="warn of a view that may need more state (4GB)"
    )


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Print the plan."""
    for name in ("rate", "entities"):
        if getattr(words, name) is not None and getattr(words, name) <= 0:
            raise wrong_use(f"--{name}", f"is {getattr(words, name)}", "write a number above 0")
    try:
        budget = units.volume(words.state_budget).bytes_count
    except ValueError:
        raise wrong_use("--state-budget", f"is {words.state_budget}", "write a size such as 4GB") from None
    workspace = Workspace.open(settings)
    planned = planned_deployment(workspace)
    if words.json:
        print(planned.model_dump_json(indent=2))
        return 0
    _print(planned, workspace, words, budget)
    return 0


def planned_deployment(workspace: Workspace) -> Deployment:
    """Return the deployment of a project."""
    pipeline, url = workspace.pipeline, workspace.online_url
    store = store_config(pipeline.project, url, workspace.project.registry)
    epoch = workspace.settings.epoch
    return deployment(
        workspace.source.declaration,
        pipeline,
        workspace.contracts,
        store,
        without_credentials(url),
        epoch,
        workspace.deployed,
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


def _load(workspace: Workspace, plan: ViewPlan, words: argparse.Namespace) -> Load:
    """Return the load of a view: as said, else as archived, else as much as the declared volume has room for."""
    volume = workspace.source.declaration.servingRequirements.offlineVolume.bytes_per_day
    load = allowed_load(workspace.pipeline.plans, volume, words.entities or _ENTITIES_COUNT)
    archived = [archive_name(stream) for stream in plan.view.sources]
    if all(workspace.offline().path(name).is_dir() for name in archived):
        entity = plan.view.entity_names
        events = pa.concat_tables([workspace.offline().read(name).select([EVENT_TIME, *entity]) for name in archived])
        times = pc.min_max(events.column(EVENT_TIME).cast(pa.int64())).as_py() if events.num_rows else None
        if times is not None and times["max"] > times["min"]:
            span_s = (times["max"] - times["min"]) / 1e6
            entities_count = events.group_by(list(entity)).aggregate([]).num_rows
            load = Load(events.num_rows / span_s, entities_count, "the event archive")
    if words.rate or words.entities:
        load = Load(words.rate or load.events_per_s, words.entities or load.entities_count, "the command")
    return load


def _print_estimate(workspace: Workspace, plan: ViewPlan, words: argparse.Namespace, budget: int) -> int:
    """Print what a view needs, window by window; returns its bytes of parquet a day."""
    load = _load(workspace, plan, words)
    lateness = {name: units.count_us(workspace.contracts[name].stream.lateness) for name in plan.view.sources}
    made = estimate(plan, load, lateness)
    at = f"{load.events_per_s:,.4g} events/s of {load.entities_count:,} entities ({load.known_from})"
    print(f"    at {at}, at most:")
    for window in made.windows:
        print(f"      {window.window}: {window.keeps}, {window.elements_count:,} in all")
    print(f"      {size(made.state_bytes)} of state, {size(made.redis_bytes)} of Redis")
    print(
        f"      {made.rows_per_event} rows an event, {size(made.parquet_bytes_per_day)} of parquet a day before"
        " compression"
    )
    if made.state_bytes > budget:
        hint = "a `resolution:`, or a longer one, keeps fewer panes of its widest windows; shorter windows keep less"
        print(f"    warning: that is more state than the budget of {size(budget)}. Hint: {hint}")
    return made.parquet_bytes_per_day


def size(bytes_count: float) -> str:
    """Write a number of bytes for people.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    for prefix in ("", "k", "M", "G", "T"):
        if bytes_count < 1000:
            return f"{bytes_count:.3g} {prefix}B"
        bytes_count /= 1000
    return f"{bytes_count:.3g} PB"


def _print(planned: Deployment, workspace: Workspace, words: argparse.Namespace, budget: int) -> None:
    for warning in workspace.source.warnings:
        print(f"warning: {warning}")
    print(f"project {workspace.pipeline.project}")
    for topic in planned.topics:
        print(f"  topic {topic['name']}: {topic['partitions']} partitions, group {topic['consumerGroup']}")
        print(f"  topic {topic['deadLetterTopic']}: {topic['partitions']} partitions, events that were not accepted")
    print(f"  topic {planned.monitoringConfig.findingsTopic}: 1 partition, what the validator finds")
    bytes_per_day = 0
    for view in planned.featureViews:
        entity = ", ".join(f"{column['name']} {column['dtype']}" for column in view.entities)
        print(f"  feature view {view.name} by {entity}, ttl {view.ttl}, reach {view.state['reach']}")
        for feature in view.features:
            print(f"    {feature['name']} {feature['dtype']}")
        bytes_per_day += _print_estimate(workspace, workspace.pipeline.plan(view.name), words, budget)
    print(f"  online   {planned.servingSetup.onlineEndpoint} ({planned.featureStoreConfig.onlineStore['type']})")
    print(f"  offline  {planned.featureStoreConfig.offlineStore['path']} (parquet, read by Feast's DuckDB store)")
    volume = workspace.source.declaration.servingRequirements.offlineVolume
    print(f"           {size(bytes_per_day)} of parquet a day, all views before compression; {volume} is declared")
    if bytes_per_day > volume.bytes_per_day * 1.0001:
        print("  warning: that is more parquet than declared. Hint: a longer `decay:` makes fewer rows")
    checks, alerts = planned.monitoringConfig.consistencyChecks, planned.monitoringConfig.freshnessAlerts
    print(f"  {len(checks)} consistency checks, {len(alerts)} alert rules")
    differences = changes(planned.model_dump(mode="json"), applied_deployment(workspace))
    print("to apply:" if differences else "nothing to apply: this is what was applied last")
    for line in differences:
        print(f"  {line}")
