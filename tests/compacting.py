"""A shard's state compacted as a whole, as production does a part at a time."""

from freshet.flows.steps.windows.shard import WindowShard


def compact_all(shard: WindowShard, horizon_us: int) -> None:
    """End the round that is on, if one is, and go round all entities."""
    for _ in range(4):  # each round needs one call more, which finds that none are left
        shard.compact(horizon_us, 10**9)
