"""Bytes to events: every message is one event or one reject, whatever its bytes and its neighbours."""

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, Field

from freshet.flows.steps.decode import Decoded, Decoder
from freshet.schemas.event import Event, Stream, contract
from freshet.schemas.poll import Poll
from freshet.schemas.rejects import Reason

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Click(Event):
    stream = Stream(topic="clicks", key="user", event_time="at", version=3, unsigned_version=3)

    at: AwareDatetime
    user: str | None
    n: int
    share: float | None = None
    tags: list[str] | None = None


CONTRACT, PROBLEMS = contract("clicks", Click)
assert CONTRACT is not None, PROBLEMS
DECODER = Decoder(CONTRACT)
GOOD = {"at": "2026-03-01T12:00:00Z", "user": "ada", "n": 1}


def document(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def poll(values: list[bytes | None], versions: list[bytes | None] | None = None, first: int = 100) -> Poll:
    count = len(values)
    keys: list[bytes | None] = [b"key %d" % index for index in range(first, first + count)]
    times = np.full(count, 1_772_366_400_500, np.int64)
    offsets = np.arange(first, first + count)
    return Poll("clicks", 4, 8, values, keys, versions or [None] * count, times, offsets, first + count, at_end=True)


def decode(*values: bytes | None, versions: list[bytes | None] | None = None) -> Decoded:
    return DECODER.decode(poll(list(values), versions))


def reason(value: bytes | None) -> tuple[Reason, str]:
    decoded = decode(value)
    assert decoded.events.num_rows == 0
    (reject,) = decoded.rejects
    assert (reject.topic, reject.partition, reject.offset) == ("clicks", 4, 100)
    assert (reject.key, reject.value) == (b"key 100", value)
    return reject.reason, reject.detail


def test_a_good_message_is_an_event_with_its_place_and_time() -> None:
    decoded = decode(document(share=0.5, tags=["a", "b"]))

    (event,) = decoded.events.to_pylist()
    assert event == {
        "at": NOON, "user": "ada", "n": 1, "share": 0.5, "tags": ["a", "b"], "event_timestamp": NOON,
        "_partition": 4, "_offset": 100, "_available_at": NOON.replace(microsecond=500_000),
    }  # fmt: skip
    assert decoded.at.tolist() == [0]
    assert decoded.rejects == ()


def test_without_a_kafka_time_an_event_counts_as_available_when_it_happened() -> None:
    from_file = poll([document()])
    from_file.timestamps_ms[:] = -1

    assert DECODER.decode(from_file).events.column("_available_at").to_pylist() == [NOON]


def test_an_empty_poll_is_an_empty_table_of_the_contracts_schema() -> None:
    decoded = decode()

    assert decoded.events.schema == DECODER.contract.schema
    assert decoded.events.num_rows == 0


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"\x00",
        b"{",
        b"}",
        b"not json",
        b'{"at":"2026-03-01T12:00:00Z","user":"ada","n":1',
        document() + document(),
        b"\xef\xbb\xbf" + document(),  # a byte order mark is not JSON
        b'{"at":"2026-03-01T12:00:00Z","user":"\xff\xfe","n":1}',
        b"\x00\x00\x00\x01" + document(),  # Confluent's wire format, cut
        document().decode().encode("utf-16"),
        b'{"at":"2026-03-01T12:00:00Z","user":"\\ud800","n":1}',
        b'{"at":"2026-03-01T12:00:00Z","user":"ada","n":01}',
        b'{"at":"2026-03-01T12:00:00Z","user":"ada\n","n":1}',
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bytes_that_are_not_json_are_undecodable(value: bytes | None) -> None:
    assert reason(value)[0] is Reason.UNDECODABLE


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (b"null", "the event: "),
        (b"[]", "the event: "),
        (b"7", "the event: "),
        (b"NaN", "the event: "),
        (b"{}", "at: Field required"),
        (document(n="1"), "n: Input should be a valid integer"),
        (document(n=1.0), "n: Input should be a valid integer"),
        (document(n=True), "n: Input should be a valid integer"),
        (document(n=None), "n: Input should be a valid integer"),
        (document(n=2**63), "n: "),
        (document(n=-(2**63) - 1), "n: "),
        (document(n=10**4000), "n: "),
        (document(user=7), "user: Input should be a valid string"),
        (document(at="2026-03-01T12:00:00"), "at: Input should have timezone info"),
        (document(at="0001-01-01T00:00:00+23:59"), "at: in UTC it is not between the years 1 and 9999"),
        (document(at="9999-12-31T23:59:59-00:01"), "at: in UTC it is not between the years 1 and 9999"),
        (document(tags=["a", 1]), "tags.1: Input should be a valid string"),
        (document(share="0.5"), "share: Input should be a valid number"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_json_that_breaks_the_contract_says_where(value: bytes, detail: str) -> None:
    got, said = reason(value)

    assert got is Reason.CONTRACT
    assert said.startswith(detail)
    assert len(said) <= 600


def test_the_edges_of_int64_are_numbers() -> None:
    decoded = decode(document(n=2**63 - 1), document(n=-(2**63)))

    assert decoded.events.column("n").to_pylist() == [2**63 - 1, -(2**63)]


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity"])
def test_numbers_that_json_does_not_have_are_one_event_or_one_reject(literal: bytes) -> None:
    decoded = decode(b'{"at":"2026-03-01T12:00:00Z","user":"ada","n":1,"share":%b}' % literal, document())

    assert decoded.events.num_rows + len(decoded.rejects) == 2
    assert decoded.events.column("_offset").to_pylist()[-1] == 101


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    decoded = decode(b'{"n":1,"at":"2026-03-01T12:00:00Z","user":"ada","n":2}')

    assert decoded.events.column("n").to_pylist() == [2]


def test_an_unknown_field_is_ignored() -> None:
    assert decode(document(colour="red")).events.num_rows == 1


def test_a_null_key_has_a_reason_of_its_own() -> None:
    assert reason(document(user=None)) == (Reason.NULL_KEY, "user is null")


def test_an_empty_key_is_a_key() -> None:
    assert decode(document(user="")).events.column("user").to_pylist() == [""]


@pytest.mark.parametrize("version", [b"2", b"4", b"", b"\xff", b"03", b"3 ", b"9" * 1000])
def test_another_version_is_not_guessed_at(version: bytes) -> None:
    decoded = decode(document(), versions=[version])

    (reject,) = decoded.rejects
    assert reject.reason is Reason.UNKNOWN_VERSION
    assert reject.detail == f"version {version[:40]!r}; this flow knows 3"


def test_its_own_version_is_known() -> None:
    assert decode(document(), versions=[b"3"]).events.num_rows == 1


def test_no_message_borrows_a_bracket_from_its_neighbour() -> None:
    decoded = decode(b'{"x":[{}', b"{}]}", b"[", document(), b"]", document()[:-1], b"}")

    assert decoded.at.tolist() == [3]
    assert [reject.offset for reject in decoded.rejects] == [100, 101, 102, 104, 105, 106]


def test_several_columns_that_cannot_hold_their_values_are_several_rejects() -> None:
    decoded = decode(document(n=2**70), document(), document(user="\ud800"), document(n=2**70, user=None))

    assert decoded.at.tolist() == [1]
    assert [reject.offset for reject in decoded.rejects] == [100, 102, 103]


MESSAGES = st.one_of(
    st.none(),
    st.binary(max_size=30),
    st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b'"', b'{"x":[{}', b"{}]}", b"NaN", document(n=2**70), document(user=None)]
    ),
    st.builds(lambda n: document(n=n), st.integers(-(2**65), 2**65)),
    st.builds(lambda user: document(user=user), st.text(max_size=5)),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "tags"]), inner, max_size=4)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode()),
    st.builds(lambda at, cut: document()[:at] + cut + document()[at:], st.integers(0, 60), st.binary(max_size=3)),
)


