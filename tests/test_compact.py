"""Compaction beside a flow that writes and readers that read: no row twice or missing, whatever dies at whatever moment.

The disk is a real one, and so are the journal and the locks; the flow is its commits alone, and the registry a
dictionary. A seed decides what the flow does between two touches of compaction, and how slow readers are.
"""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from simulated import touches

from freshet.flows.compact import Choice, Compactor, Outside
from freshet.flows.edges.compaction import CompactionFolder
from freshet.flows.edges.parquet import OfflineStore, listed
from freshet.flows.edges.recovery import LedgerFile, MemoryRecovery
from freshet.flows.journal import Journal, Places
from freshet.schemas.compaction import Kind, kind_of
from freshet.schemas.dtypes import DTYPES
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.ledger import Update
from freshet.schemas.part import run_of
from freshet.schemas.plan import Pipeline
from freshet.schemas.view import Feature, View

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ENTITY = (pa.field("user", pa.string()), pa.field("page", pa.int64()))
VIEW = View(
    "by_user",
    ("edits",),
    ENTITY,
    (Feature("edits", DTYPES["int64"], "…"), Feature("words", DTYPES["array(string)"], "…")),
)
Row = tuple[str, datetime, int]
GRACE = timedelta(minutes=10)


class Crash(BaseException):
    """The process died."""


class Impatient(LedgerFile):
    """A ledger whose lock nobody waits for."""

    def lock(self, wait_s: float = 0) -> None:  # noqa: ARG002  # whatever is asked
        super().lock(0)


class Dying(OfflineStore):
    """An offline store whose process may die before it makes parts visible, or amid it."""

    dies_after: int | None = None

    def _publish(self, *words: Any) -> None:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise Crash
            self.dies_after -= 1
        super()._publish(*words)


def table(rows: Sequence[Row]) -> pa.Table:
    lines = [
        {
            "user": user,
            "page": 1,
            "event_timestamp": at,
            "edits": version * 10,
            "words": ["é", str(version)],
            "created": at + timedelta(microseconds=version),
            "_version": version,
            "_partition": 0,
            "_offset": number,
        }
        for number, (user, at, version) in enumerate(rows)
    ]
    return pa.Table.from_pylist(lines, VIEW.row_schema)


def keys(found: pa.Table) -> list[Row]:
    return sorted(zip(*(found[name].to_pylist() for name in ("user", "event_timestamp", "_version")), strict=True))


@dataclass
class Look:
    """A reader that has listed a folder, and has not opened its files yet."""

    files: list[Path]
    least: list[Row]
    most: list[Row]
    ends_us: int


