"""What all dashboards of one declaration share: what it promises, whose metrics they are, and the colours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from freshet.flows.steps.alerts.about import QUIET_AFTER, consumer_group
from freshet.flows.steps.alerts.streams import REJECT_LIMIT_SHARE
from freshet.flows.steps.alerts.topics import BREACH_AHEAD, RETENTION_AHEAD
from freshet.flows.steps.dashboards.panels import Section, Thresholds, dashboard
from freshet.flows.steps.freshness import BURN_RULES
from freshet.schemas.declaration import Declaration
from freshet.schemas.units import Objective, Volume, spell
from freshet.schemas.view import View

FAR_S = 7 * 86400
"""Longer times are all the same to somebody who looks: infinite ones, too."""
NOT_IN_SIGHT = {FAR_S: "not in sight"}
NOT_AT_THIS_RATE = {FAR_S: "not at this rate"}
NEAR = ((float("-inf"), "red"), (BREACH_AHEAD.total_seconds(), "green"))
RETENTION_NEAR = ((float("-inf"), "red"), (RETENTION_AHEAD.total_seconds(), "orange"), (86400.0, "green"))
DRAINS = ((60.0, "orange"), (float(FAR_S), "red"))
ANY = ((1.0, "red"),)
QUIET = ((QUIET_AFTER.total_seconds() / 2, "orange"), (QUIET_AFTER.total_seconds(), "red"))
"""Alerts, too, begin to be about these times at these limits."""
REJECTS_NEAR = ((REJECT_LIMIT_SHARE / 5, "orange"), (REJECT_LIMIT_SHARE, "red"))
BURN_COLOURS = (
    (min(rule.factor for rule in BURN_RULES), "orange"),
    (min(rule.factor for rule in BURN_RULES if rule.severity == "page"), "red"),
)
RATE = "[$__rate_interval]"


@dataclass(frozen=True)
class Shown:
    """A declaration, as its dashboards see it.

    `topics` has the topic of each stream, `epoch` is how often offsets are committed.
    """

    declaration: Declaration
    views: Sequence[View]
    topics: Mapping[str, str]
    epoch: timedelta

    @property
    def target(self) -> Objective:
        """The declared freshness."""
        return self.declaration.servingRequirements.freshnessTarget

    @property
    def bound(self) -> str:
        """When a row is late."""
        return spell(self.target.bound)

    @property
    def percentile(self) -> str:
        """Which of the times between event and row is held against the bound."""
        return f"{self.target.percentile:g}th percentile"

    @property
    def volume(self) -> Volume:
        """The declared offlineVolume."""
        return self.declaration.servingRequirements.offlineVolume

    @property
    def late(self) -> Thresholds:
        """Colours of the time from an event to its row, against the freshness target."""
        bound_s = self.target.bound.total_seconds()
        return (bound_s / 2, "orange"), (bound_s, "red")

    @property
    def bound_line(self) -> Thresholds:
        """The freshness target as a line in a graph."""
        return self.late[1:]

    @property
    def lags(self) -> Thresholds:
        """Colours of how long an event has waited: its row is online at once, but known to be only an epoch later."""
        bound_s = self.target.bound.total_seconds()
        return (bound_s, "orange"), (bound_s + self.epoch.total_seconds(), "red")

    @property
    def lag_line(self) -> Thresholds:
        """The longest that an event may wait as a line in a graph."""
        return self.lags[1:]

    @property
    def lag_limit(self) -> str:
        """The longest that an event may wait, in words."""
        return f"the declared {self.bound} and an epoch, {spell(self.target.bound + self.epoch)}"

    @property
    def group(self) -> str:
        """The label by which lag is this project's."""
        return f'consumergroup="{consumer_group(self.declaration.project)}"'

    @property
    def firing(self) -> str:
        """The alerts of this project that fire."""
        return f'ALERTS{{alertstate="firing",project="{self.declaration.project}"}}'

    def quantile(self, matchers: str, labels: str, range_: str) -> str:
        """Return the expression of the freshness that is held against the target, by labels; none of no rows."""
        share = f"{self.target.percentile / 100:.12g}"
        rate = f"rate(freshet_freshness_seconds_bucket{matchers}{range_})"
        return f"histogram_quantile({share}, sum by ({labels}, le) ({rate})) >= 0"

    def topics_of(self, view: View) -> str:
        """Return the label by which lag is of the topics that feed a view."""
        topics = [self.topics[source].replace(".", r"\\.") for source in view.sources]
        return f'topic=~"{"|".join(topics)}"'

    def dashboard(
        self, uid_: str, title: str, description: str, tag: str, sections: Sequence[Section]
    ) -> dict[str, Any]:
        """Return a dashboard of this project."""
        tags = [self.declaration.project, tag]
        return dashboard(uid_, f"Freshet: {title}", description, tags, sections, self.firing)
