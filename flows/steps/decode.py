"""Bytes to events: a whole batch is decoded and checked against its contract at once.

The contract's model parses each message by itself (pydantic's `Json`), so no message can borrow a bracket from its
neighbour, and one that is bad takes no other with it. Of many messages, those that are plain are read without it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Json, TypeAdapter, ValidationError

from freshet.flows.steps.plain_json import PlainJson
from freshet.flows.steps.versions import Versions
from freshet.schemas.dtypes import INSTANT
from freshet.schemas.event import (
    AVAILABLE_AT,
    BEYOND,
    CALENDAR_US,
    EVENT_TIME,
    OFFSET,
    PARTITION,
    UNFIT,
    Contract,
    misfit,
)
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason, Reject

_DETAIL_CHARACTERS = 500
_RUN_MESSAGES, _RUN_MESSAGES_MIN = 1000, 100
"""So many messages are read at once if all are plain; of fewer, the model is not slower."""
_PASSED_OVER_MAX = 15
"""Of one run in so many more it is looked whether it is plain, where none of many was."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events that follow their contract, in the contract's Arrow schema, and the rejects.

    `at` says which message of the poll each event was.
    """

    events: pa.Table
    at: npt.NDArray[np.int64]
    rejects: tuple[Reject, ...]


class Decoder:
    """Decodes the messages of one stream."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self._batch: TypeAdapter[list[Any]] = TypeAdapter(list[Json[contract.model]])  # type: ignore[name-defined]  # made here
        self._plain = PlainJson.of(contract)
        self._fields = pa.schema([contract.schema.field(name) for name in contract.model.model_fields])
        self._missed_count = self._passed_over_count = 0
        """How many runs in a row were not plain, and how many more are not looked at as if they were."""
        self._versions = Versions(contract)

    def decode(self, poll: Poll) -> Decoded:
        """Return the events of a poll and the rejects; every message is one or the other."""
        (decoded,) = self.decode_together([poll])
        return decoded

    def decode_together(self, polls: Sequence[Poll]) -> list[Decoded]:
        """Decode one poll or more at once, which costs little more than one alone. Their events share their memory."""
        starts = np.cumsum([0, *(len(poll.values) for poll in polls)]).tolist()
        values, bad = list[bytes | None](), dict[int, tuple[Reason, str]]()
        for start, poll in zip(starts, polls, strict=False):
            newest, odd = self._versions.newest(poll)
            values += newest
            bad |= {start + index: why for index, why in odd.items()}
        events, good = self._whole(values, bad, polls)
        found, places = [], np.searchsorted(good, starts).tolist()
        for at, poll in enumerate(polls):
            start, end = starts[at : at + 2]
            low, high = places[at : at + 2]
            own = sorted(index for index in bad if start <= index < end)
            rejects = tuple(Reject.of(poll, index - start, *bad[index]) for index in own)
            found.append(Decoded(events.slice(low, high - low), good[low:high] - start, rejects))
        return found

    def _whole(
        self, values: Sequence[bytes | None], bad: dict[int, tuple[Reason, str]], polls: Sequence[Poll]
    ) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return the events of all polls, and which messages they were; `bad` gets what the others are."""
        good = _without(np.arange(len(values)), bad)
        waiting: Sequence[Any] = [values[index] for index in good.tolist()] if bad else values
        parts: list[pa.Table] = []
        failed: dict[int, tuple[Reason, str]] = {}
        for start, run in self._runs(waiting):
            plain = self._plain_columns(run)
            if plain is None:
                plain, why = self._checked(run)
                failed |= {start + index: reason for index, reason in why.items()}
            parts.append(plain)
        bad |= {int(good[index]): why for index, why in failed.items()}
        good = _without(good, failed)
        return self._table(pa.concat_tables(parts or [self._fields.empty_table()]).combine_chunks(), polls, good), good

    def _plain_columns(self, run: Sequence[bytes]) -> pa.Table | None:
        """Return the fields of messages that are all plain. Where looking is often in vain, it is done seldom."""
        if self._plain is None or len(run) < _RUN_MESSAGES_MIN:
            return None
        if self._passed_over_count:
            self._passed_over_count -= 1
            return None
        found = self._plain.columns(run)
        self._missed_count = self._missed_count + 1 if found is None else 0
        self._passed_over_count = min(2**self._missed_count, _PASSED_OVER_MAX + 1) - 1
        return found

    def _runs(self, values: Sequence[bytes]) -> Iterator[tuple[int, Sequence[bytes]]]:
        """Cut messages into what is plain as a whole or not, if any is; each with where it begins."""
        size = max(1, len(values)) if self._plain is None else _RUN_MESSAGES
        for start in range(0, len(values), size):
            yield start, values[start : start + size]

    def _checked(self, values: Sequence[bytes]) -> tuple[pa.Table, dict[int, tuple[Reason, str]]]:
        """Return the fields of the messages that the model takes and columns can hold, and why not of the others."""
        models, failed = self._validate(values)
        good = _without(np.arange(len(values)), failed)
        columns, unfit = self._columns(models)
        if unfit:
            failed |= {int(good[index]): why for index, why in unfit.items()}
            columns, unfit = self._columns([model for index, model in enumerate(models) if index not in unfit])
            assert not unfit, unfit
        return pa.table(columns, schema=self._fields), failed

    def _validate(self, values: Sequence[bytes]) -> tuple[list[Any], dict[int, tuple[Reason, str]]]:
        """Check all values at once; on errors learn every bad one from the one error, and check the rest.

        How strict to be is the contract's own word: said here it would win over that.
        """
        try:
            return self._batch.validate_python(values), {}
        except ValidationError as error:
            failed = _first_errors(error)
        rest = [value for index, value in enumerate(values) if index not in failed]
        return self._batch.validate_python(rest), failed

    def _columns(self, models: Sequence[Any]) -> tuple[dict[str, pa.Array], dict[int, tuple[Reason, str]]]:
        """Turn models into columns; a value that its column cannot hold, such as 2**70, is named."""
        documents = [model.__dict__ for model in models]
        columns: dict[str, pa.Array] = {}
        unfit: dict[int, tuple[Reason, str]] = {}
        key = self.contract.stream.key
        for name in self.contract.model.model_fields:
            kind = self.contract.schema.field(name).type
            values = [document[name] for document in documents]
            try:
                columns[name] = pa.array(values, kind)
            except UNFIT:
                unfit |= {index: (Reason.CONTRACT, f"{name}: {why}") for index, why in _unfit(values, kind).items()}
                continue
            if pa.types.is_timestamp(kind):
                beyond = ~_in_calendar(columns[name])
                unfit |= {int(index): (Reason.CONTRACT, f"{name}: {BEYOND}") for index in np.flatnonzero(beyond)}
            if name == key and columns[name].null_count:
                empty = np.flatnonzero(columns[name].is_null().to_numpy(zero_copy_only=False))
                unfit |= {int(index): (Reason.NULL_KEY, f"{name} is null") for index in empty}
        return columns, unfit

    def _table(self, fields: pa.Table, polls: Sequence[Poll], good: npt.NDArray[np.int64]) -> pa.Table:
        schema = self.contract.schema
        event_time = fields.column(self.contract.stream.event_time)
        partitions = np.repeat([poll.partition for poll in polls], [len(poll.values) for poll in polls])
        known_ms = np.concatenate([poll.timestamps_ms for poll in polls])[good]
        available = pa.array(known_ms * 1000, pa.int64(), mask=known_ms < 0).cast(INSTANT)
        system = {
            EVENT_TIME: event_time,
            PARTITION: pa.array(partitions[good].astype(np.int32)),
            OFFSET: pa.array(np.concatenate([poll.offsets for poll in polls])[good]),
            AVAILABLE_AT: pa.compute.coalesce(available, event_time),
        }
        columns = {**system, **dict(zip(fields.column_names, fields.columns, strict=True))}
        return pa.table([columns[name] for name in schema.names], schema=schema)


def _without(indices: npt.NDArray[np.int64], places: Collection[int]) -> npt.NDArray[np.int64]:
    """Return what does not stand at some places."""
    return np.delete(indices, [*places]) if places else indices


def _in_calendar(times: pa.Array) -> npt.NDArray[np.bool_]:
    """Say which instants Python and Feast can hold."""
    first, last = CALENDAR_US
    microseconds = times.cast(pa.int64()).fill_null(0).to_numpy()
    return (first <= microseconds) & (microseconds <= last)  # type: ignore[no-any-return]  # pyarrow is untyped


def _unfit(values: Sequence[Any], kind: pa.DataType) -> dict[int, str]:
    """Return which values a column cannot hold, and why."""
    found = {index: why[:_DETAIL_CHARACTERS] for index, value in enumerate(values) if (why := misfit(value, kind))}
    assert found, "a column refused values that it takes one by one"
    return found


def _first_errors(error: ValidationError) -> dict[int, tuple[Reason, str]]:
    """Return for each bad message the first thing that is wrong with it."""
    failed: dict[int, tuple[Reason, str]] = {}
    for found in error.errors(include_url=False, include_input=False):
        index, *path = found["loc"]
        assert isinstance(index, int), found
        if found["type"].startswith("json_"):
            why = (Reason.UNDECODABLE, found["msg"])
        else:
            why = (Reason.CONTRACT, f"{'.'.join(map(str, path)) or 'the event'}: {found['msg']}")
        failed.setdefault(index, (why[0], why[1][:_DETAIL_CHARACTERS]))
    return failed
