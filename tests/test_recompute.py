"""The archived events: as many as were accepted; and the declared SQL over them, beside what a real run has stored.

What is wrong in both stores alike, only this sees.
"""

import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from forgetful import Forgetful
from simulated import DECLARED, GIVEN, START, STREAM, WINDOW, Click, Crash, Fates, World

from freshet.flows.archives import Budget, indexes_of
from freshet.flows.edges.parquet import MemoryOfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.observer import Observer
from freshet.flows.recompute import Recompute
from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.freshness import Freshness, Progress
from freshet.flows.steps.shards import hashes
from freshet.flows.testing import Given
from freshet.flows.validator import check_once
from freshet.flows.watch import Outside, Sampling
from freshet.schemas.errors import Unavailable
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, archive_name
from freshet.schemas.finding import Cause, Frame, Outcome, Question, Verdict
from freshet.schemas.ledger import Ledger, source_key
from freshet.schemas.units import Objective

SOAK = int(os.environ.get("FRESHET_SOAK", "1"))
(VIEW,) = GIVEN.pipeline.views
AFTER = timedelta(minutes=10)
"""How long after the events the validator looks."""
LATELY = "INTERVAL '10 minutes' PRECEDING"
FEATURES = {
    "in_hours.clicks_10m": f"count(*) OVER {WINDOW.format('10 minutes')}",
    "in_hours.cost_1h": f"sum(CAST(cost AS BIGINT)) OVER {WINDOW.format('1 hour')}",
    "until_lately.clicks": f"count(*) OVER {WINDOW.format('1 hour').replace('CURRENT ROW', LATELY)}",
    "in_a_day.clicks_24h": f"count(*) OVER {WINDOW.format('24 hours')}",
    "newest.clicks_1h": f"count(*) OVER {WINDOW.format('1 hour')}",
    "newest.cost": "CAST(cost AS BIGINT)",
}
"""Features of views whose rows time alone makes for long, by view and name."""
DECAYING = Given.declared(
    json.dumps(
        DECLARED
        | {
            "featureDefinitions": [
                {"view": view, "name": f"{view}_{name}", "dtype": "int64", "source": STREAM, "transformation": sql}
                for (view, name), sql in ((key.split("."), sql) for key, sql in FEATURES.items())
            ]
        }
    ),
    {STREAM: Click},
)
BOUNDED = Given.declared(
    json.dumps(
        DECLARED
        | {"featureDefinitions": [one for one in DECLARED["featureDefinitions"] if "INTERVAL" in one["transformation"]]}
    ),
    {STREAM: Click},
)
"""The features that look back no further than a minute."""
TARGET, GRACE = Objective(99, timedelta(seconds=5)), timedelta(seconds=3)
CHECKS = [check.name for check in checks_of(VIEW, TARGET) if check.frame in {Frame.RECOMPUTED, Frame.ARCHIVE}]


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
        world.given.pipeline,
        Outside(
            world.online,
            world.offline,
            world.ledger,
            lambda: {source_key(STREAM, part): end for part, end in ends(STREAM, world.partitions_count).items()},
            lambda: {
                (STREAM, part): Progress(world.committed().get(part), end)
                for part, end in ends(STREAM, world.partitions_count).items()
            },
            lambda: datetime.fromtimestamp(world.now_us / 1e6, UTC) + AFTER,
        ),
        Sampling(grace=GRACE, limit=timedelta(seconds=20), **options),
        Freshness(TARGET),
    )


def look(world: World, judge: Any, **options: Any) -> tuple[Verdict, ...]:
    def wait(length: timedelta) -> None:
        world.now_us += int(length.total_seconds() * 1e6)

    return check_once(observer(world, **options), judge, TARGET, wait, grace=GRACE)


def check(world: World, judge: Any, **options: Any) -> Verdict:
    (verdict,) = look(world, judge, **options)
    return verdict


def newest_event(world: World) -> datetime:
    return max(world.offline.read(archive_name(STREAM))[EVENT_TIME].to_pylist())


class Holding:
    """A judge that holds all for right, and notes the lines of recomputed rows."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[Any, Any]]] = []

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        for question in questions:
            if question.frame is Frame.RECOMPUTED:
                self.lines += [(question.view, line) for line in question.lines.to_dict("records")]
        return [Verdict(question.view, Outcome.OK, len(question.lines)) for question in questions]

    @property
    def differing(self) -> list[tuple[str, dict[Any, Any]]]:
        return [one for one in self.lines if one[1]["same_version"] is None]


class Counting:
    """A judge that notes how many lines of each frame it is given."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.lines: dict[Frame, int] = {}

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        self.lines |= {question.frame: len(question.lines) for question in questions}
        return self._judge.judge(questions)


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
    """Every event stands twice in the archive."""
    change(world, archive_name(STREAM), lambda table: pa.concat_tables([table, table]))


