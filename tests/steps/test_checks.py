from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from freshet.flows.steps.checks import Look, checks_of, comparable, joined, lagging, sample, schemas, type_of
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


def offline(*rows: tuple[str, float, int, Any, Any]) -> pa.Table:
    """Rows as (user, seconds, version, edits, share)."""
    names = ["user", "event_timestamp", "_version", "edits_1h", "share_1h"]
    lines = [dict(zip(names, (user, at(seconds), *rest), strict=True)) for user, seconds, *rest in rows]
    return pa.Table.from_pylist(lines, VIEW.row_schema)


def online(user: str, seconds: float, version: int, edits: Any = 1, share: Any = 0.5) -> StoredRow:
    return StoredRow((user,), at(seconds), version, {"edits_1h": edits, "share_1h": share})


def line(looks: list[Look], *, committed: bool = False, user: str = "ann") -> dict[str, Any]:
    return joined(VIEW, [(user,)], looks, committed=committed).to_dict("records")[0]


def test_every_check_has_a_stable_name_of_its_own() -> None:
    assert [check.name for check in checks_of(VIEW, TARGET)] == [
        "edits_by_user.offline_schema_is_declared",
        "edits_by_user.offline_entity_is_online",
        "edits_by_user.online_is_not_older",
        "edits_by_user.online_row_is_offline",
        "edits_by_user.online_row_is_settled",
        "edits_by_user.offline_rows_are_single",
        "edits_by_user.edits_1h.online_equals_offline",
        "edits_by_user.edits_1h.online_is_not_null",
        "edits_by_user.edits_1h.online_has_dtype",
        "edits_by_user.share_1h.online_equals_offline",
        "edits_by_user.share_1h.online_is_not_null",
        "edits_by_user.share_1h.online_has_dtype",
        "edits_by_user.lag_is_known",
        "edits_by_user.lag_is_within_target",
    ]


def test_checks_name_only_columns_that_their_frame_has() -> None:
    table = offline(("ann", 0, 1, 1, 0.5))
    frames = {
        Frame.SCHEMA: schemas(VIEW, table),
        Frame.ROWS: joined(VIEW, [("ann",)], [Look(table, [online("ann", 0, 1)])], committed=False),
        Frame.LAG: lagging(VIEW, {("edits", 0): 0.0}),
    }
    for check in checks_of(VIEW, TARGET):
        keys = ("column", "column_A", "column_B")
        named = {check.arguments[key] for key in keys if key in check.arguments} | {*check.frame.identity}

        assert named | ({check.given} if check.given else set()) <= {*frames[check.frame].columns}


def test_a_row_is_compared_with_the_same_version_of_the_same_time() -> None:
    table = offline(("ann", 0, 1, 7, 0.1), ("ann", 0, 2, 8, 0.2), ("ann", 5, 1, 9, 0.3), ("bob", 0, 2, 10, 0.4))

    found = line([Look(table, [online("ann", 0, 2, 8, 0.2)])])

    assert tuple(found[name] for name in LINE) == ("found", 8, 8, 0.2, 0.2)


LINE = ("offline_row", "on_edits_1h", "off_edits_1h", "on_share_1h", "off_share_1h")


def test_integers_beside_nulls_keep_every_digit() -> None:
    table = offline(("ann", 0, 1, 2**53 + 1, None), ("bob", 0, 1, None, None))
    looks = [Look(table, [online("ann", 0, 1, 2**53 + 1, None), online("bob", 0, 1, None, None)])]

    frame = joined(VIEW, [("ann",), ("bob",)], looks, committed=False)

    assert [2**53 + 1, None] == frame["on_edits_1h"].to_list() == frame["off_edits_1h"].to_list()


def test_a_row_that_is_not_offline_yet_is_pending_and_its_values_are_not_compared() -> None:
    found = line([Look(offline(("ann", 0, 1, 7, 0.1)), [online("ann", 9, 2)])])

    assert tuple(found[name] for name in LINE) == ("pending", None, None, None, None)


def test_a_row_that_stays_away_is_absent_only_if_the_flow_has_committed_it() -> None:
    look = Look(offline(("ann", 0, 1, 7, 0.1)), [online("ann", 9, 2)])

    assert line([look, look], committed=True)["offline_row"] == "absent"
    assert line([look, look], committed=False)["offline_row"] == "pending"


def test_a_row_that_came_only_with_the_second_look_is_never_absent() -> None:
    table = offline(("ann", 0, 1, 7, 0.1))

    assert line([Look(table, [None]), Look(table, [online("ann", 9, 2)])], committed=True)["offline_row"] == "pending"


def test_a_version_that_a_greater_one_has_replaced_offline_is_not_absent() -> None:
    look = Look(offline(("ann", 9, 3, 7, 0.1)), [online("ann", 9, 2)])

    assert line([look, look], committed=True)["offline_row"] == "pending"


