"""Alertmanager's configuration: who is told of which alert, and which alert makes another one needless. Pure.

Receivers are the user's own, `deploy/alertmanager/receivers.yml`: everything else is the same for all projects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from freshet.schemas.errors import Problem, Refused, listed

ALERTMANAGER = "deploy/alertmanager/alertmanager.yml"
RECEIVERS = "deploy/alertmanager/receivers.yml"

SEVERITIES = ("page", "ticket")
_REPEATED_AFTER = {"page": "4h", "ticket": "3d"}

RECEIVERS_AT_FIRST = """\
# Who is told of alerts. This file is yours: `freshet apply` makes it once, and from then on takes its receivers into
# alertmanager.yml. `page` wants somebody now, `ticket` within days. As long as nothing more stands here, alerts are
# shown on Alertmanager's own page, and nobody is told. For example, with what is secret in a file of its own:
#
# - name: page
#   webhook_configs: [{url: "http://pager.example/alerts"}]
# - name: ticket
#   slack_configs: [{api_url_file: /etc/alertmanager/slack_url, channel: "#features"}]
#
# All kinds: https://prometheus.io/docs/alerting/latest/configuration/#receiver
- name: page
- name: ticket
"""


@dataclass(frozen=True)
class Inhibition:
    """While one of `sources` fires, `targets` that are equal to it in some labels are not told of: it is their cause.

    `cause` narrows the targets to findings of that cause.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    equal: tuple[str, ...] = ("project",)
    cause: str | None = None


_LATE = ("FreshetLag", "FreshetBreachNear", "FreshetFreshnessBurnsFast", "FreshetFreshnessBurnsSlowly")
_HELD_UP = ("FreshetStopped", "FreshetStalled")
_THERE = ("project", "topic")
_OLD = ("FreshetServedStale",)

INHIBITIONS = (
    Inhibition(
        ("FreshetValidatorDead",),
        (
            *("FreshetValidatorFailing", "FreshetLagUnknown", "FreshetSkew"),
            *("FreshetFreshnessBurnsFast", "FreshetFreshnessBurnsSlowly"),
        ),
    ),
    Inhibition(("FreshetLagUnknown",), ("FreshetValidatorFailing",)),
    Inhibition(
        ("FreshetMaterializerDead",),
        (
            *(*_HELD_UP, *_LATE, *_OLD, "FreshetCheckpointOld", "FreshetSilent"),
            *("FreshetLagUnknown", "FreshetValidatorFailing"),
        ),
    ),
    Inhibition(("FreshetMaterializerDead",), ("FreshetSkew",), cause="stale_online"),
    Inhibition(_HELD_UP, (*_LATE, *_OLD), _THERE),
    Inhibition(_HELD_UP, ("FreshetCheckpointOld",)),
    Inhibition((*_HELD_UP, "FreshetLag"), ("FreshetSkew",), _THERE, cause="stale_online"),
    Inhibition(("FreshetLag",), ("FreshetBreachNear", *_LATE[2:], *_OLD), _THERE),
    Inhibition(("FreshetFreshnessBurnsFast",), ("FreshetFreshnessBurnsSlowly",), ("project", "feature_view")),
    Inhibition(("FreshetRejectLimitNear",), ("FreshetRejects",), _THERE),
    Inhibition(("FreshetServerDead",), ("FreshetServerErrors", "FreshetOnlineLatency", *_OLD)),
    Inhibition(("FreshetServerErrors",), ("FreshetOnlineLatency",)),
)
"""From cause to consequence; no alert silences itself, and none is silenced by what does not page.

A Kafka or Redis that is away ends the materializer after FRESHET_PATIENCE, and its last line names it: that the
validator fails for the same reason is nothing new then. `FreshetLagUnknown` does not silence `FreshetServedStale`: it
fires, too, where only the validator is away, and then the server alone tells that values are old.
"""

_SAME = ("project", "alertname", "topic", "partition", "stream", "reason", "feature_view", "cause", "endpoint")
"""What a page and a ticket have in common if they are of one alert about one thing."""


def read_receivers(text: str, file: str = RECEIVERS) -> list[dict[str, Any]]:
    """Read the user's receivers; raises `Refused` where they are not a list that has `page` and `ticket`.

    >>> read_receivers("[{name: page}]")
    Traceback (most recent call last):
    freshet.schemas.errors.Refused: deploy/alertmanager/receivers.yml: receiver "ticket" is missing; got page. Hint: \
add `- name: ticket`
    """
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        hint = "check the indentation and quotes there"
        raise Refused([Problem("file", file, "is not YAML", " ".join(str(error).split()), hint)]) from error
    if not isinstance(found, list) or not all(isinstance(one, Mapping) and "name" in one for one in found):
        raise Refused([Problem("file", file, "is no list of receivers", hint="write `- name: page`, `- name: ticket`")])
    names = [str(one["name"]) for one in found]
    missing = [name for name in SEVERITIES if name not in names]
    if missing:
        raise Refused(
            [Problem("receiver", name, "is missing", listed(names), f"add `- name: {name}`", file) for name in missing]
        )
    return found


def alertmanager_file(receivers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of alertmanager.yml."""
    return {
        "route": {
            "receiver": "page",  # an alert of another severity is somebody's, and had better be seen
            "group_by": ["project", "alertname", "topic"],
            "group_wait": "30s",  # a cause, and what it silences, fire within seconds of each other
            "group_interval": "5m",
            "repeat_interval": _REPEATED_AFTER["page"],
            "routes": [
                {"receiver": name, "matchers": [f'severity="{name}"'], "repeat_interval": _REPEATED_AFTER[name]}
                for name in SEVERITIES
            ],
        },
        "inhibit_rules": [
            *map(_rule, INHIBITIONS),
            {
                "source_matchers": ['severity="page"'],
                "target_matchers": ['severity="ticket"'],
                "equal": [*_SAME],
            },
        ],
        "receivers": [dict(one) for one in receivers],
    }


def _rule(one: Inhibition) -> dict[str, Any]:
    targets = [f'alertname=~"{"|".join(one.targets)}"', *([f'cause="{one.cause}"'] if one.cause else [])]
    return {
        "source_matchers": [f'alertname=~"{"|".join(one.sources)}"', 'severity="page"'],
        "target_matchers": targets,
        "equal": [*one.equal],
    }
