"""Purging an entity: what is to be done still, as it is noted on the disk, and the receipt of what was done."""

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from freshet.schemas.generations import Generations
from freshet.schemas.ledger import Ledger

FILE = "_purge.json"
"""In the offline store, while a purge is decided and not yet done: no flow begins meanwhile."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Removed(_Record):
    """How many of the entity's rows, events and states were found, by where: folders, views, streams."""

    online_rows: Mapping[str, int] = {}
    rows: Mapping[str, int] = {}
    events: Mapping[str, int] = {}
    served_rows: Mapping[str, int] = {}

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(sum(one.values()) for one in (self.online_rows, self.rows, self.events, self.served_rows))


class Decided(_Record):
    """All that is prepared, to be put in place: it holds no key and no value, only the key's `digest`."""

    digest: str
    removed: Removed
    generations: Generations
    ledger: Ledger


class LetterPlace(_Record):
    """Where a dead letter of the entity stands, and until when Kafka keeps it: None for as long as it likes."""

    topic: str
    partition: int
    offset: int
    until: str | None


class Kept(_Record):
    """A topic that may hold messages of the entity: until when at the latest, if nothing new comes; None for ever."""

    topic: str
    until: str | None


class Receipt(_Record):
    """What was removed, and what remains. `key` is the key, or its digest."""

    key: str
    at: str
    removed: Removed
    dead_letters: tuple[LetterPlace, ...] = ()
    kept: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = ()


def digest_of(project: str, key: Mapping[str, object]) -> str:
    """Return what stands for a key where it is not to be named.

    >>> digest_of("shop", {"user": "ada"}) == digest_of("shop", {"user": "ada"}) != digest_of("shop", {"user": "bob"})
    True
    """
    spelled = "\0".join([project, *(f"{name}={value!r}" for name, value in sorted(key.items()))])
    return hashlib.sha256(spelled.encode()).hexdigest()
