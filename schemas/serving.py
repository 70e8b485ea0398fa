"""What is asked of the server and what it answers: Feast's own request and response, with statuses that are true.

Source: feast/feature_server.py and feast/protos/feast/serving/ServingService.proto of Feast 0.67.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

ENTITIES_MAX, FEATURES_MAX, VALUES_MAX, EVENTS_MAX = 10_000, 1_000, 100_000, 1_000
"""What one request may ask for, or bring."""
TOLD_MAX, NAME_MAX = 10, 200
"""How many things that are wrong with it are told, and how much of a name: what nobody declared may be without end."""


class Status(StrEnum):
    """What a value is worth. Feast's own server calls all of these PRESENT but the last.

    `OUTSIDE_MAX_AGE` comes with the value that is stored: its view's ttl has passed, or events about its entity may
    have waited for longer than the declared freshness.
    """

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    NOT_FOUND = "NOT_FOUND"


class ReadRequest(BaseModel):
    """Which features of which entities: `features` as `view:feature`, or all of a feature service.

    `entities` has, by join key, one value for each entity.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    entities: Annotated[dict[str, list[Any]], Field(min_length=1)]
    features: list[str] = []
    feature_service: str | None = None
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


class Question(NamedTuple):
    """Fields that are to be read of some hashes of the online store."""

    keys: Sequence[bytes]
    fields: Sequence[bytes]


class Answer(NamedTuple):
    """A response, as JSON; and how many values of each view it has by their statuses."""

    body: bytes
    counts: Mapping[str, Mapping[Status, int]]


@dataclass(frozen=True, slots=True)
class ServedRow:
    """What was stored of one view for one entity when it was served; `event_timestamp` is None if nothing was.

    `values` has those features that were asked for. `status` is that of the row as a whole.
    """

    view: str
    entity: tuple[Any, ...]
    event_timestamp_us: int | None
    version: int
    status: Status
    values: Mapping[str, Any]
