"""What a round found, as HTML for people: pure. Every value is text, whatever it holds."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from freshet.schemas.finding import Alarm, Finding, Verdict


def summary(verdict: Verdict, news: Sequence[Alarm], at: str) -> str:
    """Return a view's verdict, its news and its findings with their evidence, to stand above what the judge says.

    >>> from freshet.schemas.finding import Outcome
    >>> print(summary(Verdict("by_user", Outcome.INCONCLUSIVE, 0, reasons=("a < b",)), (), "2026-03-01"))
    <p>2026-03-01: <b>inconclusive</b>, 0 rows compared</p>
    <p>a &lt; b</p>
    <h2>What Great Expectations said last</h2>
    """
    lines = [f"<p>{escape(at)}: <b>{verdict.outcome}</b>, {verdict.compared} rows compared</p>"]
    lines += [f"<p>{escape(reason)}</p>" for reason in verdict.reasons]
    lines += [f"<p><b>{alarm.status}</b> {escape(alarm.finding.message)}</p>" for alarm in news]
    lines += [_finding(finding) for finding in verdict.findings]
    return "\n".join([*lines, "<h2>What Great Expectations said last</h2>"])


def _finding(finding: Finding) -> str:
    head = f"<h2>{finding.cause} ({escape(finding.severity)})</h2>\n<p>{escape(finding.message)}</p>"
    return f"{head}\n{_table(finding.evidence)}" if finding.evidence else head


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for line in lines for name in line))
    body = [_cells("td", ("null" if line.get(name) is None else line[name] for name in columns)) for line in lines]
    return "\n".join(["<table>", _cells("th", columns), *body, "</table>"])


def _cells(tag: str, values: Iterable[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(str(value))}</{tag}>" for value in values) + "</tr>"
