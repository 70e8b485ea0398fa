"""What is asked of a process of ours by another one: how it does, or whether it is there at all."""

import socket
import threading
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from freshet.flows.edges.metrics import Server
from freshet.flows.edges.scrape import health, knock
from freshet.schemas.errors import Unavailable


def test_a_process_says_whether_it_is_well() -> None:
    trouble = [""]
    server = Server("127.0.0.1:0", CollectorRegistry(), lambda: trouble[0])
    try:
        assert health(server.address) == ""
        trouble[0] = "redis is away"
        assert health(server.address) == "redis is away"
        assert knock(server.address) == ""
    finally:
        server.close()


@pytest.mark.parametrize("ask", [health, knock])
def test_a_process_that_is_not_there_does_not_answer(ask: Callable[[str], str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(Unavailable, match=f'process "{address}" does not answer: '):
            ask(address)


@pytest.mark.parametrize("ask", [health, knock])
@pytest.mark.parametrize("address", ["127.0.0.1:port", "127.0.0.1:99999"])
def test_an_address_that_is_none_does_not_answer(ask: Callable[[str], str], address: str) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        ask(address)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "is none of ours: its /healthz is 404"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "does not answer: "),  # an alert of TLS
    ],
)
def test_somebody_else_at_the_address_is_not_taken_for_ours(said: bytes, expected: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def tell() -> None:
            asked, _ = listening.accept()
            with asked:
                asked.recv(1000)
                asked.sendall(said)

        telling = threading.Thread(target=tell)
        telling.start()
        with pytest.raises(Unavailable, match=expected):
            health(f"127.0.0.1:{listening.getsockname()[1]}")
        telling.join()
