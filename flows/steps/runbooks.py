"""A runbook for every alert, as Markdown, with what its project is called and has in it. Pure."""

from collections.abc import Mapping, Sequence

from freshet.flows.steps.alerts import SMALL_CAUSES, Alert
from freshet.flows.steps.runbook_texts import CAUSES, PARTS, TEXTS

_HEAD = "<!-- Made by `freshet apply` from the declaration; changes here are lost. -->"


def runbook_files(alerts: Sequence[Alert], facts: Mapping[str, str]) -> dict[str, str]:
    """Return the runbook of every alert: its path, seen from the project, and its text.

    `facts` has `group`, `declared`, `objective`, `latency`, `latency_objective`, `volume`, `topics`, and `topic`, the
    only one or the word for any.
    """
    by_name: dict[str, list[Alert]] = {}
    for alert in alerts:
        by_name.setdefault(alert.name, []).append(alert)
    return {same[0].runbook: _page(same, facts) for same in by_name.values()}


def _page(same: Sequence[Alert], facts: Mapping[str, str]) -> str:
    views = {view.name: view for alert in same for view in alert.views}
    concerned = [f"| {view.name} | {', '.join(one.name for one in view.features)} |" for view in views.values()]
    made = {
        "concerned": "\n".join(["| feature view | features |", "| --- | --- |", *concerned]),
        "causes": "\n".join(f"- **{cause}**: {text}" for cause, text in CAUSES.items()),
        "small_causes": ", ".join(SMALL_CAUSES),
    }
    text = TEXTS[same[0].name]
    for name, value in {**PARTS, **made, **facts}.items():  # parts first: facts stand in them
        text = text.replace(f"{{{name}}}", value)
    severities = " or ".join(dict.fromkeys(alert.severity for alert in same))
    return f"{_HEAD}\n# {same[0].name}\n\nSeverity: {severities}. Project: {same[0].project}.\n\n{text}"
