"""Read the declaration and print the deployment it becomes; with --json exactly as the user's output schema has it.

Then, what it changes of what is in force, and what each change does to state, stores and readers. With --shadow old and
new declaration are run over the last of the archived events, and what would differ is printed, feature by feature.
State, parquet and Redis are estimated for the load that --rate and --entities say, or that the event archive shows, or
that the declared offlineVolume has room for.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

from freshet.flows.change import changed_plans, filled_since_us
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.edges.store_config import store_config
from freshet.flows.settings import Settings
from freshet.flows.shadow import Cost, Shadow, Shadowed
from freshet.flows.steps.archived import ArchiveForm
from freshet.flows.steps.changes import Change, Compiled, changes_between, screen
from freshet.flows.steps.deployment import deployment
from freshet.flows.steps.estimates import Load, allowed_load, estimate
from freshet.flows.steps.explain import instant, plain, spell
from freshet.flows.steps.shadow import Differing
from freshet.flows.workspace import Workspace
from freshet.schemas import units
from freshet.schemas.applied import Applied
from freshet.schemas.deployment import Deployment
from freshet.schemas.errors import Refused
from freshet.schemas.event import EVENT_TIME, archive_name
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.units import count_us
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
    words.add_argument(
        "--shadow",
        metavar="TIME",
        help="run what is in force and what is written over the archived events of so long, as 10m, and compare",
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
    length_us = _length_us(words)
    workspace = Workspace.open(settings)
    planned = planned_deployment(workspace)
    if words.json:
        print(planned.model_dump_json(indent=2))
        _refuse_unkept(workspace)
        return 0
    _print(planned, workspace, words, budget)
    old, changes = _print_changes(planned, workspace)
    _refuse_unkept(workspace)
    if length_us is not None:
        _print_shadow(workspace, old, changes, length_us)
    return 0


def _length_us(words: argparse.Namespace) -> int | None:
    """Return over how much of the archive --shadow looks, None if it is not asked for."""
    if words.shadow is None:
        return None
    if words.json:
        raise wrong_use("--shadow", "is given with --json, which prints the deployment alone", "leave one of them out")
    try:
        return count_us(units.duration(words.shadow))
    except ValueError as error:
        raise wrong_use("--shadow", f"is {words.shadow}", f"write {error}") from None


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


def changed_contracts(workspace: Workspace, applied: Applied | None) -> list[str]:
    """Say which event contracts are others than those that what is in force was read by."""
    known = {} if applied is None else applied.declared.contracts
    return [
        f"~ contract {stream}: version {contract.stream.version} as it is written now"
        for stream, contract in workspace.contracts.items()
        if workspace.declared.contracts[stream] != known.get(stream, workspace.declared.contracts[stream])
    ]


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


# What would change


def _in_force(workspace: Workspace) -> tuple[Workspace | None, Compiled | None]:
    """Return what was applied last, as it is read today, with the digests of then; raises `Refused`, `Unavailable`."""
    found, old = AppliedFile(workspace.offline_root).read(), workspace.in_force()
    if old is None:
        return None, None
    is_same = found is not None and found.declared.text == old.declared.text  # else a change of it is under way
    views = found.declared.views if found is not None and is_same else {}
    digests = {name: view.digest for name, view in views.items()}
    return old, Compiled(old.source.declaration, old.pipeline, digests)


def _print_changes(planned: Deployment, workspace: Workspace) -> tuple[Workspace | None, tuple[Change, ...]]:
    """Print what applying would change; returns what is in force, and the changes of it."""
    topics = [
        line for line in changes(planned.model_dump(mode="json"), applied_deployment(workspace)) if " topic " in line
    ]
    try:
        old, before = _in_force(workspace)
    except Refused as error:
        print("to apply: what is in force cannot be compared, since it is read no more:")
        for problem in error.problems:
            print(f"  {problem}")
        return None, ()
    found = changes_between(before, Compiled(workspace.source.declaration, workspace.pipeline))
    contracts = changed_contracts(workspace, AppliedFile(workspace.offline_root).read())
    lines = [*topics, *contracts, *screen(found)]
    if not lines and old is not None and old.declared.text != workspace.declared.text:
        lines = ["the declaration's text alone: no view and no target changes"]
    print("to apply:" if lines else "nothing to apply: this is what was applied last")
    for line in lines:
        print(f"  {line}")
    return old, found


def _refuse_unkept(workspace: Workspace) -> None:
    """Refuse, as `freshet apply` would, what needs events that the archive has dropped."""
    ledger = LedgerFile(workspace.offline_root).read()
    if ledger is not None:
        filled_since_us(changed_plans(workspace.pipeline, ledger), ledger)


def _print_shadow(workspace: Workspace, old: Workspace | None, changes: tuple[Change, ...], length_us: int) -> None:
    """Print how values would differ, view by view, and what old and new cost."""
    print(f"shadow of the last {units.spell(units.microseconds(length_us))} of archived events:")
    if old is None:
        print("  nothing is in force to compare with. Hint: `freshet apply` puts the declaration in force")
        return
    contracts = {**old.contracts, **workspace.contracts}
    forms = {archive_name(stream): ArchiveForm(contract) for stream, contract in contracts.items()}
    archive = OfflineStore(workspace.offline_root, forms)
    shadow = Shadow(old.pipeline, workspace.pipeline, contracts, archive, length_us)
    views = 0
    for name, found in shadow.look(changes):
        views += 1
        for line in _shadow_lines(workspace.pipeline, name, found):
            print(f"  {line}")
    if not views:
        print("  no view would have other rows")


def _shadow_lines(pipeline: Pipeline, name: str, found: Shadowed | None) -> Iterator[str]:
    if found is None:
        yield f"feature view {name}: none of its events is archived yet"
        return
    span = f"{spell(instant(found.start_us))} to {spell(instant(found.end_us))}"
    of = f", of one of {found.share} entities" if found.share > 1 else ""
    yield f"feature view {name}: {found.events_count:,} events from {span}{of}"
    if found.oldest_us is not None:
        yield f"  values of all of the past count from the oldest archived event, of {spell(instant(found.oldest_us))}"
    if found.differences is not None:
        made = found.differences
        yield f"  {made.rows_count:,} rows compared, {made.gone_count:,} in force alone, {made.come_count:,} new"
        for one in made.features:
            if one.differing_count:
                yield from _feature_lines(one)
        same = [one.feature for one in made.features if not one.differing_count]
        if same:
            yield f"  the same in every row: {', '.join(same)}"
    elif found.before is not None:
        yield "  not compared: its entity is another one"
    else:
        features = ", ".join(feature.name for feature in pipeline.plan(name).view.features)
        yield f"  new, so there is nothing to compare: {features}"
    if found.before is not None:
        yield f"  in force: {_cost(found.before)}"
    yield f"  new:      {_cost(found.after)}"
    if found.after.failed_count:
        count, why = f"{found.after.failed_count:,}", plain(found.after.failure, 200)
        yield f"  warning: it fails on {count} of the events, the first by {why}. `freshet apply` refuses that"


def _feature_lines(one: Differing) -> Iterator[str]:
    was = f" (was {one.was})" if one.was != one.feature else ""
    far = "" if one.median is None else f", by {one.median:.6g} in the median and {one.largest:.6g} at most"
    nulls = f", {one.nulls_count:,} became NULL" if one.nulls_count else ""
    yield f"  {one.feature}{was}: {one.differing_count:,} differ ({one.share:.1%}){far}{nulls}"
    for example in one.examples:
        entity = ", ".join(f"{name}={plain(value)}" for name, value in example.entity.items())
        yield f"    {entity} at {spell(example.at)}: {plain(example.before)}, would be {plain(example.after)}"


def _cost(cost: Cost) -> str:
    made = cost.estimate
    elements = max((window.elements_count for window in made.windows), default=0)
    state = f"about {elements:,} elements of state ({size(made.state_bytes)})"
    return f"{cost.cpu_s:.2f} s of CPU, {cost.rows_per_event:.2f} rows an event, {state}"
