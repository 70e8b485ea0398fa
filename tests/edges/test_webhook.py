"""One contract suite for the webhook and its twin; then what only a server on the network does."""

import json
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

import pytest
from listener import SECRET, Listener

from freshet.flows.edges.webhook import MemoryWebhook, Webhook
from freshet.schemas.errors import Refused, Unavailable
from freshet.schemas.finding import Alarm, Cause, Finding, Status

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


def alarm(name: str) -> Alarm:
    made = Finding("by_user", f"by_user.{name}", Cause.DTYPE, (), ({"entity": "ü\ud800"},), "…")
    return Alarm(Status.OPENED, made, AT, AT)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.close()


class Receiver(Protocol):
    def deliver(self, alarms: Sequence[Alarm]) -> None: ...


@pytest.mark.parametrize("kind", ["twin", "real"])
def test_alarms_are_posted_as_one_list_of_json(kind: str, listener: Listener) -> None:
    twin = MemoryWebhook("shop")
    webhook: Receiver = twin if kind == "twin" else Webhook(listener.url, "shop")

    webhook.deliver([alarm("a"), alarm("b")])
    webhook.deliver([alarm("c")])

    bodies = twin.bodies if kind == "twin" else listener.bodies
    expected = [[alarm("a"), alarm("b")], [alarm("c")]]
    assert [[one.as_json("shop") for one in batch] for batch in expected] == [json.loads(body) for body in bodies]


@pytest.mark.parametrize("kind", ["twin", "real"])
def test_a_receiver_that_does_not_take_them_is_unavailable(kind: str, listener: Listener) -> None:
    twin = MemoryWebhook("shop")
    webhook: Receiver = twin if kind == "twin" else Webhook(listener.url, "shop")
    twin.well, listener.status = False, 500

    with pytest.raises(Unavailable, match="does not take findings"):
        webhook.deliver([alarm("a")])


def test_a_request_is_a_post_of_json(listener: Listener) -> None:
    Webhook(listener.url, "shop").deliver([alarm("a")])

    ((method, path, headers, _),) = listener.requests
    assert ("POST", f"/hook/{SECRET}?key={SECRET}") == (method, path)
    assert "application/json" == headers["Content-Type"]


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 429, 500, 503])
def test_any_other_answer_is_a_failure_and_no_redirect_is_followed(listener: Listener, status: int) -> None:
    listener.status = status

    with pytest.raises(Unavailable, match=f"it answers {status}") as caught:
        Webhook(listener.url, "shop").deliver([alarm("a")])

    assert 1 == len(listener.requests)
    assert listener.host in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_receiver_that_hangs_is_given_up(listener: Listener) -> None:
    listener.hangs = True

    with pytest.raises(Unavailable, match="timed out|TimeoutError") as caught:
        Webhook(listener.url, "shop", limit_s=0.2).deliver([alarm("a")])

    assert SECRET not in str(caught.value)


def test_a_receiver_that_is_not_there_is_unavailable(listener: Listener) -> None:
    listener.close()

    with pytest.raises(Unavailable, match="refused"):
        Webhook(listener.url, "shop").deliver([alarm("a")])


@pytest.mark.parametrize(
    "url",
    [
        "", "s3cret", "ftp://h/s3cret", "file:///s3cret", "http://", "http:///s3cret", "http://h:99999/s3cret",
        "http://ada:s3cret@h/", "http://h/s3 cret", "http://h/s3cret\n", "http://[h/s3cret", "https://h/ü-s3cret",
    ],
)  # fmt: skip
def test_a_url_of_another_kind_is_refused_without_saying_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    with pytest.raises(Refused, match="FRESHET_WEBHOOK") as caught:
        Webhook(url, "shop")

    assert "s3" not in str(caught.value) + caplog.text
