"""What a producer says of events that Kafka did not take, so that somebody can send them again."""

from collections.abc import Sequence
from datetime import UTC, datetime

from freshet.schemas.errors import listed
from freshet.schemas.event import Contract, Event

_IDS_MAX = 10


def named(contract: Contract, events: Sequence[bytes]) -> str:
    """Name events, JSON that follows its contract: how many of which stream, from when to when, with which ids."""
    stream = contract.stream

    def at(event: Event) -> datetime:
        told: datetime = getattr(event, stream.event_time)
        return told.replace(tzinfo=UTC) if told.tzinfo is None else told.astimezone(UTC)

    found = sorted((contract.model.model_validate_json(event) for event in events), key=at)
    first, last = (at(one).isoformat().replace("+00:00", "Z") for one in (found[0], found[-1]))
    said = [f"of {first}" if first == last else f"of {first} to {last}"]
    if stream.event_id is not None:
        some = listed([str(getattr(one, stream.event_id)) for one in found[:_IDS_MAX]])
        more = f" and {len(found) - _IDS_MAX} more" if len(found) > _IDS_MAX else ""
        said.append(f"{stream.event_id} {some}{more}")
    return f"{len(found)} event{'s' if len(found) > 1 else ''} of {contract.name} ({'; '.join(said)})"