def fewer_events(keep: Callable[[int], bool]) -> Callable[[World], None]:
    """Events are gone from the archive."""

    def alter(table: pa.Table) -> pa.Table:
        return table.filter(pa.array([keep(offset) for offset in table["_offset"].to_pylist()], pa.bool_()))

    return lambda world: change(world, archive_name(STREAM), alter)


def told(plant: Callable[[World], None]) -> Callable[[World], None]:
    """Have the ledger say that the archive is as it is then: only the rows can show that it is not."""

    def planted(world: World) -> None:
        plant(world)
        name, ledger = archive_name(STREAM), world.ledger.read()
        assert ledger is not None
        events = pa.concat_tables(world.offline._visible[name].values())  # noqa: SLF001
        accepted = Counter(events["_partition"].to_pylist())
        partitions = {
            source_key(STREAM, number): mark.model_copy(update={"accepted_count": accepted[number]})
            for number, mark in ledger.partitions_of(STREAM).items()
        }
        counts = {**ledger.rows_counts, name: events.num_rows}
        world.ledger.write(ledger.model_copy(update={"rows_counts": counts, "partitions": partitions}))

    return planted


def offsets_ahead(world: World) -> None:
    """Kafka has offsets as committed that the ledger does not have."""
    ledger = world.ledger.read()
    assert ledger is not None
    offsets = {key: offset - 1 for key, offset in ledger.offsets.items()}
    world.ledger.write(ledger.model_copy(update={"offsets": offsets}))


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
    "rows that no event made": (told(fewer_events(lambda _: False)), "sql_gives_the_row", Cause.VALUE_MISMATCH),
    "rows that count fewer events than there are": (
        told(doubled_events), "no_correction_is_lost", Cause.LOST_OFFLINE_WRITE
    ),
    "events that rows count and the archive lacks": (
        told(fewer_events(lambda offset: offset % 5 > 0)), "no_event_is_lost", Cause.PARTIAL_BATCH
    ),
    "accepted events that the archive lacks": (
        fewer_events(lambda offset: offset != 7), "accepted_events_are_archived", Cause.PARTIAL_BATCH
    ),
    "archived events that stand twice": (
        doubled_events, "archived_events_are_the_flow_s", Cause.DUPLICATE_OFFLINE
    ),
    "offsets that Kafka has before the stores": (
        offsets_ahead, "committed_offsets_are_durable", Cause.LOST_OFFLINE_WRITE
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_of_what_the_flow_made_sql_says_the_same(judge: Judge, seed: int) -> None:
    counting = Counting(judge)

    verdict = check(ran(seed, is_live=seed % 2 == 0, shards_count=seed % 3 + 1), counting)

    assert (verdict.outcome, verdict.findings, verdict.reasons) == (Outcome.OK, (), ())
    assert counting.lines[Frame.RECOMPUTED] > 0


@pytest.mark.parametrize("view", ["in_hours", "until_lately"])
def test_a_row_that_time_alone_made_is_recomputed_from_the_event_that_its_frame_has_lost(view: str) -> None:
    world, holding = ran(4, given=DECAYING, events_count=16), Holding()
    world.now_us += 70 * 60 * 10**6  # longer than the frame, ticks and all
    world.is_live = True
    world.run()
    world.check_done()

    look(world, holding)

    lines = [line for of, line in holding.lines if of == view]
    assert {line["entity"] for line in lines} == {"a", "b", "c"}
    reach = timedelta(hours=1)
    assert all(datetime.fromisoformat(line[EVENT_TIME]) - reach > newest_event(world) for line in lines), "all is left"
    assert [(0, 0)] * 3 == [(line["version"], line["sql_version"]) for line in lines]


@pytest.mark.parametrize("seed", range(4 * SOAK))
def test_whatever_pauses_and_crashes_there_are_sql_gives_the_rows(seed: int) -> None:
    """Events stop for up to an hour and a half, in a process that goes on, or is started again."""
    chance = random.Random(seed)
    pauses = tuple(timedelta(minutes=chance.choice([10, 20, 40, 60, 61, 90])) for _ in range(chance.randint(1, 3)))
    fates = {
        chance.randint(1, 400): chance.choice(["fails", "dies before", "dies after"])
        for _ in range(chance.randint(0, 5))
    }
    world = World(seed, chance.choice([6, 30, 60]), seed % 3 + 1, fates=Fates(fates), given=DECAYING, pauses=pauses)
    holding, is_done = Holding(), False

    while not is_done:
        try:
            world.run()
            is_done = True
        except (Crash, Unavailable):
            world.now_us += chance.choice([0, 5, 40]) * 60 * 10**6
        look(world, holding)
    world.fates.at.clear()
    world.now_us += chance.choice([5, 40, 61, 90, 1500]) * 60 * 10**6
    world.run()
    world.check_done()
    look(world, holding)

    assert holding.lines
    assert holding.differing == []


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
    ((plant, cause),) = ((plant, cause) for plant, check, cause in FAULTS.values() if f"{VIEW.name}.{check}" == name)
    world = ran()
    plant(world)

    verdict = check(world, Forgetful(judge, name))

    assert cause not in {finding.cause for finding in verdict.findings}


def test_the_archive_is_listed_once_a_round_and_each_part_indexed_once_for_all_views_of_its_stream() -> None:
    (plan,), offline = GIVEN.pipeline.plans, ran().offline
    by_id = replace(VIEW, name="clicks_by_id", entity=(pa.field("id", pa.string()),))
    name, asked = archive_name(STREAM), list[tuple[str, ...]]()

    class Archive:
        summary = offline.summary

        def visible_parts(self, name: str) -> list[str]:
            asked.append(("all",))
            return offline.visible_parts(name)

        def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
            asked.append((*parts, *(columns or ())))
            return offline.read_parts(name, asked[-1][:1], columns)

    indexes = indexes_of([plan, replace(plan, view=by_id)], Archive(), Budget())
    index, parts = indexes[STREAM], offline.visible_parts(name)
    for _ in range(3):
        index.begin()
        for _ in (VIEW, by_id):
            index.learn()

    assert [("all",), *((part, "user", "id", "_partition") for part in parts), ("all",), ("all",)] == asked
    for view in (VIEW, by_id):
        for part in parts:
            entities = hashes(offline.read_parts(name, [part]), view)
            assert all(part in index.of(view, int(entity), 2**40, None, 2**62) for entity in entities)
            assert {} == index.of(view, -1, 2**40, None, 2**62)


def test_a_part_of_the_archive_that_waits_to_be_published_is_not_missed(judge: Judge) -> None:
    world, counting, name = ran(), Counting(judge), archive_name(STREAM)
    ledger = world.ledger.read()
    assert ledger is not None
    part = max(world.offline.visible_parts(name))
    world.offline._staged[name][part] = world.offline._visible[name].pop(part)  # noqa: SLF001
    world.ledger.write(ledger.model_copy(update={"parts": {**ledger.parts, name: {part: 1}}}))

    check(world, counting)

    assert Frame.ARCHIVE not in counting.lines


def test_a_part_of_the_archive_that_is_published_after_it_was_listed_is_not_missed(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, counting, name = ran(), Counting(judge), archive_name(STREAM)
    ledger = world.ledger.read()
    assert ledger is not None
    part = max(world.offline.visible_parts(name))
    world.ledger.write(ledger.model_copy(update={"parts": {**ledger.parts, name: {part: 1}}}))
    listed = world.offline.visible_parts

    def list_before_it_is_published(of: str) -> list[str]:
        return [one for one in listed(of) if (of, one) != (name, part)]

    monkeypatch.setattr(world.offline, "visible_parts", list_before_it_is_published)

    verdict = check(world, counting)

    assert verdict.findings == ()
    assert Frame.ARCHIVE not in counting.lines


def test_an_archive_that_is_not_whole_is_not_recomputed_from(judge: Judge) -> None:
    world, counting = ran(), Counting(judge)
    change(world, archive_name(STREAM), lambda table: table.slice(1))

    check(world, counting)

    assert Frame.RECOMPUTED not in counting.lines


@pytest.mark.parametrize("dropped", ["", "a", "abc"])
def test_of_an_archive_that_has_dropped_events_rows_of_all_of_the_past_are_recomputed_where_none_is_missing(
    judge: Judge, dropped: str
) -> None:
    world, name = ran(), archive_name(STREAM)
    change(
        world, name, lambda table: table.filter(pc.invert(pc.is_in(table["user"], pa.array([*dropped], pa.string()))))
    )
    ledger = world.ledger.read()
    assert ledger is not None
    counts = {**ledger.rows_counts, name: world.offline.read(name).num_rows}
    world.ledger.write(ledger.model_copy(update={"expired": {STREAM: 1}, "rows_counts": counts}))
    holding = Holding()

    check(world, holding)

    assert {line["entity"] for _, line in holding.lines} == {*"abc"} - {*dropped}
    assert holding.differing == []
    assert check(world, judge).findings == ()


def test_what_the_archive_no_longer_reaches_of_a_bounded_past_is_not_recomputed(judge: Judge) -> None:
    world, counting = ran(given=BOUNDED), Counting(judge)
    ledger = world.ledger.read()
    assert ledger is not None
    newest_us = max(mark.newest_us for mark in ledger.partitions.values())
    world.ledger.write(ledger.model_copy(update={"expired": {STREAM: newest_us}}))

    check(world, counting)

    assert Frame.RECOMPUTED not in counting.lines


def test_a_round_recomputes_no_more_than_its_budget(judge: Judge) -> None:
    world, counting = ran(), Counting(judge)

    check(world, counting, budget=Budget(rows_count=1))
    assert counting.lines[Frame.RECOMPUTED] == 1

    counting = Counting(judge)
    check(world, counting, budget=Budget(events_count=0))
    assert Frame.RECOMPUTED not in counting.lines


def test_however_many_events_an_entity_has_a_round_takes_few_and_each_entity_has_its_turn() -> None:
    """One user has nine of ten events, another most of the rest; DuckDB is given no more than the budget has."""
    (plan,), name, offline = GIVEN.pipeline.plans, archive_name(STREAM), MemoryOfflineStore()
    offline.prepare(name, GIVEN.contracts[STREAM].schema)
    users = ["hot"] * 900 + ["warm"] * 60 + [f"cold {number}" for number in range(40)]
    for epoch in range(3):
        at = [START + timedelta(milliseconds=epoch * 1000 + index) for index in range(len(users))]
        columns = {"at": at, "user": users, "id": [f"{epoch} {index}" for index in range(len(users))]}
        columns |= {"cost": ["1"] * len(users), EVENT_TIME: at, AVAILABLE_AT: at}
        columns |= {PARTITION: [0] * len(users), OFFSET: [epoch * len(users) + index for index in range(len(users))]}
        events = pa.table(columns).select(GIVEN.contracts[STREAM].schema.names).cast(GIVEN.contracts[STREAM].schema)
        offline.publish({name: [str(offline.stage(name, events, epoch + 1))]})
    ledger = Ledger(id="a", shards_count=1, epoch=3, rows_counts={name: 3 * len(users)})
    read = list[tuple[str, ...]]()

    class Archive:
        visible_parts, summary = offline.visible_parts, offline.summary

        def is_staged(self, _name: str, _part: str) -> bool:
            return False

        def read_parts(self, name: str, parts: Iterable[str], columns: Sequence[str] | None = None) -> pa.Table:
            read.append(tuple(columns or ()))
            return offline.read_parts(name, parts, columns)

    budget, rounds_count = Budget(events_count=1400), 30
    indexes = indexes_of([plan], Archive(), budget)
    indexes[STREAM].begin()
    indexes[STREAM].learn()
    recompute, chance = Recompute(plan, Archive(), indexes, budget), random.Random(1)
    read.clear()
    newest = {user: START + timedelta(milliseconds=2000 + index) for index, user in enumerate(users)}
    judged, taken_count = Counter[str](), 0

    for _ in range(rounds_count):
        some = ["hot", "warm", *chance.sample(users[-40:], 10)]
        rows = [row(user, newest[user], 3 * users.count(user)) for user in chance.sample(some, len(some))]
        frame = recompute.frame(ledger, rows)
        lines = [] if frame is None else frame.to_dict("records")
        assert all(line["sql_version"] == line["version"] for line in lines)
        judged.update(line["entity"] for line in lines)
        taken_count += sum(line["version"] for line in lines)

    assert 5 <= judged["hot"] <= rounds_count // 2
    assert judged.keys() == {*users}
    assert taken_count + len(read) * (100 + len(users) // 20) <= rounds_count * budget.events_count
    assert {*read} == {("user", "id", "cost", EVENT_TIME, PARTITION, OFFSET)}, "what the SQL needs, and no more"


def row(user: str, at: datetime, version: int) -> dict[str, Any]:
    own = {"user": user, EVENT_TIME: at, "created": at, "_version": version, PARTITION: 0, OFFSET: 0, "_part": "any"}
    return {**dict.fromkeys(VIEW.row_schema.names), **own}
