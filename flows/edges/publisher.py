"""Publishing events for many at once: each waits for its own confirmation, and none holds up another."""

import asyncio
import contextlib
import threading
from collections.abc import Sequence

from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import Producer as RawProducer

from freshet.flows.edges.kafka import LARGER, Heard, Kafka, records_of
from freshet.schemas.errors import Problem, Refused
from freshet.schemas.event import Contract
from freshet.schemas.record import Record

_LINGER_MS, _POLL_S, _CLOSE_S = 1, 0.1, 5.0

Place = tuple[int, int]
"""Where Kafka has an event: its partition and offset."""


class Publisher:
    """Publishes to a Kafka from one event loop. No event is repeated, and their order is kept."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka, self._heard = kafka, Heard()
        self._sent, self._ends = threading.Event(), False
        self._producer = kafka.client(
            RawProducer,
            {"linger.ms": _LINGER_MS},
            enable_idempotence=True,
            partitioner="murmur2_random",  # Java's: the default would put a key where other producers do not
            delivery_timeout_ms=int(kafka.patience_s * 1000),
            error_cb=self._heard,
        )
        self._thread = threading.Thread(target=self._poll, name="publisher", daemon=True)
        self._thread.start()

    async def publish(self, contract: Contract, events: Sequence[bytes]) -> list[Place]:
        """Publish events, JSON each, and wait until Kafka has confirmed all; return where each is.

        Raises `Refused` if one breaks its contract or is too large, and then none was sent; and `Unavailable` if one
        was not confirmed within the cluster's patience: then others may be there.
        """
        records = records_of(contract, events)
        loop = asyncio.get_running_loop()
        told = [loop.create_future() for _ in records]
        for record, future in zip(records, told, strict=True):
            self._send(record, loop, future)
        found = await asyncio.gather(*told, return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [place for place in found if not isinstance(place, BaseException)]

    def _send(self, record: Record, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Place]") -> None:
        def report(error: KafkaError | None, message: Message) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                if error is None:
                    loop.call_soon_threadsafe(_tell, future, (message.partition(), message.offset()))
                else:
                    trouble = self._kafka.unavailable(f"{message.topic()}: {self._heard.newest or error.str()}")
                    loop.call_soon_threadsafe(_tell, future, trouble)

        try:
            self._producer.produce(
                record.topic, record.value, record.key, on_delivery=report, headers=[*record.headers]
            )
            self._sent.set()
        except BufferError:
            _tell(future, self._kafka.unavailable(self._heard.newest or "too many events wait for its confirmation"))
        except KafkaException as error:
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                got = f"{len(record.value or b'')} bytes"
                _tell(future, Refused([Problem("event", record.topic, "is too large for Kafka", got, LARGER)]))
            else:
                _tell(future, self._kafka.unavailable(self._heard.behind(error)))

    def _poll(self) -> None:
        """Take confirmations while any is missing; else wait, since each look would hold up the loop's own thread."""
        while not self._ends:
            self._sent.wait()
            self._sent.clear()
            while len(self._producer):
                self._producer.poll(_POLL_S)

    def close(self) -> None:
        """Let what waits be confirmed, for a moment, and send nothing more."""
        self._producer.flush(_CLOSE_S)
        self._ends = True
        self._sent.set()
        self._thread.join()


def _tell(future: "asyncio.Future[Place]", outcome: Place | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
