"""A judge that lacks a check: what only that check sees must then go unseen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from freshet.flows.validator import Judge
from freshet.schemas.finding import Outcome, Question, Verdict


@dataclass(frozen=True)
class Forgetful:
    """A judge whose suites lack one check."""

    whole: Judge
    lacks: str

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        kept = [replace(one, checks=[check for check in one.checks if check.name != self.lacks]) for one in questions]
        told = iter(self.whole.judge([one for one in kept if one.checks]))
        return [next(told) if one.checks else Verdict(one.view, Outcome.OK, 0) for one in kept]
