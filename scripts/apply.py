"""Put the declaration in force: topics, Feast registry, stores, deploy/ files. Doing it again changes nothing.

A view that is new or computes something else is made anew from the archived events, while the running materializer goes
on; then it lets go of its ledger after a commit, and goes on under the new declaration from the very same offsets. Kill
this at any moment, and apply again: nothing is half done for a reader.
"""

import argparse
import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from freshet.flows.change import Asked, Done, Places, change, changed_plans
from freshet.flows.edges import feast, kafka, store_config
from freshet.flows.edges.applied import AppliedFile
from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.parquet import OfflineStore
from freshet.flows.edges.recovery import LedgerFile, RecoveryFolder
from freshet.flows.live import prepare
from freshet.flows.settings import Settings
from freshet.flows.steps.alertmanager import RECEIVERS, RECEIVERS_AT_FIRST, read_receivers
from freshet.flows.steps.changes import carried
from freshet.flows.steps.deploy_files import deploy_files
from freshet.flows.steps.evolution import unread
from freshet.flows.workspace import Workspace
from freshet.schemas.applied import Applied, Declared, DeclaredView
from freshet.schemas.dtypes import dtype
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.schemas.plan import Pipeline
from freshet.schemas.units import instant_us
from freshet.schemas.view import Feature, View
from freshet.scripts.cli import time_of, wrong_use
from freshet.scripts.plan import applied_deployment, changed_contracts, changes, planned_deployment

_GRACE_S = 3.0
"""For so long servers and clients may still ask for what is no longer declared: they look every second."""


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--json", action="store_true", help="print what was done as JSON")
    words.add_argument(
        "--from", dest="since", metavar="TIME", help="make history from then on only (default: all that is archived)"
    )
    words.add_argument("--again", action="store_true", help="apply a declaration that another one has followed since")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Apply, and say what was done."""
    since_us = None if words.since is None else past_us("--from", words.since)
    done = apply(Workspace.open(settings), since_us=since_us, again=words.again)
    if words.json:
        print(json.dumps(done, indent=2))
        return 0
    for topic, state in done["topics"].items():
        print(f"topic {topic}: {state}")
    for line in done["changes"] or ["no change"]:
        print(line)
    print_made(done)
    print(f"registry {done['registry']}")
    for path in done["files"]:
        print(f"wrote {path}")
    return 0


def past_us(flag: str, text: str) -> int:
    """Read the time that a flag is given, which must be past, in µs since the epoch. Raises `Refused`."""
    at_us = instant_us(time_of(flag, text))
    if at_us > time.time_ns() // 1000:
        raise wrong_use(flag, f"is {text}, which is still to come", "write a time that is past")
    return at_us


def apply(workspace: Workspace, *, since_us: int | None = None, again: bool = False) -> dict[str, Any]:
    """Put a project's declaration in force; what can be refused is refused before anything is made."""
    planned = planned_deployment(workspace).model_dump(mode="json")
    store_config.refuse_secret(workspace.declared_online_url)
    made_files = generated(workspace)
    if not workspace.online_url.startswith("sqlite:"):
        workspace.online()  # a store that does not answer ends it here, before anything is made
    kafka.create_topics(workspace.kafka, {})  # nor if Kafka does not answer
    files = AppliedFile(workspace.offline_root)
    with files.applying(), making_folders(workspace):
        _refuse(workspace, files.read(), again=again)
        return _apply(workspace, files, planned, made_files, since_us)


@contextlib.contextmanager
def making_folders(workspace: Workspace) -> Iterator[None]:
    """Be the only one who makes or removes folders of the offline store: no `compact`, and no `purge`."""
    folders = CompactionFolder(workspace.offline())
    folders.lock()
    try:
        yield
    finally:
        folders.unlock()


def _refuse(workspace: Workspace, applied: Applied | None, *, again: bool) -> None:
    """Refuse what cannot follow on what is in force."""
    if not again:
        _refuse_older(workspace, applied)
    _refuse_unread(workspace)
    _refuse_breaking(workspace.pipeline, {} if applied is None else applied.declared.views)


