"""The ledger's file and the recovery folder, real and in memory: one suite."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freshet.flows.edges.recovery import LedgerFile, MemoryLedger, MemoryRecovery, RecoveryFolder
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.ledger import FORMAT, Ledger, PartitionMark, SnapshotMark, Update

LEDGER = Ledger(
    id="a", shards_count=2, epoch=7, offsets={"clicks/000000": 5}, partitions={"clicks/000000": PartitionMark()}
)


@pytest.fixture(params=["file", "memory"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> LedgerFile | MemoryLedger:
    return LedgerFile(tmp_path) if request.param == "file" else MemoryLedger()


@pytest.fixture(params=["folder", "memory"])
def states(request: pytest.FixtureRequest, tmp_path: Path) -> RecoveryFolder | MemoryRecovery:
    return RecoveryFolder(tmp_path / "recovery") if request.param == "folder" else MemoryRecovery()


def test_the_ledger_that_was_written_last_is_read(ledgers: LedgerFile | MemoryLedger) -> None:
    assert ledgers.read() is None

    sizes = [ledgers.write(LEDGER), ledgers.write(LEDGER.model_copy(update={"epoch": 8}))]

    found = ledgers.read()
    assert found == LEDGER.model_copy(update={"epoch": 8})
    assert sizes[0] == sizes[1] > 100


def test_when_a_ledger_was_written_is_known(ledgers: LedgerFile | MemoryLedger) -> None:
    assert ledgers.written_at_s() is None
    before_s = time.time()

    ledgers.write(LEDGER)

    written_at_s = ledgers.written_at_s()
    assert written_at_s is not None
    assert before_s - 1 < written_at_s < time.time() + 1  # a file system's clock is coarse


def test_a_state_is_read_by_the_name_it_was_given(states: RecoveryFolder | MemoryRecovery) -> None:
    names = [states.write("by_user/3", epoch, {"epoch": epoch}) for epoch in (1, 2, 3)]

    assert len(set(names)) == 3
    assert [states.read(name) for name in names] == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]
    states.delete(names[:1])
    states.keep(names[2:])
    assert [states.read(name) for name in names] == [None, None, {"epoch": 3}]


def test_a_folder_knows_which_ledger_it_belongs_to(states: RecoveryFolder | MemoryRecovery) -> None:
    assert states.identity() is None

    states.identify("a")
    states.identify("b")

    assert states.identity() == "b"


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1}', b'{"format":1,"id":"a","shards_count":1,"odd":2}'])
def test_a_torn_ledger_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_ledger.json").write_bytes(content)

    with pytest.raises(Refused, match=rf'ledger "{tmp_path}/_ledger.json" is torn, or no ledger; got .*Hint: bring'):
        LedgerFile(tmp_path).read()


def test_a_ledger_of_another_format_is_refused(tmp_path: Path) -> None:
    LedgerFile(tmp_path).write(LEDGER.model_copy(update={"format": FORMAT + 1}))

    with pytest.raises(Refused, match="has another format than this version's 2; got 3"):
        LedgerFile(tmp_path).read()


HOLD = "import sys; from pathlib import Path; from freshet.flows.edges.recovery import LedgerFile as L\nl = L(Path(sys.argv[1])); l.lock(); print('held', flush=True); sys.stdin.read()"


def test_one_process_at_a_time_writes_and_its_lock_goes_with_it_however_it_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(Refused, match=f'offline store "{tmp_path}" is being written by another materializer'):
        LedgerFile(tmp_path).lock()

    other.kill()
    other.wait()

    mine = LedgerFile(tmp_path)
    mine.lock()
    with pytest.raises(Refused):
        LedgerFile(tmp_path).lock()
    mine.unlock()
    LedgerFile(tmp_path).lock()


def test_a_folder_that_is_not_there_cannot_hold_a_ledger(tmp_path: Path) -> None:
    for use in (LedgerFile(tmp_path / "none").lock, lambda: LedgerFile(tmp_path / "none").write(LEDGER)):
        with pytest.raises(Unavailable, match=r"_ledger.json cannot be used: No such file or directory"):
            use()


def test_the_recovery_folder_is_its_owner_s_alone(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)

    for name in ("open", "new"):
        RecoveryFolder(tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_recovery_folder_of_another_owner_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, -1)

    with pytest.raises(Refused, match=rf'recovery folder "{tmp_path}" belongs to user 12345; got user 0. Hint: name'):
        RecoveryFolder(tmp_path)


def test_a_recovery_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Refused, match="cannot be written: Not a directory.*FRESHET_RECOVERY"):
        RecoveryFolder(tmp_path / "file" / "recovery")


def test_a_torn_state_is_named_with_the_way_out(tmp_path: Path) -> None:
    folder = RecoveryFolder(tmp_path)
    name = folder.write("by_user/0", 4, list(range(1000)))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:50])

    with pytest.raises(Refused, match=rf'state "{tmp_path}/{name}" cannot be read; got .*--rebuild'):
        folder.read(name)


def test_a_process_tells_another_in_order_and_each_update_once(tmp_path: Path) -> None:
    folder = RecoveryFolder(tmp_path)
    folder.begin()
    told, heard = folder.told(1), folder.told(1)
    updates = [
        Update(offsets={3: {"clicks/000001": 9}}),
        Update(snapshots={"by_user/0": SnapshotMark(file="f", epoch=3)}, parts={"by_user": {"p": 5}}),
    ]
    assert list(heard.read()) == []

    told.tell(updates[0])
    first = list(heard.read())
    told.tell(updates[1])
    second = list(heard.read())

    assert first + second == updates
    assert list(heard.read()) == []


def test_a_run_hears_nothing_of_processes_of_earlier_ones(tmp_path: Path) -> None:
    earlier = RecoveryFolder(tmp_path)
    earlier.begin()
    left = earlier.told(1)
    left.tell(Update(online_writes_count=1))
    earlier.stop_file.touch()

    later = RecoveryFolder(tmp_path)
    later.begin()
    left.tell(Update(online_writes_count=2))  # it has not yet heard that its own run is over

    assert list(later.told(1).read()) == []
    assert not later.stop_file.exists()


def test_an_update_that_is_still_being_written_waits(tmp_path: Path) -> None:
    folder = RecoveryFolder(tmp_path)
    folder.begin()
    told, heard = folder.told(1), folder.told(1)
    told.tell(Update(online_writes_count=1))
    (file,) = tmp_path.glob("told-*")
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:5])

    assert list(heard.read()) == [Update(online_writes_count=1)]

    file.write_bytes(whole + whole)
    assert list(heard.read()) == [Update(online_writes_count=1)]
