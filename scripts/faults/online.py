"""What goes wrong on the way to the online store: rules for the proxy, one for each cause."""

import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import mmh3
import pyarrow as pa

from freshet.schemas import feast_bytes
from freshet.schemas.finding import Cause
from freshet.schemas.view import View
from freshet.scripts.faults.deeds import Choice, Deed, Deeds
from freshet.scripts.faults.proxy import Command, Passing

REPLAY_AFTER_S = 6.0
"""How long after a newer write an older one comes again: the newer one was there to be seen."""


@dataclass(frozen=True)
class Write:
    """A compare-and-set on its way, as `flows/edges/redis.py` sends it; `expiry`, its last word, has the ttls."""

    head: Command
    view: str
    fields: tuple[tuple[bytes, bytes], ...]
    expiry: bytes

    @classmethod
    def of(cls, words: Command) -> "Write | None":
        """Read a command; None for any other."""
        if len(words) < 8 or words[0].upper() != b"EVALSHA" or not words[4].startswith(b"_ts:"):
            return None
        *pairs, expiry = words[4:]
        return cls(words[:4], words[4][4:].decode(), tuple(zip(pairs[::2], pairs[1::2], strict=True)), expiry)

    @property
    def key(self) -> bytes:
        """The hash that it writes to."""
        return self.head[3]

    @property
    def place(self) -> tuple[int, int, int]:
        """Where its row stands among those of its entity: seconds, nanoseconds, version."""
        return (*feast_bytes.decode_time(self.fields[0][1]), int.from_bytes(self.fields[1][1][-8:]))

    @property
    def command(self) -> Command:
        """The command."""
        return (*self.head, *(word for pair in self.fields for word in pair), self.expiry)

    @property
    def past_the_rule(self) -> Command:
        """The same as a plain HSET."""
        return (b"HSET", self.key, *(word for pair in self.fields for word in pair))


def entity_of(key: bytes) -> str:
    """Return the entity of a key as evidence names it, its columns in the order of their names.

    >>> entity_of(feast_bytes.key_prefix(["user"]) + feast_bytes.encode_entity(pa.array(["ada"]))[0] + b"shop")
    'ada'
    """
    (count,), at = struct.unpack_from("<I", key), 4
    for _ in range(count):
        at += 8 + struct.unpack_from("<I", key, at + 4)[0]
    found = []
    for _ in range(count):
        kind, length = struct.unpack_from("<II", key, at)
        raw = key[at + 8 : at + 8 + length]
        found.append(raw.decode() if kind == 2 else str(int.from_bytes(raw, "little", signed=True)))
        at += 8 + length
    return " / ".join(found)


class OnlineFault:
    """A rule for the proxy that strikes, from `begin` on, the writes that a choice takes."""

    def __init__(self, cause: Cause, choice: Choice, deeds: Deeds, views: Iterable[View]) -> None:
        self.cause, self._choice, self._deeds = cause, choice, deeds
        self._names = {
            struct.pack("<I", mmh3.hash(f"{view.name}:{feature.name}", signed=False)): feature.name
            for view in views
            for feature in view.features
        }
        self._strike = _STRIKES[cause]
        self._begun, self._lock = False, threading.Lock()
        self.newest: dict[tuple[bytes, str], Write] = {}
        """The newest write of each row that came by."""
        self.removed: set[tuple[bytes, str]] = set()
        self._later: list[tuple[float, Write]] = []

    def aim(self, cause: Cause, choice: Choice, deeds: Deeds) -> None:
        """Be another fault, that has not begun; what came by until now is known still."""
        self.end()
        with self._lock:
            self.cause, self._choice, self._deeds, self._strike = cause, choice, deeds, _STRIKES[cause]

    def begin(self) -> None:
        """Strike from now on."""
        self._begun = True

    def end(self) -> None:
        """Strike no more."""
        with self._lock:
            self._begun = False
            self._later.clear()
            self.removed.clear()

    def __call__(self, words: Command) -> Passing | None:
        """Say what becomes of a command."""
        write = Write.of(words)
        if write is None:
            return None
        with self._lock:
            row = write.key, write.view
            before = self.newest.get(row)
            if before is not None and write.place < before.place:
                return None  # it would change nothing
            self.newest[row] = write
            whole = self.cause in {Cause.MISSING_ENTITY, Cause.EXPIRED_TTL}
            thing = write.key + write.view.encode() + (b"" if whole else write.fields[0][1])
            if not (self._begun and self._choice.takes(thing, entity_of(write.key))):
                return None
            passing, features = self._strike(self, write, before)
        if passing is not None:
            self.note(write, features)
        return passing

    def note(self, write: Write, features: Iterable[bytes] = ()) -> None:
        """Note what befell a write."""
        names = tuple(self._names.get(field, field.hex()) for field in features)
        place = "{}.{:09d} version {}".format(*write.place)
        self._deeds.did([Deed(time.time(), write.view, entity_of(write.key), place, names)])

    def later(self, write: Write) -> None:
        """Have an old write come again."""
        self._later.append((time.monotonic() + REPLAY_AFTER_S, write))

    def replay(self, send: Callable[[list[Command]], None], *, now: float | None = None) -> int:
        """Send what is due, past the compare-and-set; return how many writes. Call it now and then."""
        at = time.monotonic() if now is None else now
        with self._lock:
            due = [write for due_at, write in self._later if due_at <= at]
            self._later = [one for one in self._later if one[0] > at]
        if due:
            send([write.past_the_rule for write in due])
        for write in due:
            self.note(write)
        return len(due)


