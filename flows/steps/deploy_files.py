"""The files below `deploy/` that a declaration implies, as text: pure. `freshet apply` writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

import yaml

from freshet.flows.steps.alertmanager import ALERTMANAGER, RECEIVERS_AT_FIRST, alertmanager_file, read_receivers
from freshet.flows.steps.alerts import RULES, RULES_TEST, alerts_of, consumer_group, rules_file, rules_test
from freshet.flows.steps.dashboards import dashboard_files
from freshet.flows.steps.monitoring import PROMETHEUS_CONFIG, USUAL, Deployed, prometheus_config, provisioning
from freshet.flows.steps.runbooks import runbook_files
from freshet.schemas import units
from freshet.schemas.declaration import Declaration
from freshet.schemas.plan import Pipeline

_HEAD = "# Made by `freshet apply` from the declaration; changes here are lost.\n"


def deploy_files(
    declaration: Declaration,
    pipeline: Pipeline,
    topics: Mapping[str, str],
    epoch: timedelta,
    receivers: Sequence[Mapping[str, Any]] | None = None,
    deployed: Deployed = USUAL,
) -> dict[str, str]:
    """Return every generated file: its path, seen from the project, and its text.

    `topics` has the topic of each stream, `epoch` is how often offsets are committed, `receivers` are the user's own.
    """
    return {
        **alerting_files(
            declaration, pipeline, topics, epoch, receivers or read_receivers(RECEIVERS_AT_FIRST), deployed
        ),
        **monitoring_files(deployed),
        **dashboard_files(declaration, pipeline.views, topics, epoch),
    }


def alerting_files(
    declaration: Declaration,
    pipeline: Pipeline,
    topics: Mapping[str, str],
    epoch: timedelta,
    receivers: Sequence[Mapping[str, Any]],
    deployed: Deployed = USUAL,
) -> dict[str, str]:
    """Return the alert rules, promtool's test of them, Alertmanager's configuration and the runbooks.

    There are runbooks of all alerts, also of those that are left out, since others lead to them.
    """
    alerts = alerts_of(declaration, pipeline, topics, epoch, deployed)
    documented = alerts_of(declaration, pipeline, topics, epoch, replace(deployed, has_validator=True))
    serving = declaration.servingRequirements
    facts = {
        "group": consumer_group(declaration.project),
        "topics": ", ".join(topics.values()),
        "topic": next(iter(topics.values())) if len(topics) == 1 else "TOPIC",
        "declared": units.spell(serving.freshnessTarget.bound),
        "objective": str(serving.freshnessTarget),
        "latency": units.spell(serving.onlineLatency.bound),
        "latency_objective": str(serving.onlineLatency),
        "volume": str(serving.offlineVolume),
    }
    return {
        RULES: yaml_file(rules_file(alerts, declaration.project)),
        RULES_TEST: yaml_file(rules_test(alerts)),
        ALERTMANAGER: yaml_file(alertmanager_file(receivers)),
        **runbook_files(documented, facts),
    }


def monitoring_files(deployed: Deployed = USUAL) -> dict[str, str]:
    """Return what Prometheus and Grafana read when they start."""
    content = {PROMETHEUS_CONFIG: prometheus_config(PurePosixPath(RULES).name, deployed), **provisioning()}
    return {path: yaml_file(said) for path, said in content.items()}


def yaml_file(content: Mapping[str, Any]) -> str:
    """Write a generated YAML file, its keys in the order given."""
    return _HEAD + yaml.safe_dump(content, sort_keys=False, width=120)
