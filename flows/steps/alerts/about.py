"""What the alerts' expressions need to know of a project."""

from dataclasses import dataclass
from datetime import timedelta

from freshet.schemas import units
from freshet.schemas.declaration import Declaration
from freshet.schemas.plan import Pipeline
from freshet.schemas.view import View

QUIET_AFTER = timedelta(minutes=1)
"""How long a process, or what it does, may be missing."""


def consumer_group(project: str) -> str:
    """Return the Kafka group under which the materializer's progress is known."""
    return f"freshet-{project}-materializer"


@dataclass(frozen=True)
class About:
    """A project, as alerts speak of it. `epoch` is how often offsets are committed.

    `objective` is the freshness that is declared, `latency` that of the server's answers.
    """

    project: str
    views: tuple[View, ...]
    objective: units.Objective
    latency: units.Objective
    epoch: timedelta
    volume: units.Volume

    @classmethod
    def of(cls, declaration: Declaration, pipeline: Pipeline, epoch: timedelta) -> "About":
        """Take it from the declaration."""
        serving = declaration.servingRequirements
        return cls(
            declaration.project,
            pipeline.views,
            serving.freshnessTarget,
            serving.onlineLatency,
            epoch,
            serving.offlineVolume,
        )

    @property
    def group(self) -> str:
        """The materializer's consumer group."""
        return consumer_group(self.project)

    @property
    def late_s(self) -> float:
        """From what age on a message is late: rows are online before their offsets are committed."""
        return (self.objective.bound + self.epoch).total_seconds()

    @property
    def declared(self) -> str:
        """The freshness target's bound, in words."""
        return units.spell(self.objective.bound)

    @property
    def any_view(self) -> str:
        """The matcher of series about this project's views: metrics do not name the project."""
        return f'feature_view=~"{"|".join(view.name for view in self.views)}"'

    @property
    def served(self) -> str:
        """The series by which a server is known to be this project's."""
        return f"freshet_served_values_total{{{self.any_view}}}"

    @property
    def one_view(self) -> str:
        """Some view of the project, for tests."""
        return self.views[0].name