_Struck = tuple[Passing | None, tuple[bytes, ...]]


def _lose(_: OnlineFault, __: Write, before: Write | None) -> _Struck:
    """Lose a newer row; without a first one the entity would be missing, which is another fault."""
    return (None if before is None else Passing(None)), ()


def _remove(fault: OnlineFault, write: Write, before: Write | None) -> _Struck:
    """Take the row away, once, and lose all that follows; not one that was never there: that would be a lost write."""
    row = write.key, write.view
    if before is None:
        return None, ()
    gone = row in fault.removed
    fault.removed.add(row)
    return Passing(None, before=() if gone else ((b"HDEL", write.key, *(name for name, _ in write.fields)),)), ()


def _again(fault: OnlineFault, _: Write, before: Write | None) -> _Struck:
    if before is not None:
        fault.later(before)
    return None, ()


def _keep(_: OnlineFault, write: Write, __: Write | None) -> _Struck:
    """Have a row that expires be kept for ever."""
    is_kept = int(write.expiry.split()[0]) == 0
    return (None if is_kept else Passing(replace(write, expiry=b"0").command)), ()


def _altering(alter: Callable[[bytes], bytes]) -> Callable[[OnlineFault, Write, Write | None], _Struck]:
    def strike(_: OnlineFault, write: Write, __: Write | None) -> _Struck:
        fields = (*write.fields[:2], *((name, alter(value)) for name, value in write.fields[2:]))
        changed = tuple(name for (name, new), (_, old) in zip(fields, write.fields, strict=True) if new != old)
        return (Passing(replace(write, fields=fields).command), changed) if changed else (None, ())

    return strike


def another(value: bytes) -> bytes:
    """Return the bytes of another value of the same type; null stays null.

    >>> (three,) = feast_bytes.encode(pa.array([3]))
    >>> feast_bytes.decode(another(three)), another(b"")
    (4, b'')
    """
    old = feast_bytes.decode(value)
    match old:
        case None:
            return value
        case bool():
            new: Any = not old
        case int() | float():
            new = old + 1
        case str():
            new = old + "?"
        case _:
            return value
    return feast_bytes.encode(pa.array([new]))[0]


def doubled(value: bytes) -> bytes:
    """Return an integer's bytes as a double's; another value stays.

    >>> (three,) = feast_bytes.encode(pa.array([3]))
    >>> feast_bytes.decode(doubled(three))
    3.0
    """
    old = feast_bytes.decode(value)
    if isinstance(old, int) and not isinstance(old, bool):
        return feast_bytes.encode(pa.array([float(old)]))[0]
    return value


_STRIKES: dict[Cause, Callable[[OnlineFault, Write, Write | None], _Struck]] = {
    Cause.LOST_ONLINE_WRITE: _lose,
    Cause.MISSING_ENTITY: _remove,
    Cause.EXPIRED_TTL: _keep,
    Cause.OUT_OF_ORDER_OVERWRITE: _again,
    Cause.NULL_ONLINE: _altering(lambda _: b""),
    Cause.DTYPE: _altering(doubled),
    Cause.VALUE_MISMATCH: _altering(another),
}
"""By cause, what a rule does to a write, the newest one of its row before it being known."""

CAUSES = tuple(_STRIKES)
