"""A reject is the same after a round through Kafka, whatever its bytes; and what others wrote is not taken for one."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.schemas.poll import Poll
from freshet.schemas.record import Headers, Record
from freshet.schemas.rejects import (
    STAGES,
    Origin,
    Reason,
    Reject,
    dead_letter,
    receipt,
    receipt_of,
    redriven,
    reject_of,
)

OURS = ("__connect.errors.", "freshet.")
GROUP = "freshet-wikipedia-materializer"
LATE = Reject(
    "wiki_edits",
    3,
    42,
    Reason.LATE,
    "too old",
    b"ada",
    b"{}",
    (("freshet-version", b"1"), ("x", None)),
    1_772_366_400_500,
)

contents = st.none() | st.binary(max_size=20)
names = st.text(max_size=12)
own_headers = st.lists(st.tuples(names.filter(lambda name: not name.startswith(OURS)), contents), max_size=4)
old_headers = st.lists(
    st.tuples(
        st.sampled_from(
            [*dict(dead_letter(replace(LATE, headers=()), GROUP).headers), "freshet.redriven", "freshet.x"]
        ),
        contents,
    ),
    max_size=4,
)
rejects = st.builds(
    Reject,
    topic=st.from_regex(r"[A-Za-z0-9._-]{1,30}", fullmatch=True),
    partition=st.integers(0, 2**20),
    offset=st.integers(0, 2**50),
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=40),
    key=contents,
    value=contents,
    headers=own_headers.map(tuple),
    timestamp_ms=st.integers(-1, 2**45),
)


def read(record: Record) -> Reject | None:
    return reject_of(record.key, record.value, record.headers, record.timestamp_ms)


def texts(headers: Headers) -> dict[str, str]:
    return {name: value.decode() for name, value in headers if value is not None}


@given(rejects)
def test_a_reject_is_the_same_after_a_round_as_a_dead_letter(reject: Reject) -> None:
    assert read(dead_letter(reject, GROUP)) == reject


@given(rejects, old_headers, st.randoms(use_true_random=False))
def test_headers_of_a_former_round_are_replaced(
    reject: Reject, old: list[tuple[str, bytes | None]], order: object
) -> None:
    mixed = [*reject.headers]
    for header in old:
        mixed.insert(order.randint(0, len(mixed)), header)  # type: ignore[attr-defined]  # Hypothesis' own Random

    assert dead_letter(replace(reject, headers=tuple(mixed)), GROUP) == dead_letter(reject, GROUP)


@given(rejects)
def test_an_event_is_sent_again_as_it_was_and_says_where_it_was(reject: Reject) -> None:
    sent, receiving = redriven(reject), receipt(reject)

    assert (sent.topic, sent.key, sent.value, sent.timestamp_ms) == (reject.topic, reject.key, reject.value, -1)
    assert sent.headers == (*reject.headers, ("freshet.redriven", str(reject.origin).encode()))
    assert (receiving.topic, receiving.key, receiving.value) == (f"{reject.topic}.dlq", reject.key, None)
    assert receipt_of(receiving.headers) == reject.origin
    assert read(receiving) is None


@given(rejects)
def test_an_event_that_failed_again_is_a_letter_and_no_receipt(reject: Reject) -> None:
    letter = dead_letter(replace(reject, headers=redriven(reject).headers, offset=reject.offset + 9), GROUP)

    assert receipt_of(letter.headers) is None
    assert read(letter) == replace(reject, offset=reject.offset + 9)


def test_a_dead_letter_has_the_words_of_kafka_connect() -> None:
    letter = dead_letter(LATE, GROUP)

    assert (letter.topic, letter.key, letter.value, letter.timestamp_ms) == ("wiki_edits.dlq", b"ada", b"{}", -1)
    assert letter.headers[:2] == (("freshet-version", b"1"), ("x", None))
    assert texts(letter.headers[2:]) == {
        "__connect.errors.topic": "wiki_edits",
        "__connect.errors.partition": "3",
        "__connect.errors.offset": "42",
        "__connect.errors.connector.name": GROUP,
        "__connect.errors.stage": "TASK_PUT",
        "__connect.errors.class.name": "freshet.flows.steps.accept.PartitionJudge",
        "__connect.errors.exception.class.name": "freshet.schemas.rejects.Reason.LATE",
        "__connect.errors.exception.message": "too old",
        "freshet.reason": "late",
        "freshet.time": "1772366400500",
    }


@pytest.mark.parametrize("own_time", [None, b"", b"-1", b"yesterday"])
def test_a_letter_without_a_time_of_its_own_has_the_record_s(own_time: bytes | None) -> None:
    headers = (*dead_letter(LATE, GROUP).headers, ("freshet.time", own_time))

    found = reject_of(b"ada", b"{}", headers, 7)

    assert found == replace(LATE, timestamp_ms=7)


def test_half_a_surrogate_in_a_detail_is_escaped() -> None:
    letter = dead_letter(replace(LATE, detail="got \ud800"), GROUP)

    assert texts(letter.headers)["__connect.errors.exception.message"] == "got \\ud800"


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_names_the_class_that_gives_up(reason: Reason) -> None:
    module, _, name = STAGES[reason][1].rpartition(".")

    assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize(
    "headers",
    [
        None,
        (),
        (("freshet.reason", b"late"),),
        tuple(header for header in dead_letter(LATE, GROUP).headers if header[0] != "freshet.reason"),
        (*dead_letter(LATE, GROUP).headers, ("freshet.reason", b"of a later release")),
        (*dead_letter(LATE, GROUP).headers, ("__connect.errors.offset", b"-1")),
        (*dead_letter(LATE, GROUP).headers, ("__connect.errors.partition", b"\xff")),
        (*dead_letter(LATE, GROUP).headers, ("__connect.errors.topic", None)),
    ],
)
def test_what_others_wrote_is_no_letter_of_ours(headers: Headers | None) -> None:
    assert reject_of(b"k", b"v", headers, 0) is None
    assert receipt_of(headers) is None


@pytest.mark.parametrize("text", [b"", b"t/1", b"t@1", b"t/1@x", b"/1@2", b"t/1@2@3", b"\xff", "t/١@٢".encode()])
def test_what_is_no_origin_is_none(text: bytes) -> None:
    assert Origin.read(text) is None


def test_a_reject_of_a_poll_has_everything_of_its_message() -> None:
    poll = Poll(
        "t", 4, 8, [b"a", None], [None, b"k"], [None, None], np.array([7, 8]), np.array([50, 51]), 52, at_end=True,
        headers=[None, [("h", b"1"), ("h", None)]],
    )  # fmt: skip

    assert Reject.of(poll, 0, Reason.LATE, "old") == Reject("t", 4, 50, Reason.LATE, "old", None, b"a", (), 7)
    assert Reject.of(poll, 1, Reason.LATE, "old") == Reject(
        "t", 4, 51, Reason.LATE, "old", b"k", None, (("h", b"1"), ("h", None)), 8
    )
    assert Reject.of(replace(poll, headers=None), 1, Reason.LATE, "old").headers == ()
