"""From a compiled declaration to the deployment: what `plan` prints, `apply` makes, and the code evaluates."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from freshet.flows.steps import estimates
from freshet.flows.steps.alerts import RULES, alerts_of, consumer_group
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.dashboards import dashboard_path, dashboards
from freshet.flows.steps.monitoring import USUAL, Deployed
from freshet.schemas import units
from freshet.schemas.declaration import Declaration
from freshet.schemas.deployment import (
    Deployment,
    FeatureStoreConfig,
    FeatureViewConfig,
    MonitoringConfig,
    ServingSetup,
)
from freshet.schemas.event import Contract
from freshet.schemas.finding import FINDINGS_TOPIC
from freshet.schemas.plan import Pipeline, ViewPlan
from freshet.schemas.rejects import dead_letter_topic


def deployment(
    declaration: Declaration,
    pipeline: Pipeline,
    contracts: Mapping[str, Contract],
    store: Mapping[str, Any],
    online_endpoint: str,
    epoch: timedelta,
    deployed: Deployed = USUAL,
) -> Deployment:
    """Return the deployment. `store` is the content of feature_store.yaml; `online_endpoint` holds no credentials.

    `epoch` is how often offsets are committed.
    """
    serving = declaration.servingRequirements
    topics = {name: contract.stream.topic for name, contract in contracts.items()}
    offline = {"type": store["offline_store"]["type"], "path": declaration.infrastructure.offlineStore}
    return Deployment(
        featureStoreConfig=FeatureStoreConfig(
            provider=store["provider"],
            onlineStore={"type": store["online_store"]["type"], "url": online_endpoint},
            offlineStore=offline,
            registry={"type": store["registry"]["registry_type"], "path": ".freshet/registry.db"},
        ),
        featureViews=[_view(plan, declaration) for plan in pipeline.plans],
        servingSetup=ServingSetup(
            onlineEndpoint=online_endpoint,
            materializationSchedule=(
                f"push on every batch of events; parquet parts and commits every {units.spell(epoch)}"
            ),
            latencyMetrics={
                "freshet_freshness_seconds": {
                    "objective": str(serving.freshnessTarget),
                    "labels": ["feature_view", "kind"],
                },
                "freshet_lag_seconds": {
                    "objective": str(serving.freshnessTarget),
                    "labels": ["consumergroup", "topic", "partition"],
                },
                "freshet_request_duration_seconds": {
                    "objective": str(serving.onlineLatency),
                    "labels": ["endpoint"],
                },
            },
        ),
        monitoringConfig=MonitoringConfig(
            freshnessAlerts=[
                {
                    "name": alert.name,
                    "severity": alert.severity,
                    "expr": alert.expr,
                    "for": alert.hold,
                    "features": [feature.name for view in alert.views for feature in view.features],
                    "file": RULES,
                    "runbook": alert.runbook,
                }
                for alert in alerts_of(declaration, pipeline, topics, epoch, deployed)
            ],
            consistencyChecks=[
                {"name": check.name, "view": plan.view.name, "checks": check.description, "severity": check.severity}
                for plan in pipeline.plans
                for check in checks_of(plan.view, serving.freshnessTarget)
            ],
            findingsTopic=FINDINGS_TOPIC,
            dashboards=[
                {"name": made["title"], "uid": made["uid"], "file": dashboard_path(made["uid"])}
                for made in dashboards(declaration, pipeline.views, topics, epoch)
            ],
        ),
        topics=[
            {
                "name": contract.stream.topic,
                "partitions": contract.stream.partitions,
                "stream": name,
                "consumerGroup": consumer_group(declaration.project),
                "deadLetterTopic": dead_letter_topic(contract.stream.topic),
            }
            for name, contract in contracts.items()
        ],
    )


def _view(plan: ViewPlan, declaration: Declaration) -> FeatureViewConfig:
    view = plan.view
    return FeatureViewConfig(
        name=view.name,
        features=[{"name": feature.name, "dtype": feature.dtype.name} for feature in view.features],
        entities=[{"name": column.name, "dtype": str(column.type)} for column in view.entity],
        ttl=units.spell(view.ttl),
        source=", ".join(view.sources),
        offlinePath=f"{declaration.infrastructure.offlineStore}/{view.name}",
        state={
            "reach": estimates.reach_words(plan),
            "windows": [estimates.words(frame) for frame in plan.frames],
            "rowsPerEvent": estimates.rows_per_event(plan),
            "bytesPerEvent": estimates.element_bytes(plan),
            "parquetBytesPerRow": estimates.row_bytes(plan),
            "redisBytesPerEntity": estimates.redis_bytes(plan),
        },
    )
