"""The embedded broker: librdkafka's own mock cluster, in a process of its own.

It speaks Kafka's protocol on loopback and keeps everything in memory, at most 5 MiB a partition; it has no admin
calls, no transactions and no look-up by time. Good for a laptop and for most tests; every guarantee holds on a real
Kafka only.

The cluster is reached through the C symbols that confluent-kafka's wheel exports (rdkafka_mock.h). They can abort their
process, and must not see a fork, so `Broker` runs this module as a child and talks to it over pipes:

    topic NAME PARTITIONS   answers `ok` or `error TEXT`
    end of input            ends the child, so it never outlives its parent
"""

import ctypes
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import confluent_kafka

from freshet.schemas.errors import Unavailable

_LIBRARIES = ("confluent_kafka.libs/librdkafka-*", "confluent_kafka/.dylibs/librdkafka*", "librdkafka*")
_REBALANCE_DELAY_MS = 100


class Broker:
    """A broker of our own. Close it, or leave its `with` block, and everything in it is gone."""

    def __init__(self, child: "subprocess.Popen[str]", address: str) -> None:
        self._child = child
        self.address = address

    @classmethod
    def start(cls) -> Self:
        """Start one; raises `Unavailable` with what the child said if it does not come up."""
        command = [sys.executable, "-m", "freshet.flows.edges.broker"]
        child = subprocess.Popen(  # noqa: S603  # our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        if not address:
            _, said = child.communicate()
            raise Unavailable(f"embedded broker did not start: {said.strip()[-500:]}")
        return cls(child, address)

    def create_topic(self, name: str, partitions_count: int) -> None:
        """Make a topic; one that is there already stays as it is."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"topic {name} {partitions_count}\n")
        answer = self._child.stdout.readline().strip()
        if answer != "ok" and "exists" not in answer:
            raise Unavailable(f"embedded broker {self.address} made no topic {name}: {answer or 'it has ended'}")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    def close(self) -> None:
        """End the child and wait for it."""
        self._child.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _library() -> ctypes.CDLL:
    packages = Path(confluent_kafka.__file__).parent.parent
    found: Iterator[Path] = (path for pattern in _LIBRARIES for path in sorted(packages.glob(pattern)))
    path = next(found, None)
    if path is None:
        raise Unavailable(
            f"embedded broker: no librdkafka beside {packages}. Hint: install confluent-kafka from a wheel"
        )
    library = ctypes.CDLL(str(path))
    library.rd_kafka_conf_new.restype = ctypes.c_void_p
    library.rd_kafka_new.restype = ctypes.c_void_p
    library.rd_kafka_new.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    library.rd_kafka_mock_cluster_new.restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_new.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    library.rd_kafka_mock_cluster_bootstraps.argtypes = [ctypes.c_void_p]
    library.rd_kafka_mock_topic_create.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    library.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    library.rd_kafka_err2str.restype = ctypes.c_char_p
    return library


def main() -> None:
    """Host one cluster until standard input ends."""
    library = _library()
    reason = ctypes.create_string_buffer(256)
    client = library.rd_kafka_new(0, library.rd_kafka_conf_new(), reason, len(reason))
    if not client:
        sys.exit(reason.value.decode())
    cluster = library.rd_kafka_mock_cluster_new(client, 1)
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, _REBALANCE_DELAY_MS)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)  # noqa: T201  # the parent reads it
    for line in sys.stdin:
        _, name, partitions_count = line.split()
        code = library.rd_kafka_mock_topic_create(cluster, name.encode(), int(partitions_count), 1)
        print("ok" if code == 0 else f"error {library.rd_kafka_err2str(code).decode()}", flush=True)  # noqa: T201  # as above


if __name__ == "__main__":
    main()
