"""Which folder has a view's rows: `<offlineStore>/<view>/` at first, `…/<view>-<n>/` once they were made anew.

A folder cannot be exchanged under readers that list it and then open what they found. So rows that are made anew, as by
a change of the declaration, stand in a folder of their own, a generation; `<offlineStore>/_generations.json`, replaced
as a whole, says which one is current. Names of views have no `-`.
"""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class Generations(BaseModel):
    """The number of each view's current generation; of a view that is not named, 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    current: Mapping[str, int] = {}

    def folder(self, name: str) -> str:
        """Return the name of a view's current folder; any other name stands for itself.

        >>> Generations(current={"by_user": 2}).folder("by_user"), Generations().folder("_events/clicks")
        ('by_user-2', '_events/clicks')
        """
        return folder_of(name, self.current.get(name, 0))

    def switched(self, generations: Mapping[str, int]) -> "Generations":
        """Return what is current once other generations are."""
        return Generations(current={**self.current, **generations})


def folder_of(view: str, generation: int) -> str:
    """Return the name of a generation's folder.

    >>> folder_of("by_user", 0), folder_of("by_user", 3)
    ('by_user', 'by_user-3')
    """
    return f"{view}-{generation}" if generation else view
