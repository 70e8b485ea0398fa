"""What a run goes on from: the ledger's file in the offline store, and the recovery folder.

`<offlineStore>/_ledger.json` is replaced as a whole, so that a reader sees one commit or the next. Whoever writes it
holds `_ledger.lock`; the lock goes with its process, however that ends.

The recovery folder has states too large for the ledger, and what the processes of one flow tell each other:

| file | what |
| --- | --- |
| `id` | the ledger that the states belong to |
| `<key>-<epoch>-<run>.state` | a shard's or a partition's state at the end of an epoch, pickled |
| `run` | the run that has begun last |
| `told-<run>-<process>.jsonl` | what another process of a cluster told; its first process reads them |
| `stop` | there while a cluster is asked to end |

Pickles run code when read, so the folder is its owner's alone (mode 0700), and one of another owner is refused.
"""

import os
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from freshet.flows.edges import disk
from freshet.schemas.errors import Problem, Refused, Unavailable
from freshet.schemas.ledger import FORMAT, Ledger, Update
from freshet.schemas.purge import FILE as PURGE

_LOCK_WAIT_S = 2.0
"""Compaction looks whether a flow runs by taking its lock for an instant."""


class LedgerFile:
    """The ledger of an offline store below `root`; who does not purge cannot lock it while a purge is not done."""

    def __init__(self, root: Path, *, purges: bool = False) -> None:
        self._path, self._purges = root.absolute() / "_ledger.json", purges
        self._lock: IO[bytes] | None = None

    def lock(self, wait_s: float = _LOCK_WAIT_S) -> None:
        """Be the only one who writes; raises `Refused` while another process is, `Unavailable` if the disk refuses.

        Who holds it for a moment only is waited for.
        """
        try:
            held = disk.lock(self._path.with_suffix(".lock"), wait_s)
        except OSError as error:
            raise self._unavailable(error) from error
        if held is None:
            fact, hint = (
                ("by a materializer", "stop it, and start it again afterwards: events wait in Kafka")
                if self._purges
                else ("by another materializer", "stop the other one first, or name another offline store")
            )
            fact = f"is being written {fact}"
            raise Refused([Problem("offline store", str(self._path.parent), fact, hint=hint)])
        if not self._purges and self._path.with_name(PURGE).exists():
            held.close()
            fact, hint = "has a purge that was begun and is not done", "run the same `freshet purge` again"
            raise Refused([Problem("offline store", str(self._path.parent), fact, hint=hint)])
        self._lock = held

    def unlock(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read(self) -> Ledger | None:
        """Return what was written last, None before the first time; raises `Refused` for a torn or foreign file."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error
        hint = "bring the file back from a copy of the offline store, or start anew in another folder"
        try:
            ledger = Ledger.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            fact = "is torn, or no ledger"
            raise Refused([Problem("ledger", str(self._path), fact, first["msg"], hint)]) from error
        if ledger.format != FORMAT:
            fact = f"has another format than this version's {FORMAT}"
            raise Refused([Problem("ledger", str(self._path), fact, str(ledger.format), hint)])
        return ledger

    def written_at_s(self) -> float | None:
        """Return when the last commit was, since the epoch; None before the first."""
        try:
            return self._path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error

    def write(self, ledger: Ledger) -> int:
        """Replace what was written, durably; return how many bytes. Raises `Unavailable` when the disk refuses."""
        content = ledger.model_dump_json().encode()
        try:
            disk.replace(self._path, lambda file: file.write(content))
        except OSError as error:
            raise self._unavailable(error) from error
        return len(content)

    def _unavailable(self, error: OSError) -> Unavailable:
        return Unavailable(f"ledger {self._path} cannot be used: {error.strerror or error}")


class MemoryLedger:
    """The twin of `LedgerFile`, kept in this process."""

    def __init__(self) -> None:
        self._text: bytes | None = None
        self._written_at_s: float | None = None

    def lock(self) -> None:
        """Be the only one, as one is in memory."""

    def unlock(self) -> None:
        """Let go of nothing."""

    def read(self) -> Ledger | None:
        """Return what was written last, None before the first time."""
        return None if self._text is None else Ledger.model_validate_json(self._text)

    def written_at_s(self) -> float | None:
        """Return when the last commit was, since the epoch; None before the first."""
        return self._written_at_s

    def write(self, ledger: Ledger) -> int:
        """Replace what was written; return how many bytes."""
        self._text, self._written_at_s = ledger.model_dump_json().encode(), time.time()
        return len(self._text)


class RecoveryFolder:
    """One flow's recovery folder, made on first use.

    Raises `Refused` for a folder that cannot be used, and `Unavailable` when the disk does not take what is written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder.absolute()
        self._run = uuid.uuid4().hex[:16]
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid != os.geteuid():
                hint = "name a folder of this user's with FRESHET_RECOVERY: states are pickles, and run code when read"
                raise self._refused(f"belongs to user {found.st_uid}", f"user {os.geteuid()}", hint)
            if found.st_mode & 0o077:
                self.path.chmod(0o700)
            probe = self.path / f".probe-{self._run}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            hint = "name a folder that this user may write with FRESHET_RECOVERY"
            raise self._refused(f"cannot be written: {error.strerror or error}", "", hint) from error

    def identity(self) -> str | None:
        """Return the id of the ledger that the states belong to; None in a new folder."""
        try:
            return (self.path / "id").read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def identify(self, ledger_id: str) -> None:
        """Say which ledger the states belong to, from now on."""
        self._replace("id", ledger_id.encode())

    def write(self, key: str, epoch: int, state: Any) -> str:
        """Make a state durable; return its file."""
        name = f"{key.replace('/', '.')}-{epoch:010d}-{self._run}.state"
        self._replace(name, pickle.dumps(state, protocol=5))
        return name

    def read(self, name: str) -> Any:
        """Return a state, or None if its file is gone; raises `Refused` for a torn one."""
        try:
            return pickle.loads((self.path / name).read_bytes())  # noqa: S301  # our own, in a folder of mode 0700
        except FileNotFoundError:
            return None
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, ValueError) as error:
            hint = "delete it, and rebuild it from the event archive with `freshet run materializer --rebuild`"
            raise Refused([Problem("state", str(self.path / name), "cannot be read", str(error), hint)]) from error

    def keep(self, names: Iterable[str]) -> None:
        """Delete every state but some."""
        kept = set(names)
        for file in self.path.glob("*.state*"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def delete(self, names: Iterable[str]) -> None:
        """Delete some states."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def begin(self) -> None:
        """Begin a run: nothing is heard any more of what processes of earlier ones tell, nor of their end."""
        self._replace("run", self._run.encode())
        for old in (self.stop_file, *self.path.glob("told-*.jsonl")):
            old.unlink(missing_ok=True)

    def told(self, process: int) -> "Told":
        """Open what a process tells the first one, in the run that has begun when it is first used."""
        return Told(self.path, process)

    @property
    def stop_file(self) -> Path:
        """What is there while all processes are asked to end."""
        return self.path / "stop"

    def _replace(self, name: str, content: bytes) -> None:
        try:
            disk.replace(self.path / name, lambda file: file.write(content))
        except OSError as error:
            raise Unavailable(f"recovery folder {self.path} cannot be written: {error.strerror or error}") from error

    def _refused(self, fact: str, got: str, hint: str) -> Refused:
        return Refused([Problem("recovery folder", str(self.path), fact, got, hint)])


class Told:
    """What one process of a cluster tells another, in order: a line an update, in a file that only grows.

    Nothing here need survive a loss of power: the ledger, once written, has all of it.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self._folder, self._process, self._read_bytes = folder, process, 0

    @cached_property
    def _path(self) -> Path:
        """The file of this run: a process of an earlier one that has not yet ended writes to another."""
        run = (self._folder / "run").read_text(encoding="utf-8")
        return self._folder / f"told-{run}-{self._process:04d}.jsonl"

    def tell(self, update: Update) -> None:
        """Add an update; it can be read as soon as this returns."""
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(update.model_dump_json(exclude_defaults=True).encode() + b"\n")
        except OSError as error:
            raise Unavailable(f"recovery folder {self._folder} cannot be written: {error.strerror}") from error

    def read(self) -> Iterator[Update]:
        """Give the updates told since the last time."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_bytes)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # it is being written, and of an epoch that is still open
                    self._read_bytes += len(line)
                    yield Update.model_validate_json(line)
        except FileNotFoundError:
            return


class MemoryRecovery:
    """The twin of `RecoveryFolder`, kept in this process: pickled all the same."""

    def __init__(self) -> None:
        self._identity: str | None = None
        self._states: dict[str, bytes] = {}
        self._count = 0

    def begin(self) -> None:
        """Begin a run: in memory there are no other processes."""

    def identity(self) -> str | None:
        """Return the id of the ledger that the states belong to; None in a new folder."""
        return self._identity

    def identify(self, ledger_id: str) -> None:
        """Say which ledger the states belong to, from now on."""
        self._identity = ledger_id

    def write(self, key: str, epoch: int, state: Any) -> str:
        """Keep a state; return its name."""
        self._count += 1
        name = f"{key.replace('/', '.')}-{epoch:010d}-{self._count}.state"
        self._states[name] = pickle.dumps(state, protocol=5)
        return name

    def read(self, name: str) -> Any:
        """Return a state, or None if it is gone."""
        return pickle.loads(self._states[name]) if name in self._states else None  # noqa: S301  # pickled above

    def keep(self, names: Iterable[str]) -> None:
        """Let go of every state but some."""
        kept = set(names)
        self._states = {name: state for name, state in self._states.items() if name in kept}

    def delete(self, names: Iterable[str]) -> None:
        """Let go of some states."""
        for name in names:
            self._states.pop(name, None)
