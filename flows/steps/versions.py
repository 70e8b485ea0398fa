"""Which version of its contract a message follows, and its event in the form of the newest one.

A message that says nothing, or the newest version, costs nothing here but a look at its first byte: a registry's
framing begins with a zero, which no JSON does.
"""

import re
import uuid
from collections.abc import Sequence

from pydantic_core import from_json, to_json

from freshet.schemas.event import SCHEMA_ID_HEADER, Contract, Document, Upcast, as_is
from freshet.schemas.poll import Poll
from freshet.schemas.record import header
from freshet.schemas.rejects import Reason

WRONG_INPUT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What an upcast raises on an event that its version does not allow."""

_DETAIL_CHARACTERS = 500
_FRAME_BYTES = 5
_NUMBER = re.compile(rb"[1-9]\d{0,8}")

Why = tuple[Reason, str]


class Versions:
    """The versions of one stream's contract."""

    def __init__(self, contract: Contract) -> None:
        self._stream = stream = contract.stream
        self.known = stream.versions
        steps = [(version, step) for version, step in sorted(stream.upcasts.items()) if step is not as_is]
        self._steps = {version: [step for step in steps if step[0] >= version] for version in self.known}
        by_header = {str(stream.version).encode()}
        nothing_said = stream.unsigned_version == stream.version and not stream.version_field and not stream.schema_ids
        self._newest: frozenset[bytes | None] = frozenset({*by_header, *([None] if nothing_said else [])})

    def newest(self, poll: Poll) -> tuple[Sequence[bytes | None], dict[int, Why]]:
        """Return a poll's values in the form of the newest version, and which cannot be brought into it, and why."""
        values = poll.values
        odd = [index for index, value in enumerate(values) if not value or value[0] == 0]
        if self._newest.issuperset(poll.versions):
            looked_at: Sequence[int] = odd
        else:
            looked_at = range(len(values))
        if not looked_at:
            return values, {}
        made, bad = list(values), dict[int, Why]()
        for index in looked_at:
            found = self._made(poll, index)
            if isinstance(found, tuple):
                bad[index] = found
            else:
                made[index] = found
        return made, bad

    def steps(self, version: int) -> Sequence[tuple[int, Upcast]]:
        """Return the upcasts from a known version on that change anything, each with the version that it is from."""
        return self._steps[version]

    def upcast(self, version: int, event: Document) -> Document:
        """Return an event of a known version as one of the newest; raises `ValueError` where an upcast cannot."""
        for number, step in self.steps(version):
            try:
                event = step(event)
                if not isinstance(event, dict):
                    raise TypeError(f"it returned {type(event).__name__}, and not a dict")
            except WRONG_INPUT as error:
                raise ValueError(f"upcast from version {number}: {type(error).__name__}: {error}") from error
        return event

    def unknown(self, said: object) -> Why:
        """Say that a version is not known."""
        known = ", ".join(map(str, self.known))
        return Reason.UNKNOWN_VERSION, f"version {said}; this flow knows {known}"

    def _made(self, poll: Poll, index: int) -> bytes | Why:
        """Return one message's event in the form of the newest version, or why there is none."""
        value, header_said = poll.values[index], poll.versions[index]
        if header_said is not None:
            version = int(header_said) if _NUMBER.fullmatch(header_said) else None
            if version not in self.known:
                return self.unknown(repr(header_said[:40]))
        if not value:
            return Reason.UNDECODABLE, "no value" if value is None else "an empty value"
        id_, value = _unframed(value)
        if header_said is None:
            said = self._said(_id_in_header(poll, index) if self._stream.schema_ids else None, id_, value)
            if said is None:
                return value  # it is no JSON, as decoding will say
            if said[0] not in self.known:
                return self.unknown(said[1])
            version = said[0]
        assert version is not None
        return self._upcast(version, value)

    def _said(self, id_in_header: int | str | None, id_in_frame: int | None, value: bytes) -> tuple[int, str] | None:
        """Return which version a message without our header is of, as it says it, 0 for none; None if it is no JSON."""
        stream = self._stream
        for id_ in (id_in_header, id_in_frame) if stream.schema_ids else ():
            if id_ is not None:
                return stream.schema_ids.get(id_, 0), f"of schema {id_}, which `schema_ids` does not have"
        if stream.version_field is not None:
            try:
                event = from_json(value)
            except ValueError:
                return None
            said = event.get(stream.version_field) if isinstance(event, dict) else None
            if said is not None:
                is_number = isinstance(said, int | str) and _NUMBER.fullmatch(str(said).encode(errors="replace"))
                return int(said) if is_number else 0, repr(said)[:40]
        return stream.unsigned_version, f"{stream.unsigned_version}, since it says none"

    def _upcast(self, version: int, value: bytes) -> bytes | Why:
        if not self.steps(version):
            return value
        try:
            event = from_json(value)
        except ValueError:
            return value  # decoding says what is wrong with it
        if not isinstance(event, dict):
            return value
        try:
            return to_json(self.upcast(version, event), inf_nan_mode="constants")
        except ValueError as error:  # of an upcast, or what it made has no JSON
            return Reason.CONTRACT, str(error)[:_DETAIL_CHARACTERS]


def _unframed(value: bytes) -> tuple[int | None, bytes]:
    r"""Take Confluent's framing off, a zero and the schema's id of four bytes.

    >>> _unframed(b'\x00\x00\x00\x00\x07{}'), _unframed(b'{}')
    ((7, b'{}'), (None, b'{}'))
    """
    if value[0] != 0 or len(value) <= _FRAME_BYTES:
        return None, value
    return int.from_bytes(value[1:_FRAME_BYTES], "big"), value[_FRAME_BYTES:]


def _id_in_header(poll: Poll, index: int) -> int | str | None:
    """Return which schema the registry's header names: its number, or its GUID; None if there is no such header."""
    told = None if poll.headers is None else header(poll.headers[index], SCHEMA_ID_HEADER)
    match told:
        case None:
            return None
        case bytes() if told[:1] == b"\x01" and len(told) == 17:
            return str(uuid.UUID(bytes=told[1:]))
        case bytes() if told[:1] == b"\x00" and len(told) == _FRAME_BYTES:
            return int.from_bytes(told[1:], "big")
    return repr(told[:40])
