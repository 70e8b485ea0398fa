"""What is in force, on disk and in memory: one suite; and the lock that only files can have."""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from freshet.flows.edges.applied import AppliedFile, MemoryApplied
from freshet.schemas.applied import Applied, Declared, DeclaredView
from freshet.schemas.errors import Refused

OLD, NEW = (
    Declared(place="features.yaml", text=text, views={"by_user": DeclaredView(digest=text)}) for text in ("old", "new")
)

_HOLD = """
import sys
from pathlib import Path
from freshet.flows.edges.applied import AppliedFile
file = AppliedFile(Path(sys.argv[1]))
with file.applying():
    file.ask_for_ledger()
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["file", "memory"])
def applied(request: pytest.FixtureRequest, tmp_path: Path) -> AppliedFile | MemoryApplied:
    return AppliedFile(tmp_path) if request.param == "file" else MemoryApplied()


def test_what_was_applied_last_is_in_force(applied: AppliedFile | MemoryApplied) -> None:
    assert applied.read() is None

    applied.write(Applied(declared=OLD))
    applied.write(Applied(declared=OLD).followed_by(NEW))

    assert applied.read() == Applied(declared=NEW, earlier=(OLD.id,), leftovers=(OLD.id,))


def test_every_declaration_that_was_ever_in_force_is_kept(applied: AppliedFile | MemoryApplied) -> None:
    applied.write(Applied(declared=OLD))
    applied.write(Applied(declared=OLD).followed_by(NEW))

    assert [applied.declared(one.id) for one in (OLD, NEW)] == [OLD, NEW]
    assert applied.declared("unknown") is None


def test_a_stamp_differs_whenever_something_was_put_in_force(applied: AppliedFile | MemoryApplied) -> None:
    stamps = [applied.stamp()]
    for declared in (OLD, NEW, OLD):
        applied.write(Applied(declared=declared))
        stamps.append(applied.stamp())

    assert stamps[0] is None
    assert len(set(stamps)) == 4
    assert stamps[-1] == applied.stamp()


def test_whoever_looks_sees_that_a_declaration_is_being_changed(applied: AppliedFile | MemoryApplied) -> None:
    assert not applied.is_being_changed()
    with applied.applying():
        assert applied.is_being_changed()
    assert not applied.is_being_changed()


def test_the_ledger_is_asked_for_while_somebody_applies(applied: AppliedFile | MemoryApplied) -> None:
    with applied.applying():
        assert not applied.is_ledger_asked_for()
        applied.ask_for_ledger()
        assert applied.is_ledger_asked_for()

    assert not applied.is_ledger_asked_for()


def test_two_cannot_apply_at_once_and_one_that_is_killed_holds_nothing_up(tmp_path: Path) -> None:
    file = AppliedFile(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"

        with pytest.raises(Refused, match="is being changed by another `freshet apply`"), file.applying():
            pass
        assert file.is_ledger_asked_for()
        other.kill()

    assert not file.is_ledger_asked_for()
    with file.applying():
        pass


def test_whoever_only_looks_keeps_nobody_from_applying(tmp_path: Path) -> None:
    file = AppliedFile(tmp_path)
    with file.applying():
        pass
    with (tmp_path / "_apply.lock").open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.1, looking.close).start()

        with file.applying():
            assert looking.closed


def test_a_torn_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "_applied.json").write_text("{", encoding="utf-8")

    with pytest.raises(Refused, match="_applied.json") as refusal:
        AppliedFile(tmp_path).read()

    assert "is torn" in str(refusal.value)
