"""The whole flow on twins: whatever fails or dies at whatever moment, nothing is lost, doubled or taken back.

A failure names the seed, the touch and its fate; `World(seed=…)` with those replays it.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from simulated import GIVEN, SOAK, START, STREAM, Crash, Fates, World, touches

from freshet.flows.edges.recovery import RecoveryFolder
from freshet.flows.journal import Journal, Places
from freshet.schemas.errors import Refused, RejectLimit, StoreLost, Unavailable
from freshet.schemas.event import CANARY_HEADER, archive_name
from freshet.schemas.ledger import Ledger, ShardMark, source_key

FATES = ("fails", "dies before", "dies after")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", range(4 * SOAK))
def test_without_faults_all_is_as_sql_says(seed: int) -> None:
    world = World(seed, events_count=120, shards_count=seed % 3 + 1, is_live=seed % 2 == 0)

    world.run()

    world.check_done()


@pytest.mark.parametrize("seed", range(4))
def test_once_nothing_comes_any_more_progress_tells_of_every_partition_that_all_is_online(seed: int) -> None:
    world = World(seed, events_count=60)

    world.run()

    progress = world.online.read_progress()
    assert sorted(progress) == [source_key(STREAM, part) for part in range(world.partitions_count)]
    assert min(one.through_us for one in progress.values()) >= max(world.appended_us.values())


def test_parts_of_rows_and_of_events_are_named_by_the_epoch_that_made_them() -> None:
    world = World(2, events_count=60, workers_counts=(2,))

    world.run()

    ledger = world.ledger.read()
    assert ledger is not None
    for name in (archive_name(STREAM), *(view.name for view in GIVEN.pipeline.views)):
        epochs = [epoch for epoch, part in world.offline.parts_after(name, -1)]
        assert epochs
        assert set(epochs) <= set(range(1, ledger.epoch + 1)), name


def test_a_seed_decides_everything() -> None:
    def touched() -> list[str]:
        world = World(7, fates=Fates({40: "dies after", 90: "fails"}))
        world.run_until_done()
        return world.fates.names

    assert touched() == touched()


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("seed", [1, *range(4, 4 + SOAK)])
def test_a_crash_at_any_single_touch_of_the_outside_harms_nothing(seed: int, fate: str) -> None:
    """The Nth call fails, or the process dies before or after it, for N = 1, 2, … until a run completes.

    Of the seed that makes many calls a third of the moments, but for FRESHET_SOAK.
    """
    for number in touches(fate, one_in=1 if seed == 1 else 3):
        world = World(seed, events_count=25, is_live=seed % 2 == 0, fates=Fates({number: fate}))
        world.run_until_done()
        world.check_done()
        if len(world.fates.names) < number:
            break

    assert number > 50


@pytest.mark.parametrize("seed", range(100, 100 + 60 * SOAK))
def test_many_crashes_at_any_moments_harm_nothing(seed: int) -> None:
    world = World(seed, events_count=60, partitions_count=seed % 3 + 1, is_live=seed % 2 == 0)
    befall(world)

    world.run_until_done()

    world.check_done()


@pytest.mark.parametrize("seed", range(200, 200 + 30 * SOAK))
def test_crashes_under_several_workers_and_a_restart_with_another_number_harm_nothing(seed: int) -> None:
    """Which of the threads comes first at a touch, the machine decides; all else the seed."""
    world = World(seed, 60, seed % 3 + 1, shards_count=3, is_live=seed % 2 == 0, workers_counts=(2, 3, 1))
    befall(world)

    world.run_until_done()

    world.check_done()


def befall(world: World) -> None:
    at = 0
    for _ in range(world.chance.randint(2, 12)):
        at += world.chance.randint(1, 90)
        world.fates.at[at] = world.chance.choice(FATES)


def test_an_online_store_that_came_back_empty_is_filled_before_new_events_are_served() -> None:
    world = World(3, is_live=False)
    world.run()
    rows = {view.name: world.offline.newest(view).num_rows for view in GIVEN.pipeline.views}
    world.online.forget()
    begun = len(world.fates.names)

    world.run()

    world.check_done()
    again = world.fates.names[begun:]
    assert again.index("offline.newest") < again.index("open")
    assert min(rows.values()) > 0


@pytest.mark.parametrize("seed", range(10))
def test_an_online_store_that_loses_its_data_while_the_flow_runs_is_noticed_and_filled(seed: int) -> None:
    world = World(seed, events_count=60, is_live=False)
    lost: list[int] = []

    def watch() -> None:
        world.check_always()
        if not lost and world.fates.names.count("online.write") == 2:
            lost.append(len(world.fates.names))
            world.online.forget()

    world.fates.watch = watch
    with pytest.raises(StoreLost):
        world.run()

    world.run_until_done()

    world.check_done()


def progressed(seed: int = 5) -> World:
    """Return a world in which a process died after some commits."""
    world = World(seed, events_count=120, is_live=False)
    world.epoch *= 0

    def watch() -> None:
        world.check_always()
        if world.fates.names.count("ledger.write") == 5:
            world.fates.at[len(world.fates.names) + 1] = "dies before"

    world.fates.watch = watch
    with pytest.raises(Crash):
        world.run()
    world.fates.watch = world.check_always
    return world


def test_a_lost_recovery_folder_is_refused_and_rebuilt_on_request() -> None:
    world = progressed()
    world.states = type(world.states)()
    before = world.offline.read(archive_name(STREAM)).num_rows

    with pytest.raises(Refused, match=r'recovery folder "of epoch \d+" is lost; got none.*--rebuild'):
        world.run()
    world.run(rebuild=True)

    world.check_done()
    assert 0 < before < world.offline.read(archive_name(STREAM)).num_rows
    world.run()


def test_a_recovery_folder_of_another_offline_store_is_refused() -> None:
    world, other = progressed(), progressed(6)
    world.states = other.states

    with pytest.raises(Refused, match="belongs to another offline store"):
        world.run()


def test_an_offline_store_without_a_ledger_is_refused() -> None:
    world = progressed()
    world.ledger = type(world.ledger)()

    with pytest.raises(Refused, match='offline store "clicks_by_user" has rows, but there is no ledger of them'):
        world.run()


def test_a_recovery_folder_without_its_offline_store_is_refused() -> None:
    world = progressed()
    world.ledger, world.offline = type(world.ledger)(), type(world.offline)()
    world.fates.watch = lambda: None  # all is lost

    with pytest.raises(Refused, match=r"belongs to another offline store than this one, which is new.*to begin anew"):
        world.run()


def test_an_archive_with_a_gap_is_refused() -> None:
    world = progressed()
    name = archive_name(STREAM)
    _, part = world.offline.parts_after(name, 0)[0]
    world.offline.delete(name, [part])
    world.fates.watch = lambda: None  # something is lost
    world.states = type(world.states)()

    with pytest.raises(
        Refused, match=r'event archive ".*" has \d+ events in the ledger, and \d+ in snapshot and archive'
    ):
        world.run(rebuild=True)


@pytest.mark.parametrize("counts", [(3,), (1, 4), (5, 1)])
@pytest.mark.parametrize("seed", range(2 * SOAK))
def test_a_rebuild_spreads_state_over_another_number_of_shards_wherever_it_dies(
    seed: int, counts: tuple[int, ...]
) -> None:
    world = progressed(seed)
    for count in counts:
        world.shards_count = count
        for _ in range(3):
            world.fates.at = {len(world.fates.names) + world.chance.randint(1, 25): world.chance.choice(FATES)}
            with contextlib.suppress(Crash, Unavailable):
                world.run(rebuild=True)
    world.fates.at = {}
    world.run(rebuild=True)

    ledger = world.ledger.read()
    assert ledger is not None
    assert (ledger.shards_count, len(ledger.shards)) == (counts[-1], counts[-1] * len(world.given.pipeline.views))
    world.check_done()


def test_an_archive_with_a_gap_is_spread_over_no_other_number_of_shards() -> None:
    world = progressed()
    name = archive_name(STREAM)
    world.offline.delete(name, [world.offline.parts_after(name, 0)[0][1]])
    world.fates.watch = lambda: None  # something is lost
    world.shards_count = 3

    with pytest.raises(Refused, match=r'event archive ".*, all shards" has \d+ events in the ledger, and \d+ in'):
        world.run(rebuild=True)


def test_shards_of_a_view_that_is_not_declared_are_not_spread() -> None:
    world = progressed()
    ledger = world.ledger.read()
    assert ledger is not None
    world.ledger.write(ledger.model_copy(update={"shards": {**ledger.shards, "gone/0": ShardMark()}}))
    world.shards_count = 3

    with pytest.raises(Refused, match=r'shards "of gone" are kept of views that are not declared'):
        world.run(rebuild=True)


def test_a_process_with_another_number_of_shards_than_its_leader_is_refused(tmp_path: Path) -> None:
    world = progressed()
    places, leader = Places(world.ledger, world.states, world.offline), RecoveryFolder(tmp_path).told(1)
    follower = Journal(places, GIVEN.pipeline, GIVEN.contracts, 3, leader=leader)

    with pytest.raises(Refused, match=r'shards "3" differ; got 2. Hint: set the same FRESHET_SHARDS'):
        follower.fold("clicks_by_user", 0)


def test_another_number_of_shards_or_another_computation_is_refused() -> None:
    world = progressed()
    ledger = world.ledger.read()
    assert ledger is not None
    world.shards_count = 3
    with pytest.raises(Refused, match=r'shards "3" differ; got 2. Hint: set FRESHET_SHARDS=2 or nothing, or rebuild'):
        world.run()
    world.shards_count = 2
    world.ledger.write(ledger.model_copy(update={"views": {"clicks_by_user": "other"}}))
    with pytest.raises(Refused, match='feature view "clicks_by_user" computes something else than its state'):
        world.run()


def test_a_resume_offset_that_is_gone_is_an_error_and_a_gap_is_accepted_only_on_request() -> None:
    world = progressed()
    ledger = world.ledger.read()
    assert ledger is not None
    offset = ledger.offsets[f"{STREAM}/000000"]
    world.log.forget_before(STREAM, 0, offset + 2)

    with pytest.raises(Refused) as refused:
        world.run()

    said = str(refused.value)
    assert f'topic "{STREAM}" partition 0 does not have the offset {offset} that is to be read next' in said
    assert f"got offsets from {offset + 2} up to" in said
    assert "--accept-gap" in said


def test_too_many_rejects_in_a_row_stop_the_flow_again_and_again_until_they_are_allowed() -> None:
    world = World(2, events_count=0, is_live=False)
    world.epoch *= 0
    for number in range(300):
        world.good[0, world.log.append(STREAM, 0, b"garbage %d" % number)] = False

    for _ in range(5):
        with pytest.raises(RejectLimit, match='stream "clicks" gave .* events in a row that cannot be used'):
            world.run(reject_limit=50)
    kept = {offset for _, offset, _ in world.letters}
    assert len(kept) < 120  # a few polls beyond the limit, however often it is started

    world.run(reject_limit=1000)
    assert {offset for _, offset, _ in world.letters} == set(range(300))


@pytest.mark.parametrize(
    ("kinds", "count"),
    [("gb" * 200, 0), ("b" * 50 + "g" + "b" * 50, 0), ("g" + "b" * 51 + "g", 51), ("g" + "b" * 60, 60)],
)
def test_only_rejects_with_no_good_event_between_them_are_in_a_row(kinds: str, count: int) -> None:
    world = World(2, events_count=0, is_live=False)
    for number, kind in enumerate(kinds):
        event = {"at": START.isoformat(), "user": "a", "id": str(number), "cost": "1"}
        value = json.dumps(event).encode() if kind == "g" else b"garbage"
        world.good[0, world.log.append(STREAM, 0, value)] = kind == "g"

    if count:
        with pytest.raises(RejectLimit, match=f"gave {count} events in a row"):
            world.run(reject_limit=50)
    else:
        world.run(reject_limit=50)


def test_canaries_among_nothing_but_rejects_do_not_keep_the_flow_going() -> None:
    world = World(2, events_count=0, is_live=False)
    for number in range(300):
        world.log.append(STREAM, 0, b"garbage %d" % number)
        canary = {"at": START.isoformat(), "user": "canary-0", "id": f"canary-{number}", "cost": "1"}
        headers = ((CANARY_HEADER, b"%d" % number),)
        world.log.append(STREAM, 0, json.dumps(canary).encode(), headers=headers)

    with pytest.raises(RejectLimit, match='stream "clicks" gave .* events in a row that cannot be used'):
        world.run(reject_limit=50)


def test_the_ledger_does_not_grow_with_the_state() -> None:
    def size(events_count: int) -> int:
        world = World(4, events_count=events_count, is_live=False)
        world.run()
        ledger = world.ledger.read()
        assert isinstance(ledger, Ledger)
        return len(ledger.model_dump_json())

    assert size(2_000) < 1.2 * size(200)


def test_dead_letters_that_do_not_arrive_hold_the_offsets_back() -> None:
    world = World(2, events_count=60, is_live=False)
    touch = world.fates.touch

    def refuse(process: int, name: str, call: object) -> object:
        if name == "letters.flush":
            raise Unavailable("dead letters do not arrive")
        return touch(process, name, call)  # type: ignore[arg-type]  # as it came

    world.fates.touch = refuse  # type: ignore[assignment,method-assign]  # the same shape
    with pytest.raises(Unavailable, match="dead letters do not arrive"):
        world.run()
    world.fates.touch = touch  # type: ignore[method-assign]  # as it was

    world.run()
    world.check_done()


def test_archived_events_expire_only_once_every_snapshot_has_them() -> None:
    world = World(8, events_count=200, is_live=False)
    world.epoch *= 0
    world.run()
    live = world.assemble()
    name, far = archive_name(STREAM), datetime(9999, 1, 1, tzinfo=UTC)
    before = len(world.offline.parts_after(name, 0))
    world.fates.watch = lambda: None  # what is dropped is dropped

    dropped = live.journal.expire(STREAM, far)

    live.close()
    ledger = world.ledger.read()
    assert ledger is not None
    oldest = min(mark.epoch for mark in ledger.snapshots.values())
    assert 0 < dropped < before
    assert all(epoch > oldest for epoch, _ in world.offline.parts_after(name, 0))
    world.run()
    world.states = type(world.states)()
    with pytest.raises(
        Refused, match='feature view "clicks_by_user" cannot be rebuilt: its rows depend on events that'
    ):
        world.run(rebuild=True)


@pytest.mark.parametrize("fate", FATES)
def test_an_expiry_that_dies_at_any_touch_counts_every_part_once(fate: str) -> None:
    name, far = archive_name(STREAM), datetime(9999, 1, 1, tzinfo=UTC)
    for step in itertools.count(1):
        world = World(8, events_count=60, is_live=False)
        world.epoch *= 0
        world.run()
        live = world.assemble()
        world.fates.watch = lambda: None  # what is dropped is dropped
        world.fates.at[len(world.fates.names) + step] = fate
        is_over = True
        try:
            live.journal.expire(STREAM, far)
        except (Crash, Unavailable):
            is_over = False
        world.fates.at.clear()
        live.journal.close()

        world.assemble().journal.expire(STREAM, far)

        ledger = world.ledger.read()
        assert ledger is not None
        assert ledger.rows_counts[name] == world.offline.read(name).num_rows, step
        if is_over:
            break
    assert step > 3
