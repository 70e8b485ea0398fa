"""The deployment: what `freshet plan` prints and `freshet apply` makes.

Keys are spelled as the user's schema spells them. Every entry names something that `apply` makes or that the code
evaluates; an empty list is honest, a constant is not.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureStoreConfig(_Section):
    """Feast's configuration, without credentials."""

    provider: str
    onlineStore: dict[str, Any]
    offlineStore: dict[str, Any]
    registry: dict[str, Any]


class FeatureViewConfig(_Section):
    """One feature view: features as {name, dtype}, entities as {name, dtype}."""

    name: str
    features: list[dict[str, str]]
    entities: list[dict[str, str]]
    ttl: str
    source: str
    offlinePath: str
    state: dict[str, Any]


class ServingSetup(_Section):
    """Where features are read, when they are made, and how fast and fresh they are promised to be."""

    onlineEndpoint: str
    materializationSchedule: str
    latencyMetrics: dict[str, Any]


class MonitoringConfig(_Section):
    """What is watched: alert rules in `deploy/`, the validator's checks and its topic of findings, dashboards."""

    freshnessAlerts: list[dict[str, Any]]
    consistencyChecks: list[dict[str, Any]]
    findingsTopic: str
    dashboards: list[dict[str, Any]]


class Deployment(_Section):
    """Everything that a declaration becomes."""

    featureStoreConfig: FeatureStoreConfig
    featureViews: list[FeatureViewConfig]
    servingSetup: ServingSetup
    monitoringConfig: MonitoringConfig
    topics: list[dict[str, Any]]
