"""The Grafana dashboards that a declaration implies.

They answer what an operator asks, in this order: is it behind, how long until that matters, which features does it
touch, what is to be done. A panel's description says what its numbers mean, and which command goes on from there.

- `panels` is Grafana's own form: panels, and their places;
- `shown` is what all dashboards of one declaration share;
- `overview`, `feature_view`, `lag`, `validation` and `serving` are one kind of dashboard each.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from freshet.flows.steps.dashboards.feature_view import feature_view
from freshet.flows.steps.dashboards.lag import lag
from freshet.flows.steps.dashboards.overview import overview
from freshet.flows.steps.dashboards.serving import serving
from freshet.flows.steps.dashboards.shown import Shown
from freshet.flows.steps.dashboards.validation import validation
from freshet.schemas.declaration import Declaration
from freshet.schemas.view import View

__all__ = ["DASHBOARDS", "dashboard_files", "dashboard_path", "dashboards"]

DASHBOARDS = "deploy/grafana/dashboards"


def dashboards(
    declaration: Declaration, views: Sequence[View], topics: Mapping[str, str], epoch: timedelta
) -> list[dict[str, Any]]:
    """Return every dashboard, the overview first.

    `topics` has the topic of each stream, `epoch` is how often offsets are committed.
    """
    shown = Shown(declaration, views, topics, epoch)
    of_views = [feature_view(shown, view) for view in views]
    return [overview(shown), *of_views, lag(shown), validation(shown), serving(shown)]


def dashboard_files(
    declaration: Declaration, views: Sequence[View], topics: Mapping[str, str], epoch: timedelta
) -> dict[str, str]:
    """Return the dashboards as JSON files: their paths, seen from the project, and their texts."""
    return {
        dashboard_path(made["uid"]): json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        for made in dashboards(declaration, views, topics, epoch)
    }


def dashboard_path(uid: str) -> str:
    """Return the file of a dashboard, seen from the project."""
    return f"{DASHBOARDS}/{uid}.json"
