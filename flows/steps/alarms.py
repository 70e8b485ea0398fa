"""When a failing check is news, and when it is over: pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from freshet.schemas.finding import Alarm, Finding, Outcome, Status, Verdict, worst

QUIET = timedelta(seconds=60)
"""How long a check must have held before its finding is over: a rare fault is not seen in every sample."""


@dataclass(frozen=True, slots=True)
class _Open:
    finding: Finding
    since: datetime
    failed_at: datetime


@dataclass
class Alarms:
    """The findings that are open. One opens once its check failed in as many rounds in a row as it says.

    One is over once its check held for `quiet`, in rounds that could tell.
    """

    quiet: timedelta = QUIET
    _open: dict[str, _Open] = field(default_factory=dict)
    _failing: dict[str, int] = field(default_factory=dict)

    @property
    def open(self) -> Mapping[str, Finding]:
        """The open findings, by check."""
        return {check: one.finding for check, one in self._open.items()}

    def heed(self, verdict: Verdict, at: datetime) -> tuple[Verdict, tuple[Alarm, ...]]:
        """Take a round's verdict of one view; return it with confirmed findings only, and what became news."""
        confirmed, news = list[Finding](), list[Alarm]()
        failing = {finding.check for finding in verdict.findings}
        for check in [check for check in self._failing if _is_of(verdict.view, check) and check not in failing]:
            del self._failing[check]
        for finding in verdict.findings:
            self._failing[finding.check] = self._failing.get(finding.check, 0) + 1
            if self._failing[finding.check] < finding.rounds and finding.check not in self._open:
                continue
            confirmed.append(finding)
            known = self._open.get(finding.check)
            if known is None:
                news.append(Alarm(Status.OPENED, finding, at, at))
            self._open[finding.check] = _Open(finding, known.since if known else at, at)
        news += self._over(verdict, failing, at)
        return _only(verdict, confirmed), tuple(news)

    def _over(self, verdict: Verdict, failing: Iterable[str], at: datetime) -> list[Alarm]:
        if verdict.outcome is Outcome.VALIDATOR_ERROR:
            return []  # it could not tell
        held = [check for check in self._open if _is_of(verdict.view, check) and check not in set(failing)]
        over = [check for check in held if at - self._open[check].failed_at >= self.quiet]
        closed = {check: self._open.pop(check) for check in over}
        return [Alarm(Status.RESOLVED, one.finding, one.since, at) for one in closed.values()]


def _is_of(view_name: str, check: str) -> bool:
    return check.partition(".")[0] == view_name


def _only(verdict: Verdict, findings: Iterable[Finding]) -> Verdict:
    """Return a verdict with some of its findings; without any it is what remains."""
    kept = tuple(findings)
    if len(kept) == len(verdict.findings):
        return verdict
    outcome = verdict.outcome
    if outcome is Outcome.VIOLATED and not kept:
        outcome = worst([Outcome.OK, *([Outcome.INCONCLUSIVE] if verdict.reasons else [])])
    return replace(verdict, findings=kept, outcome=outcome)
