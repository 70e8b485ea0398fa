"""What is left of a state, of counts and of dead letters without one entity: pure."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from freshet.schemas.poll import Poll
from freshet.schemas.rejects import reject_of
from freshet.schemas.view import View

_NEXT = re.compile(r",(?=[a-z][a-z0-9_]*=)")

Key = Mapping[str, Any]
"""Values by join keys; an entity with these values, and maybe more, is meant."""


def is_of(view: View, key: Key) -> bool:
    """Say whether a view's entities have all join keys of a key."""
    return {*view.entity_names} >= key.keys()


def of_key(table: pa.Table, key: Key) -> pa.Array:
    """Say of each row whether it is the key's."""
    mine = pa.array(np.ones(table.num_rows, np.bool_))
    for name, value in key.items():
        column = table.column(name).combine_chunks()
        mine = pc.and_(mine, pc.fill_null(pc.equal(column, pa.scalar(value, column.type)), fill_value=False))
    return mine


def shard_without(state: Mapping[str, Any], view: View, key: Key, events_count: int) -> dict[str, Any]:
    """Return a shard's state (`ShardFold.state`) without the key's entities, of whose events it was given so many.

    >>> view = View("by_user", (), (pa.field("user", pa.string()),), ())
    >>> shard = {"keys": [("ada",), ("bob",)], "lengths": np.array([2, 1]), "columns": {"time": np.array([1, 5, 7])}}
    >>> left = shard_without({"shard": shard, "events_count": 3}, view, {"user": "ada"}, 2)
    >>> left["events_count"], left["shard"]["keys"], left["shard"]["columns"]
    (1, [('bob',)], {'time': array([7])})
    """
    shard = state["shard"]
    places = [(view.entity_names.index(name), value) for name, value in key.items()]
    stays = np.array([any(own[at] != value for at, value in places) for own in shard["keys"]], np.bool_)
    kept = np.repeat(stays, shard["lengths"])
    return {
        **state,
        "events_count": state["events_count"] - events_count,
        "shard": {
            **shard,
            "keys": [own for own, is_kept in zip(shard["keys"], stays.tolist(), strict=True) if is_kept],
            "lengths": shard["lengths"][stays],
            "columns": {name: column[kept] for name, column in shard["columns"].items()},
        },
    }


def letters_of(
    topic: str, polls: Iterable[Poll], key: Key, message_key: bytes | None
) -> Iterator[tuple[int, int, int]]:
    """Give the dead letters that are of a key: partition, offset, and Kafka's time in ms.

    A letter is one if its JSON says so; if it is none, or lacks a join key, by the message's key.
    """
    for poll in polls:
        for index, (own, value) in enumerate(zip(poll.keys, poll.values, strict=True)):
            headers = None if poll.headers is None else poll.headers[index]
            reject = reject_of(own, value, headers, int(poll.timestamps_ms[index]))
            if reject is not None and reject.topic == topic and _is_of(reject.value, reject.key, key, message_key):
                yield poll.partition, int(poll.offsets[index]), int(poll.timestamps_ms[index])


def _is_of(value: bytes | None, own: bytes | None, key: Key, message_key: bytes | None) -> bool:
    try:
        told = json.loads(value or b"")
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict) and key.keys() <= told.keys():
        return all(told[name] == wanted for name, wanted in key.items())
    return own is not None and own == message_key


def asked_key(words: str) -> dict[str, str]:
    """Read `name=value,name=value`; a comma that no name and "=" follow is the value's.

    >>> asked_key("user=Smith, John,page=a=b"), asked_key("ada")
    ({'user': 'Smith, John', 'page': 'a=b'}, {})
    """
    parts = [part.partition("=") for part in _NEXT.split(words)]
    return {name: value for name, is_named, value in parts if is_named}
