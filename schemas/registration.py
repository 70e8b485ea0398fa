"""How a feature view stands in Feast's registry, beside how it is declared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One thing that the registry says of a view, as Feast spells it; None on the side that does not have it."""

    name: str
    declared: str | None
    registered: str | None

    @property
    def is_declared(self) -> bool:
        """Whether the registry has it as the declaration does."""
        return self.declared == self.registered
