"""The account of a fault: which versions of rows it really corrupted, and when."""

import json
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mmh3


@dataclass(frozen=True)
class Deed:
    """One version of a row, or one file, that was corrupted; `at` in seconds since the epoch."""

    at: float
    view: str
    entity: str = ""
    what: str = ""
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Account:
    """All that a fault did. `first_effective_at` is None as long as it did nothing."""

    fault_id: str
    cause: str
    commanded_at: float
    first_effective_at: float | None
    affected_count: int
    views: tuple[str, ...]
    entities: tuple[str, ...]
    features: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Deeds:
    """A file with one line for the command and one for each deed; several processes may add to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def command(self, fault_id: str, cause: str) -> None:
        """Note that a fault begins now."""
        self._add([{"fault_id": fault_id, "cause": cause, "commanded_at": time.time()}])

    def did(self, deeds: Iterable[Deed]) -> None:
        """Note what was done."""
        self._add([asdict(deed) for deed in deeds])

    def account(self) -> Account | None:
        """Return what was done until now, None before the command."""
        if not self.path.exists():
            return None
        lines = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        command = next((line for line in lines if "fault_id" in line), None)
        if command is None:
            return None
        done = [line for line in lines if "fault_id" not in line]
        return Account(
            command["fault_id"],
            command["cause"],
            command["commanded_at"],
            min((line["at"] for line in done), default=None),
            len(done),
            views=tuple(sorted({line["view"] for line in done})),
            entities=tuple(sorted({line["entity"] for line in done} - {""})),
            features=tuple(sorted({name for line in done for name in line["features"]})),
        )

    def _add(self, lines: list[dict[str, Any]]) -> None:
        if lines:
            text = "".join(json.dumps(line) + "\n" for line in lines)
            with self._lock, self.path.open("a", encoding="utf-8") as file:
                file.write(text)  # in one piece: the file is open for appending


@dataclass(frozen=True)
class Choice:
    """A share of all things, the same ones for the same seed; of some entities only, if they are named.

    >>> everything, nothing = Choice(1.0), Choice(0.0)
    >>> everything.takes(b"a"), nothing.takes(b"a")
    (True, False)
    >>> 80 < sum(Choice(0.1, 7).takes(str(number).encode()) for number in range(1000)) < 120
    True
    >>> Choice(1.0, entities=frozenset({"ada"})).takes(b"a", "bob")
    False
    """

    rate: float
    seed: int = 0
    entities: frozenset[str] | None = None

    def takes(self, thing: bytes, entity: str | None = None) -> bool:
        """Say whether a thing is among them; one that is of no entity is chosen by the rate alone."""
        if self.entities is not None and entity is not None and entity not in self.entities:
            return False
        return bool(mmh3.hash(thing, self.seed, signed=False) < self.rate * 2**32)
