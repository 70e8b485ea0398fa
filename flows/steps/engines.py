"""The steps that compute with SQL, of a whole pipeline: one DuckDB for all of them, since that serves one thread."""

from collections.abc import Mapping

from freshet.flows.steps.intake import Intake
from freshet.flows.steps.sql import Finisher, engine
from freshet.schemas.event import Contract
from freshet.schemas.plan import Pipeline


class Engines:
    """What one thread computes with: the first step of each stream's topic, and the last of each view."""

    def __init__(self, pipeline: Pipeline, contracts: Mapping[str, Contract]) -> None:
        database = engine()
        self.intakes = {
            made.stream.topic: Intake(made, pipeline.of_source(name), database) for name, made in contracts.items()
        }
        self.finishers = {plan.view.name: Finisher(plan, database) for plan in pipeline.plans}
