"""When a failing check is news, and when it is over: pure."""

from collections.abc import Collection, Iterable, Mapping
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


@dataclass(frozen=True, slots=True)
class _Failed:
    """In which of its last judgements a check failed, and in how many it must to be a finding."""

    needed_count: int
    last: tuple[bool, ...]

    @property
    def is_enough(self) -> bool:
        return sum(self.last) >= self.needed_count

    def and_now(self, failed: bool) -> "_Failed":  # noqa: FBT001  # the word stands beside it where it is called
        return replace(self, last=(*self.last[1:], failed))


@dataclass
class Alarms:
    """The findings that are open. One opens once its check failed in as many of its last judgements as it says.

    One is over once its check held for `quiet`, and in so many of its last judgements that it would not open. Rounds
    that could not tell count for nothing.
    """

    quiet: timedelta = QUIET
    _open: dict[str, _Open] = field(default_factory=dict)
    _failed: dict[str, _Failed] = field(default_factory=dict)

    @property
    def open(self) -> Mapping[str, Finding]:
        """The open findings, by check."""
        return {check: one.finding for check, one in self._open.items()}

    def heed(self, verdict: Verdict, at: datetime) -> tuple[Verdict, tuple[Alarm, ...]]:
        """Take a round's verdict of one view; return it with confirmed findings only, and what became news."""
        confirmed, news = list[Finding](), list[Alarm]()
        failing = {finding.check for finding in verdict.findings}
        for check in [check for check in self._failed if check not in failing and _is_told(verdict, check)]:
            self._failed[check] = self._failed[check].and_now(failed=False)
            if not any(self._failed[check].last):
                del self._failed[check]
        for finding in verdict.findings:
            never = _Failed(finding.rounds, (False,) * (finding.of_rounds or finding.rounds))
            self._failed[finding.check] = self._failed.get(finding.check, never).and_now(failed=True)
            if not self._failed[finding.check].is_enough and finding.check not in self._open:
                continue
            confirmed.append(finding)
            known = self._open.get(finding.check)
            if known is None:
                news.append(Alarm(Status.OPENED, finding, at, at))
            self._open[finding.check] = _Open(finding, known.since if known else at, at)
        news += self._over(verdict, failing, at)
        return _only(verdict, confirmed), tuple(news)

    def keep(self, checks: Collection[str], at: datetime) -> tuple[Alarm, ...]:
        """Begin anew with other checks; return what became news: of a check that is no more, the finding is over.

        Findings of others stay open until their checks have held; what did not open counts for nothing any more.
        """
        self._failed.clear()
        closed = {check: self._open.pop(check) for check in [*self._open] if check not in checks}
        return tuple(Alarm(Status.RESOLVED, one.finding, one.since, at) for one in closed.values())

    def _over(self, verdict: Verdict, failing: set[str], at: datetime) -> list[Alarm]:
        over = [
            check
            for check, one in self._open.items()
            if check not in failing
            and _is_told(verdict, check)
            and at - one.failed_at >= self.quiet
            and not (check in self._failed and self._failed[check].is_enough)
        ]
        closed = {check: self._open.pop(check) for check in over}
        return [Alarm(Status.RESOLVED, one.finding, one.since, at) for one in closed.values()]


def _is_told(verdict: Verdict, check: str) -> bool:
    """Say whether a verdict is about a check, and could tell whether it holds."""
    of_view = check.partition(".")[0] == verdict.view
    return of_view and verdict.outcome is not Outcome.VALIDATOR_ERROR and check not in verdict.untold


def _only(verdict: Verdict, findings: Iterable[Finding]) -> Verdict:
    """Return a verdict with some of its findings; without any it is what remains."""
    kept = tuple(findings)
    if len(kept) == len(verdict.findings):
        return verdict
    outcome = verdict.outcome
    if outcome is Outcome.VIOLATED and not kept:
        outcome = worst([Outcome.OK, *([Outcome.INCONCLUSIVE] if verdict.reasons else [])])
    return replace(verdict, findings=kept, outcome=outcome)
