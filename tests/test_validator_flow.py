"""The validator's dataflow on twins: rounds one after the other, what is news, and that no failure of a look ends it."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from freshet.flows import settings
from freshet.flows.courier import Courier
from freshet.flows.edges import bytewax
from freshet.flows.edges.data_docs import DataDocs
from freshet.flows.edges.kafka_memory import MemoryLog
from freshet.flows.edges.metrics import ValidatorMetrics
from freshet.flows.edges.quality import Judge
from freshet.flows.live_validator import Connecting, LiveReporter
from freshet.flows.observer import Seen
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.frames import joined
from freshet.flows.steps.freshness import Reading
from freshet.flows.steps.watch import PART, Found, Judgeable, OfflineRow, Ticket
from freshet.flows.validator import Edges, Looker, Round, Rounds, build
from freshet.flows.workspace import Workspace
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import FreshetError, Problem, Refused, Unavailable
from freshet.schemas.finding import FINDINGS_TOPIC, Cause, Frame, Outcome, Status
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START, EVERY = datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(seconds=5)
LIMIT = timedelta(seconds=30)
TARGET = Objective(99, timedelta(seconds=5))
VIEW = View("by_user", ("edits",), (pa.field("user", pa.string()),), (Feature("edits", DTYPES["int64"], "…"),))


def seen(online: object, offline: object, at: datetime) -> Seen:
    """One entity, compared."""
    row = StoredRow(("<ann>",), START, 3, {"edits": online})
    ticket = Ticket(("<ann>",), None, None, row, START, row)
    found = OfflineRow({"edits": offline, PART: "part-1.parquet", "_partition": 4, "_offset": 77}, 1)
    return Seen(VIEW, at, {Frame.ROWS: joined(VIEW, [Judgeable(ticket, Found.FOUND, found)])})


RIGHT: Callable[[datetime], Seen] = lambda at: seen(6, 6, at)  # noqa: E731  # one of a row of looks
WRONG: Callable[[datetime], Seen] = lambda at: seen(7, 6, at)  # noqa: E731
AWAY: Callable[[datetime], Seen] = lambda at: Seen(VIEW, at, error="kafka is away")  # noqa: E731


def unjudgeable(at: datetime) -> Seen:
    """A frame without a column that a check is about: Great Expectations raises."""
    return Seen(VIEW, at, {Frame.ROWS: seen(6, 6, at).frames[Frame.ROWS].drop(columns="off_edits")})


@dataclass
class Script:
    """What each round sees; the flow is stopped after the last one. A round takes two of five seconds."""

    looks: Sequence[Callable[[datetime], Seen]]
    stop: bytewax.Stop
    at: datetime = START
    rounds: list[Round] = field(default_factory=list)
    took: list[timedelta] = field(default_factory=list)

    def now(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at

    def look(self, number: int, *, choose: bool = True) -> list[Seen]:
        assert choose
        assert number == len(self.rounds) + 1, "a round began before the one before it had ended"
        return [self.looks[number - 1](self.at)]

    def report(self, told: Round, took: timedelta) -> None:
        self.rounds.append(told)
        self.took.append(took)
        if len(self.rounds) == len(self.looks):
            self.stop.request()


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def rounds_of(judge: Judge, *looks: Callable[[datetime], Seen], quiet: timedelta = EVERY) -> Script:
    stop = bytewax.Stop()
    script = Script(looks, stop)
    edges = Edges(script, judge, Alarms(quiet), Rounds(EVERY, script.now), script, TARGET, stop)
    bytewax.run(build("test", edges), edges.failure, epoch=timedelta(seconds=1))
    return script


def outcomes(script: Script) -> list[Outcome]:
    return [verdict.outcome for told in script.rounds for verdict in told.verdicts]


def test_rounds_follow_one_another_and_each_says_how_long_it_took(judge: Judge) -> None:
    script = rounds_of(judge, RIGHT, RIGHT, RIGHT)

    assert [1, 2, 3] == [told.number for told in script.rounds]
    assert [Outcome.OK] * 3 == outcomes(script)
    times = [told.at for told in script.rounds]
    assert all(after - before >= EVERY for before, after in itertools.pairwise(times))
    assert script.took == [timedelta(seconds=1)] * 3


def test_a_finding_opens_once_and_is_resolved_after_it_was_quiet(judge: Judge) -> None:
    script = rounds_of(judge, RIGHT, WRONG, WRONG, RIGHT, RIGHT, RIGHT)

    assert [[], [Status.OPENED], [], [Status.RESOLVED], [], []] == [
        [alarm.status for alarm in told.news] for told in script.rounds
    ]
    assert [0, 1, 1, 0, 0, 0] == [len(told.open) for told in script.rounds]
    (opened,) = script.rounds[1].news
    assert (Cause.VALUE_MISMATCH, ("edits",)) == (opened.finding.cause, opened.finding.features)


@pytest.mark.parametrize("failing", [AWAY, unjudgeable], ids=["away", "unjudgeable"])
def test_what_cannot_be_looked_at_or_judged_is_an_error_of_that_round_alone(
    judge: Judge, failing: Callable[[datetime], Seen]
) -> None:
    script = rounds_of(judge, RIGHT, failing, failing, RIGHT)

    assert [Outcome.OK, Outcome.VALIDATOR_ERROR, Outcome.VALIDATOR_ERROR, Outcome.OK] == outcomes(script)
    assert all(verdict.reasons for told in script.rounds[1:3] for verdict in told.verdicts)
    assert [] == [alarm for told in script.rounds for alarm in told.news]


def test_an_outage_resolves_nothing(judge: Judge) -> None:
    script = rounds_of(judge, WRONG, AWAY, AWAY, AWAY)

    assert [1, 1, 1, 1] == [len(told.open) for told in script.rounds]


def test_a_judge_that_raises_what_nobody_thought_of_is_the_validator_s_error(
    judge: Judge,
) -> None:
    class Sore:
        def __hash__(self) -> int:
            raise ZeroDivisionError("deep inside")

    (verdict,) = rounds_of(judge, lambda at: seen(Sore(), 6, at)).rounds[0].verdicts

    assert Outcome.VALIDATOR_ERROR is verdict.outcome
    assert "ZeroDivisionError: deep inside" in verdict.reasons[0]


def test_a_clock_that_is_set_back_holds_up_no_round() -> None:
    times = iter([START, START + EVERY, START - timedelta(hours=1), START])
    rounds = Rounds(EVERY, lambda: next(times))

    assert rounds.poll() == 1
    assert rounds.end() == EVERY
    assert rounds.poll() == 2


def test_no_round_begins_while_one_lasts() -> None:
    times = iter([START + EVERY * number for number in range(9)])
    rounds = Rounds(EVERY, lambda: next(times))

    assert [1, None, None] == [rounds.poll(), rounds.poll(), rounds.poll()]
    rounds.end()
    assert rounds.poll() == 2


# --- connecting -------------------------------------------------------------------------------------------------------


class Answering:
    """An observer that sees what is right."""

    def look(self, number: int, *, choose: bool = True) -> list[Seen]:
        del number, choose
        return [RIGHT(START)]


def connecting(*answers: FreshetError | None) -> Connecting:
    """What can be connected to after so many attempts that fail so."""
    left = iter(answers)

    def connect() -> Looker:
        error = next(left)
        if error is not None:
            raise error
        return Answering()

    return Connecting([VIEW], connect, lambda: START)


def errors(observer: Connecting, rounds: Iterable[int]) -> list[str]:
    return [one.error for number in rounds for one in observer.look(number)]


def test_a_system_that_does_not_answer_at_the_start_is_waited_for_in_rounds() -> None:
    away = Unavailable("kafka is away")
    observer = connecting(away, away, away, None)

    observer.begin()

    assert ["kafka is away", "kafka is away", "", ""] == errors(observer, range(1, 5))


def test_what_waiting_does_not_mend_is_refused_at_the_start() -> None:
    with pytest.raises(Refused):
        connecting(Refused([Problem("topic", "edits", "is not there")])).begin()


def test_what_is_refused_later_is_an_error_of_the_round() -> None:
    refused = Refused([Problem("topic", "edits", "is not there")])
    observer = connecting(Unavailable("kafka is away"), refused, None)
    observer.begin()

    assert ['topic "edits" is not there', ""] == errors(observer, (1, 2))


def test_the_webhook_s_secret_is_the_environment_s_and_is_not_printed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = settings.read({"FRESHET_PROJECT": str(project), "FRESHET_WEBHOOK": "https://hooks.example/${HOOK_SECRET}"})
    workspace = Workspace.open(read)
    with pytest.raises(Refused, match=r"FRESHET_WEBHOOK.*HOOK_SECRET"):
        _ = workspace.webhook
    monkeypatch.setenv("HOOK_SECRET", "s3cret")

    assert workspace.webhook == "https://hooks.example/s3cret"
    assert "hooks.example" not in repr(workspace.settings)


# --- reports ----------------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """A reporter on twins, and what hears of it."""

    judge: Judge
    folder: Path
    docs_every: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        self.cluster = MemoryLog()
        self.cluster.create_topics({FINDINGS_TOPIC: 1})
        self.metrics = ValidatorMetrics([VIEW], {VIEW.name: checks_of(VIEW, TARGET)}, ["topic"])
        self.courier = Courier("topic", self.cluster.findings("shop"))
        docs = DataDocs(self.folder)
        self.reporter = LiveReporter("shop", self.metrics, [self.courier], docs, self.judge.page, self.docs_every)

    def after(self, *looks: Callable[[datetime], Seen]) -> "Told":
        stop = bytewax.Stop()
        script = Script(looks, stop)
        edges = Edges(script, self.judge, Alarms(EVERY), Rounds(EVERY, script.now), script, TARGET, stop)
        bytewax.run(build("test", edges), edges.failure, epoch=timedelta(seconds=1))
        for told, took in zip(script.rounds, script.took, strict=True):
            self.reporter.report(told, took)
        self.reporter.close()
        return self

    @property
    def pages(self) -> list[str]:
        return [page.read_text() for page in sorted((self.folder / VIEW.name).glob("*.html"))]

    @property
    def records_count(self) -> int:
        return sum(len(poll.values) for poll in self.cluster.records(FINDINGS_TOPIC))


def test_news_reaches_topic_metrics_and_pages(judge: Judge, tmp_path: Path) -> None:
    told = Told(judge, tmp_path).after(RIGHT, WRONG, WRONG, RIGHT, RIGHT)

    assert told.records_count == 2
    assert told.reporter.trouble == ""
    labels = {"feature_view": "by_user", "feature": "edits"}
    assert told.metrics.value("freshet_skew_compared_total", **labels) == 5
    assert told.metrics.value("freshet_skew_confirmed_total", **labels, cause="value_mismatch") == 2
    first, opened, resolved = told.pages
    assert "<b>ok</b>" in first
    assert "&lt;ann&gt;" in opened
    assert "<ann>" not in opened
    assert "<td>7</td><td>6</td>" in opened
    assert "<b>resolved</b>" in resolved


def test_how_fresh_a_view_is_reaches_metrics_and_a_round_that_saw_nothing_of_it_changes_nothing(
    judge: Judge, tmp_path: Path
) -> None:
    def late(at: datetime) -> Seen:
        return replace(RIGHT(at), freshness=Reading(8, 2, {"5m": 3.0}))

    told = Told(judge, tmp_path).after(late, AWAY)

    assert told.metrics.value("freshet_freshness_checked_total", feature_view="by_user") == 8
    assert told.metrics.value("freshet_freshness_stale_total", feature_view="by_user") == 2
    assert told.metrics.value("freshet_freshness_burn_rate", feature_view="by_user", window="5m") == 3.0


def test_pages_are_written_when_something_is_new_and_now_and_then(judge: Judge, tmp_path: Path) -> None:
    seldom, often = Told(judge, tmp_path / "a"), Told(judge, tmp_path / "b", docs_every=timedelta(seconds=1))

    assert 1 == len(seldom.after(RIGHT, RIGHT, RIGHT).pages)
    assert 3 == len(often.after(RIGHT, RIGHT, RIGHT).pages)


def test_pages_that_cannot_be_written_stop_nothing_and_are_counted(judge: Judge, tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a file")

    told = Told(judge, tmp_path / "docs").after(WRONG)

    assert told.records_count == 1
    assert told.metrics.value("freshet_data_docs_failures_total") == 1


def test_the_health_is_the_newest_round_s(judge: Judge, tmp_path: Path) -> None:
    assert "no round" in Told(judge, tmp_path).reporter.trouble
    assert "by_user: kafka is away" == Told(judge, tmp_path).after(RIGHT, AWAY).reporter.trouble
    assert Told(judge, tmp_path).after(AWAY, RIGHT).reporter.trouble == ""
    assert Told(judge, tmp_path).after(WRONG).reporter.trouble == ""
