"""What must hold of a view, and the frames that show whether it does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from freshet.flows.steps.checks import checks_of
from freshet.flows.steps.frames import comparable, freshness, joined, parts, schemas, store, type_of
from freshet.flows.steps.freshness import Line, State
from freshet.flows.steps.watch import PART, Entity, Found, Judgeable, OfflineRow, Place, Ticket
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.finding import Frame
from freshet.schemas.units import Objective
from freshet.schemas.view import Feature, StoredRow, View

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
TARGET = Objective(99, timedelta(seconds=2))
VIEW = View(
    "edits_by_user",
    ("edits",),
    (pa.field("user", pa.string()),),
    (Feature("edits_1h", DTYPES["int64"], "…"), Feature("share_1h", DTYPES["float64"], "…")),
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def online(user: str, seconds: float, version: int, edits: Any = 1, share: Any = 0.5) -> StoredRow:
    return StoredRow((user,), at(seconds), version, {"edits_1h": edits, "share_1h": share})


def offline(seconds: float, version: int, edits: Any = 1, share: Any = 0.5, copies_count: int = 1) -> OfflineRow:
    row = {"user": "ann", "event_timestamp": at(seconds), "_version": version, "_partition": 3, "_offset": 41}
    return OfflineRow({**row, "edits_1h": edits, "share_1h": share, PART: "part-a"}, copies_count)


def looked(
    first: StoredRow | None,
    second: StoredRow | None,
    *,
    floor: Place | None = None,
    seen: Place | None = None,
    found: OfflineRow | Found | None = None,
    entity: Entity = ("ann",),
    seconds: float = 60,
    was_online: bool | None = None,
) -> Judgeable:
    """An entity that was looked at twice, the first time at `seconds`; `found` is what became of the first row."""
    ticket = Ticket(entity, floor, seen, first, at(seconds), second, {})
    own = not ticket.is_behind if was_online is None else was_online
    if isinstance(found, OfflineRow):
        return Judgeable(ticket, Found.FOUND, found, own)
    return Judgeable(ticket, found, was_online=own)


def line(one: Judgeable, view: View = VIEW) -> dict[str, Any]:
    (found,) = joined(view, [one]).to_dict("records")
    return {str(name): value for name, value in found.items()}


def test_every_check_has_a_name_of_its_own_that_says_whose_it_is() -> None:
    names = [check.name for check in checks_of(VIEW, TARGET)]

    assert len({*names}) == len(names)
    for check in checks_of(VIEW, TARGET):
        *whose, what = check.name.split(".")

        assert whose[0] == VIEW.name, check.name
        assert what, check.name
        if len(whose) > 1:
            assert (whose[1],) == check.features, check.name


def test_another_feature_changes_no_other_check() -> None:
    more = replace(VIEW, features=(Feature("new", DTYPES["bool"], "…"), *VIEW.features))
    before = {check.name: check.arguments for check in checks_of(VIEW, TARGET)}

    after = {check.name: check.arguments for check in checks_of(more, TARGET)}

    assert before == {name: after[name] for name in before}
    assert all(name.startswith("edits_by_user.new.") for name in after.keys() - before)


def test_checks_name_only_columns_that_their_frame_has() -> None:
    frames = {
        Frame.SCHEMA: schemas(VIEW, {"part-a": VIEW.row_schema}),
        Frame.PARTS: parts([("part-a", 1, 1)]),
        Frame.STORE: store(1, 1),
        Frame.ROWS: joined(VIEW, []),
        Frame.FRESHNESS: freshness([Line("edits", 0, State.IDLE)]),
    }
    for check in checks_of(VIEW, TARGET):
        if check.frame not in frames:
            continue  # another test's
        keys = ("column", "column_A", "column_B")
        named = {check.arguments[key] for key in keys if key in check.arguments} | {*check.frame.identity}

        assert named | ({check.given} if check.given else set()) <= {*frames[check.frame].columns}, check.name


LINE = ("offline_row", "on_edits_1h", "off_edits_1h", "on_share_1h", "off_share_1h")


def test_a_row_is_compared_with_the_offline_row_that_was_found() -> None:
    row = online("ann", 0, 2, 8, 0.2)

    found = line(looked(row, row, found=offline(0, 2, 9, 0.3)))

    assert tuple(found[name] for name in LINE) == ("found", 8, 9, 0.2, 0.3)
    assert (found["version"], found["event_timestamp"]) == (2, "2026-03-01T12:00:00.000000+00:00")
    assert (found["offline_part"], found["source_partition"], found["source_offset"]) == ("part-a", 3, 41)


def test_integers_beside_nulls_keep_every_digit() -> None:
    ann, bob = online("ann", 0, 1, 2**53 + 1, None), online("bob", 0, 1, None, None)
    pairs = [
        looked(ann, ann, found=offline(0, 1, 2**53 + 1, None)),
        looked(bob, bob, found=offline(0, 1, None, None), entity=("bob",)),
    ]

    frame = joined(VIEW, pairs)

    assert [2**53 + 1, None] == frame["on_edits_1h"].to_list() == frame["off_edits_1h"].to_list()


@pytest.mark.parametrize("found", [Found.ABSENT, Found.PENDING, Found.SUPERSEDED])
def test_of_a_row_that_was_not_found_offline_no_value_is_compared(found: Found) -> None:
    row = online("ann", 9, 2)

    made = line(looked(row, row, found=found))

    assert tuple(made[name] for name in LINE) == (found.value, None, None, None, None)
    assert made["type_edits_1h"] == "int"


def test_of_a_busy_entity_the_row_of_the_first_look_is_compared_and_placed_while_the_second_is_newer() -> None:
    found = line(looked(online("ann", 1, 2, 2), online("ann", 2, 3, 4), found=offline(1, 2, 3)))

    assert tuple(found[name] for name in LINE[:3]) == ("found", 2, 3)
    assert found["online_at"].startswith("2026-03-01T12:00:01")


def test_an_online_row_that_went_back_between_the_looks_is_placed_at_the_second() -> None:
    found = line(looked(online("ann", 4, 3), online("ann", 3, 2)))

    assert found["online_at"].startswith("2026-03-01T12:00:03")
    assert found["online_at"] < found["seen_at"]


def test_online_is_held_to_the_offline_row_that_the_entity_was_chosen_by() -> None:
    found = line(looked(online("ann", 0, 1), online("ann", 0, 1), floor=(at(8), 2)))

    assert found["online_at"] == found["seen_at"] < found["offline_at"]


def test_an_offline_row_that_was_seen_online_was_not_lost() -> None:
    row = online("ann", 0, 1)

    for seen in ((at(8), 2), (at(9), 1)):
        found = line(looked(row, row, floor=(at(8), 2), seen=seen))

        assert found["online_at"] < found["offline_at"] <= found["seen_at"]


def test_an_offline_row_that_must_have_been_online_was_not_lost() -> None:
    row = online("ann", 0, 1)

    lost, went = (line(looked(row, row, floor=(at(8), 2), was_online=was)) for was in (False, True))

    assert lost["seen_at"] == lost["online_at"] < lost["offline_at"]
    assert went["online_at"] < went["seen_at"] == went["offline_at"]


@pytest.mark.parametrize("was_online", [False, True])
def test_an_entity_that_is_absent_was_online_or_is_due(*, was_online: bool) -> None:
    found = line(looked(None, None, floor=(at(8), 2), was_online=was_online))

    assert (found["known_at"] is not None, found["due_at"] is not None) == (was_online, not was_online)


@pytest.mark.parametrize("found", Found)
def test_of_what_cannot_be_told_offline_nothing_is_settled(found: Found) -> None:
    row = online("ann", 9, 2)

    made = line(looked(row, row, found=found))

    assert (made["settled_row"] is None) is (found in {Found.PENDING, Found.CUT})


def test_an_online_row_of_the_first_look_was_seen() -> None:
    found = line(looked(online("ann", 5, 1), online("ann", 4, 1), seen=(at(3), 1)))

    assert found["online_at"] < found["seen_at"]
    assert found["seen_at"].startswith("2026-03-01T12:00:05")


def test_places_sort_by_time_then_by_version() -> None:
    def spelled(seconds: float, version: int) -> str:
        return str(line(looked(None, online("ann", seconds, version)))["online_at"])

    places = [(-3600.0, 99), (0.0, 9), (0.0, 10), (0.000001, 1), (1.0, 2**62)]

    assert [spelled(*one) for one in places] == sorted(spelled(*one) for one in places)


def test_copies_are_told() -> None:
    row = online("ann", 0, 1)

    assert line(looked(row, row, found=offline(0, 1, copies_count=2)))["offline_copies"] == 2


def test_an_entity_that_was_never_known_is_not_expected_online() -> None:
    found = line(looked(None, None))

    assert (found["known_at"], found["online_at"], found["offline_row"]) == (None, None, None)


@pytest.mark.parametrize("known", ["offline", "before", "at the first look"])
def test_an_entity_that_is_known_from_anywhere_is_expected_online(known: str) -> None:
    first = online("ann", 8, 2) if known == "at the first look" else None
    floor = (at(8), 2) if known == "offline" else None
    seen = (at(8), 2) if known == "before" else None

    found = line(looked(first, None, floor=floor, seen=seen))

    assert found["online_at"] is None
    assert found["known_at"].startswith("2026-03-01T12:00:08")


FOR_A_MINUTE = replace(VIEW, ttl=timedelta(minutes=1))


@pytest.mark.parametrize(("age_s", "expected"), [(54, True), (55, False)])
def test_an_entity_that_may_have_outlived_its_ttl_is_not_expected_online(age_s: float, *, expected: bool) -> None:
    found = line(looked(None, None, floor=(at(0), 1), seconds=age_s), FOR_A_MINUTE)

    assert (found["known_at"] is not None) is expected


@pytest.mark.parametrize(("second_s", "expected"), [(54, True), (55, False), (900, False)])
def test_an_entity_may_outlive_its_ttl_between_the_looks(second_s: float, *, expected: bool) -> None:
    one = looked(None, None, floor=(at(0), 1), seconds=20)

    found = line(replace(one, ticket=replace(one.ticket, second_at=at(second_s))), FOR_A_MINUTE)

    assert (found["known_at"] is not None) is expected


@pytest.mark.parametrize(("expires_s", "expected"), [(70, True), (65, False)])
def test_a_row_that_was_seen_is_expected_until_its_own_expiry(expires_s: float, *, expected: bool) -> None:
    row = replace(online("ann", -9000, 1), expires_at=at(expires_s), kept_for=FOR_A_MINUTE.ttl)

    found = line(looked(row, None, seconds=60), FOR_A_MINUTE)

    assert (found["known_at"] is not None) is expected


@pytest.mark.parametrize(
    ("seconds", "expires_s", "right"),
    [(0, 60, True), (0, 125, True), (0, 126, False), (90, 155, True), (90, 156, False), (0, None, False)],
)
def test_a_row_is_forgotten_a_ttl_after_the_look_or_its_own_time(
    seconds: float, expires_s: float | None, *, right: bool
) -> None:
    row = online("ann", seconds, 1)
    row = replace(row, expires_at=None if expires_s is None else at(expires_s), kept_for=FOR_A_MINUTE.ttl)

    found = line(looked(row, row), FOR_A_MINUTE)

    assert (found["expires_at"] <= found["may_last_until"]) is right


def test_a_row_that_may_last_for_ever_expires_at_no_time() -> None:
    row = online("ann", 0, 1)

    found = line(looked(row, row))

    assert (found["expires_at"], found["may_last_until"]) == (None, None)


def test_a_ttl_beyond_all_times_is_never_over() -> None:
    view = replace(VIEW, ttl=timedelta(days=999_999_999))
    row = replace(online("ann", 0, 1), expires_at=datetime.max.replace(tzinfo=UTC), kept_for=view.ttl)

    found = line(looked(row, None), view)

    assert found["known_at"] is not None
    assert found["expires_at"] == found["may_last_until"]


def test_a_row_of_the_future_lies_ahead_of_the_clock_of_its_first_look() -> None:
    assert line(looked(online("ann", 90, 1), None))["ahead_s"] == 30
    assert line(looked(online("ann", 0, 1), None))["ahead_s"] == -60


def test_entities_of_several_columns_are_told_apart() -> None:
    view = replace(VIEW, entity=(pa.field("user", pa.string()), pa.field("page", pa.int32())))
    entities = [("a", 2), ("b", 1)]

    frame = joined(view, [looked(None, None, floor=(at(0), 1), entity=entity) for entity in entities])

    assert [*frame["entity"]] == ["a / 2", "b / 1"]


def test_without_anything_to_judge_the_frame_still_has_its_columns() -> None:
    row = online("ann", 0, 1)

    assert [*joined(VIEW, []).columns] == [*joined(VIEW, [looked(row, row, found=offline(0, 1))]).columns]
    assert len(joined(VIEW, [])) == 0


def test_times_are_compared_as_whole_seconds() -> None:
    assert comparable(at(0.9)) == comparable(at(0)) != comparable(at(1))


def allowed(dtype: str) -> list[str]:
    view = replace(VIEW, features=(Feature("f", DTYPES[dtype], "…"),))
    return next(
        check.arguments["value_set"] for check in checks_of(view, TARGET) if check.name.endswith("online_has_dtype")
    )


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3, "int32"), (3, "int64"), (3.5, "float32"), (3.5, "float64"), (True, "bool"), ("", "string"), (b"", "bytes"),
     (START, "unix_timestamp"), ([], "array(int64)"), ([1], "array(int64)"), ([1.5, None], "array(float32)"),
     ([START], "array(unix_timestamp)")],
)  # fmt: skip
def test_a_value_of_the_declared_type_is_allowed(value: Any, dtype: str) -> None:
    assert type_of(value) in allowed(dtype)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3, "float64"), (3.0, "int64"), (True, "int64"), (1, "bool"), ("x", "bytes"), (b"x", "string"),
     (3, "unix_timestamp"), ([1], "int64"), (1, "array(int64)"), ([1], "array(float64)"), ([1, 2.0], "array(int64)")],
)  # fmt: skip
def test_a_value_of_another_type_is_not_allowed_even_if_it_is_equal(value: Any, dtype: str) -> None:
    assert type_of(value) not in allowed(dtype)


def test_how_partitions_keep_up_is_one_line_each_in_plain_values() -> None:
    frame = freshness([Line("edits", 0, State.STALLED, 20.5, 3, 7, 10, "page"), Line("views", None, State.UNKNOWN)])

    assert [*frame.itertuples(index=False, name=None)] == [
        ("edits", 0, "stalled", 20.5, 3, 7, 10, "page"),
        ("views", None, "unknown", None, None, None, None, None),
    ]
    assert {type(state) for state in frame["state"]} == {str}


def test_a_column_that_is_missing_or_of_another_type_offline_is_told() -> None:
    schema = VIEW.row_schema.remove(VIEW.row_schema.get_field_index("share_1h"))
    schema = schema.set(schema.get_field_index("edits_1h"), pa.field("edits_1h", pa.int32()))

    frame = schemas(VIEW, {"part-a": VIEW.row_schema, "part-b": schema})

    different = frame[frame["declared"] != frame["found"]]
    assert {("part-b", "edits_1h", "int64", "int32"), ("part-b", "share_1h", "double", "None")} == {
        *different.itertuples(index=False, name=None)
    }


def test_a_column_that_nobody_declared_is_told() -> None:
    frame = schemas(VIEW, {"part-a": VIEW.row_schema.append(pa.field("more", pa.bool_()))})

    different = frame[frame["declared"] != frame["found"]]
    assert [("part-a", "more", "None", "bool")] == [*different.itertuples(index=False, name=None)]


def test_lists_written_by_another_program_are_still_lists() -> None:
    view = replace(VIEW, features=(Feature("f", DTYPES["array(int64)"], "…"),))
    place = view.row_schema.get_field_index("f")
    other = view.row_schema.set(place, pa.field("f", pa.list_(pa.field("element", pa.int64()))))

    frame = schemas(view, {"part-a": other})

    assert frame["declared"].to_list() == frame["found"].to_list()


def test_a_part_that_is_gone_has_no_visible_rows_to_count() -> None:
    frame = parts([("part-a", 3, 3), ("part-b", 5, None)])

    assert [*frame.itertuples(index=False, name=None)] == [("part-a", 3, 3), ("part-b", 5, None)]


def test_what_the_online_store_counts_stands_beside_what_was_committed() -> None:
    assert [*store(7, 5).itertuples(index=False)] == [(7, 5)]
