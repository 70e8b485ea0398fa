"""Generations: which folder of the offline store holds a view's rows now, and which ones still do.

A folder cannot be exchanged at one instant for readers that list it and then open what they found. So what compaction
makes stands in a folder of its own, the next generation; while it is made, and for a while after it is the current one,
the flow puts every new part into both. `<offlineStore>/_generations.json` says so, replaced as a whole.

Generation 0 is `<offlineStore>/<name>/`, generation n `<offlineStore>/<name>-<n>/`: a name has no "-".
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True, slots=True)
class Generation:
    """One of the folders that hold the same rows; of all that were committed it lacks `dropped_count`."""

    number: int
    dropped_count: int


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Folder(_Record):
    """A folder's generations: the current one, and how many of all committed rows each one that is alive lacks.

    An alive one above the current is being made; a former one, below it, is left to readers that know its path.
    `left_us` has, by former one, since when (µs since the epoch) Feast's registry points to another; it lacks those to
    which the registry may still point. `anew` is how often rows were made anew, by another declaration: of generations
    between which it is the same, the rows are.
    """

    current: int = 0
    alive: Mapping[int, int] = {0: 0}
    left_us: Mapping[int, int] = {}
    anew: int = 0

    @property
    def next(self) -> int | None:
        """The one that is being made, if there is one."""
        return max((number for number in self.alive if number > self.current), default=None)

    @property
    def unused(self) -> int:
        """A number that none has, and none had since the current one was made."""
        return max(self.alive) + 1

    @property
    def former(self) -> tuple[int, ...]:
        """Those that are left to readers which know their paths."""
        return tuple(sorted(number for number in self.alive if number < self.current))

    @property
    def others(self) -> tuple[int, ...]:
        """All that get new parts beside the current one."""
        return tuple(sorted(number for number in self.alive if number != self.current))

    @property
    def generation(self) -> Generation:
        """The current one."""
        return Generation(self.current, self.alive[self.current])


class Generations(_Record):
    """All folders' generations; `number` rises with each change, and the ledger says by which one it was written."""

    number: int = 0
    folders: Mapping[str, Folder] = {}

    def of(self, name: str) -> Folder:
        """Return a folder's generations; one that was never compacted has generation 0 alone."""
        return self.folders.get(name, Folder())

    def begun(self, name: str) -> "Generations":
        """Have the flow put new parts into a next generation, too.

        >>> made = Generations().begun("by_user")
        >>> made.number, made.of("by_user").current, made.of("by_user").next, made.of("by_user").others
        (1, 0, 1, (1,))
        """
        folder = self.of(name)
        assert folder.next is None, "one at a time"
        return self._with(name, folder.model_copy(update={"alive": {**folder.alive, folder.unused: 0}}))

    def switched(self, name: str, dropped_count: int) -> "Generations":
        """Make the next generation the current one; it lacks so many rows more than the one before.

        >>> made = Generations().begun("by_user").switched("by_user", 5)
        >>> made.number, made.of("by_user").generation, made.of("by_user").former
        (2, Generation(number=1, dropped_count=5), (0,))
        """
        folder = self.of(name)
        assert folder.next is not None, "there is one"
        alive = {**folder.alive, folder.next: folder.alive[folder.current] + dropped_count}
        return self._with(name, folder.model_copy(update={"current": folder.next, "alive": alive}))

    def replaced(self, generations: Mapping[str, int]) -> "Generations":
        """Make folders of rows that were made anew the only ones; those of before stay as they are, for their readers.

        >>> made = Generations().begun("by_user").replaced({"by_user": 2}).of("by_user")
        >>> made.generation, made.next, made.others, made.unused, made.anew
        (Generation(number=2, dropped_count=0), None, (), 3, 1)
        """
        anew = {
            name: Folder(current=number, alive={number: 0}, anew=self.of(name).anew + 1)
            for name, number in generations.items()
        }
        return Generations(number=self.number + 1, folders={**self.folders, **anew})

    def left(self, name: str, at_us: int, *, again: bool = False) -> "Generations":
        """Note that Feast's registry points to the current generation, since an instant; or `again` since then.

        >>> made = Generations().begun("by_user").switched("by_user", 0).left("by_user", 7)
        >>> made.of("by_user").left_us, made.left("by_user", 9).of("by_user").left_us
        ({0: 7}, {0: 7})
        """
        folder = self.of(name)
        known = {} if again else folder.left_us
        left_us = {number: known.get(number, at_us) for number in folder.former}
        return self._with(name, folder.model_copy(update={"left_us": left_us}))

    def without(self, name: str, numbers: tuple[int, ...]) -> "Generations":
        """Let the flow put no more parts into some generations.

        >>> Generations().begun("by_user").switched("by_user", 0).without("by_user", (0,)).of("by_user").alive
        {1: 0}
        """
        folder = self.of(name)
        assert folder.current not in numbers, "the current one stays"
        alive = {number: count for number, count in folder.alive.items() if number not in numbers}
        left_us = {number: at_us for number, at_us in folder.left_us.items() if number not in numbers}
        return self._with(name, folder.model_copy(update={"alive": alive, "left_us": left_us}))

    def rewritten(self, removed: Mapping[str, int]) -> "Generations":
        """Put a new generation in place of all others of some folders at once; each lacks so many rows more.

        >>> made = Generations().rewritten({"by_user": 3, "_events/clicks": 0})
        >>> made.number, made.of("by_user").alive, made.of("_events/clicks").current
        (1, {1: 3}, 1)
        >>> merged = Generations().replaced({"by_user": 1}).begun("by_user").switched("by_user", 0)
        >>> merged.without("by_user", (1,)).of("by_user").anew, merged.rewritten({"by_user": 0}).of("by_user").anew
        (1, 1)
        """
        made = dict(self.folders)
        for name, count in removed.items():
            folder = self.of(name)
            number = folder.unused
            alive = {number: folder.alive[folder.current] + count}
            made[name] = Folder(current=number, alive=alive, anew=folder.anew)
        return Generations(number=self.number + 1, folders=made)

    def _with(self, name: str, folder: Folder) -> "Generations":
        return Generations(number=self.number + 1, folders={**self.folders, name: folder})


def folder_name(name: str, generation: int) -> str:
    """Return where, below the offline store, a generation stands.

    >>> folder_name("by_user", 0), folder_name("by_user", 2)
    ('by_user', 'by_user-2')
    """
    return name if generation == 0 else f"{name}-{generation}"
