"""Alerts about what is served of a view: too late too often, or wrong."""

from collections.abc import Iterator, Mapping
from datetime import timedelta

from freshet.flows.steps.alerts.about import About
from freshet.flows.steps.alerts.rule import Alert, Case
from freshet.flows.steps.freshness import BURN_RULES, CHECKS_MIN, BurnRule
from freshet.flows.steps.monitoring import dashboard_uid
from freshet.schemas import units
from freshet.schemas.finding import Cause
from freshet.schemas.view import View

SMALL_CAUSES = (Cause.EXPIRED_TTL, Cause.CLOCK_SKEW, Cause.SCHEMA_DRIFT)
"""Findings that can wait until tomorrow: what is served is right, or will be by itself."""
SKEW_KEPT = "5m"
"""One finding is one page: as long as the validator may be away, or a check hold between two failures of one cause."""


def of_view(about: About, view: View, place: Mapping[str, str]) -> list[Alert]:
    """Return the alerts about what is served of a view."""
    of_view = f'feature_view="{view.name}"'
    made = [*_burns(about, view, place)]
    small = "|".join(SMALL_CAUSES)

    def finding(cause: Cause, values: str, *also: str, at: str = "4m") -> Case:
        found = {f'freshet_validator_findings{{{of_view},cause="{cause}"}}': values}
        return Case(found, at, {"feature_view": view.name, "cause": cause.value}, "2", also=also)

    for severity, sign, own, other in (
        ("page", "!~", Cause.VALUE_MISMATCH, finding(Cause.CLOCK_SKEW, "2x20", "ticket")),
        ("ticket", "=~", Cause.EXPIRED_TTL, finding(Cause.VALUE_MISMATCH, "2x20", "page")),
    ):
        made.append(
            Alert(
                "FreshetSkew",
                f'max by (feature_view, cause) (freshet_validator_findings{{{of_view},cause{sign}"{small}"}}) > 0',
                "1m",
                severity,
                about.project,
                f"{view.name}: {{{{ $labels.cause }}}}, {{{{ $value }}}} of the validator's checks do not hold",
                "The validator has looked twice and has evidence: `freshet check` shows the rows of a look now, the"
                " newest page of its Data Docs those of the finding. stale_online after an outage is over by itself"
                " within minutes. The runbook says by cause what to do.",
                (view,),
                (finding(own, "0x2 2x20"), finding(own, "2x8 0x3 2x10"), finding(own, "2x8 stale _x20")),
                (finding(own, "0x20"), finding(own, "2x3 0x20"), other, finding(own, "2x8 0x40", at="9m")),
                place,
                "freshet-validation",
                SKEW_KEPT,
            )
        )
    return made


def _burns(about: About, view: View, place: Mapping[str, str]) -> Iterator[Alert]:
    """Yield the alerts about the budget of late looks. A rule that would take more than all of them is left out."""
    budget = 1 - about.objective.percentile / 100
    checked, stale = (f'freshet_freshness_{name}_total{{feature_view="{view.name}"}}' for name in ("checked", "stale"))

    def share(window: timedelta) -> str:
        counts = (f"sum by (feature_view) (rate({name}[{units.spell(window)}]))" for name in (stale, checked))
        return " / ".join(counts)

    def burns(rule: BurnRule) -> str:
        limit = f"> {rule.factor * budget:.6g}"
        enough = f"sum by (feature_view) (increase({checked}[{units.spell(rule.long)}])) >= {CHECKS_MIN}"
        return f"({share(rule.long)} {limit} and {share(rule.short)} {limit} and {enough})"

    def looks(stale_count: int) -> dict[str, str]:
        return {checked: "0+1000000x280", stale: f"0+{stale_count}x280"}

    def case(stale_share: float) -> Case:
        stale_count = round(stale_share * 1e6)
        return Case(looks(stale_count), "10m", {"feature_view": view.name}, f"{stale_count / 1e4:.4g}%")

    for name, severity, meaning in (
        ("FreshetFreshnessBurnsFast", "page", "At this pace a month's allowance of late looks is gone within days."),
        ("FreshetFreshnessBurnsSlowly", "ticket", "It goes on for long: at the month's end the target was not kept."),
    ):
        rules = [rule for rule in BURN_RULES if rule.severity == severity and rule.factor * budget < 1]
        if not rules:
            continue
        limits = [rule.factor * budget for rule in rules]
        over = {checked: "0+1000000x280", stale: f"0+{round(1e6 * (1 + max(limits)) / 2)}x80"}
        over[stale] += f" {80 * round(1e6 * (1 + max(limits)) / 2)}x200"
        yield Alert(
            name,
            " or ".join(map(burns, rules)),
            "1m",
            severity,
            about.project,
            f"{view.name}: {{{{ $value | humanizePercentage }}}} of the looks found messages late; {about.objective} is"
            " declared",
            f"{meaning} A look is late if a message had waited for longer than {about.declared}. `freshet status` says"
            " how it stands now.",
            (view,),
            (case((1 + max(limits)) / 2), *([case((1 + min(limits)) / 2)] if len(limits) > 1 else [])),
            (
                case(min(limits) / 2),
                Case({checked: "0+1x40", stale: "0+1x40"}, "10m"),  # of forty looks nothing is said
                *([Case(over, "70m")] if severity == "page" else []),  # it is over
            ),
            place,
            dashboard_uid("view", view.name),
        )
