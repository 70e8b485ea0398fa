"""Make the deployment: topics, Feast registry, store folders, deploy/ files. Doing it again changes nothing."""

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freshet.flows.edges import feast, kafka, store_config
from freshet.flows.live import Workspace, prepare
from freshet.flows.settings import Settings
from freshet.flows.steps.alertmanager import RECEIVERS, RECEIVERS_AT_FIRST, read_receivers
from freshet.flows.steps.deploy_files import deploy_files
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.scripts.plan import applied_deployment, changes, planned_deployment


def arguments(words: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    words.add_argument("--json", action="store_true", help="print what was done as JSON")


def act(words: argparse.Namespace, settings: Settings) -> int:
    """Apply, and say what was done."""
    done = apply(Workspace.open(settings))
    if words.json:
        print(json.dumps(done, indent=2))
        return 0
    for topic, state in done["topics"].items():
        print(f"topic {topic}: {state}")
    for line in done["changes"] or ["no change"]:
        print(line)
    print(f"registry {done['registry']}")
    for path in done["files"]:
        print(f"wrote {path}")
    return 0


def apply(workspace: Workspace) -> dict[str, Any]:
    """Make everything that the declaration implies; what can be refused is refused before anything is made."""
    planned = planned_deployment(workspace).model_dump(mode="json")
    before = applied_deployment(workspace)
    _refuse_breaking(planned, before or {})
    store_config.refuse_secret(workspace.declared_online_url)
    files = generated(workspace)
    if not workspace.online_url.startswith("sqlite:"):
        workspace.online()  # a store that does not answer ends it here, before anything is made
    kafka.create_topics(workspace.kafka, {})  # nor if Kafka does not answer
    prepare(workspace.offline(), workspace.pipeline, workspace.contracts)
    wanted = {**kafka.topics_of(workspace.contracts.values()), FINDINGS_TOPIC: 1}
    topics = kafka.create_topics(workspace.kafka, wanted)
    project, pipeline = workspace.project, workspace.pipeline
    config = store_config.store_config(pipeline.project, workspace.online_url, project.registry)
    feast.apply(config, feast.repo_objects(pipeline.project, pipeline.views, workspace.offline()))
    write_store_config(workspace)
    written = write_files(workspace, files)
    _write(project.root / ".freshet" / "applied.json", json.dumps(planned, indent=2))
    return {"topics": topics, "changes": changes(planned, before), "registry": str(project.registry), "files": written}


def write_store_config(workspace: Workspace) -> None:
    """Write feature_store.yaml, by which Feast's own tools find the registry and the stores."""
    project = workspace.project
    store_config.refuse_secret(workspace.declared_online_url)
    config = store_config.store_config(workspace.pipeline.project, workspace.declared_online_url, project.registry)
    config["registry"]["path"] = os.path.relpath(project.registry, project.feature_repo)
    store_config.write_store_config(project.feature_repo / "feature_store.yaml", config)


def _refuse_breaking(planned: dict[str, Any], before: dict[str, Any]) -> None:
    """Refuse to change a view's columns in place: its old parquet parts would no longer be readable beside new ones."""
    now = {view["name"]: view for view in planned["featureViews"]}
    problems = []
    for view in before.get("featureViews", []):
        name = view["name"]
        if name not in now:
            continue
        for part, what in (("entities", "its entity"), ("features", "its features or their types")):
            if view[part] != now[name][part]:
                hint = f"give the definitions `view: {name}_v2`: a new view beside the old one, which stays readable"
                problems.append(Problem("feature view", name, f"would change {what} in place", "", hint))
    if problems:
        raise Refused(problems)


def generated(workspace: Workspace) -> dict[str, str]:
    """Return the files below deploy/; raises `Refused` if the user's own part of them cannot be used."""
    topics = {name: contract.stream.topic for name, contract in workspace.contracts.items()}
    own = workspace.project.root / RECEIVERS
    receivers = read_receivers(own.read_text(encoding="utf-8")) if own.exists() else None
    source, epoch = workspace.source, workspace.settings.epoch
    return deploy_files(source.declaration, workspace.pipeline, topics, epoch, receivers)


def write_files(workspace: Workspace, files: Mapping[str, str]) -> list[str]:
    """Write generated files, and once what is the user's then; returns what was written, seen from the project."""
    root = workspace.project.root
    at_first = {path: text for path, text in {RECEIVERS: RECEIVERS_AT_FIRST}.items() if not (root / path).exists()}
    for path, text in {**files, **at_first}.items():
        _write(root / path, text)
    return [*files, *at_first]


def _write(path: Path, text: str) -> None:
    """Write a file all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
