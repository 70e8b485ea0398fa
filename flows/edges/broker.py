"""The embedded broker: librdkafka's own mock cluster, in a process of its own.

It speaks Kafka's protocol on loopback and keeps everything in memory, at most 5 MiB a partition; it makes no topic
through Kafka's admin call, isolates no transaction and finds no offset by time. Good for a laptop and for most tests;
every guarantee holds on a real Kafka only.

The cluster is reached through the C symbols that confluent-kafka's wheel exports (rdkafka_mock.h). They can abort their
process, and must not see a fork, so `Broker` runs this module as a child. The child prints its address, then answers
each line of its input with `ok` or with what went wrong:

    topic NAME PARTITIONS    make a topic
    lead NAME PARTITION ID   have broker ID lead a partition, or none, if it is -1
    down ID, up ID           have broker ID drop all connections and refuse new ones; accept them again
    elect NAME PARTITION     begin a new epoch of the partition's leader
    end of input             ends the child, so it never outlives its parent
"""

import contextlib
import ctypes
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import confluent_kafka

from freshet.schemas.errors import Unavailable

_LIBRARIES = ("confluent_kafka.libs/librdkafka-*", "confluent_kafka/.dylibs/librdkafka*", "librdkafka*")
_PRODUCER = 0  # rd_kafka_type_t: the cluster lives in a client, of either type
_BROKER_ID = 1  # the mock cluster counts its brokers from here
_NOBODY_ID = -1
_REBALANCE_DELAY_MS = 100
_END_LIMIT_S = 5.0
_REASON_BYTES = 500


