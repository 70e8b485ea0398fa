"""The server from outside, as a process on a real store and broker: outages, too much, garbage, strangers, and its ends."""

import contextlib
import json
import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from secured import certificate
from servers import EVENTS, READ, TODAY, Answer, Client, begun, fill, numbered, opened, serving, view_of
from stack import FRESHET, Server, Stack, free_pair, prepared, until

from freshet.flows.edges import http
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.http import BODY_BYTES_MAX, Security
from freshet.schemas.errors import Refused

BY_USER = "wiki_edits_by_user"
ASKED = [f"{BY_USER}:user_edits_10m"]
MANY = 12
OTHERS = "0.0.0.0"  # what is refused


@pytest.fixture(scope="module")
def own_broker() -> Iterator[Broker]:
    with Broker.start() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("online") / "valkey")
    yield made
    made.stop()


@pytest.fixture(scope="module")
def stack(own_broker: Broker, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = prepared(own_broker.address, server.url, tmp_path_factory.mktemp("serving"))
    view = view_of(made, BY_USER)
    fill(made, view, numbered(view, [("ada",), ("bob",)], 7))
    yield made
    made.close()


def good(client: Client) -> bool:
    """Whether a row is served that is there."""
    answer = client.read(ASKED, user=["ada"])
    told = answer.told["results"][1] if answer.status == 200 else {}
    return (told.get("values"), told.get("statuses")) == ([7], ["PRESENT"])


def healthy(client: Client) -> bool:
    return client.ask("GET", "/healthz").status == 200


def turned_away(answers: list[Answer]) -> bool:
    return all(answer.status == 503 and answer.headers["retry-after"] == "1" and answer.detail for answer in answers)


# The online store


def test_a_redis_that_is_down_is_a_503_with_the_reason_and_once_it_is_back_so_are_values(
    stack: Stack, server: Server
) -> None:
    with serving(stack) as client:
        assert good(client)
        server.stop()

        answers = client.all_at_once(MANY, ASKED, user=["ada"]).wait()
        health = client.ask("GET", "/healthz")
        server.start()

        assert turned_away(answers), answers
        assert {f"Redis at 127.0.0.1:{server.port}" in answer.detail for answer in answers} == {True}
        assert health.status == 503
        assert f"Redis at 127.0.0.1:{server.port}".encode() in health.body
        until(lambda: good(client) and healthy(client))


def test_a_server_that_is_started_while_redis_is_down_is_ready_once_it_is_up(stack: Stack, server: Server) -> None:
    server.stop()
    with serving(stack) as client:
        assert client.ask("GET", "/readyz").status == 503
        assert client.read(ASKED, user=["ada"]).status == 503

        server.start()

        until(lambda: client.ask("GET", "/readyz").status == 200)
        assert good(client)


@pytest.mark.parametrize("database", [0, 1], ids=["it says nothing", "it does not even greet"])
def test_a_redis_that_hangs_holds_nobody_for_longer_than_the_deadline_and_is_used_again_once_it_answers(
    stack: Stack, server: Server, database: int
) -> None:
    deadline_s = 3
    url = server.url.replace(
        "/0", f"/{database}"
    )  # another one than the first is to be chosen before anything is asked
    with serving(stack, FRESHET_ONLINE_STORE=url, FRESHET_SERVER_DEADLINE=f"{deadline_s}s") as client:
        assert client.read(ASKED, user=["ada"]).status == 200
        server.process.send_signal(signal.SIGSTOP)
        try:
            first = client.all_at_once(MANY, ASKED, user=["ada"]).wait()  # on the connection that was there
            second = client.all_at_once(MANY, ASKED, user=["ada"]).wait(deadline_s * (MANY - 1))  # none after the other
        finally:
            server.process.send_signal(signal.SIGCONT)

        assert turned_away(first), first
        assert turned_away(second), second
        until(lambda: client.read(ASKED, user=["ada"]).status == 200)


def test_of_more_requests_than_agreed_the_rest_is_turned_away_at_once_and_later_ones_are_let_in(
    stack: Stack, server: Server
) -> None:
    with serving(stack, FRESHET_SERVER_CONCURRENCY="2", FRESHET_SERVER_DEADLINE="60s") as client:
        assert good(client)
        server.process.send_signal(signal.SIGSTOP)
        try:
            crowd = client.all_at_once(MANY, ASKED, user=["ada"])
            until(lambda: len(crowd.answers) == MANY - 2)
            early = [*crowd.answers]
        finally:
            server.process.send_signal(signal.SIGCONT)
        late = crowd.wait()[MANY - 2 :]

        assert turned_away(early)
        assert [answer.status for answer in late] == [200, 200]
        assert good(client)


def test_what_another_stored_in_the_place_of_a_row_is_a_503_not_a_defect(stack: Stack, server: Server) -> None:
    view = view_of(stack, BY_USER)
    with serving(stack) as client, server.client() as raw:
        (key,) = raw.scan_iter(b"*ada*")
        kept = raw.dump(key)
        raw.set(key, "no hash")

        answer = client.read(ASKED, user=["bob", "ada"])
        raw.restore(key, 0, kept, replace=True)

        assert answer.status == 503
        assert "WRONGTYPE" in answer.detail
        assert good(client)
    assert view.entity_names == ("user",)


@pytest.mark.parametrize("what", ["time", "value"])
def test_a_value_that_another_stored_and_is_none_is_a_503_not_a_defect(stack: Stack, server: Server, what: str) -> None:
    with serving(stack) as client, server.client() as raw:
        (key,) = raw.scan_iter(b"*ada*")
        kept = raw.dump(key)
        for field in raw.hkeys(key):
            if field.startswith(b"_") == (what == "time"):
                raw.hset(key, field, b"garbage")

        answer = client.read(ASKED, user=["bob", "ada"])
        raw.restore(key, 0, kept, replace=True)

        assert answer.status == 503
        assert f"b'garbage' is no Feast {what}. Hint: `freshet repair`" in answer.detail
        assert good(client)


# Kafka


def edit(**more: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("isAnonymous", "isMinor", "isNew", "isRobot", "isUnpatrolled"), False)
    sizes = {"added": 1, "deleted": 0, "delta": 1}
    texts = {"channel": "#en", "page": "Main", "user": "ada", "namespace": "Main"}
    return {"time": datetime.now(UTC).isoformat(), **texts, **sizes, **flags, **more}


def test_a_kafka_that_is_away_is_a_503_to_events_alone_and_takes_no_readers_place(
    stack: Stack, own_broker: Broker
) -> None:
    with serving(stack, FRESHET_PATIENCE="3s", FRESHET_SERVER_CONCURRENCY="2") as client:
        assert client.ask("POST", EVENTS, edit()).status == 202
        own_broker.down()
        try:
            with ThreadPoolExecutor(MANY) as pool:
                sent = [pool.submit(client.ask, "POST", EVENTS, edit()) for _ in range(MANY)]
                until(lambda: sum(one.done() for one in sent) >= MANY - 2)  # the others wait for Kafka
                assert good(client)
            answers = [one.result() for one in sent]
        finally:
            own_broker.up()

        assert turned_away(answers), answers
        assert any(f'kafka "{own_broker.address}"' in answer.detail for answer in answers)
        until(lambda: client.ask("POST", EVENTS, edit()).status == 202)


def test_events_are_where_the_answer_says_and_none_is_there_if_one_breaks_its_contract(stack: Stack) -> None:
    with serving(stack) as client:
        first, second = client.ask("POST", EVENTS, [edit(), edit()]).told["events"]
        refused = client.ask("POST", EVENTS, [edit(), edit(added="1")])
        third = client.ask("POST", EVENTS, edit()).told["events"][0]

    assert refused.status == 422
    assert 'event "[1].added" breaks the contract of wiki_edits' in refused.detail
    assert first["partition"] == second["partition"] == third["partition"]
    assert [second["offset"] - first["offset"], third["offset"] - second["offset"]] == [1, 1]


# What cannot be answered


def asked(**more: Any) -> dict[str, Any]:
    return {"features": ASKED, "entities": {"user": ["ada"]}, **more}


def nested(depth: int) -> bytes:
    return b'{"features":%s,"entities":{"user":["ada"]}}' % (b"[" * depth + b"]" * depth)


MALFORMED: dict[str, tuple[str, str, Any, int]] = {
    "nothing": ("POST", READ, b"", 422),
    "bad JSON": ("POST", READ, b'{"features":', 422),
    "no UTF-8": ("POST", READ, b'{"features": ["\xff\xfe"], "entities": {"user": ["ada"]}}', 422),
    "half a surrogate": ("POST", READ, b'{"features": ["\\ud800"], "entities": {"user": ["ada"]}}', 422),
    "half a surrogate as an entity": (
        "POST", READ, b'{"features": ["%s"], "entities": {"user": ["\\udc00"]}}' % ASKED[0].encode(), 422,
    ),
    "NaN as an entity": ("POST", READ, asked(entities={"user": [float("nan")]}), 422),
    "deep nesting": ("POST", READ, nested(100_000), 422),
    "nesting as an entity": ("POST", READ, b'{"features": ["%s"], "entities": {"user": [%s]}}' % (ASKED[0].encode(), b"[" * 190 + b"]" * 190), 422),
    "a number of many digits": ("POST", READ, b'{"features": [], "entities": {"user": [%s]}}' % (b"9" * 100_000), 422),
    "a list": ("POST", READ, [], 422),
    "a text": ("POST", READ, "x", 422),
    "features that are none": ("POST", READ, asked(features="x"), 422),
    "a truth in quotes": ("POST", READ, asked(full_feature_names="true"), 422),
    "entities as rows": ("POST", READ, asked(entities=[{"user": "ada"}]), 422),
    "an entity of another type": ("POST", READ, asked(entities={"user": [7]}), 422),
    "an entity that is null": ("POST", READ, asked(entities={"user": [None]}), 422),
    "an entity that is not needed, of any type": ("POST", READ, asked(entities={"user": ["ada"], "page": [{"a": [1e300]}]}), 200),
    "no join key": ("POST", READ, asked(entities={"page": ["Main"]}), 422),
    "too many entities": ("POST", READ, asked(entities={"user": ["x"] * 10_001}), 422),
    "an unknown feature": ("POST", READ, asked(features=[f"{BY_USER}:x"]), 404),
    "an unknown service": ("POST", READ, {"feature_service": "x", "entities": {"user": ["ada"]}}, 404),
    "a method that is none of its": ("GET", READ, None, 405),
    "another one": ("DELETE", "/features", None, 405),
    "an unknown path": ("GET", "/", None, 404),
    "a path of odd letters": ("GET", "/%ff%00%ed%a0%80/..%2f", None, 404),
    "an unknown stream": ("POST", "/streams/clicks/events", edit(), 404),
    "a stream of odd letters": ("POST", "/streams/%ff%ed%a0%80/events", edit(), 404),
    "a stream read": ("GET", EVENTS, None, 405),
    "an event that breaks its contract": ("POST", EVENTS, edit(added="1"), 422),
    "an event of half a surrogate": ("POST", EVENTS, json.dumps(edit(page="\ud800")).encode(), 422),
    "events of half a surrogate": ("POST", EVENTS, json.dumps([edit(page="\ud800")]).encode(), 422),
    "an event with NaN": ("POST", EVENTS, edit(metroCode=float("nan")), 422),
    "events with NaN": ("POST", EVENTS, [edit(metroCode=float("nan"))], 422),
    "uneven entities of many names": ("POST", READ, asked(entities={str(n): [1] * (n % 2) for n in range(9999)}), 422),
    "much that is wrong": ("POST", READ, asked(entities={str(n): n for n in range(99_999)}), 422),
    "a long name": ("POST", READ, asked(features=["x" * 99_999], entities={"y" * 99_999: 1}), 422),
    "long names that nobody knows": ("POST", READ, asked(entities={str(n) + "y" * 9999: [1] for n in range(99)}), 422),
    "a long feature": ("POST", READ, asked(features=["x" * 999_999] * 4), 404),
    "a long service": ("POST", READ, {"feature_service": "x" * 999_999, "entities": {"user": ["ada"]}}, 404),
    "a long entity of another type": ("POST", READ, asked(entities={"user": [["x" * 999_999]]}), 422),
    "an event with a number of many digits": ("POST", EVENTS, b"[" + json.dumps(edit()).replace('"added": 1', f'"added": {"9" * 5000}').encode() + b"]", 422),
    "an event of deep nesting": ("POST", EVENTS, b"[" * 100_000, 422),
    "no event": ("POST", EVENTS, [], 422),
    "too many events": ("POST", EVENTS, [1] * 1001, 422),
    "an event that is null": ("POST", EVENTS, [None], 422),
}  # fmt: skip


@pytest.fixture(scope="module")
def unharmed(stack: Stack) -> Iterator[Client]:
    """One server that all of it is sent to."""
    with serving(stack) as client:
        yield client
        assert good(client)


@pytest.mark.parametrize("what", MALFORMED)
def test_what_cannot_be_answered_is_told_why_and_the_server_goes_on(unharmed: Client, what: str) -> None:
    method, path, body, status = MALFORMED[what]

    answer = unharmed.ask(method, path, body)

    assert answer.status == status, answer
    assert status == 200 or answer.detail
    assert len(answer.body) < 10_000
    assert (status == 405) == ("allow" in answer.headers)
    assert good(unharmed)


def request_of(length: str, body: bytes = b"", name: str = "content-length") -> bytes:
    return f"POST {READ} HTTP/1.1\r\nhost: x\r\n{name}: {length}\r\n\r\n".encode() + body


UNTRUE: dict[str, tuple[bytes, int]] = {
    "a body over the limit by its own words": (request_of(str(BODY_BYTES_MAX + 1)), 413),
    "a body over the limit that comes in pieces": (
        request_of("chunked", b"400001\r\n" + b" " * 0x400001 + b"\r\n0\r\n\r\n", "transfer-encoding"), 413,
    ),
    "a length that is no number": (request_of("ten"), 400),
    "a length below zero": (request_of("-1"), 400),
    "a length of many digits": (request_of("9" * 5000), 400),
    "two lengths": (request_of("1\r\ncontent-length: 2", b"xx"), 400),
    "a length and pieces": (request_of("5\r\ntransfer-encoding: chunked", b"0\r\n\r\n"), 400),
    "pieces without a size": (request_of("chunked", b"x\r\n", "transfer-encoding"), 400),
    "no HTTP": (b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n", 400),
    "a path that is no ASCII": ("GET /é HTTP/1.1\r\nhost: x\r\n\r\n".encode(), 400),
    "a header that is no text": (b"GET /features HTTP/1.1\r\nhost: x\r\nauthorization: \xff\xfe\r\n\r\n", 200),
}  # fmt: skip


@pytest.mark.parametrize("what", UNTRUE)
def test_a_request_that_is_not_what_it_says_is_refused_and_the_server_goes_on(unharmed: Client, what: str) -> None:
    raw, status = UNTRUE[what]

    answer = unharmed.sent(raw)

    assert answer.status == status, answer
    assert status == 200 or answer.detail
    assert good(unharmed)


@pytest.mark.parametrize("path", [READ, EVENTS])
def test_a_body_that_never_comes_is_a_408_and_one_that_breaks_off_harms_nobody(unharmed: Client, path: str) -> None:
    answer = unharmed.sent(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode())

    assert answer.status == 408
    assert answer.detail == "the request did not come within 10 s"
    assert answer.headers["connection"] == "close"
    assert good(unharmed)


def test_names_that_nobody_knows_are_refused_and_ten_of_them_told_however_many_they_are(unharmed: Client) -> None:
    entities = {f"user{number}": ["ada"] for number in range(100_000)}
    features = [f"{BY_USER}:user_edits_10m{number}" for number in range(1000)]

    of_entities = unharmed.ask("POST", READ, asked(entities={"user": ["ada"], **entities}))
    of_features = unharmed.ask("POST", READ, asked(features=features))

    assert (of_entities.status, of_entities.detail.count("is unknown")) == (422, 10)
    assert (of_features.status, of_features.detail.count("is unknown")) == (404, 10)
    assert good(unharmed)


# Who is let in


def test_who_has_the_token_is_let_in_and_nobody_else(stack: Stack) -> None:
    with serving(stack, FRESHET_SERVER_TOKEN="s3cret", FRESHET_SERVER_ADDRESS=f"{OTHERS}:0") as at:
        address = at.address.replace(OTHERS, "127.0.0.1")
        known, stranger, wrong = Client(address, "s3cret"), Client(address), Client(address, "s3cre")
        assert good(known)
        for client in (stranger, wrong):
            for method, path in (("POST", READ), ("GET", "/features"), ("GET", "/openapi.json"), ("POST", EVENTS)):
                answer = client.ask(method, path, {} if method == "POST" else None)
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert answer.detail == "a bearer token is needed"
            assert client.ask("GET", "/healthz").status == 200
        assert known.ask("GET", "/openapi.json").told["security"] == [{"token": []}]
    assert "s3cret" not in stack.log.read_text(errors="replace")


def refused(stack: Stack, *words: str, **environment: str) -> str:
    """Start a server that is refused as wrong use; return what it says."""
    process = stack.spawn([*FRESHET, "run", "server", *words], **environment)
    return stack.ended(process, 2)


def test_an_address_that_others_reach_is_refused_without_a_guard(stack: Stack) -> None:
    said = refused(stack, FRESHET_SERVER_ADDRESS=f"{OTHERS}:0")

    assert said == (
        f'freshet: address "{OTHERS}:0" is reached by others and guarded by nothing. '
        "Hint: set FRESHET_SERVER_TOKEN or FRESHET_SERVER_CLIENT_CA"
    )


def test_an_address_that_is_taken_is_refused(stack: Stack) -> None:
    with serving(stack) as client:
        said = refused(stack, "--workers", "2", FRESHET_SERVER_ADDRESS=client.address)

    assert said.startswith(f'freshet: address "{client.address}" cannot be listened at: ')
    assert "FRESHET_SERVER_ADDRESS=HOST:PORT" in said


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Keys and certificates, each of which is its own CA."""
    return {name: certificate(tmp_path_factory.mktemp(name)) for name in ("server", "client", "stranger")}


Certificates = dict[str, tuple[Path, Path]]


def known_by(certificates: Certificates, name: str | None) -> ssl.SSLContext:
    """What a client trusts, and with whose certificate it comes."""
    made = ssl.create_default_context(cafile=certificates["server"][1])
    if name is not None:
        key, own = certificates[name]
        made.load_cert_chain(own, key)
    return made


def test_clients_without_a_certificate_of_the_clients_ca_are_not_let_in(
    stack: Stack, certificates: Certificates
) -> None:
    (key, own), (_, client_ca) = certificates["server"], certificates["client"]
    environment = {
        "FRESHET_SERVER_CERTIFICATE": str(own),
        "FRESHET_SERVER_KEY": str(key),
        "FRESHET_SERVER_CLIENT_CA": str(client_ca),
        "FRESHET_SERVER_ADDRESS": f"{OTHERS}:0",
    }
    with serving(stack, **environment) as at:
        address = at.address.replace(OTHERS, "127.0.0.1")
        known = Client(address, secure=known_by(certificates, "client"))
        assert good(known)
        for name in (None, "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionResetError, BrokenPipeError)):
                Client(address, secure=known_by(certificates, name)).ask("GET", "/healthz")
        with contextlib.suppress(OSError):  # what speaks no TLS is cut off, or told that this is no HTTP
            assert Client(address).sent(b"GET /features HTTP/1.1\r\nhost: x\r\n\r\n").status != 200
        assert good(known)


def test_tls_alone_lets_everybody_in_who_has_the_token(stack: Stack, certificates: Certificates) -> None:
    key, own = certificates["server"]
    environment = {"FRESHET_SERVER_CERTIFICATE": str(own), "FRESHET_SERVER_KEY": str(key)}
    with serving(stack, FRESHET_SERVER_TOKEN="s3cret", **environment) as at:
        assert good(Client(at.address, "s3cret", known_by(certificates, None)))
        assert Client(at.address, None, known_by(certificates, None)).read(ASKED, user=["ada"]).status == 401


def test_a_ca_of_clients_guards_nothing_without_tls_and_is_refused(stack: Stack, certificates: Certificates) -> None:
    _, client_ca = certificates["client"]

    said = refused(stack, FRESHET_SERVER_ADDRESS=f"{OTHERS}:0", FRESHET_SERVER_CLIENT_CA=str(client_ca))

    assert said == (
        f'freshet: certificate "{client_ca}" is of no use alone. '
        "Hint: set FRESHET_SERVER_CERTIFICATE, or neither …_KEY nor …_CLIENT_CA"
    )


def test_certificates_that_cannot_be_used_are_refused(certificates: Certificates, tmp_path: Path) -> None:
    (key, own), (other_key, _), no_pem = certificates["server"], certificates["stranger"], tmp_path / "text"
    no_pem.write_text("no PEM")
    given = {
        "no key": Security(own),
        "no certificate": Security(None, key),
        "the key of another": Security(own, other_key),
        "no PEM": Security(no_pem, key),
        "no file": Security(tmp_path / "absent", key),
        "a CA that is none": Security(own, key, no_pem),
    }

    for security in given.values():
        with pytest.raises(Refused, match=r'certificate ".*" (cannot be used: |is of no use alone).*_CERTIFICATE'):
            http._secure(security)  # noqa: SLF001  # to serve takes signals, too


# Several processes, and ends


def test_workers_share_one_address_and_sigterm_ends_all(stack: Stack) -> None:
    port = free_pair()
    running = begun(stack, FRESHET_SERVER_WORKERS="2", FRESHET_METRICS_ADDRESS=f"127.0.0.1:{port}")
    client, counted = running.client, [Client(f"127.0.0.1:{port}"), Client(f"127.0.0.1:{port + 1}")]

    def both_answered() -> bool:
        assert good(client)
        line = 'freshet_requests_total{endpoint="get-online-features",status="2xx"} '
        try:
            told = [one.ask("GET", "/metrics").body.decode() for one in counted]
        except ConnectionRefusedError:  # one of them has not begun
            return False
        return all(float(text.partition(line)[2].split("\n")[0]) > 0 for text in told)

    until(both_answered)
    children = psutil.Process(running.process.pid).children()
    running.stop()

    assert len(children) == 2
    assert not any(child.is_running() for child in children)


def test_a_worker_that_is_killed_ends_all_with_the_reason(stack: Stack) -> None:
    running = begun(stack, workers_count=2)
    children = psutil.Process(running.process.pid).children()

    children[1].kill()

    assert stack.ended(running.process, 5) == "freshet: process 1 of 2 was ended by SIGKILL"
    assert stack.said().splitlines()[-2].endswith("stopped")  # the other one was asked to
    assert not any(child.is_running() for child in children)


def test_what_is_in_work_when_the_server_is_ended_is_finished(stack: Stack, server: Server) -> None:
    running = begun(stack, FRESHET_SERVER_DEADLINE="60s")
    assert good(running.client)
    server.process.send_signal(signal.SIGSTOP)
    try:
        crowd = running.client.all_at_once(MANY, ASKED, user=["ada"])
        in_work = running.client.address.rpartition(":")[2]
        until(lambda: established(running.process.pid, int(in_work)) >= MANY)
        running.process.terminate()
        until(lambda: not listening(running.process.pid, int(in_work)))
    finally:
        server.process.send_signal(signal.SIGCONT)

    assert [answer.status for answer in crowd.wait()] == [200] * MANY
    assert running.process.wait() == 0


def connections(pid: int, port: int) -> list[str]:
    return [one.status for one in psutil.Process(pid).net_connections("tcp") if one.laddr.port == port]


def established(pid: int, port: int) -> int:
    return connections(pid, port).count(psutil.CONN_ESTABLISHED)


def listening(pid: int, port: int) -> bool:
    return psutil.CONN_LISTEN in connections(pid, port)


# Versions


def test_no_answer_mixes_two_versions_of_a_row_and_none_goes_back(stack: Stack) -> None:
    view, users = view_of(stack, BY_USER), [f"user{number}" for number in range(20)]
    features = [f"{view.name}:{feature.name}" for feature in view.features]
    fill(stack, view, numbered(view, [(user,) for user in users], 1))
    ends = threading.Event()

    def write(first: int) -> None:
        with contextlib.closing(opened(stack)) as store:
            number = first
            while not ends.is_set():
                number += 2
                store.write(view, numbered(view, [(user,) for user in users], number))

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
    seen: dict[str, list[int]] = {user: [] for user in users}
    with serving(stack) as client:
        try:
            for one in writers:
                one.start()

            def changed_often() -> bool:
                look(client, features, users, seen)
                return all(len({*numbers}) > 100 for numbers in seen.values())

            until(changed_often)
        finally:
            ends.set()
            for one in writers:
                one.join()

    for numbers in seen.values():
        assert numbers == sorted(numbers)


def look(client: Client, features: list[str], users: list[str], seen: dict[str, list[int]]) -> None:
    """Read all features; each entity's must say one number, and so must its event time."""
    told = client.read(features, user=users).told
    by_name = dict(zip(told["metadata"]["feature_names"], told["results"], strict=True))
    assert by_name.pop("user")["values"] == users
    for place, user in enumerate(users):
        number = by_name["user_edits_10m"]["values"][place]
        meant = {int: number, float: float(number), str: str(number), bool: number % 2 == 1}
        at = f"{TODAY:%Y-%m-%d}T00:00:00.{number % 1_000_000:06d}"
        for name, column in by_name.items():
            value = column["values"][place]
            assert value == meant[type(value)], (user, name, value, number)
            assert column["statuses"][place] == "PRESENT"
            assert column["event_timestamps"][place].removesuffix("Z").ljust(26, "0") == at, name
        seen[user].append(number)