def test_of_a_busy_entity_the_row_of_the_first_look_is_compared() -> None:
    first = Look(offline(("ann", 0, 1, 1, 0.5)), [online("ann", 1, 2, 2)])
    second = Look(offline(("ann", 0, 1, 1, 0.5), ("ann", 1, 2, 3, 0.5)), [online("ann", 2, 3, 4)])

    found = line([first, second], committed=True)

    assert tuple(found[name] for name in LINE[:3]) == ("found", 2, 3)
    assert found["online_at"].startswith("2026-03-01T12:00:02")


def test_online_is_held_to_what_was_offline_at_the_first_look() -> None:
    first = Look(offline(("ann", 0, 1, 1, 0.5)), [online("ann", 0, 1)])
    second = Look(offline(("ann", 0, 1, 1, 0.5), ("ann", 8, 2, 1, 0.5)), [online("ann", 0, 1)])

    found = line([first, second])

    assert found["online_at"] == found["offline_at"]


def test_places_sort_by_time_then_by_version() -> None:
    table = offline(("ann", 0, 10, 1, 0.5), ("ann", 0, 9, 1, 0.5), ("ann", -3600, 99, 1, 0.5))

    found = line([Look(table, [online("ann", 0, 9)])])

    assert found["online_at"] < found["offline_at"]
    assert found["offline_at"].endswith("10")


def test_copies_are_counted_by_version() -> None:
    table = offline(("ann", 0, 1, 1, 0.5), ("ann", 0, 2, 1, 0.5), ("ann", 0, 1, 1, 0.5), ("bob", 0, 1, 1, 0.5))
    looks = [Look(table, [None, None])]

    assert joined(VIEW, [("ann",), ("bob",)], looks, committed=False)["offline_copies"].to_list() == [2, 1]


def test_an_entity_that_went_away_and_was_never_offline_has_no_line() -> None:
    assert len(joined(VIEW, [("ann",)], [Look(offline(), [None])], committed=False)) == 0


def test_entities_of_several_columns_are_told_apart() -> None:
    view = replace(VIEW, entity=(pa.field("user", pa.string()), pa.field("page", pa.int32())))
    rows = [{"user": u, "page": p, "event_timestamp": at(0), "_version": 1, "edits_1h": n}
            for u, p, n in (("a", 1, 1), ("a", 2, 2), ("b", 1, 3), ("b", 2, 4))]  # fmt: skip
    table = pa.Table.from_pylist(rows, view.row_schema)
    stored = [StoredRow(e, at(0), 1, {"edits_1h": 0, "share_1h": None}) for e in (("a", 2), ("b", 1))]

    frame = joined(view, [("a", 2), ("b", 1)], [Look(table, stored)], committed=False)

    assert [*zip(frame["entity"], frame["off_edits_1h"], strict=True)] == [("a / 2", 2), ("b / 1", 3)]


def test_a_sample_is_of_different_entities_and_the_same_for_the_same_seed() -> None:
    table = offline(*((f"user {n % 50}", n, 1, n, 0.5) for n in range(500)))

    drawn = sample(VIEW, table, 20, seed=3)

    assert len({*drawn}) == 20
    assert drawn == sample(VIEW, table, 20, seed=3)
    assert drawn != sample(VIEW, table, 20, seed=4)
    assert len(sample(VIEW, table, 1000, seed=3)) == 50


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


def test_lag_is_of_the_view_s_own_source() -> None:
    frame = lagging(VIEW, {("edits", 1): 0.5, ("edits", 0): None, ("views", 0): 90.0})

    assert [*frame.itertuples(index=False, name=None)] == [("edits", 0, None), ("edits", 1, 0.5)]


def test_of_a_source_without_known_partitions_the_lag_is_unknown() -> None:
    assert [*lagging(VIEW, {}).itertuples(index=False, name=None)] == [("edits", None, None)]


def test_a_column_that_is_missing_or_of_another_type_offline_is_told() -> None:
    table = offline().drop_columns(["share_1h"])
    table = table.set_column(table.schema.get_field_index("edits_1h"), "edits_1h", pa.array([], pa.int32()))

    frame = schemas(VIEW, table)

    different = frame[frame["declared"] != frame["found"]]
    assert {("edits_1h", "int64", "int32"), ("share_1h", "double", "None")} == {
        *different.itertuples(index=False, name=None)
    }


def test_lists_written_by_another_program_are_still_lists() -> None:
    view = replace(VIEW, features=(Feature("f", DTYPES["array(int64)"], "…"),))
    place = view.row_schema.get_field_index("f")
    other = view.row_schema.set(place, pa.field("f", pa.list_(pa.field("element", pa.int64()))))

    frame = schemas(view, other.empty_table())

    assert frame["declared"].to_list() == frame["found"].to_list()