class Broker:
    """A broker of our own. Close it, or leave its `with` block, and everything in it is gone.

    `address` is `127.0.0.1:PORT`, or several with commas between; ports are chosen by the system. `pid` is the child's.
    """

    def __init__(self, child: "subprocess.Popen[str]", said: IO[bytes]) -> None:
        self._child, self._said = child, said
        self.pid = child.pid
        self.address = ""

    @classmethod
    def start(cls, brokers_count: int = 1) -> Self:
        """Start one, or a cluster of several; raises `Unavailable` with what the child said if it does not come up."""
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the broker; a pipe that nobody drains would fill
        command = [sys.executable, "-P", "-m", "freshet.flows.edges.broker", str(brokers_count)]
        child = subprocess.Popen(  # noqa: S603  # our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            bufsize=1,
            start_new_session=True,  # the terminal's Ctrl-C is for the flows, which still need their broker
        )
        broker = cls(child, said)
        try:
            broker.address = broker._answer()
        except Unavailable:
            broker.close()
            raise
        return broker

    def create_topic(self, name: str, partitions_count: int) -> None:
        """Make a topic; one that is there already stays as it is. Raises `Unavailable`."""
        assert len(name.split()) == 1, "a name without spaces"
        assert partitions_count > 0, "a topic with partitions"
        self._ask(f"topic {name} {partitions_count}")

    def lead(self, topic: str, partition: int, broker_id: int | None) -> None:
        """Have one of the brokers lead a partition; or none, as after the loss of one. Then nobody may read it."""
        self._ask(f"lead {topic} {partition} {_NOBODY_ID if broker_id is None else broker_id}")

    def down(self, broker_id: int = _BROKER_ID) -> None:
        """Drop every connection of a broker and refuse new ones, as an outage does; what was written stays."""
        self._ask(f"down {broker_id}")

    def up(self, broker_id: int = _BROKER_ID) -> None:
        """End the outage."""
        self._ask(f"up {broker_id}")

    def elect(self, topic: str, partition: int) -> None:
        """Begin a new epoch of a partition's leader, as a broker that comes back does; here it is the same one."""
        self._ask(f"elect {topic} {partition}")

    def close(self) -> None:
        """End the child and wait for it; closing twice is closing once."""
        if self._said.closed:
            return
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, with a line of ours unread
            self._child.stdin.close()
        try:
            self._child.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._said.close()

    def _ask(self, line: str) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{line}\n")
        except BrokenPipeError as error:
            raise self._ended() from error
        answer = self._answer()
        if answer != "ok":
            raise Unavailable(f'embedded broker "{self.address}" refused `{line}`: {answer}')

    def _answer(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._ended()
        return line.strip()

    def _ended(self) -> Unavailable:
        status = self._child.wait()
        self._said.seek(0)
        reason = self._said.read().decode(errors="replace").strip()[-_REASON_BYTES:]
        return Unavailable(f"embedded broker has ended (exit status {status}): {reason or 'it said nothing'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _library() -> ctypes.CDLL:
    """Load the librdkafka that confluent-kafka uses; its symbols' types are those of rdkafka.h and rdkafka_mock.h."""
    packages = Path(confluent_kafka.__file__).parent.parent
    found: Iterator[Path] = (path for pattern in _LIBRARIES for path in sorted(packages.glob(pattern)))
    path = next(found, None)
    if path is None:
        sys.exit(f"no librdkafka beside {packages}. Hint: install confluent-kafka from a wheel")
    library = ctypes.CDLL(str(path))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    for name, result, arguments in (
        ("conf_new", pointer, []),
        ("conf_set", number, [pointer, text, text, text, ctypes.c_size_t]),
        ("new", pointer, [number, pointer, text, ctypes.c_size_t]),
        ("err2str", text, [number]),
        ("mock_cluster_new", pointer, [pointer, number]),
        ("mock_cluster_bootstraps", text, [pointer]),
        ("mock_topic_create", number, [pointer, text, number, number]),
        ("mock_partition_set_leader", number, [pointer, text, ctypes.c_int32, ctypes.c_int32]),
        ("mock_broker_set_down", number, [pointer, ctypes.c_int32]),
        ("mock_broker_set_up", number, [pointer, ctypes.c_int32]),
        ("mock_set_controller_id", number, [pointer, ctypes.c_int32]),
        ("mock_group_initial_rebalance_delay_ms", None, [pointer, ctypes.c_int32]),
    ):
        symbol = getattr(library, f"rd_kafka_{name}")
        symbol.restype, symbol.argtypes = result, arguments
    return library


def _obey(library: ctypes.CDLL, cluster: int, line: str) -> str:
    """Do what one line of the parent's says; return the answer."""
    match line.split():
        case ["topic", name, partitions_count]:
            code = library.rd_kafka_mock_topic_create(cluster, name.encode(), int(partitions_count), 1)
            exists = int(confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS)
            code = 0 if code == exists else code
        case ["lead", name, partition, broker_id]:
            leads = library.rd_kafka_mock_partition_set_leader
            code = leads(cluster, name.encode(), int(partition), int(broker_id))
        case ["down", broker_id]:
            code = library.rd_kafka_mock_broker_set_down(cluster, int(broker_id))
        case ["up", broker_id]:
            code = library.rd_kafka_mock_broker_set_up(cluster, int(broker_id))
        case ["elect", name, partition]:
            code = library.rd_kafka_mock_partition_set_leader(cluster, name.encode(), int(partition), _BROKER_ID)
        case _:
            return "unknown command"
    return "ok" if code == 0 else str(library.rd_kafka_err2str(code).decode())


def main() -> None:
    """Host one cluster, of as many brokers as the command says, until standard input ends."""
    library = _library()
    reason = ctypes.create_string_buffer(256)
    settings = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(settings, b"log_level", b"2", reason, len(reason))  # no warning that it has no brokers
    client = library.rd_kafka_new(_PRODUCER, settings, reason, len(reason))
    cluster = library.rd_kafka_mock_cluster_new(client, int(sys.argv[1])) if client else None
    if not cluster:
        sys.exit(reason.value.decode() or "librdkafka made no mock cluster")
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, _REBALANCE_DELAY_MS)
    library.rd_kafka_mock_set_controller_id(cluster, _BROKER_ID)
    _say(library.rd_kafka_mock_cluster_bootstraps(cluster).decode())
    for line in sys.stdin:
        _say(_obey(library, cluster, line))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