def _apply(
    workspace: Workspace,
    files: AppliedFile,
    planned: dict[str, Any],
    made_files: Mapping[str, str],
    since_us: int | None,
) -> dict[str, Any]:
    before, contracts = workspace.in_force(), changed_contracts(workspace, files.read())
    is_sqlite = workspace.online_url.startswith("sqlite:")
    ledger, pipeline = LedgerFile(workspace.offline_root).read(), workspace.pipeline
    new = () if ledger is None else changed_plans(pipeline, ledger)
    standing = Pipeline(pipeline.project, tuple(plan for plan in pipeline.plans if plan not in new))
    if ledger is None:
        _begin_anew(workspace.offline(), pipeline)
    prepare(workspace.offline(), standing, workspace.contracts)
    wanted = {**kafka.topics_of(workspace.contracts.values()), FINDINGS_TOPIC: 1}
    topics = kafka.create_topics(workspace.kafka, wanted)
    if is_sqlite:
        register(workspace)  # Feast writes what its registry knows
    done = hand_over(workspace, files, before, since_us)
    register(workspace)
    write_store_config(workspace)
    written = write_files(workspace, made_files)
    said = [*contracts, *changes(planned, applied_deployment(workspace))]
    _write(workspace.project.root / ".freshet" / "applied.json", json.dumps(planned, indent=2))
    _drop_leftovers(workspace, files)
    return {
        "topics": topics,
        "changes": said,
        **told(done),
        "registry": str(workspace.project.registry),
        "files": written,
    }


def _begin_anew(offline: OfflineStore, pipeline: Pipeline) -> None:
    """Give views that were declared otherwise, and never had a row, folders of their new form."""
    begun = {}
    for view in pipeline.views:
        if offline.visible_parts(view.name):
            rows = offline.read(view.name)
            if not rows.num_rows and not rows.schema.equals(view.row_schema):
                begun[view.name] = offline.next_generation(view.name)
                offline.begin(view.name, begun[view.name], view.row_schema)
    if begun:
        offline.switch(begun)


def hand_over(
    workspace: Workspace,
    files: AppliedFile,
    before: Workspace | None,
    since_us: int | None,
    anew: frozenset[str] = frozenset(),
) -> Done | None:
    """Have the flow go on under a declaration, once the rows of views that are new, changed, or named are made."""
    offline = workspace.offline()
    places = Places(
        LedgerFile(offline.root),
        RecoveryFolder(workspace.recovery_root),
        offline,
        workspace.online,
        files,
        lambda declared: workspace.of(declared).pipeline,
        lambda: time.time_ns() // 1000,
    )
    applied = files.read()
    is_read_alike = applied is not None and applied.declared.contracts == workspace.declared.contracts
    is_same = is_read_alike and before is not None and before.source.declaration == workspace.source.declaration
    known = {} if before is None else {plan.view.name: plan for plan in before.pipeline.plans}
    plans = [plan for plan in workspace.pipeline.plans if plan.view.name in known]
    same = {plan.view.name: carried(known[plan.view.name], plan) for plan in plans}
    asked = Asked(workspace.pipeline, workspace.contracts, workspace.declared, same, since_us, is_same, anew)
    settings = workspace.settings
    patience = max(settings.patience, timedelta(seconds=30)) + settings.epoch
    return change(places, asked, patience=patience)


def told(done: Done | None) -> dict[str, Any]:
    """Return what rows were made, as it is told to people and programs."""
    return {
        "made": {} if done is None else dict(done.rows_counts),
        "checked": 0 if done is None else done.checked_count,
        "heldSeconds": 0.0 if done is None else done.held.total_seconds(),
    }


def print_made(done: Mapping[str, Any]) -> None:
    """Print what rows were made."""
    for view, count in done["made"].items():
        print(f"made {count:,} rows of {view} from the archived events")
    if done["made"]:
        compared = f"{done['checked']:,} of them were compared with DuckDB's, all alike; " if done["checked"] else ""
        print(f"{compared}the flow waited {done['heldSeconds']:.1f} s")


def register(workspace: Workspace) -> None:
    """Have Feast know the views, and where their files are by now."""
    pipeline, registry = workspace.pipeline, workspace.project.registry
    config = store_config.store_config(pipeline.project, workspace.online_url, registry)
    feast.apply(config, feast.repo_objects(pipeline.project, pipeline.views, workspace.offline()))


def _drop_leftovers(workspace: Workspace, files: AppliedFile) -> None:
    """Delete online what is no longer declared, once those who read it could hear of it."""
    applied = files.read()
    if applied is None or not applied.leftovers:
        return
    gone = _gone(workspace.pipeline, [files.declared(one) for one in applied.leftovers])
    if gone:
        time.sleep(_GRACE_S)
        online = workspace.online()
        for view, features in gone:
            online.drop(view, features)
    files.write(applied.model_copy(update={"leftovers": ()}))


