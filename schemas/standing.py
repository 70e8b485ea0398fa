"""How far a consumer group is in a partition, as Kafka tells it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """The offsets of a partition: first message, end, and what a group committed; None before its first commit.

    `committed_at_s` is when the newest commit was made, since the epoch; None where the group does not say.
    """

    first: int
    end: int
    committed: int | None = None
    committed_at_s: float | None = None
