"""Archived events of older versions of a contract, in the form of the newest one.

What was accepted under an older version was archived in its form. It is read as the same messages would be now, so
that state that is rebuilt, and rows that are recomputed, are those of events that come from Kafka once more.
"""

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pydantic_core import to_json, to_jsonable_python

from freshet.flows.steps.decode import Decoder
from freshet.flows.steps.versions import Versions
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import AVAILABLE_AT, EVENT_TIME, OFFSET, PARTITION, VERSION_KEY, Contract
from freshet.schemas.poll import Poll

_NUMBER = re.compile(rb"\d{1,9}")
_OWN = (PARTITION, OFFSET, AVAILABLE_AT)


class ArchiveForm:
    """How the archive of one stream is read: all parts in one form, whichever version they were written under."""

    def __init__(self, contract: Contract) -> None:
        self.contract, self.schema = contract, contract.schema
        self._versions, self._decoder = Versions(contract), Decoder(contract)

    def check(self, part: str, found: pa.Schema) -> None:
        """Refuse a part whose events cannot be read, by its schema; what to do is the refusal's hint."""
        version, newest = self._version(found), self.contract.stream.version
        if version in self._versions.known and (version != newest or found.equals(self.schema)):
            return
        name = self.contract.name
        if version > newest:
            fact, got = f"was written under a newer contract of {name} than version {newest}", f"version {version}"
            hint = (
                f"deploy version {version} of schemas/events/{name}.py again; events cannot be taken back to {newest}"
            )
        elif version < newest:
            fact, got = f"was written under a version of {name} that is not read any more", f"version {version}"
            hint = f"give its stream `upcasts` from version {version} on up to {newest}"
        else:
            other = sorted(set(found) ^ set(self.schema), key=str)
            fact = f"has another schema than version {newest} of {name}"
            got = ", ".join(f"{field.name} {field.type}" for field in other) or "another order of columns"
            hint = (
                f"a changed contract is a new version: set `version={newest + 1}`, and `upcasts` with one from"
                f" {newest}, such as `as_is`; or take the change back"
            )
        raise Refused([Problem("event archive", part, fact, got, hint)])

    def read(self, events: pa.Table) -> pa.Table:
        """Return a part's events in the newest form; raises `Refused` if one cannot be brought into it."""
        version = self._version(events.schema)
        self.check(f"of {self.contract.name}", events.schema)
        if version == self.contract.stream.version:
            return events
        if events.num_rows == 0:
            return self.schema.empty_table()
        kept = self._as_is(events) if not self._versions.steps(version) else None
        return self._upcast(version, events) if kept is None else kept

    def _version(self, found: pa.Schema) -> int:
        """Return under which version a part was written; one of before versions were noted is of the oldest known."""
        told = (found.metadata or {}).get(VERSION_KEY, b"")
        return int(told) if _NUMBER.fullmatch(told) else min(self._versions.known)

    def _as_is(self, events: pa.Table) -> pa.Table | None:
        """Return events that need no upcast, column by column; None if a column is neither there nor has a default."""
        columns: list[pa.ChunkedArray] = []
        fields = self.contract.model.model_fields
        for column in self.schema:
            if column.name in events.column_names:
                made = events.column(column.name)
                if made.type != column.type or (made.null_count and not column.nullable):
                    return None
            elif column.name in fields and not fields[column.name].is_required():
                default = fields[column.name].get_default(call_default_factory=True, validated_data={})
                made = pa.chunked_array([pa.array([default], column.type).take(np.zeros(events.num_rows, np.int64))])
            else:
                return None
            columns.append(made)
        return pa.table(columns, schema=self.schema)

    def _upcast(self, version: int, events: pa.Table) -> pa.Table:
        """Return events as the same messages would be read now."""
        own = [name for name in events.column_names if name not in (*_OWN, EVENT_TIME)]
        if EVENT_TIME in self.contract.model.model_fields and EVENT_TIME in events.column_names:
            own.append(EVENT_TIME)
        values, broken = list[bytes | None](), list[tuple[int, str]]()
        for index, row in enumerate(events.select(own).to_pylist()):
            try:
                event = self._versions.upcast(version, to_jsonable_python(row, inf_nan_mode="constants"))
                values.append(to_json(event, inf_nan_mode="constants"))
            except ValueError as error:
                broken.append((index, str(error)))
        decoded = self._decoder.decode(self._poll(values))
        broken += [(reject.offset, reject.detail) for reject in decoded.rejects]
        if broken:
            self._refuse(version, events, broken)
        made = {name: decoded.events.column(name) for name in decoded.events.column_names}
        made |= {name: events.column(name) for name in _OWN}
        return pa.table([made[name] for name in self.schema.names], schema=self.schema)

    def _poll(self, values: list[bytes | None]) -> Poll:
        nothing: list[bytes | None] = [None] * len(values)
        signs: list[bytes | None] = [str(self.contract.stream.version).encode()] * len(values)
        unknown_ms, offsets = np.full(len(values), -1, np.int64), np.arange(len(values))
        return Poll("", 0, 1, values, nothing, signs, unknown_ms, offsets, len(values), at_end=True)

    def _refuse(self, version: int, events: pa.Table, broken: Sequence[tuple[int, str]]) -> None:
        index, why = broken[0]
        row = events.slice(index, 1).to_pylist()[0]
        name, newest = self.contract.name, self.contract.stream.version
        fact = f"has {len(broken)} of {events.num_rows} events of version {version} that {newest} cannot read"
        got = f"partition {row[PARTITION]}, offset {row[OFFSET]}: {why}"
        hint = f"mend the upcasts from version {version} on in schemas/events/{name}.py"
        raise Refused([Problem("event archive", name, fact, got, hint)])