def write_store_config(workspace: Workspace) -> None:
    """Write feature_store.yaml, by which Feast's own tools find the registry and the stores."""
    project = workspace.project
    store_config.refuse_secret(workspace.declared_online_url)
    config = store_config.store_config(workspace.pipeline.project, workspace.declared_online_url, project.registry)
    config["registry"]["path"] = os.path.relpath(project.registry, project.feature_repo)
    store_config.write_store_config(project.feature_repo / "feature_store.yaml", config)


def _refuse_older(workspace: Workspace, applied: Applied | None) -> None:
    """Refuse a declaration that was in force before the one that is now."""
    if applied is not None and workspace.declared.id in applied.earlier:
        fact = "was in force already, and another one has followed it"
        hint = "update your copy of it; or, to go back to it, apply it with --again"
        raise Refused([Problem("declaration", workspace.declared.place, fact, workspace.declared.id, hint)])


def _refuse_unread(workspace: Workspace) -> None:
    """Refuse a contract that does not read events which its snapshots allow: old producers' would be dead letters."""
    project, problems = workspace.project, list[Problem]()
    for stream, contract in workspace.contracts.items():
        problems += [
            Problem("stream", stream, f"does not read its events: {one.fact} [{one.rule}]", one.path, one.fix)
            for one in unread(contract, project.snapshots(stream))
        ]
    if problems:
        raise Refused(problems)


def _refuse_breaking(pipeline: Pipeline, before: Mapping[str, DeclaredView]) -> None:
    """Refuse what rows of before, and those who read them, cannot follow: another entity, or another type."""
    problems = []
    for plan in pipeline.plans:
        name, now = plan.view.name, DeclaredView.of(plan)
        old = before.get(name, now)
        hint = f"declare it beside, under another name and `view: {name}_v2`; drop this one once its readers have moved"
        if dict(old.entity) != dict(now.entity):
            fact = f"would change its entity in place, from {_spelled(old.entity)}"
            problems.append(Problem("feature view", name, fact, _spelled(now.entity), hint))
        for feature, kind in now.features.items():
            if old.features.get(feature, kind) != kind:
                fact = f"would change its type in place, from {old.features[feature]}"
                problems.append(Problem("feature", feature, fact, kind, hint))
    if problems:
        raise Refused(problems)


def _spelled(entity: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in entity.items())


def _gone(pipeline: Pipeline, earlier: Iterable[Declared | None]) -> list[tuple[View, frozenset[str] | None]]:
    """Return which features are no longer declared that once were, by view as it was; None for whole views."""
    now = {view.name: {feature.name for feature in view.features} for view in pipeline.views}
    gone = []
    for declared in filter(None, earlier):
        for name, old in declared.views.items():
            known = {one: dtype(kind) for one, kind in old.features.items()}
            features = tuple(Feature(one, kind, "") for one, kind in known.items() if kind is not None)
            view = View(
                name, (), tuple(pa.field(key, pa.type_for_alias(kind)) for key, kind in old.entity.items()), features
            )
            left = frozenset(old.features) - now.get(name, set())
            if name not in now or left:
                gone.append((view, left if name in now else None))
    return gone


def generated(workspace: Workspace) -> dict[str, str]:
    """Return the files below deploy/; raises `Refused` if the user's own part of them cannot be used."""
    topics = {name: contract.stream.topic for name, contract in workspace.contracts.items()}
    own = workspace.project.root / RECEIVERS
    receivers = read_receivers(own.read_text(encoding="utf-8")) if own.exists() else None
    source, epoch = workspace.source, workspace.settings.epoch
    return deploy_files(source.declaration, workspace.pipeline, topics, epoch, receivers, workspace.deployed)


def write_files(workspace: Workspace, files: Mapping[str, str]) -> list[str]:
    """Write generated files, and once what is the user's then; returns which are new or other ones, by their paths."""
    root = workspace.project.root
    at_first = {path: text for path, text in {RECEIVERS: RECEIVERS_AT_FIRST}.items() if not (root / path).exists()}
    written = [path for path, text in {**files, **at_first}.items() if not _is_so(root / path, text)]
    for path in written:
        _write(root / path, {**files, **at_first}[path])
    return written


def _is_so(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _write(path: Path, text: str) -> None:
    """Write a file all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
