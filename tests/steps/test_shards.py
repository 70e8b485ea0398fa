"""An entity's shard: one, always the same, whatever else is in the batch."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.shards import split
from freshet.schemas.view import View

VIEW = View("by_user", ("edits",), (pa.field("user", pa.string()), pa.field("page", pa.int64())), ())
ENTITIES = st.tuples(st.none() | st.text(max_size=4), st.none() | st.integers(-(2**63), 2**63 - 1))


def table(entities: list[tuple[str | None, int | None]]) -> pa.Table:
    users, pages = [user for user, _ in entities], [page for _, page in entities]
    return pa.table(
        [pa.array(users, pa.string()), pa.array(pages, pa.int64()), pa.array(range(len(entities)), pa.int64())],
        ["user", "page", "_offset"],
    )


@given(entities=st.lists(ENTITIES, max_size=30), shards_count=st.integers(1, 7))
def test_each_event_with_an_entity_is_in_the_one_shard_where_its_entity_is_when_alone(
    entities: list[tuple[str | None, int | None]], shards_count: int
) -> None:
    entities = [(user if user is None else user.encode(errors="replace").decode(), page) for user, page in entities]

    parts = split(table(entities), VIEW, shards_count)

    found = {offset: shard for shard, part in parts.items() for offset in part.column("_offset").to_pylist()}
    expected = {
        offset: next(iter(split(table([entity]), VIEW, shards_count)))
        for offset, entity in enumerate(entities)
        if None not in entity
    }
    assert expected == found
    assert all(0 <= shard < shards_count and part.num_rows for shard, part in parts.items())


def test_a_shard_keeps_the_order_of_its_events() -> None:
    parts = split(table([("ada", 1), ("bob", 2)] * 50), VIEW, 4)

    for part in parts.values():
        assert part.column("_offset").to_pylist() == sorted(part.column("_offset").to_pylist())


def test_the_shards_of_old_are_the_shards_of_today() -> None:
    """These numbers decide where state is: another answer is a migration."""
    parts = split(table([("ada", 1), ("bob", 2), ("Zoë", 3), ("", 0)]), VIEW, 8)

    found = {offset: shard for shard, part in parts.items() for offset in part.column("_offset").to_pylist()}
    assert found == {0: 7, 1: 5, 2: 1, 3: 1}


@pytest.mark.parametrize("shards_count", [2, 4, 16])
def test_many_entities_are_spread_evenly(shards_count: int) -> None:
    parts = split(table([(f"user {index}", index % 7) for index in range(4000)]), VIEW, shards_count)

    assert len(parts) == shards_count
    assert max(part.num_rows for part in parts.values()) < 1.5 * 4000 / shards_count


def test_columns_in_several_chunks_are_one_column() -> None:
    chunked = pa.concat_tables([table([("ada", 1)]), table([("bob", 2), ("ada", 1)])])

    parts = split(chunked, VIEW, 4)

    assert sum(part.num_rows for part in parts.values()) == 3
