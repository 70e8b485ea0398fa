"""What is in force: the declaration that was applied last, and which ones were before it.

It stands in the offline store, beside the ledger, so that all who work on the same stores find the same one
(`<offlineStore>/_applied.json`). The file that the user edits comes into force by `freshet apply` alone: whatever is
started again meanwhile goes on with what was applied. Every declaration that was ever applied stays
(`<offlineStore>/_declarations/<id>.json`), since rows name what they were made by.
"""

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

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
    """A declaration as it was written in a file, and its views."""

    place: str
    text: str
    views: Mapping[str, DeclaredView]

    @property
    def id(self) -> str:
        """Its name: of equal texts equal.

        >>> Declared(place="features.yaml", text="project: a", views={}).id
        'd40cdb3e5e09'
        """
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


class Applied(_Record):
    """The declaration in force, and the ids of those that were before it, oldest first, each where it was last.

    `leftovers` are those of which fields may stand online that nobody reads any more.
    """

    format: int = FORMAT
    declared: Declared
    earlier: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    def followed_by(self, declared: Declared) -> "Applied":
        """Return what is in force once another declaration is.

        >>> a, b = (Declared(place="", text=text, views={}) for text in "ab")
        >>> Applied(declared=a).followed_by(b).followed_by(a).earlier == (b.id,)
        True
        """

        def others(ids: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(one for one in (*ids, self.declared.id) if one != declared.id))

        return Applied(declared=declared, earlier=others(self.earlier), leftovers=others(self.leftovers))
