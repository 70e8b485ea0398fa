"""The declared SQL over the archived events, beside what a real run of the flow on twins has stored.

What is wrong in both stores alike, only this leg sees.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from simulated import GIVEN, STREAM, World

from freshet.flows.edges.quality import Judge
from freshet.flows.materializer import archive_name
from freshet.flows.observer import Observer, Outside, Sampling
from freshet.flows.recompute import Budget
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import Freshness, Progress
from freshet.flows.validator import check_once
from freshet.schemas.finding import Cause, Frame, Outcome, Question, Verdict
from freshet.schemas.ledger import source_key
from freshet.schemas.units import Objective

(VIEW,) = GIVEN.pipeline.views
AFTER = timedelta(minutes=10)
"""How long after the events the validator looks."""
TARGET, GRACE = Objective(99, timedelta(seconds=5)), timedelta(seconds=3)
CHECKS = [check.name for check in checks_of(VIEW, TARGET) if check.frame is Frame.RECOMPUTED]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def ran(seed: int = 3, **options: Any) -> World:
    world = World(seed, **{"events_count": 120, "is_live": False, **options})
    world.run()
    world.check_done()
    return world


def observer(world: World, **options: Any) -> Observer:
    ends = world.log.offsets("g").end_offsets

    return Observer(
        GIVEN.pipeline,
        Outside(
            world.online,
            world.offline,
            world.ledger,
            lambda: {source_key(STREAM, part): end for part, end in ends(STREAM, world.partitions_count).items()},
            lambda: {(STREAM, part): Progress(end, end) for part, end in ends(STREAM, world.partitions_count).items()},
            lambda: datetime.fromtimestamp(world.now_us / 1e6, UTC) + AFTER,
        ),
        Sampling(grace=GRACE, limit=timedelta(seconds=20), **options),
        Freshness(TARGET),
    )


def check(world: World, judge: Any, **options: Any) -> Verdict:
    def wait(length: timedelta) -> None:
        world.now_us += int(length.total_seconds() * 1e6)

    (verdict,) = check_once(observer(world, **options), judge, TARGET, wait, grace=GRACE)
    return verdict


class Counting:
    """A judge that notes how many lines of each frame it is given, and may lack one check."""

    def __init__(self, judge: Judge, lacks: str = "") -> None:
        self._judge, self._lacks = judge, lacks
        self.lines: dict[Frame, int] = {}

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        self.lines |= {question.frame: len(question.lines) for question in questions}
        kept = [[check for check in question.checks if check.name != self._lacks] for question in questions]
        return self._judge.judge([replace(one, checks=checks) for one, checks in zip(questions, kept, strict=True)])


def change(world: World, folder: str, alter: Callable[[pa.Table], pa.Table]) -> None:
    """Change every part of a folder."""
    visible = world.offline._visible[folder]  # noqa: SLF001  # what stands outside of the flow
    for part in list(visible):
        visible[part] = alter(visible[part])


def both_alike(feature: str, value: Any) -> Callable[[World], None]:
    """Store another value of a feature in both stores."""

    def plant(world: World) -> None:
        def alter(table: pa.Table) -> pa.Table:
            place = table.schema.get_field_index(feature)
            column = pa.array([value] * table.num_rows, table.schema.field(place).type)
            return table.set_column(place, table.schema.field(place), column)

        change(world, VIEW.name, alter)
        world.online.forget()
        world.online.writes_count = 0
        world.online.write(VIEW, world.offline.newest(VIEW))
        ledger = world.ledger.read()
        assert ledger is not None
        world.online.catch_up(ledger.online_writes_count)

    return plant


def doubled_events(world: World) -> None:
    """An event counts twice: as if the archive held one that the rows have not seen."""
    name = archive_name(STREAM)
    visible = world.offline._visible[name]  # noqa: SLF001
    ledger = world.ledger.read()
    assert ledger is not None
    before = ledger.rows_counts[name]
    change(world, name, lambda table: pa.concat_tables([table, table]))
    counts = {**ledger.rows_counts, name: sum(table.num_rows for table in visible.values())}
    assert counts[name] == 2 * before
    world.ledger.write(ledger.model_copy(update={"rows_counts": counts}))


def fewer_events(keep: Callable[[int], bool]) -> Callable[[World], None]:
    """Events are gone from the archive, and the ledger does not say so."""

    def plant(world: World) -> None:
        name = archive_name(STREAM)

        def alter(table: pa.Table) -> pa.Table:
            return table.filter(pa.array([keep(offset) for offset in table["_offset"].to_pylist()], pa.bool_()))

        change(world, name, alter)
        ledger = world.ledger.read()
        assert ledger is not None
        left = sum(table.num_rows for table in world.offline._visible[name].values())  # noqa: SLF001
        world.ledger.write(ledger.model_copy(update={"rows_counts": {**ledger.rows_counts, name: left}}))

    return plant


FAULTS: dict[str, tuple[Callable[[World], None], str, Cause]] = {
    "an integer that is wrong in both stores": (
        both_alike("clicks_1m", 77), "clicks_1m.offline_equals_sql", Cause.VALUE_MISMATCH
    ),
    "a sum that is wrong in both stores": (
        both_alike("cost_10s", None), "cost_10s.offline_equals_sql", Cause.VALUE_MISMATCH
    ),
    "a text that is wrong in both stores": (
        both_alike("first_cost", "none"), "first_cost.offline_equals_sql", Cause.VALUE_MISMATCH
    ),
    "rows that no event made": (fewer_events(lambda _: False), "sql_gives_the_row", Cause.VALUE_MISMATCH),
    "rows that count fewer events than there are": (
        doubled_events, "no_correction_is_lost", Cause.LOST_OFFLINE_WRITE
    ),
    "events that rows count and the archive lacks": (
        fewer_events(lambda offset: offset % 5 > 0), "no_event_is_lost", Cause.PARTIAL_BATCH
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_of_what_the_flow_made_sql_says_the_same(judge: Judge, seed: int) -> None:
    counting = Counting(judge)

    verdict = check(ran(seed, is_live=seed % 2 == 0, shards_count=seed % 3 + 1), counting)

    assert (verdict.outcome, verdict.findings, verdict.reasons) == (Outcome.OK, (), ())
    assert counting.lines[Frame.RECOMPUTED] > 0


@pytest.mark.parametrize("fault", FAULTS)
def test_what_both_stores_have_wrong_alike_is_found_with_its_cause(judge: Judge, fault: str) -> None:
    plant, name, cause = FAULTS[fault]
    world = ran()
    plant(world)

    verdict = check(world, judge)

    assert (f"{VIEW.name}.{name}", cause) in {(finding.check, finding.cause) for finding in verdict.findings}
    assert all(finding.evidence for finding in verdict.findings)


@pytest.mark.parametrize("name", CHECKS)
def test_without_any_one_check_something_goes_unseen(judge: Judge, name: str) -> None:
    (plant,) = (plant for plant, check, _ in FAULTS.values() if f"{VIEW.name}.{check}" == name)
    world = ran()
    plant(world)

    verdict = check(world, Counting(judge, name))

    assert name not in {finding.check for finding in verdict.findings}


def test_an_archive_that_is_not_whole_is_not_recomputed_from(judge: Judge) -> None:
    world, counting = ran(), Counting(judge)
    change(world, archive_name(STREAM), lambda table: table.slice(1))

    check(world, counting)

    assert Frame.RECOMPUTED not in counting.lines


def test_what_the_archive_no_longer_reaches_is_not_recomputed(judge: Judge) -> None:
    world, counting = ran(), Counting(judge)
    ledger = world.ledger.read()
    assert ledger is not None
    world.ledger.write(ledger.model_copy(update={"expired": {STREAM: 1}}))

    check(world, counting)

    assert Frame.RECOMPUTED not in counting.lines


def test_a_round_recomputes_no_more_than_its_budget(judge: Judge) -> None:
    world, counting = ran(), Counting(judge)

    check(world, counting, budget=Budget(rows_count=1))
    assert counting.lines[Frame.RECOMPUTED] == 1

    counting = Counting(judge)
    check(world, counting, budget=Budget(parts_count=0))
    assert Frame.RECOMPUTED not in counting.lines
