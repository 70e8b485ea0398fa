"""What others see of a group's offsets: a plain consumer, kcat and Burrow, each as it is shipped.

Kafka hands out committed offsets to its own clients; kcat and Burrow read the topic in which it keeps them.
"""

import json
import os
import socket
import struct
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Protocol

from stack import PARTITIONS, free_ports, listens, until

from freshet.flows.edges import kafka


class Monitor(Protocol):
    name: str

    def seen(self) -> list[tuple[int, int]]:
        """Return partition and offset of the commits that are new to it, or of the newest of each partition."""

    def close(self) -> None: ...


class PlainConsumer:
    name = "consumer"

    def __init__(self, broker: kafka.Kafka, group: str, topic: str) -> None:
        self._offsets, self._topic = kafka.GroupOffsets(broker, group), topic

    def seen(self) -> list[tuple[int, int]]:
        found = self._offsets.committed(self._topic, PARTITIONS)
        return [(partition, offset) for partition, offset in found.items() if offset is not None]

    def close(self) -> None:
        self._offsets.close()


class Kcat:
    """Prints all that is ever committed, in order."""

    name = "kcat"

    def __init__(self, program: str, brokers: str, group: str, topic: str) -> None:
        self._mine = group, topic
        self._commits: SimpleQueue[tuple[int, int]] = SimpleQueue()
        command = [program, "-C", "-b", brokers, "-t", "__consumer_offsets", "-o", "beginning", "-q", "-u"]
        self._process = subprocess.Popen([*command, "-f", "%K %S %k%s"], stdout=subprocess.PIPE)
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()

    def _read(self, printed: IO[bytes]) -> None:
        while size := _word(printed):
            key_size, value_size = int(size), max(int(_word(printed)), 0)  # a tombstone's is -1
            key, value = printed.read(key_size), printed.read(value_size)
            if key[:2] in {b"\0\0", b"\0\1"} and value:  # Kafka's OffsetCommitKey; 2 is a group's own record
                group, rest = _text(key[2:])
                topic, rest = _text(rest)
                if (group, topic) == self._mine:
                    self._commits.put((*struct.unpack(">i", rest), *struct.unpack(">q", value[2:10])))

    def seen(self) -> list[tuple[int, int]]:
        found = []
        while True:
            try:
                found.append(self._commits.get_nowait())
            except Empty:
                return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def _word(printed: IO[bytes]) -> str:
    word = b""
    while (letter := printed.read(1)) not in {b" ", b""}:
        word += letter
    return word.decode()


def _text(value: bytes) -> tuple[str, bytes]:
    """Read a string with its length before it; return what follows, too."""
    (size,) = struct.unpack(">h", value[:2])
    return value[2 : 2 + size].decode(), value[2 + size :]


class Burrow:
    """Reads commits and end offsets, and judges by its own rules."""

    name = "burrow"

    def __init__(self, url: str, group: str, topic: str) -> None:
        self._url, self._topic = f"{url}/v3/kafka/local/consumer/{group}", topic

    def seen(self) -> list[tuple[int, int]]:
        partitions = _answer(self._url).get("topics", {}).get(self._topic, [])
        kept = [[commit for commit in partition["offsets"] if commit is not None] for partition in partitions]
        return [(number, commits[-1]["offset"]) for number, commits in enumerate(kept) if commits]

    def status(self) -> tuple[str, dict[int, str], int]:
        """Return what it says of the group, of each partition that is not well, and the lag in messages."""
        said = _answer(f"{self._url}/lag").get("status", {"status": "NOTFOUND", "partitions": [], "totallag": 0})
        ill = {each["partition"]: each["status"] for each in said["partitions"] if each["status"] != "OK"}
        return said["status"], ill, said["totallag"]

    def close(self) -> None:
        """Others use it, too."""


def _answer(url: str) -> "dict[str, dict[str, object]]":
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        if error.code != 404:  # a group without commits
            raise
        return {}


def kafka_jars() -> Path | None:
    """Return the folder into which scripts/kafka has fetched Kafka, and the ZooKeeper that comes with it."""
    home = Path(os.environ.get("FRESHET_KAFKA_DIR") or "~/.cache/freshet/kafka").expanduser()
    return next(iter(sorted(home.glob("libs-*"))), None)


def _serves(keeper: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", keeper), timeout=5) as asked:
            asked.sendall(b"srvr")
            return b"Mode: standalone" in asked.makefile("rb").read()
    except OSError:
        return False


@contextmanager
def burrow(brokers: str, jars: Path, folder: Path) -> Iterator[str]:
    """Run Burrow, and the ZooKeeper that Debian's Burrow needs, until the context ends; yield its address."""
    kafka.GroupOffsets(kafka.Kafka(brokers), "burrow").committed("any", 1)  # who asks first makes the topic it reads
    keeper, port = free_ports(2)
    settings = {"dataDir": folder / "zookeeper", "clientPort": keeper, "clientPortAddress": "127.0.0.1"}
    lines = [f"{key}={value}" for key, value in {**settings, "admin.enableServer": "false"}.items()]
    (folder / "zoo.cfg").write_text("\n".join(lines))
    (folder / "burrow.toml").write_text(f"""
[general]
pidfile="{folder}/burrow.pid"
[logging]
filename="{folder}/burrow.log"
level="warn"
[zookeeper]
servers=["127.0.0.1:{keeper}"]
timeout=6
root-path="/burrow"
[client-profile.mine]
client-id="burrow"
kafka-version="2.1.0"
[cluster.local]
class-name="kafka"
servers=["{brokers}"]
client-profile="mine"
topic-refresh=1
offset-refresh=1
[consumer.local]
class-name="kafka"
cluster="local"
servers=["{brokers}"]
client-profile="mine"
start-latest=false
[httpserver.default]
address="127.0.0.1:{port}"
[storage.default]
class-name="inmemory"
intervals=10
min-distance=0
expire-group=604800
[evaluator.default]
class-name="caching"
expire-cache=1
""")
    java = ["java", "-Xmx128M", "-cp", f"{jars}/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    started = []
    try:
        main = "org.apache.zookeeper.server.ZooKeeperServerMain"
        started.append(subprocess.Popen([*java, main, str(folder / "zoo.cfg")]))
        until(lambda: _serves(keeper))
        started.append(subprocess.Popen(["Burrow", "-config-dir", str(folder)], stdout=subprocess.DEVNULL))
        until(lambda: listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in started:
            process.kill()
            process.wait()
