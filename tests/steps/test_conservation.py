"""Accepted events are archived events, partition by partition."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from freshet.flows.steps.conservation import Conservation, Conserved
from freshet.schemas.event import archive_name
from freshet.schemas.ledger import Ledger, PartitionMark, source_key


def ledger(epoch: int, accepted: Mapping[int, int], expired_us: int | None = None) -> Ledger:
    return Ledger(
        id="a",
        shards_count=1,
        epoch=epoch,
        offsets={source_key("edits", number): 10 * count for number, count in accepted.items()},
        partitions={source_key("edits", number): PartitionMark(accepted_count=n) for number, n in accepted.items()},
        expired={} if expired_us is None else {"edits": expired_us},
    )


def part(epoch: int, number: int = 1) -> str:
    return f"part-{epoch:010d}-a1b2c3d4-{number:06d}.parquet"


def difference(found: list[Conserved]) -> dict[int, int]:
    return {one.partition: one.archived - one.accepted for one in found if one.archived != one.accepted}


def test_what_was_accepted_is_archived_and_both_offsets_are_told() -> None:
    found = Conservation("edits").look(ledger(3, {0: 5, 4: 2}), {part(1): {0: 3, 4: 2}, part(3): {0: 2}}, {0: 40})

    assert found == [Conserved("edits", 0, 5, 5, 50, 40), Conserved("edits", 4, 2, 2, 20, None)]


def test_a_part_of_a_later_epoch_than_the_ledger_s_is_left_to_a_later_look() -> None:
    found = Conservation("edits").look(ledger(3, {0: 5}), {part(3): {0: 5}, part(4): {0: 9, 1: 1}}, {})

    assert difference(found) == {}


def test_events_that_are_lost_in_one_partition_and_doubled_in_another_do_not_make_up_for_each_other() -> None:
    found = Conservation("edits").look(ledger(2, {0: 5, 1: 5}), {part(1): {0: 4}, part(2): {1: 6}}, {})

    assert difference(found) == {0: -1, 1: 1}


def test_events_of_a_partition_that_nobody_read_are_too_many() -> None:
    (found,) = Conservation("edits").look(ledger(1, {}), {part(1): {7: 2}}, {})

    assert found == Conserved("edits", 7, 0, 2, None, None)


def test_parts_that_are_being_dropped_are_counted_neither_while_they_are_there_nor_once_they_are_gone() -> None:
    conservation, old, young = Conservation("edits"), part(1), part(2)
    dropping = ledger(2, {0: 9}, 7).model_copy(update={"dropped": {archive_name("edits"): (old,)}})

    looks = [
        conservation.look(ledger(2, {0: 9}), {old: {0: 4}, young: {0: 5}}, {}),
        conservation.look(dropping, {old: {0: 4}, young: {0: 5}}, {}),
        conservation.look(dropping, {young: {0: 5}}, {}),
        conservation.look(ledger(3, {0: 9}, 7), {young: {0: 5}}, {}),
    ]

    assert [difference(found) for found in looks] == [{}, {}, {}, {}]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=12))
def test_however_old_parts_expire_nothing_is_missed_and_a_part_that_is_lost_after_it_is(
    history: list[tuple[int, int, int]],
) -> None:
    conservation, accepted, parts, expired_us = Conservation("edits"), dict[int, int](), dict[str, dict[int, int]](), 0
    for epoch, (partition, count, expires) in enumerate(history, start=1):
        accepted[partition] = accepted.get(partition, 0) + count
        parts[part(epoch)] = {partition: count}
        for old in list(parts)[:expires]:  # perhaps the one that was just made, too
            parts.pop(old)
            expired_us += 1
        now = ledger(epoch, accepted, expired_us or None)
        assert difference(conservation.look(now, parts, {})) == {}

    for lost, counts in parts.items():
        rest = {name: known for name, known in parts.items() if name != lost}
        assert difference(conservation.look(now, rest, {})) == {number: -count for number, count in counts.items()}
