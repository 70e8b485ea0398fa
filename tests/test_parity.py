"""Feast's own answers on twins: which rows it is asked for, how often, and what becomes of it where Feast fails."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import redis
from forgetful import Forgetful

from freshet.flows.edges import feast
from freshet.flows.edges.feast_memory import MemoryFeastClient
from freshet.flows.edges.parquet import MemoryOfflineStore, OfflineStore
from freshet.flows.edges.quality import Judge
from freshet.flows.edges.redis import MemoryOnlineStore, OnlineStore
from freshet.flows.edges.store_config import store_config
from freshet.flows.observer import Seen
from freshet.flows.parity import PARTS_COUNT, ROWS_COUNT, Client, Parity
from freshet.flows.steps.alarms import Alarms
from freshet.flows.steps.watch import Found, Judgeable, Ticket, versions_of
from freshet.flows.validator import judged
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Unavailable
from freshet.schemas.finding import Cause, Frame, Outcome, Status, Verdict
from freshet.schemas.registration import Entry
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET = Objective(99, timedelta(seconds=5))
FEATURES = (Feature("edits", DTYPES["int64"], "…"), Feature("share", DTYPES["float64"], "…"))
VIEW = View("edits_by_user", ("edits",), (pa.field("user", pa.string()),), FEATURES, timedelta(hours=1))
EQUAL = "edits_by_user.edits.online_api_equals_historical"

Row = dict[str, Any]


def row(user: str, seconds: float, version: int = 1, edits: int = 1, made_s: float | None = None) -> Row:
    at = START + timedelta(seconds=seconds)
    created = START + timedelta(seconds=seconds + version if made_s is None else made_s)
    system = {"event_timestamp": at, "created": created, "_version": version, "_partition": 0, "_offset": 0}
    return {"user": user, **system, "edits": edits, "share": 0.5}


class Asked:
    """Feast, which notes what it is asked for, and may fail; `meanwhile` is what happens while it answers."""

    def __init__(self, client: Client) -> None:
        self.client, self.entities, self.parts_counts = client, list[tuple[str, ...]](), list[int]()
        self.error = ""
        self.meanwhile: Callable[[], object] = lambda: None

    def registration(self, view: View) -> list[Entry]:
        if self.error:
            raise Unavailable(self.error)
        return self.client.registration(view)

    def online(self, view: View, entities: Sequence[tuple[Any, ...]]) -> list[StoredRow | None]:
        return self.client.online(view, entities)

    def history(
        self, view: View, entities: Sequence[tuple[Any, ...]], at: datetime, parts: Sequence[str]
    ) -> list[Mapping[str, Any]]:
        self.entities.append(tuple(entity[0] for entity in entities))
        self.parts_counts.append(len(parts))
        self.meanwhile()
        return self.client.history(view, entities, at, parts)


@dataclass
class Rig:
    """Both stores, Feast, and a clock that nobody moves."""

    online: Any = field(default_factory=lambda: MemoryOnlineStore("test", [VIEW]))
    offline: Any = field(default_factory=MemoryOfflineStore)
    client: Any = None
    now: datetime = START + timedelta(minutes=5)

    def __post_init__(self) -> None:
        self.offline.prepare(VIEW.name, VIEW.row_schema)
        self.feast = Asked(self.client or MemoryFeastClient(self.online, self.offline, [VIEW]))
        self.parity = Parity(VIEW, lambda: self.feast, self.online, self.offline, lambda: self.now)

    def put(self, *rows: Row, is_served: bool = True) -> None:
        """Store rows in both stores, or offline alone, together in one part."""
        table = pa.Table.from_pylist([*rows], VIEW.row_schema)
        if is_served:
            self.online.write(VIEW, table)
        self.offline.append(VIEW.name, table)

    def looked(self, *users: str) -> list[Judgeable]:
        """Look at what is online twice, and find it offline."""
        stored = self.online.read(VIEW, [(user,) for user in users])
        tables = ((part, self.offline.read_parts(VIEW.name, [part])) for part in self.offline.visible_parts(VIEW.name))
        versions = versions_of(VIEW, tables, stored)
        tickets = [Ticket(one.entity, None, None, one, self.now, one, {}) for one in stored]
        found = [versions[one.entity, one.event_timestamp][one.version] for one in stored]
        return [Judgeable(ticket, Found.FOUND, there) for ticket, there in zip(tickets, found, strict=True)]

    def frames(self, *looked: Judgeable) -> dict[Frame, pd.DataFrame]:
        summaries = {part: self.offline.summary(VIEW.name, part) for part in self.offline.visible_parts(VIEW.name)}
        return self.parity.frames(looked, {part: one for part, one in summaries.items() if one.rows_count})

    def seen(self, *looked: Judgeable) -> Seen:
        frames = self.frames(*looked)
        return Seen(VIEW, self.now, frames, self.parity.trouble)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def verdict_of(judge: Judge | Forgetful, seen: Seen) -> Verdict:
    (verdict,) = judged(judge, [seen], TARGET)
    return verdict


def test_feast_is_asked_for_rows_that_stand_still_in_both_stores_and_no_others() -> None:
    rig = Rig()
    rig.put(row("ann", 0), row("bob", 10), row("cid", 20), row("dan", 30), row("eve", 40), row("fay", 50))
    ann, bob, cid, dan, eve, fay = rig.looked("ann", "bob", "cid", "dan", "eve", "fay")
    rig.put(row("bob", 60))  # went on since the second look
    rig.put(row("cid", 20, 2), is_served=False)  # a lost online write: another check's
    moved = replace(dan, ticket=replace(dan.ticket, second=None))  # between the looks
    rig.online.write(VIEW, pa.Table.from_pylist([row("eve", 40, edits=9)], VIEW.row_schema))  # a value mismatch

    frames = rig.frames(ann, bob, cid, moved, eve, replace(fay, found=Found.SUPERSEDED))

    assert rig.feast.entities == [("ann",)]
    (line,) = frames[Frame.SERVED].to_dict("records")
    assert ("ann", 1, 1, 1) == tuple(line[name] for name in ("entity", "version", "api_edits", "pit_edits"))


@pytest.mark.parametrize(("after", "count"), [(timedelta(0), 1), (VIEW.ttl, 1), (VIEW.ttl * 2, 0), (-VIEW.ttl, 0)])
def test_a_row_that_is_too_old_or_of_the_future_is_not_asked_for(after: timedelta, count: int) -> None:
    rig = Rig()
    rig.put(row("ann", 0))
    rig.now = START + after

    rig.frames(*rig.looked("ann"))

    assert len(rig.feast.entities) == count


def test_a_row_that_changes_while_feast_answers_is_left_out() -> None:
    rig = Rig()
    rig.put(row("ann", 0), row("bob", 10))
    rig.feast.meanwhile = lambda: rig.put(row("bob", 11, edits=2))

    frames = rig.frames(*rig.looked("ann", "bob"))

    assert ["ann"] == [*frames[Frame.SERVED]["entity"]]


def test_a_row_that_outlives_its_ttl_while_feast_answers_is_left_out() -> None:
    def later() -> None:
        rig.now += timedelta(seconds=1)

    rig = Rig(online=MemoryOnlineStore("test", [VIEW], lambda: START))  # which keeps it
    rig.put(row("ann", 0), row("bob", 10))
    rig.now = START + VIEW.ttl
    rig.feast.meanwhile = later

    frames = rig.frames(*rig.looked("ann", "bob"))

    assert rig.feast.entities == [("ann", "bob")]
    assert ["bob"] == [*frames[Frame.SERVED]["entity"]]


def test_a_round_asks_for_few_rows_in_few_parts() -> None:
    rig, users = Rig(), [f"user {number}" for number in range(3 * ROWS_COUNT)]
    rig.put(*(row(user, 0) for user in users))
    for _ in range(PARTS_COUNT):
        rig.put(row("idle", 40), row("idle", 60))  # that may all hold the next one
    rig.put(row("hot", 50))

    rig.frames(*rig.looked("hot", *users))

    assert [ROWS_COUNT] == [len(entities) for entities in rig.feast.entities]
    assert "hot" not in rig.feast.entities[0]
    assert [1] == rig.feast.parts_counts


def test_feast_is_asked_seldom_and_at_once_where_there_was_nothing_to_ask() -> None:
    rig = Rig()
    assert rig.frames() == {}
    rig.put(row("ann", 0))
    looked = rig.looked("ann")

    frames = []
    for _ in range(3):
        frames.append(rig.frames(*looked))
        rig.now += rig.parity.every / 2

    assert [{Frame.REGISTRY, Frame.SERVED}, set(), {Frame.REGISTRY, Frame.SERVED}] == [{*one} for one in frames]


def test_while_another_declaration_is_applied_feast_is_not_asked_and_what_it_says_is_not_taken() -> None:
    rig, is_in_force = Rig(), [False]
    rig.parity.is_in_force = lambda: is_in_force[0]
    rig.put(row("ann", 0))
    looked = rig.looked("ann")

    assert rig.frames(*looked) == {}
    assert rig.feast.entities == []

    is_in_force[0] = True
    rig.feast.meanwhile = lambda: is_in_force.__setitem__(0, False)

    assert rig.frames(*looked) == {}
    assert rig.feast.entities == [("ann",)]

    is_in_force[0], rig.feast.meanwhile = True, lambda: None

    assert {*rig.frames(*looked)} == {Frame.REGISTRY, Frame.SERVED}


def test_a_feast_that_fails_is_the_validator_s_error_until_it_answers(judge: Judge) -> None:
    rig = Rig()
    rig.put(row("ann", 0))
    verdicts = []
    for looked, error in ((rig.looked("ann"), "gone"), ([], "gone"), ([], ""), (rig.looked("ann"), "")):
        rig.feast.error = error
        rig.now += timedelta(seconds=5)
        verdicts.append(verdict_of(judge, rig.seen(*looked)))

    failed = [verdict.outcome is Outcome.VALIDATOR_ERROR for verdict in verdicts]
    assert [True, True, True, False] == failed  # with nothing to ask for, it is not known to answer
    assert all(verdict.reasons == ("edits_by_user: gone",) for verdict in verdicts[:3])


def test_what_feast_could_not_be_asked_for_does_not_hide_what_else_was_seen(judge: Judge) -> None:
    frames = {Frame.REGISTRY: pd.DataFrame([("ttl", "1", "2")], columns=["entry", "declared", "registered"])}

    verdict = verdict_of(judge, Seen(VIEW, START, frames, error="Feast is away"))

    assert Outcome.VIOLATED is not verdict.outcome is Outcome.VALIDATOR_ERROR
    assert ["edits_by_user.registry_is_declared"] == [finding.check for finding in verdict.findings]
    assert verdict.reasons == ("edits_by_user: Feast is away",)


def test_a_round_that_does_not_ask_feast_closes_no_finding_of_it(judge: Judge) -> None:
    rig, alarms = Rig(), Alarms(timedelta(seconds=5))
    rig.put(row("ann", 0, 1, edits=1, made_s=9), row("ann", 0, 2, edits=2, made_s=8))
    news = []
    for _ in range(4):  # only the first one asks
        verdict = verdict_of(judge, rig.seen(*rig.looked("ann")))
        news.append([alarm.status for alarm in alarms.heed(verdict, rig.now)[1]])
        rig.now += timedelta(seconds=10)
    rig.put(row("ann", 1))
    rig.now += timedelta(minutes=1)

    healed = verdict_of(judge, rig.seen(*rig.looked("ann")))

    assert [[Status.OPENED], [], [], []] == news
    assert EQUAL not in healed.untold
    assert [Status.RESOLVED] == [alarm.status for alarm in alarms.heed(healed, rig.now)[1]]


def test_without_the_check_what_a_trainer_gets_otherwise_goes_unseen_on_real_parts(
    judge: Judge, valkey_url: str, tmp_path: Path
) -> None:
    """Feast chooses among versions by `created`: where that went back, our own readers find nothing."""
    url = valkey_url.replace("/0", "/4")
    with redis.Redis.from_url(url) as admin:
        admin.flushdb()
    config = store_config("test", url, tmp_path / "registry" / "registry.db")
    feast.apply(config, feast.repo_objects("test", [VIEW], tmp_path))
    client = feast.FeastClient(config, tmp_path)
    rig = Rig(OnlineStore(url, "test", [VIEW]), OfflineStore(tmp_path), client)
    rig.put(row("ann", 0, 1, edits=1), row("ann", 0, 2, edits=2), row("bob", 0, 1, edits=1, made_s=9))
    rig.put(row("bob", 0, 2, edits=2, made_s=8))
    seen = rig.seen(*rig.looked("ann", "bob"))

    verdict = verdict_of(judge, seen)
    without = verdict_of(Forgetful(judge, EQUAL), seen)

    assert seen.error == ""
    (finding,) = verdict.findings
    assert (EQUAL, Cause.VALUE_MISMATCH, 1) == (finding.check, finding.cause, finding.count)
    told = finding.as_json()
    assert ("bob", 2, 1) == (told["entity"], told["online"]["value"], told["offline"]["value"])
    assert () == without.findings
    assert 2 == len(seen.frames[Frame.SERVED])
