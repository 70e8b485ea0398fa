"""What is in force: the declaration that was applied last, and which ones were before it.

It stands in the offline store, beside the ledger, so that all who work on the same stores find the same one
(`<offlineStore>/_applied.json`). The file that the user edits comes into force by `freshet apply` alone: whatever is
started again meanwhile goes on with what was applied. Every declaration that was ever applied stays
(`<offlineStore>/_declarations/<id>.json`), since rows name what they were made by.
"""

import hashlib
from collections.abc import Mapping
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from freshet.schemas.errors import listed
from freshet.schemas.plan import ViewPlan

FORMAT = 1
"""Of all that is written here; another one is refused."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeclaredView(_Record):
    """A view as it was declared: what it computes, as `ViewPlan.digest` has it, and where its rows stand online.

    That is told by the entity's columns, each with its type, and the features, each with its dtype.
    """

    digest: str
    entity: Mapping[str, str] = {}
    features: Mapping[str, str] = {}

    @classmethod
    def of(cls, plan: ViewPlan) -> "DeclaredView":
        """Return what is to be remembered of a view."""
        entity = {column.name: str(column.type) for column in plan.view.entity}
        return cls(digest=plan.digest, entity=entity, features={one.name: one.dtype.name for one in plan.view.features})


class Declared(_Record):
    """A declaration as it was written in a file, its views, and by which event contracts it was read.

    `contracts` has, by stream, what differs whenever the contract's file does.
    """

    place: str
    text: str
    views: Mapping[str, DeclaredView]
    contracts: Mapping[str, str] = {}

    @property
    def id(self) -> str:
        """Its name: of equal texts and contracts equal.

        >>> one = Declared(place="features.yaml", text="project: a", views={})
        >>> one.id, one.model_copy(update={"contracts": {"clicks": "2b0f"}}).id
        ('a9696b202e5a', '9cf9cadd4c56')
        """
        told = "\n".join([self.text, *(f"{stream} {told}" for stream, told in sorted(self.contracts.items()))])
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def is_same(self, other: "Declared") -> bool:
        """Say whether it was read from the very same files."""
        return (self.text, self.contracts) == (other.text, other.contracts)


class Applied(_Record):
    """The declaration in force, and the ids of those that were before it, oldest first, each where it was last.

    `since_us` is since when it is, in µs since the epoch; None if that is not known. `leftovers` are those of which
    fields may stand online that nobody reads any more.
    """

    format: int = FORMAT
    declared: Declared
    earlier: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()
    since_us: int | None = None

    def followed_by(self, declared: Declared, since_us: int | None = None) -> "Applied":
        """Return what is in force once another declaration is, from an instant on.

        >>> a, b = (Declared(place="", text=text, views={}) for text in "ab")
        >>> Applied(declared=a).followed_by(b).followed_by(a).earlier == (b.id,)
        True
        """

        def others(ids: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(one for one in (*ids, self.declared.id) if one != declared.id))

        return Applied(
            declared=declared, earlier=others(self.earlier), leftovers=others(self.leftovers), since_us=since_us
        )


class DeclarationStatus(_Record):
    """Which declaration is in force, for people: its id and file, since when, and which files were edited since.

    `since` is None where that is not known, and where none was ever applied: then it is as it is written.
    """

    id: str
    place: str
    is_applied: bool = False
    since: datetime | None = None
    edited: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say it in a line.

        >>> print(DeclarationStatus(id="d40cdb", place="features.yaml"))
        declaration d40cdb as it is written; none was applied yet
        >>> at = datetime.fromisoformat("2026-03-01T12:00Z")
        >>> print(DeclarationStatus(id="d40cdb", place="f.yaml", is_applied=True, since=at, edited=("f.yaml",)))
        declaration d40cdb in force since 2026-03-01T12:00:00+00:00; f.yaml edited, not applied: `freshet plan`
        """
        edited = f"; {listed(self.edited)} edited, not applied: `freshet plan`" if self.edited else ""
        if not self.is_applied:
            return f"declaration {self.id} as it is written; none was applied yet"
        since = "" if self.since is None else f" since {self.since.isoformat(timespec='seconds')}"
        return f"declaration {self.id} in force{since}{edited}"