@dataclass
class World:
    """A disk, a flow on it, readers, and a compaction whose every touch of the outside is counted."""

    root: Path
    seed: int
    choice: Choice
    fate: tuple[int, str] = (0, "")
    now_us: int = int(NOON.timestamp()) * 10**6
    touches_count: int = 0
    committed: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    journal: Journal | None = None
    epoch: int = 0
    known: dict[tuple[int, str], list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.offline = OfflineStore(self.root)
        self.offline.prepare(VIEW.name, VIEW.row_schema)
        self.registry = {VIEW.name: self.offline.path(VIEW.name)}
        self.pointed_us: dict[Path, int] = {}

    # The flow

    def begin(self) -> None:
        parts = Dying(self.root)
        self.journal = Journal(
            Places(Impatient(self.root), MemoryRecovery(), parts), Pipeline("p", ()), {}, 1, rebuild=True
        )
        parts.discard_staged(VIEW.name)
        self.epoch = self.journal.ledger.epoch
        self.committed += self.waiting
        self.waiting = []

    def end(self) -> None:
        assert self.journal is not None
        self.journal.close()
        self.journal = None

    def commit(self, *rows: Row, dies_after: int | None = None) -> None:
        """Close an epoch; one without rows is an idle flow's."""
        assert self.journal is not None
        parts = self.journal.places.parts
        assert isinstance(parts, Dying)
        self.epoch += 1
        halves = [half for half in (rows[::2], rows[1::2]) if half]
        for half in halves:
            part = parts.stage(VIEW.name, table(half))
            self.journal.tell(Update(parts={VIEW.name: {str(part): len(half)}}))
        if rows:
            self.journal.tell(Update(offsets={self.epoch: {"edits/0": self.epoch}}))
        parts.dies_after = dies_after
        try:
            self.journal.commit(self.epoch)
        except Crash:
            done = [row for half in halves[:dies_after] for row in half]
            self.committed += done
            self.waiting = [row for row in rows if row not in done]
            self.end()
        else:
            self.committed += rows

    def some_rows(self) -> list[Row]:
        """Return rows and corrections of this and of former instants."""
        found = dict[tuple[str, datetime], int]()
        for user, at, version in (*self.committed, *self.waiting):
            found[user, at] = max(version, found.get((user, at), 0))
        made = list[Row]()
        for _ in range(self.chance.randint(1, 6)):
            minutes = self.chance.randint(0, 600)
            place = self.chance.choice("abcd"), NOON - timedelta(minutes=minutes)
            found[place] = found.get(place, 0) + 1
            made.append((*place, found[place]))
        return made

    def live(self) -> None:
        """Let the flow do something: commit, stand idle, die, begin, end."""
        if self.journal is None:
            if self.chance.random() < 0.5:
                with contextlib.suppress(Refused):  # compaction has a look whether a flow runs
                    self.begin()
            return
        deed = self.chance.choice(["rows", "rows", "rows", "idle", "dies", "ends"])
        if deed == "ends":
            self.end()
        elif deed == "dies":
            self.commit(*self.some_rows(), dies_after=self.chance.choice([0, 1]))
        else:
            self.commit(*(self.some_rows() if deed == "rows" else ()))

    # Readers

    def read(self) -> None:
        """Look at every folder that a reader may know, and now and then be slow between listing and opening."""
        for path in {self.registry[VIEW.name], *self.valid_paths(), self.offline.path(VIEW.name)}:
            files = sorted(path.glob("part-*.parquet"))
            look = Look(files, [*self.committed], [*self.committed, *self.waiting], self.now_us + 5 * 60 * 10**6)
            self.looks.append(look) if self.chance.random() < 0.3 else self.finish(look)
        for look in [look for look in self.looks if self.chance.random() < 0.3 or look.ends_us < self.now_us]:
            self.looks.remove(look)
            self.finish(look)

    def valid_paths(self) -> Iterator[Path]:
        """Give the paths that a reader may still have from a registry it read, who keeps one for less than the grace."""
        for path, until_us in self.pointed_us.items():
            if (
                path != self.registry[VIEW.name]
                and self.now_us < until_us + int(GRACE.total_seconds() * 10**6) * 9 // 10
            ):
                yield path

    def finish(self, look: Look) -> None:
        found = sorted(row for file in look.files for row in self.opened(file))
        self.check(found, look.least, look.most)

    def opened(self, file: Path) -> list[Row]:
        """Return a part's rows: read once, since none ever changes, but it must be there."""
        found = file.stat().st_ino, file.name
        if found not in self.known:
            self.known[found] = keys(pq.ParquetFile(file).read())
        return self.known[found]

    def check(self, found: list[Row], least: list[Row], most: list[Row]) -> None:
        assert len(found) == len({*found}), "a row is there twice"
        if self.choice.final:
            assert {*final(least)} <= {*final(found)} | ({*final(most)} - {*least}), "a row is missing"
        elif self.choice.keep is None:
            assert {*least} <= {*found}, "a row is missing"
        assert {*found} <= {*most}, "a row was never committed"

    # Compaction

    def touch(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def touched(*words: Any, **named: Any) -> Any:
            self.touches_count += 1
            self.now_us += self.chance.choice([0, 1, 30]) * 10**6
            self.live()
            self.read()
            if self.fate == (self.touches_count, "dies before"):
                raise Crash
            answer = call(*words, **named)
            self.read()
            if self.fate == (self.touches_count, "dies after"):
                raise Crash
            return answer

        return touched

    def point(self, views: Sequence[View]) -> set[str]:
        now = self.offline.path(VIEW.name)
        if self.registry[VIEW.name] == now:
            return set()
        self.pointed_us[self.registry[VIEW.name]] = self.now_us
        self.registry[VIEW.name] = now
        return {view.name for view in views}

    def run(self, work: Callable[[Compactor, Sequence[View]], Any]) -> None:
        store = CompactionFolder(OfflineStore(self.root))
        outside = Outside(
            store=Touched(store, self.touch),  # type: ignore[arg-type]  # each call is passed on
            parts=Touched(OfflineStore(self.root), self.touch),  # type: ignore[arg-type]  # as above
            ledger=Touched(LedgerFile(self.root), self.touch),  # type: ignore[arg-type]  # as above
            point=self.touch(self.point),
            now_us=lambda: self.now_us,
            sleep=lambda _: self.live(),
        )
        try:
            work(Compactor(outside, self.choice), [VIEW])
        finally:
            store.unlock()  # as the end of its process does

    def settle(self) -> None:
        """Have compaction run to its end, the grace over."""
        self.run(Compactor.run)
        self.now_us += int(GRACE.total_seconds() * 10**6)
        for look in self.looks:
            self.finish(look)
        self.looks = []
        self.run(Compactor.retire_all)

    def folders(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("_")}


class Touched:
    """A part of the outside, each call to which is a touch, but for the end of a process's locks."""

    def __init__(self, part: Any, touch: Callable[..., Any]) -> None:
        self._part, self._touch = part, touch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        return found if name == "unlock" else self._touch(found)


def final(rows: Sequence[Row]) -> list[Row]:
    newest = dict[tuple[str, datetime], int]()
    for user, at, version in rows:
        newest[user, at] = max(version, newest.get((user, at), 0))
    return [(user, at, version) for (user, at), version in newest.items()]


ALL, FINAL = Choice(2_000, grace=GRACE), Choice(2_000, final=True, grace=GRACE)


def filled(root: Path, seed: int, choice: Choice, *, commits: int = 8) -> World:
    world = World(root, seed, choice)
    world.begin()
    for _ in range(commits):
        world.commit(*world.some_rows())
    return world


@pytest.mark.parametrize("choice", [ALL, FINAL], ids=["all", "final"])
@pytest.mark.parametrize("seed", range(10))
def test_readers_see_every_row_once_while_the_flow_writes_dies_and_begins(
    tmp_path: Path, seed: int, choice: Choice
) -> None:
    world = filled(tmp_path, seed, choice)

    world.settle()

    assert len(world.folders()) == 1
    assert world.folders() == {world.registry[VIEW.name].name}
    assert world.offline.path(VIEW.name).name != VIEW.name
    world.check(keys(world.offline.read(VIEW.name)), world.committed, [*world.committed, *world.waiting])


@pytest.mark.parametrize("fate", ["dies before", "dies after"])
def test_a_compaction_that_dies_at_any_touch_is_taken_up_by_the_next(tmp_path: Path, fate: str) -> None:
    for number in touches(fate):
        world = filled(tmp_path / str(number), number, FINAL if number % 4 < 2 else ALL, commits=4)
        world.fate = (number, fate)
        try:
            world.settle()
        except Crash:
            world.settle()
        else:
            break

        assert world.folders() == {world.registry[VIEW.name].name}
        world.check(keys(world.offline.read(VIEW.name)), world.committed, [*world.committed, *world.waiting])
        shutil.rmtree(world.root)

    assert number > 30


def test_all_versions_stay_and_are_sorted_into_parts_of_the_wanted_size_that_do_not_overlap(tmp_path: Path) -> None:
    world = filled(tmp_path, 1, Choice(4_000), commits=60)
    before = world.offline.read(VIEW.name)
    world.end()

    (done,) = Compactor(outside(world), world.choice).run([VIEW])

    after, place = world.offline.read(VIEW.name), world.offline.path(VIEW.name)
    assert done.parts_after < done.parts_before // 3
    assert done.dropped_count == 0
    assert difference(before, after) == 0
    merged = [part for part in world.offline.visible_parts(VIEW.name) if kind_of(run_of(part)) is Kind.ALL]
    spans = sorted((pq.read_table(place / part)["event_timestamp"].to_pylist() for part in merged), key=min)
    assert len(spans) > 3
    assert all(max(one) < min(other) for one, other in pairwise(spans))
    assert all(pq.read_schema(place / part) == VIEW.row_schema for part in merged)


def outside(world: World, **changes: Any) -> Outside:
    whole = {
        "store": CompactionFolder(world.offline),
        "parts": world.offline,
        "ledger": LedgerFile(world.root),
        "point": world.point,
        "now_us": lambda: world.now_us,
        "sleep": lambda _: None,
    }
    return Outside(**{**whole, **changes})


def difference(before: pa.Table, after: pa.Table) -> int:
    with duckdb.connect() as database:
        database.register("before", before)
        database.register("after", after)
        both = "(SELECT * FROM before EXCEPT ALL SELECT * FROM after) UNION ALL (SELECT * FROM after EXCEPT ALL SELECT * FROM before)"
        return int(database.execute(f"SELECT count(*) FROM ({both})").fetchall()[0][0])


@pytest.mark.parametrize("seed", range(5))
def test_final_leaves_of_each_row_the_version_that_duckdb_finds_the_last(tmp_path: Path, seed: int) -> None:
    world = filled(tmp_path, seed, FINAL, commits=30)
    before = world.offline.read(VIEW.name)
    world.end()

    for _ in range(2):  # the second has those parts, too, that the ledger named at the first
        Compactor(outside(world), world.choice).run([VIEW])

    with duckdb.connect() as database:
        database.register("rows", before)
        newest = "PARTITION BY user, page, event_timestamp ORDER BY _version DESC"
        expected = database.sql(f"SELECT * FROM rows QUALIFY row_number() OVER ({newest}) = 1").to_arrow_table()
    assert difference(expected.cast(VIEW.row_schema), world.offline.final(VIEW)) == 0
    left_count = before.num_rows - world.offline.read(VIEW.name).num_rows
    assert world.offline.generation(VIEW.name).dropped_count == left_count > 0


def as_of(rows: pa.Table, at: datetime) -> list[Row]:
    with duckdb.connect() as database:
        database.register("rows", rows)
        newest = "PARTITION BY user, page ORDER BY event_timestamp DESC, _version DESC"
        query = f"SELECT user, event_timestamp, _version FROM rows WHERE event_timestamp <= ? QUALIFY row_number() OVER ({newest}) = 1"
        return keys(database.sql(query, params=[at]).to_arrow_table())


@pytest.mark.parametrize("choice", [ALL, FINAL], ids=["all", "final"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_too_old_go_and_what_was_the_case_at_any_later_time_is_answered_as_before(
    tmp_path: Path, seed: int, choice: Choice
) -> None:
    keep = timedelta(hours=3)
    world = filled(tmp_path, seed, Choice(2_000, choice.final, keep, GRACE), commits=30)
    world.commit(("zoe", NOON, 1))  # what the last commit made stays as it is
    before = world.offline.read(VIEW.name)
    world.end()

    (done,) = Compactor(outside(world), world.choice).run([VIEW])

    after, oldest = world.offline.read(VIEW.name), NOON - keep
    assert done.dropped_count == before.num_rows - after.num_rows > 0
    for minutes in range(0, 180, 7):
        at = oldest + timedelta(minutes=minutes)
        assert as_of(before, at) == as_of(after, at)
    old = [at for at in after["event_timestamp"].to_pylist() if at < oldest]
    assert 0 < len(old) <= 4


def test_of_a_view_with_a_ttl_what_had_outlived_it_is_not_carried_on(tmp_path: Path) -> None:
    view = View(VIEW.name, VIEW.sources, VIEW.entity, VIEW.features, timedelta(hours=1))
    world = World(tmp_path, 1, Choice(2_000, keep=timedelta(hours=3)))
    world.begin()
    hours = {"dead": 5, "alive": 3.5, "young": 1}
    for user, ago in hours.items():
        world.commit((user, NOON - timedelta(hours=ago), 1))
    world.commit()
    world.end()

    Compactor(outside(world), world.choice).run([view])

    assert ["alive", "young"] == sorted(world.offline.read(VIEW.name)["user"].to_pylist())


def test_a_second_compaction_changes_nothing(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, FINAL)
    world.commit()
    world.end()
    Compactor(outside(world), world.choice).run([VIEW])
    world.now_us += int(GRACE.total_seconds() * 10**6)
    Compactor(outside(world), world.choice).run([VIEW])
    before = world.offline.generations()

    (done,) = Compactor(outside(world), world.choice).run([VIEW])

    assert (done.parts_before, done.left_until) == (0, None)
    assert world.offline.generations() == before


def test_a_flow_that_stands_idle_lets_compaction_go_on(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, ALL)

    Compactor(outside(world, sleep=lambda _: world.commit()), world.choice).run([VIEW])

    assert world.offline.generation(VIEW.name).number == 1
    assert world.journal is not None
    assert world.journal.ledger.generations > 0


def test_a_flow_that_commits_nothing_is_said_and_the_next_run_goes_on(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, Choice(2_000, patience_s=5))

    with pytest.raises(Unavailable, match="the running materializer commits nothing for 5 s"):
        Compactor(outside(world), world.choice).run([VIEW])
    world.end()
    Compactor(outside(world), world.choice).run([VIEW])

    assert world.offline.generation(VIEW.name).number == 1
    world.read()


def test_two_compactions_at_once_are_refused(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, ALL)
    other = CompactionFolder(world.offline)
    other.lock()

    with pytest.raises(Refused, match="is being compacted or purged already"):
        Compactor(outside(world), world.choice).run([VIEW])
    other.unlock()


def test_a_part_of_another_schema_is_refused_and_nothing_is_begun(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, ALL)
    strange = world.offline.path(VIEW.name) / "part-strange.parquet"
    pq.write_table(pa.table({"user": ["ada"]}), strange)

    with pytest.raises(Refused, match=r'offline store part ".*part-strange.parquet" has another schema'):
        Compactor(outside(world), world.choice).run([VIEW])

    assert world.offline.generations().number == 0


def test_a_torn_part_is_named_and_readers_keep_what_they_have(tmp_path: Path) -> None:
    world = filled(tmp_path, 3, ALL)
    world.end()
    folder = world.offline.path(VIEW.name)
    torn = folder / min(part for part in listed(folder) if run_of(part))
    torn.write_bytes(torn.read_bytes()[:100])

    with pytest.raises(Unavailable, match=r"offline store part .* is torn or not parquet"):
        Compactor(outside(world), world.choice).run([VIEW])

    assert world.offline.generation(VIEW.name).number == 0


def test_a_store_made_by_an_earlier_version_is_read_with_what_it_had_staged(tmp_path: Path) -> None:
    world = World(tmp_path, 1, ALL)
    part = world.offline.stage(VIEW.name, table([("ada", NOON, 1)]))
    staged = next((tmp_path / "_staged" / VIEW.name).iterdir())
    staged.replace(tmp_path / VIEW.name / staged.name)
    assert part is not None
    assert world.offline.is_staged(VIEW.name, part)

    world.offline.publish({VIEW.name: [part]})

    assert world.offline.read(VIEW.name).num_rows == 1