class Tap(Event):
    """As `Click`, without what is never read without the model."""

    stream = Stream(topic="taps", key="user", event_time="at")

    at: AwareDatetime
    user: str | None
    n: int = Field(le=2**60)
    share: float | None = None


def outcome(decoded: Decoded) -> dict[int, Any]:
    """What became of each message, by offset."""
    rejects = {reject.offset: (reject.reason, reject.detail, reject.key, reject.value) for reject in decoded.rejects}
    events = {row["_offset"]: repr(row) for row in decoded.events.to_pylist()}
    assert not rejects.keys() & events.keys()
    return {**rejects, **events}


@settings(max_examples=300, deadline=None)
@given(values=st.lists(MESSAGES, max_size=12), cuts=st.sets(st.integers(1, 11), max_size=4))
def test_each_message_is_one_event_or_one_reject_however_messages_are_batched(
    values: list[bytes | None], cuts: set[int]
) -> None:
    whole = outcome(DECODER.decode(poll(values)))
    alone: dict[int, Any] = {}
    for index, value in enumerate(values):
        alone |= outcome(DECODER.decode(poll([value], first=100 + index)))
    bounds = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    batched: dict[int, Any] = {}
    for start, end in itertools.pairwise(bounds):
        batched |= outcome(DECODER.decode(poll(values[start:end], first=100 + start)))

    assert sorted(whole) == list(range(100, 100 + len(values)))
    assert whole == alone
    assert whole == batched


@settings(max_examples=40, deadline=None)
@given(odd=st.dictionaries(st.integers(0, 2300), MESSAGES, max_size=6), count=st.integers(0, 2300))
def test_among_many_messages_each_is_what_it_is_among_few(odd: dict[int, bytes | None], count: int) -> None:
    """Of few the model reads each; of many it reads those that something odd stands among."""
    made, problems = contract("taps", Tap)
    assert made is not None, problems
    values: list[bytes | None] = [document(n=index, share=index / 7) for index in range(count)]
    for index, value in odd.items():
        values[index : index + 1] = [value]
    few = 90

    among_many = outcome(Decoder(made).decode(poll(values)))

    among_few: dict[int, Any] = {}
    for start in range(0, len(values), few):
        among_few |= outcome(Decoder(made).decode(poll(values[start : start + few], first=100 + start)))
    assert among_many == among_few
    assert sorted(among_many) == list(range(100, 100 + len(values)))


def test_messages_that_are_odd_again_and_again_end_and_plain_ones_are_read_as_before() -> None:
    made, problems = contract("taps", Tap)
    assert made is not None, problems
    decoder, odd = Decoder(made), document(n=2**61)
    whole: list[bytes | None] = [*([document()] * 999 + [odd]) * 5, *[document()] * 40_000]

    decoded = decoder.decode(poll(whole))

    assert [reject.offset for reject in decoded.rejects] == [100 + 999 + 1000 * index for index in range(5)]
    assert decoded.events.num_rows == len(whole) - 5
