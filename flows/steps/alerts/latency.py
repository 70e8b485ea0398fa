"""Alerts about the declared onlineLatency: how many of the server's answers come late, or are none."""

from collections.abc import Iterator

from freshet.flows.steps.alerts.about import About
from freshet.flows.steps.alerts.rule import Alert, Case
from freshet.flows.steps.alerts.serving import DASHBOARD
from freshet.flows.steps.freshness import BURN_RULES, BurnRule
from freshet.schemas import units

READ = "get-online-features"
"""The endpoint for which it is declared."""
REQUESTS_MIN = 60
"""How many requests a long window must have before it says something."""

_ALL = 10**6
_STEPS = 280
"""A case has so many requests in each step, and so many steps."""


def of_latency(about: About) -> Iterator[Alert]:
    """Yield the alerts about the budget of late answers. A rule that would take more than all of them is left out."""
    budget = 1 - about.latency.percentile / 100
    rules = [rule for rule in BURN_RULES if rule.factor * budget < 1]
    limits = sorted([*(rule.factor * budget for rule in rules), 1.0])
    for severity, meaning in (
        ("page", "At this pace a month's allowance of late answers is gone within days."),
        ("ticket", "It goes on for long: at the month's end the declared latency was not kept."),
    ):
        own = [rule for rule in rules if rule.severity == severity]
        if not own:
            continue
        places = [limits.index(rule.factor * budget) for rule in own]
        also = ("ticket",) if severity == "page" else ()
        yield Alert(
            "FreshetOnlineLatency",
            " or ".join(_burns(about, rule, budget) for rule in own),
            "1m",
            severity,
            about.project,
            "{{ $value | humanizePercentage }} of the requests for features were answered late, or not;"
            f" {about.latency} is declared",
            f"{meaning} Late is what took the server longer than {units.spell(about.latency.bound)}; 5xx is no answer."
            " The dashboard says which of both it is.",
            about.views,
            tuple(_case(about, (limits[place] + limits[place + 1]) / 2, *also) for place in places),
            (
                _case(about, limits[min(places)] / 2, *also),
                Case(_series(about, 1, 1), "10m"),  # of forty requests nothing is said
                Case({**_series(about, 0), **_series(about, _ALL, instance="k", view="of_another_project")}, "10m"),
                *([_over(about, (limits[max(places)] + 1) / 2)] if severity == "page" else []),
            ),
            dashboard=DASHBOARD,
        )


def late_share(about: About, range_: str) -> str:
    """Return the expression of the share of requests that were not answered in time.

    A client's own mistakes, 4xx, count neither way. Only good answers have a duration, so its bucket is all that is
    well.
    """
    return f"1 - {_ours(about, f'rate({_in_time(about)}[{range_}])')} / {_ours(about, f'rate({_COUNTED}[{range_}])')}"


_COUNTED = f'freshet_requests_total{{endpoint="{READ}",status!="4xx"}}'


def _in_time(about: About) -> str:
    return f'freshet_request_duration_seconds_bucket{{endpoint="{READ}",le="{le(about.latency)}"}}'


def _ours(about: About, expr: str) -> str:
    return f"sum({expr} and on (job, instance) {about.served})"


def _burns(about: About, rule: BurnRule, budget: float) -> str:
    limit = f"> {rule.factor * budget:.6g}"
    long, short = units.spell(rule.long), units.spell(rule.short)
    enough = _ours(about, f"increase({_COUNTED}[{long}])")
    return f"({late_share(about, long)} {limit} and {late_share(about, short)} {limit} and {enough} >= {REQUESTS_MIN})"


def _series(
    about: About, late_count: int, all_count: int = _ALL, instance: str = "i", view: str = "", late_steps: int = _STEPS
) -> dict[str, str]:
    """Return what a server counts, with so many late answers a step: half of them errors, and many 4xx beside them."""
    place = f'job="j",instance="{instance}"'
    failed = late_count // 2

    def counter(while_late: int, then: int) -> str:
        at_first = f"0+{while_late}x{late_steps}"
        left = _STEPS - late_steps - 1
        return f"{at_first} {while_late * late_steps + then}+{then}x{left}" if left > 0 else at_first

    counts = {"2xx": (all_count - failed, all_count), "4xx": (3 * all_count,) * 2, "5xx": (failed, 0)}
    requests = {
        f'freshet_requests_total{{endpoint="{READ}",status="{status}",{place}}}': counter(*count)
        for status, count in counts.items()
    }
    return {
        f"{_in_time(about).removesuffix('}')},{place}}}": counter(all_count - late_count, all_count),
        **requests,
        f'freshet_served_values_total{{feature_view="{view or about.one_view}",status="present",{place}}}': (
            f"0x{_STEPS}"
        ),
    }


def _case(about: About, share: float, *also: str) -> Case:
    late_count = round(share * _ALL)
    return Case(_series(about, late_count), "10m", {}, f"{late_count / _ALL * 100:.4g}%", also=also)


def _over(about: About, share: float) -> Case:
    """Return a case in which answers were late for twenty minutes, fifty minutes ago: what is rare is told of still."""
    late_count, late_steps = round(share * _ALL), 80
    whole = late_count * late_steps / (_ALL * _STEPS)
    series = _series(about, late_count, late_steps=late_steps)
    return Case(series, "70m", {}, f"{whole * 100:.4g}%", also=("ticket",))


def le(objective: units.Objective) -> str:
    """Return the label of the bucket of an objective's bound, as Prometheus' client for Python writes it.

    >>> [le(units.objective(text)) for text in ("10ms", "p99 < 1700us", "1s", "30 days")]
    ['0.01', '0.0017', '1.0', '2.592e+06']
    """
    bound_s = repr(objective.bound.total_seconds())
    whole, _, rest = bound_s.partition(".")
    if len(whole) <= 6:
        return bound_s
    return f"{whole[0]}.{whole[1:]}{rest}".rstrip("0.") + f"e+{len(whole) - 1:02}"
