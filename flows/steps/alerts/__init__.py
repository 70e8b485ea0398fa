"""The alerts that a declaration implies: Prometheus' rules, and promtool's tests of them, from one table. Pure.

An alert names what it is about by its labels, and whom it concerns by its annotations: the feature views, their
features, and the runbook that says what to do. `page` wants somebody now, `ticket` within days.

- `rule` is what an alert is, and how it is written for Prometheus and for promtool;
- `topics`, `streams`, `views`, `processes`, `serving` and `latency` are the table, by what an alert is about.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from freshet.flows.steps.alerts.about import About, consumer_group
from freshet.flows.steps.alerts.latency import of_latency
from freshet.flows.steps.alerts.processes import of_project
from freshet.flows.steps.alerts.rule import Alert, rules_file, rules_test
from freshet.flows.steps.alerts.serving import of_served, of_server
from freshet.flows.steps.alerts.streams import of_stream
from freshet.flows.steps.alerts.topics import of_topic
from freshet.flows.steps.alerts.views import SMALL_CAUSES, of_view
from freshet.flows.steps.monitoring import USUAL, Deployed
from freshet.schemas.declaration import Declaration
from freshet.schemas.plan import Pipeline

__all__ = ["RULES", "RULES_TEST", "SMALL_CAUSES", "Alert", "alerts_of", "consumer_group", "rules_file", "rules_test"]

RULES = "deploy/prometheus/rules.yml"
RULES_TEST = "deploy/prometheus/rules_test.yml"
OF_VALIDATOR = frozenset(
    {
        *("FreshetValidatorDead", "FreshetValidatorFailing", "FreshetSkew"),
        *("FreshetFreshnessBurnsFast", "FreshetFreshnessBurnsSlowly"),
    }
)
"""What is told by a validator, or of it."""


def alerts_of(
    declaration: Declaration,
    pipeline: Pipeline,
    topics: Mapping[str, str],
    epoch: timedelta,
    deployed: Deployed = USUAL,
) -> tuple[Alert, ...]:
    """Return every alert. `topics` has the topic of each stream, `epoch` is how often offsets are committed."""
    about = About.of(declaration, pipeline, epoch)
    made: list[Alert] = []
    for stream, topic in topics.items():
        fed = tuple(plan.view for plan in pipeline.of_source(stream))
        made += of_topic(about, topic, fed)
        made += of_stream(about, stream, topic, fed)
    for view in pipeline.views:
        sources = [topics[source] for source in view.sources if source in topics]
        # an alert about a topic silences those about views that have no other
        place = {"feature_view": view.name, **({"topic": sources[0]} if len(sources) == 1 else {})}
        made += of_view(about, view, place)
        made += of_served(about, view, place)
    made += (*of_project(about), *of_server(about), *of_latency(about))
    there = [alert for alert in made if deployed.has_validator or alert.name not in OF_VALIDATOR]
    return tuple(replace(alert, deployed=deployed) for alert in there)
