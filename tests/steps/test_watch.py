"""What the validator holds between its looks, and when that can be judged."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.shards import split
from freshet.flows.steps.watch import (
    PART,
    Found,
    Memory,
    OfflineRow,
    Place,
    Runs,
    Signs,
    Ticket,
    Versions,
    covering,
    judgeable,
    place,
    settled,
    versions_of,
    written_often,
)
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Unavailable
from freshet.schemas.ledger import Ledger, ShardMark
from freshet.schemas.part import PartSummary
from freshet.schemas.units import instant_us
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
VIEW = View("edits_by_user", ("edits",), (pa.field("user", pa.string()),), (Feature("edits_1h", DTYPES["int64"], "…"),))
SHARDS_COUNT = 4


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def online(user: str, seconds: float, version: int = 1, edits: int | None = 1) -> StoredRow:
    return StoredRow((user,), at(seconds), version, {"edits_1h": edits})


def ticket(first: StoredRow | None, ends: Mapping[str, int] | None = None, user: str = "ann") -> Ticket:
    looked = Ticket((user,), None, None, first, at(60))
    return looked if ends is None else looked.again(first, ends, at(63))


def offline(*rows: tuple[str, float, int]) -> pa.Table:
    """Rows as (user, seconds, version)."""
    names = ["user", "event_timestamp", "_version", "edits_1h"]
    lines = [dict(zip(names, (user, at(seconds), version, 1), strict=True)) for user, seconds, version in rows]
    return pa.Table.from_pylist(lines, VIEW.row_schema)


def shard_of(user: str) -> int:
    (shard,) = split(pa.table({"user": [user]}), VIEW, SHARDS_COUNT)
    return shard


def ledger(
    offsets: Mapping[str, int], seconds: float = 1000, shards: range | list[int] = range(SHARDS_COUNT)
) -> Ledger:
    mark = ShardMark(clock_us=instant_us(at(seconds)))
    marks = {f"{VIEW.name}/{shard}": mark for shard in shards}
    return Ledger(id="a", shards_count=SHARDS_COUNT, offsets=offsets, shards=marks)


def is_settled(view: View, looked: Ticket, now: Ledger) -> bool:
    (answer,) = settled(view, [looked], now)
    return answer


# --- when it can be judged --------------------------------------------------------------------------------------------


def test_an_entity_that_was_looked_at_once_is_never_settled() -> None:
    assert not is_settled(VIEW, ticket(online("ann", 0)), ledger({"edits/000000": 9}))


def test_an_entity_is_settled_once_all_is_committed_that_kafka_held_at_its_second_look() -> None:
    looked = ticket(online("ann", 0), {"edits/000000": 9, "edits/000001": 3})

    assert not is_settled(VIEW, looked, ledger({"edits/000000": 9, "edits/000001": 2}))
    assert not is_settled(VIEW, looked, ledger({"edits/000000": 9}))
    assert is_settled(VIEW, looked, ledger({"edits/000000": 9, "edits/000001": 3}))
    assert is_settled(VIEW, looked, ledger({"edits/000000": 12, "edits/000001": 3, "other/000000": 0}))


def test_an_empty_partition_of_which_nothing_is_committed_holds_nothing_up() -> None:
    assert is_settled(VIEW, ticket(online("ann", 0), {"edits/000000": 0}), ledger({}))


def test_a_row_that_time_alone_made_is_settled_once_its_shard_has_come_that_far() -> None:
    looked = ticket(online("ann", 30), {})

    assert not is_settled(VIEW, looked, ledger({}, seconds=29.999999))
    assert is_settled(VIEW, looked, ledger({}, seconds=30))


def test_only_the_clock_of_the_entity_s_own_shard_counts() -> None:
    own = shard_of("ann")
    others = [shard for shard in range(SHARDS_COUNT) if shard != own]

    assert not is_settled(VIEW, ticket(online("ann", 0), {}), ledger({}, shards=others))
    assert is_settled(VIEW, ticket(online("ann", 0), {}), ledger({}, shards=[own]))


def test_an_entity_without_an_online_row_waits_for_no_clock() -> None:
    assert is_settled(VIEW, ticket(None, {"edits/000000": 1}), ledger({"edits/000000": 1}, shards=[]))


@given(
    ends=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 5)),
    committed=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 5)),
    more=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 5)),
)
def test_what_is_settled_stays_settled_as_more_is_committed(
    ends: dict[str, int], committed: dict[str, int], more: dict[str, int]
) -> None:
    looked = ticket(online("ann", 0), ends)
    later = {key: committed.get(key, 0) + more.get(key, 0) for key in committed.keys() | more.keys()}

    if is_settled(VIEW, looked, ledger(committed)):
        assert is_settled(VIEW, looked, ledger(later))


# --- what became of it ------------------------------------------------------------------------------------------------


def versions(*there: int, seconds: float = 0, run: str = "a") -> Versions:
    rows = {version: {"_version": version, PART: named(version, run)} for version in there}
    return {(("ann",), at(seconds)): {version: OfflineRow(row, 1) for version, row in rows.items()}}


def named(epoch: int, run: str) -> str:
    return f"part-{epoch:010d}-{run}-000000.parquet"


def test_nothing_is_said_of_what_is_neither_settled_nor_overdue() -> None:
    assert judgeable(ticket(online("ann", 0), {}), versions(1), settled=False, overdue=False) is None


def test_a_settled_row_is_found_by_its_own_version() -> None:
    looked = replace(ticket(online("ann", 0, 2), {}), runs=frozenset({"a"}))

    made = judgeable(looked, versions(1, 2, 3), settled=True, overdue=False)

    assert made is not None
    assert made.offline is not None
    assert (made.found, made.offline.row["_version"]) == (Found.FOUND, 2)


@pytest.mark.parametrize(("there", "found"), [((1, 2, 3), Found.SUPERSEDED), ((1, 2), Found.FOUND)])
def test_a_version_that_another_run_made_may_count_other_events_unless_it_is_the_last(
    there: tuple[int, ...], found: Found
) -> None:
    looked = replace(ticket(online("ann", 0, 2), {}), runs=frozenset({"a"}))

    made = judgeable(looked, versions(*there, run="b"), settled=True, overdue=False)

    assert made is not None
    assert made.found is found


def test_a_run_is_alone_once_all_that_kafka_held_when_it_was_met_is_committed() -> None:
    runs, held = Runs(), {"edits/0": 5, "edits/1": 3}
    runs.note([named(1, "a"), named(2, "a"), "part-0.parquet"], lambda: held, ledger({"edits/0": 5}))
    assert runs.sole == {None}

    runs.note([named(3, "a")], lambda: {"edits/0": 99}, ledger({"edits/0": 5, "edits/1": 3}))
    assert runs.sole == {None, "a"}

    runs.note([named(4, "b")], lambda: {"edits/0": 7}, ledger({"edits/0": 6, "edits/1": 3}))
    assert runs.sole == {None, "a"}
    runs.note([], dict, ledger({"edits/0": 7}))
    assert runs.sole == {None, "a", "b"}


def test_a_run_that_was_met_while_kafka_was_away_is_not_forgotten() -> None:
    runs = Runs()

    def away() -> Mapping[str, int]:
        raise Unavailable("kafka is away")

    with pytest.raises(Unavailable):
        runs.note([named(1, "a")], away, ledger({}))
    runs.note([], lambda: {"edits/0": 5}, ledger({"edits/0": 4}))
    assert runs.sole == {None}
    runs.note([], dict, ledger({"edits/0": 5}))
    assert runs.sole == {None, "a"}


@pytest.mark.parametrize("there", [versions(), versions(1), versions(2, seconds=1)])
def test_a_settled_row_that_is_not_offline_is_absent(there: Versions) -> None:
    made = judgeable(ticket(online("ann", 0, 2), {}), there, settled=True, overdue=False)

    assert made is not None
    assert (made.found, made.offline) == (Found.ABSENT, None)


@pytest.mark.parametrize("settled", [True, False])
def test_a_version_that_only_a_later_one_followed_is_superseded(*, settled: bool) -> None:
    made = judgeable(ticket(online("ann", 0, 2), {}), versions(1, 3), settled=settled, overdue=True)

    assert made is not None
    assert made.found is Found.SUPERSEDED


def test_a_row_that_is_overdue_is_pending_and_never_absent() -> None:
    made = judgeable(ticket(online("ann", 0, 2)), versions(), settled=False, overdue=True)

    assert made is not None
    assert made.found is Found.PENDING


def test_of_an_entity_without_an_online_row_nothing_is_looked_for_offline() -> None:
    made = judgeable(ticket(None, {}), versions(1), settled=True, overdue=False)

    assert made is not None
    assert (made.found, made.offline) == (None, None)


@given(version=st.integers(1, 5), there=st.sets(st.integers(1, 5)), settled=st.booleans(), overdue=st.booleans())
def test_absent_is_said_only_of_a_settled_row_with_nothing_as_new_offline(
    version: int, there: set[int], *, settled: bool, overdue: bool
) -> None:
    made = judgeable(ticket(online("ann", 0, version), {}), versions(*there), settled=settled, overdue=overdue)

    assert (made is not None) is (settled or overdue)
    absent = made is not None and made.found is Found.ABSENT
    assert absent is (settled and not any(known >= version for known in there))


# --- what is offline --------------------------------------------------------------------------------------------------


def part(*seconds: float, rows_count: int = 1) -> PartSummary:
    oldest, newest = (at(min(seconds)), at(max(seconds))) if seconds else (None, None)
    return PartSummary(rows_count, VIEW.row_schema, oldest, newest)


def test_a_part_covers_the_times_of_its_rows_both_ends_included() -> None:
    there = {"a": part(10, 20)}

    assert [covering(there, [at(seconds)]) for seconds in (9, 10, 15, 20, 21)] == [[], ["a"], ["a"], ["a"], []]


def test_a_part_whose_times_are_not_known_may_hold_any() -> None:
    assert covering({"a": part()}, [at(0)]) == ["a"]


def test_a_part_without_rows_and_times_that_nobody_asks_for_cover_nothing() -> None:
    assert covering({"a": part(rows_count=0), "b": part(0, 9, rows_count=0)}, [at(0)]) == []
    assert covering({"a": part(), "b": part(0, 9)}, []) == []


@given(
    bounds=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=5),
    wanted=st.lists(st.integers(0, 9), max_size=5),
)
def test_a_part_is_read_exactly_if_a_time_lies_within_it(bounds: list[tuple[int, int]], wanted: list[int]) -> None:
    there = {f"part {index}": part(*pair) for index, pair in enumerate(bounds)}

    expected = [
        name for name, pair in zip(there, bounds, strict=True) if any(min(pair) <= one <= max(pair) for one in wanted)
    ]

    assert expected == covering(there, [at(one) for one in wanted])


def test_every_version_at_an_online_row_s_time_is_found_with_its_part() -> None:
    tables = [("a", offline(("ann", 0, 1), ("ann", 5, 7), ("bob", 0, 3))), ("b", offline(("ann", 0, 2)))]

    found = versions_of(VIEW, tables, [online("ann", 0, 2)])

    assert [*found] == [(("ann",), at(0))]
    assert {1: "a", 2: "b"} == {version: one.row[PART] for version, one in found[("ann",), at(0)].items()}


def test_copies_of_a_version_are_counted_within_a_part_and_across_parts() -> None:
    tables = [("a", offline(("ann", 0, 1), ("ann", 0, 1), ("ann", 0, 2))), ("b", offline(("ann", 0, 1)))]

    found = versions_of(VIEW, tables, [online("ann", 0)])

    assert {1: 3, 2: 1} == {version: one.copies_count for version, one in found[("ann",), at(0)].items()}


def test_a_time_of_one_entity_is_not_that_of_another() -> None:
    tables = [("a", offline(("ann", 5, 1), ("bob", 0, 1)))]

    assert {} == versions_of(VIEW, tables, [online("ann", 0), online("bob", 5)])


def test_entities_of_several_columns_are_told_apart() -> None:
    view = replace(VIEW, entity=(pa.field("user", pa.string()), pa.field("page", pa.int32())))
    pairs = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    rows: list[dict[str, Any]] = [
        {"user": user, "page": page, "event_timestamp": at(0), "_version": version}
        for version, (user, page) in enumerate(pairs)
    ]
    wanted = [StoredRow(entity, at(0), 1, {}) for entity in (("a", 2), ("b", 1))]

    found = versions_of(view, [("x", pa.Table.from_pylist(rows, view.row_schema))], wanted)

    assert {(("a", 2), at(0)): [1], (("b", 1), at(0)): [2]} == {key: [*there] for key, there in found.items()}


# --- what was seen ----------------------------------------------------------------------------------------------------


def test_nothing_is_known_of_an_entity_that_was_never_seen() -> None:
    memory = Memory()
    memory.see(None)

    assert memory.of(("ann",)) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1))
def test_the_newest_place_is_remembered_in_whatever_order_it_was_seen(places: list[tuple[int, int]]) -> None:
    memory = Memory()
    for seconds, version in places:
        memory.see(online("ann", seconds, version))

    seconds, version = max(places)
    assert (at(seconds), version) == memory.of(("ann",))


def test_of_too_many_entities_the_one_seen_longest_ago_is_forgotten() -> None:
    memory = Memory(size=2)
    for user in ("ann", "bob", "ann", "cid"):
        memory.see(online(user, 0))

    known: list[Place | None] = [memory.of((user,)) for user in ("ann", "bob", "cid")]

    assert [place(online("ann", 0)), None, place(online("cid", 0))] == known


def test_a_memory_that_was_cleared_knows_nothing() -> None:
    memory = Memory()
    memory.see(online("ann", 5))
    memory.clear()
    memory.see(online("ann", 1))

    assert memory.of(("ann",)) == (at(1), 1)


# --- lost, or gone ----------------------------------------------------------------------------------------------------

LASTING = timedelta(seconds=60)


def looks(
    first: StoredRow | None, second: StoredRow | None, floor: Place | None = None, seen: Place | None = None
) -> Ticket:
    return Ticket(("ann",), floor, seen, first, at(60), second, {})


OLD, NEW, NEWER = online("ann", 0), online("ann", 5), online("ann", 9)
BEHIND = looks(OLD, OLD, place(NEW))
ABSENT = looks(None, None, place(NEW))
ELSEWHERE = {
    "nothing": [],
    "rows that are right": [looks(NEW, NEW, place(NEW)), looks(OLD, NEW), looks(None, None)],
    "an entity that was seen is gone": [looks(None, None, seen=place(NEW))],
    "an entity that goes between the looks": [looks(OLD, None)],
    "a row that stays behind": [BEHIND],
    "a row that goes back": [looks(NEW, OLD)],
    "a row that went back": [looks(OLD, OLD, seen=place(NEW))],
    "a row that became another older one": [looks(OLD, NEW, place(NEWER))],
    "rows that stay behind and an entity that is gone": [BEHIND, looks(OLD, None)],
}


def was_online(ticket: Ticket, elsewhere: str, *, often: bool = False, seconds: float = 0) -> bool:
    signs = Signs(LASTING)
    signs.note(ELSEWHERE[elsewhere], at(0))
    signs.note([ticket], at(seconds))
    return signs.was_online(ticket, {("ann",)} if often else set())


@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_a_row_that_is_behind_was_overwritten_if_rows_go_back_and_else_lost(elsewhere: str) -> None:
    goes_back = elsewhere.startswith(("a row that goes", "a row that went", "a row that became"))

    assert was_online(BEHIND, elsewhere) is goes_back


@pytest.mark.parametrize("often", [False, True])
@pytest.mark.parametrize("elsewhere", ELSEWHERE)
def test_an_absent_entity_tells_by_itself_only_where_nothing_befell_others(elsewhere: str, *, often: bool) -> None:
    expected = True if "gone" in elsewhere or "goes between" in elsewhere else often and "behind" not in elsewhere

    assert was_online(ABSENT, elsewhere, often=often) is expected


@pytest.mark.parametrize(("seconds", "expected"), [(60, True), (61, False)])
def test_what_befell_others_tells_for_so_long(seconds: float, *, expected: bool) -> None:
    assert was_online(BEHIND, "a row that goes back", seconds=seconds) is expected


def test_an_entity_that_may_have_outlived_its_ttl_tells_nothing_of_others() -> None:
    for ttl_s, expected in ((119, False), (120, True)):
        signs = Signs(LASTING, timedelta(seconds=ttl_s))
        signs.note([looks(OLD, None)], at(0))

        assert signs.was_online(ABSENT, set()) is expected


def test_an_entity_that_was_seen_was_online_whatever_befell_others() -> None:
    seen = looks(None, None, place(NEWER), place(NEW))

    assert all(was_online(seen, elsewhere) for elsewhere in ELSEWHERE)


def test_an_entity_was_written_more_than_once_if_two_parts_have_it_or_its_first_row_is_in_none() -> None:
    until = {("ann",): 2, ("bob",): 2, ("cid",): 2, ("dan",): 1, ("eve",): 2}
    tables = [
        ("part-0000000001-a-0.parquet", offline(("ann", 0, 1), ("cid", 0, 1), ("cid", 1, 2), ("dan", 0, 1))),
        ("part-0000000002-a-1.parquet", offline(("ann", 1, 2), ("bob", 0, 2), ("dan", 1, 2), ("xen", 0, 9))),
    ]

    assert {("ann",), ("bob",)} == written_often(VIEW, tables, until)
