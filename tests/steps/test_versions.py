"""Which version a message follows, by whatever it says it, and how old ones become new ones."""

import json
import uuid
from typing import Any

import numpy as np
import pytest
from pydantic import AwareDatetime

from freshet.flows.steps.decode import Decoded, Decoder
from freshet.schemas.event import SCHEMA_ID_HEADER, VERSION_HEADER, Document, Event, Stream, as_is, contract
from freshet.schemas.poll import Poll
from freshet.schemas.record import Headers, header
from freshet.schemas.rejects import Reason

GUID = "8b6e1c5e-6f4c-4f0e-9a0a-3d2f0b1c2d3e"


def in_seconds(event: Document) -> Document:
    return {**event, "seconds": event["milliseconds"] / 1000}


def decoder(**changes: Any) -> Decoder:
    class Visit(Event):
        stream = Stream(
            topic="visits", key="user", event_time="at", version=3, upcasts={1: in_seconds, 2: as_is}, **changes
        )

        at: AwareDatetime
        user: str
        seconds: float
        device: str | None = None

    made, problems = contract("visits", Visit)
    assert made is not None, problems
    return Decoder(made)


def document(**changes: Any) -> bytes:
    return json.dumps({"at": "2026-03-01T12:00:00Z", "user": "ada", **changes}).encode()


OLD, NEW = document(milliseconds=1500), document(seconds=1.5)


def decode(made: Decoder, *messages: tuple[bytes | None, Headers]) -> Decoded:
    count = len(messages)
    headers = [told for _, told in messages]
    poll = Poll(
        "visits", 0, 1, [value for value, _ in messages], [None] * count,
        [header(told, VERSION_HEADER) for told in headers], np.full(count, -1), np.arange(count), count, at_end=True,
        headers=headers if any(headers) else None,
    )  # fmt: skip
    return made.decode(poll)


def signed(version: bytes) -> Headers:
    return ((VERSION_HEADER, version),)


def framed(id_: int, value: bytes) -> bytes:
    return b"\0" + id_.to_bytes(4, "big") + value


def seconds(decoded: Decoded) -> list[float]:
    assert decoded.rejects == (), decoded.rejects
    return decoded.events["seconds"].to_pylist()  # type: ignore[no-any-return]


def reasons(decoded: Decoded) -> dict[int, tuple[Reason, str]]:
    return {reject.offset: (reject.reason, reject.detail) for reject in decoded.rejects}


def test_old_versions_become_the_newest_one_by_their_upcasts_and_stand_in_their_places() -> None:
    decoded = decode(decoder(), (NEW, signed(b"3")), (OLD, signed(b"1")), (NEW, signed(b"2")), (OLD, ()))

    assert seconds(decoded) == [1.5, 1.5, 1.5, 1.5]
    assert decoded.at.tolist() == [0, 1, 2, 3]
    assert decoded.events["_offset"].to_pylist() == [0, 1, 2, 3]


def test_an_unknown_version_is_not_guessed_at_and_its_bytes_are_kept() -> None:
    decoded = decode(decoder(), (NEW, signed(b"4")), (NEW, signed(b"three")), (NEW, signed(b"3")), (None, signed(b"5")))

    assert reasons(decoded) == {
        0: (Reason.UNKNOWN_VERSION, "version b'4'; this flow knows 1, 2, 3"),
        1: (Reason.UNKNOWN_VERSION, "version b'three'; this flow knows 1, 2, 3"),
        3: (Reason.UNKNOWN_VERSION, "version b'5'; this flow knows 1, 2, 3"),
    }
    assert decoded.rejects[0].value == NEW
    assert decoded.at.tolist() == [2]


def test_what_says_nothing_is_of_the_version_that_the_contract_says() -> None:
    assert seconds(decode(decoder(), (OLD, ()))) == [1.5]
    assert seconds(decode(decoder(unsigned_version=3), (NEW, ()))) == [1.5]
    assert reasons(decode(decoder(unsigned_version=4), (NEW, ()))) == {
        0: (Reason.UNKNOWN_VERSION, "version 4, since it says none; this flow knows 1, 2, 3")
    }


@pytest.mark.parametrize("told", [1, "1"])
def test_a_field_says_the_version(told: int | str) -> None:
    made = decoder(version_field="v", unsigned_version=3)

    assert seconds(decode(made, (document(milliseconds=1500, v=told), ()), (NEW, ()))) == [1.5, 1.5]


