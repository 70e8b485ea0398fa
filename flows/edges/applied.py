"""Which declaration is in force, as files in the offline store, and how a change of it is handed to what runs.

| file | what |
| --- | --- |
| `_applied.json` | the declaration in force (`schemas.applied`) |
| `_declarations/<id>.json` | every declaration that ever was |
| `_apply.lock` | held by the process that applies; it goes with it, however that ends |
| `_handover` | there while that process needs the materializer to let go of the ledger |
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from freshet.flows.edges import disk
from freshet.schemas.applied import FORMAT, Applied, Declared
from freshet.schemas.errors import Problem, Refused, Unavailable

_T = TypeVar("_T", bound=BaseModel)

_LOCK_WAIT_S = 1.0
"""Whoever only asks whether the lock is held holds it, too, for a moment."""

Stamp = tuple[int, int]


class AppliedFile:
    """What is in force in the offline store below `root`. Raises `Unavailable` when the disk refuses."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._path, self._lock = self._root / "_applied.json", self._root / "_apply.lock"
        self._handover, self._declarations = self._root / "_handover", self._root / "_declarations"

    def read(self) -> Applied | None:
        """Return what is in force, None before anything was applied; raises `Refused` for a torn or foreign file."""
        text = self._text(self._path)
        if text is None:
            return None
        applied = self._parsed(self._path, Applied, text)
        if applied.format != FORMAT:
            fact = f"has another format than this version's {FORMAT}"
            raise Refused([Problem("applied declaration", str(self._path), fact, str(applied.format))])
        return applied

    def stamp(self) -> Stamp | None:
        """Return what differs whenever something was put in force, for the price of a stat; None before that."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(self._path, error) from error
        return found.st_mtime_ns, found.st_ino

    def declared(self, declaration_id: str) -> Declared | None:
        """Return a declaration that once was in force, by its id; None if there was none."""
        path = self._declarations / f"{declaration_id}.json"
        text = self._text(path)
        return None if text is None else self._parsed(path, Declared, text)

    def keep(self, declared: Declared) -> None:
        """Keep a declaration for those who ask for it by its id."""
        self._write(self._declarations / f"{declared.id}.json", declared)

    def write(self, applied: Applied) -> None:
        """Put a declaration in force; whoever reads finds the one before, or this one."""
        self.keep(applied.declared)
        self._write(self._path, applied)

    @contextlib.contextmanager
    def applying(self) -> Iterator[None]:
        """Be the only one who applies while this lasts; raises `Refused` while another process does."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            held = disk.lock(self._lock, _LOCK_WAIT_S)
        except OSError as error:
            raise self._unavailable(self._lock, error) from error
        if held is None:
            hint = "wait until that has ended, look at `freshet plan`, and apply again"
            fact = "is being changed by another `freshet apply`"
            raise Refused([Problem("deployment", str(self._root), fact, hint=hint)])
        with held:
            try:
                yield
            finally:
                self._handover.unlink(missing_ok=True)

    def ask_for_ledger(self) -> None:
        """Ask whoever holds the ledger to let go of it until `applying` ends."""
        try:
            self._handover.touch()
        except OSError as error:
            raise self._unavailable(self._handover, error) from error

    def leave_ledger(self) -> None:
        """Ask no more: whoever let go of the ledger goes on."""
        self._handover.unlink(missing_ok=True)

    def is_ledger_asked_for(self) -> bool:
        """Say whether a process that applies, and lives, waits for the ledger."""
        return self._handover.exists() and self.is_being_changed()

    def is_being_changed(self) -> bool:
        """Say whether a process that lives applies a declaration."""
        try:
            with self._lock.open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:  # nothing was ever applied
            return False
        except OSError as error:
            raise self._unavailable(self._lock, error) from error
        return False

    @staticmethod
    def _parsed(path: Path, model: type[_T], text: bytes) -> _T:
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            hint = "bring the file back from a copy of the offline store"
            raise Refused([Problem("applied declaration", str(path), "is torn", first["msg"], hint)]) from error

    def _text(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(path, error) from error

    def _write(self, path: Path, record: BaseModel) -> None:
        content = record.model_dump_json().encode()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            disk.replace(path, lambda file: file.write(content))
        except OSError as error:
            raise self._unavailable(path, error) from error

    def _unavailable(self, path: Path, error: OSError) -> Unavailable:
        return Unavailable(f"{path} cannot be used: {error.strerror or error}")


class MemoryApplied:
    """The twin of `AppliedFile`, kept in this process."""

    def __init__(self) -> None:
        self._applied: Applied | None = None
        self._kept: dict[str, Declared] = {}
        self._is_asked = self._is_changed = False
        self._writes_count = 0

    def read(self) -> Applied | None:
        """Return what is in force, None before anything was applied."""
        return self._applied

    def stamp(self) -> Stamp | None:
        """Return what differs whenever something was put in force; None before that."""
        return None if self._applied is None else (self._writes_count, 0)

    def declared(self, declaration_id: str) -> Declared | None:
        """Return a declaration that once was in force, by its id; None if there was none."""
        return self._kept.get(declaration_id)

    def keep(self, declared: Declared) -> None:
        """Keep a declaration for those who ask for it by its id."""
        self._kept[declared.id] = declared

    def write(self, applied: Applied) -> None:
        """Put a declaration in force."""
        self.keep(applied.declared)
        self._applied = applied
        self._writes_count += 1

    @contextlib.contextmanager
    def applying(self) -> Iterator[None]:
        """Be the only one who applies, as one is in memory."""
        self._is_changed = True
        try:
            yield
        finally:
            self._is_asked = self._is_changed = False

    def ask_for_ledger(self) -> None:
        """Ask whoever holds the ledger to let go of it until `applying` ends."""
        self._is_asked = True

    def leave_ledger(self) -> None:
        """Ask no more."""
        self._is_asked = False

    def is_ledger_asked_for(self) -> bool:
        """Say whether somebody waits for the ledger."""
        return self._is_asked

    def is_being_changed(self) -> bool:
        """Say whether somebody applies a declaration."""
        return self._is_changed
