"""How far the online store is, as the materializer writes it there, for whoever serves from it.

One hash, `freshet:<project>:progress`, has a field for each source partition (`ledger.source_key`), written after every
commit. It is the only thing by which an entity that is idle can be told from one whose events wait.
"""

import struct
from dataclasses import dataclass

_FORM = struct.Struct(">qqq")
_LOOK_US = 1_000_000
"""How often who serves looks at it, at most."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of one partition: all that Kafka had at `through_us` is online, as was known at `written_us`.

    It is written anew about every `every_us`, whether or not events come. All are microseconds.
    """

    through_us: int
    written_us: int
    every_us: int

    def to_bytes(self) -> bytes:
        """Return it as it is stored: three 8-byte integers, big-endian.

        >>> Progress.from_bytes(Progress(1, 2, 3).to_bytes())
        Progress(through_us=1, written_us=2, every_us=3)
        """
        return _FORM.pack(self.through_us, self.written_us, self.every_us)

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Progress":
        """Read what `to_bytes` wrote; of another form, as another version may write it, nothing is known.

        >>> Progress.from_bytes(b"of another form").is_behind(2_000_000, 1_800_000_000_000_000)
        True
        """
        return cls(*_FORM.unpack(raw)) if len(raw) == _FORM.size else cls(0, 0, 0)

    def is_behind(self, target_us: int, now_us: int) -> bool:
        """Say whether events may wait for longer than the freshness target, `target_us`.

        They do if that was so when it was written; and they may if it was not written for so long that whoever
        writes it is not well. So an entity without events is not behind, however long that is so.

        >>> wrote = Progress(through_us=9_000_000, written_us=10_000_000, every_us=1_000_000)
        >>> wrote.is_behind(2_000_000, 10_500_000), wrote.is_behind(500_000, 10_500_000)
        (False, True)
        >>> wrote.is_behind(2_000_000, 16_000_000)
        True
        """
        silent_us = now_us - self.written_us
        return self.written_us - self.through_us > target_us or silent_us > target_us + 2 * self.every_us + _LOOK_US


def progress_key(project: str) -> str:
    """Return the key of the hash.

    >>> progress_key("shop")
    'freshet:shop:progress'
    """
    return f"freshet:{project}:progress"