@pytest.mark.parametrize("told", [4, 0, -1, 1.0, True, "one", [], "1" * 50])
def test_a_field_that_says_another_version_or_none_is_unknown(told: Any) -> None:
    (reject,) = decode(decoder(version_field="v"), (document(seconds=1, v=told), ())).rejects

    assert reject.reason is Reason.UNKNOWN_VERSION


def test_a_null_field_says_nothing() -> None:
    assert seconds(decode(decoder(version_field="v"), (document(milliseconds=1500, v=None), ()))) == [1.5]


def test_framing_of_a_registry_is_taken_off() -> None:
    assert seconds(decode(decoder(), (framed(7, OLD), ()), (framed(7, NEW), signed(b"3")))) == [1.5, 1.5]


def test_a_registrys_ids_say_the_version_framed_or_by_header() -> None:
    made = decoder(schema_ids={100001: 1, 100003: 3, GUID: 3}, unsigned_version=1)
    guid = (SCHEMA_ID_HEADER, b"\x01" + uuid.UUID(GUID).bytes)
    number = (SCHEMA_ID_HEADER, b"\0" + (100003).to_bytes(4, "big"))

    decoded = decode(made, (framed(100003, NEW), ()), (framed(100001, OLD), ()), (NEW, (guid,)), (NEW, (number,)))

    assert seconds(decoded) == [1.5] * 4
    assert seconds(decode(made, (OLD, ()))) == [1.5]


@pytest.mark.parametrize("told", [b"", b"\x01short", b"\x02" + b"x" * 16, b"\0\0\0\0\x09", b"\x01" + b"x" * 16])
def test_an_id_that_the_contract_does_not_have_is_an_unknown_version(told: bytes) -> None:
    made = decoder(schema_ids={100003: 3})

    decoded = decode(made, (NEW, ((SCHEMA_ID_HEADER, told),)), (framed(9, NEW), ()))

    assert {Reason.UNKNOWN_VERSION} == {reason for reason, _ in reasons(decoded).values()}
    assert "schema 9, which `schema_ids` does not have" in reasons(decoded)[1][1]


def test_our_header_holds_before_a_registrys_id_and_that_before_a_field() -> None:
    made = decoder(schema_ids={5: 3}, version_field="v")

    assert (
        seconds(decode(made, (framed(5, OLD), signed(b"1")), (framed(5, document(seconds=1.5, v=1)), ()))) == [1.5] * 2
    )


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (document(), Reason.CONTRACT, "upcast from version 1: KeyError: 'milliseconds'"),
        (document(milliseconds="x"), Reason.CONTRACT, "upcast from version 1: TypeError: "),
        (document(milliseconds=1, user=None), Reason.CONTRACT, "user: Input should be a valid string"),
        (b"[]", Reason.CONTRACT, "the event: "),
        (b"{", Reason.UNDECODABLE, "Invalid JSON"),
        (b"", Reason.UNDECODABLE, "an empty value"),
        (None, Reason.UNDECODABLE, "no value"),
    ],
)
def test_an_old_event_that_is_broken_takes_no_other_with_it(value: bytes | None, reason: Reason, detail: str) -> None:
    decoded = decode(decoder(), (OLD, ()), (value, signed(b"1")), (NEW, signed(b"3")))

    ((offset, why),) = reasons(decoded).items()
    assert (offset, why[0]) == (1, reason)
    assert detail in why[1]
    assert decoded.at.tolist() == [0, 2]


@pytest.mark.parametrize("made", [None, [], {1, 2}])
def test_an_upcast_that_returns_no_event_is_named(made: Any) -> None:
    class Visit(Event):
        stream = Stream(topic="visits", key="user", event_time="at", version=2, upcasts={1: lambda _: made})

        at: AwareDatetime
        user: str

    found, _ = contract("visits", Visit)
    assert found is not None

    (reject,) = decode(Decoder(found), (OLD, ())).rejects

    assert "upcast from version 1: TypeError: it returned" in reject.detail


def test_an_upcast_keeps_large_numbers_odd_texts_and_no_numbers() -> None:
    value = b'{"at":"2026-03-01T12:00:00Z","user":"\\u00e9\\u0000","milliseconds":9007199254740993}'

    (event,) = decode(decoder(), (value, ())).events.to_pylist()

    assert (event["user"], event["seconds"]) == ("é\0", 9007199254740993 / 1000)
    assert [str(one) for one in seconds(decode(decoder(), (document(milliseconds=float("nan")), ())))] == ["nan"]
