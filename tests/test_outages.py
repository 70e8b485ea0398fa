"""Outages, faults of the disk, and ends, of materializers as processes: the promised outcome of each, and nothing lost.

With FRESHET_SOAK an outage lasts half a minute, otherwise two seconds.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from stack import FRESHET, SEED, STREAM, Server, Stack, check, free_pair, free_ports, kafka_does, prepared, until

from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.schemas.event import archive_name
from freshet.schemas.ledger import source_key

OUTAGE_S = 30.0 if "FRESHET_SOAK" in os.environ else 2.0
CLUSTER = ("--processes", "2")


@pytest.fixture
def own_broker() -> Iterator[Broker]:
    with Broker.start() as started:
        yield started


@pytest.fixture
def stack(own_broker: Broker, server: Server, tmp_path: Path) -> Iterator[Stack]:
    made = prepared(own_broker.address, server.url, tmp_path)
    yield made
    made.close()


# The online store


@pytest.mark.parametrize("wipe", [False, True], ids=["with its data", "without its data"])
@pytest.mark.parametrize("words", [(), CLUSTER], ids=["one process", "two processes"])
def test_a_redis_that_is_away_for_a_while_and_comes_back(
    stack: Stack, server: Server, *, wipe: bool, words: tuple[str, ...]
) -> None:
    stack.produce(300)
    running = stack.start(*words)
    until(stack.is_done)

    server.stop(wipe=wipe)
    stack.produce(300)
    until(lambda: f"Redis at 127.0.0.1:{server.port} cannot be used" in stack.health())
    time.sleep(OUTAGE_S)
    server.start()

    until(stack.is_done)
    until(lambda: stack.health() == "ok\n")
    stack.stop(running)
    check(stack.workspace, stack.sent_count)
    assert ("filled again from the newest offline rows" in stack.log.read_text()) == wipe


def test_an_idle_materializer_notices_that_the_online_store_was_emptied(stack: Stack, server: Server) -> None:
    stack.produce(300)
    running = stack.start()
    until(stack.is_done)

    server.client().flushall()

    until(lambda: "filled again from the newest offline rows" in stack.log.read_text())
    stack.stop(running)
    check(stack.workspace, stack.sent_count)


@pytest.mark.parametrize("runs", [True, False], ids=["while it runs", "between two runs"])
def test_an_online_store_that_came_back_with_older_data_is_filled_again(
    stack: Stack, server: Server, tmp_path: Path, *, runs: bool
) -> None:
    stack.produce(300)
    stack.done()
    server.stop()
    shutil.copytree(server.folder, tmp_path / "older")
    server.start()
    stack.produce(300)
    running = stack.start() if runs else None
    until(stack.is_done) if runs else stack.done()

    server.stop(wipe=True)
    shutil.copytree(tmp_path / "older", server.folder, dirs_exist_ok=True)
    server.start()

    if running is not None:
        until(lambda: "filled again from the newest offline rows" in stack.log.read_text())
        stack.stop(running)
    stack.done()
    check(stack.workspace, stack.sent_count)
    assert "it counts" in stack.log.read_text()


def test_a_replica_that_takes_over_misses_nothing(stack: Stack, server: Server, tmp_path: Path) -> None:
    replica = Server(tmp_path / "replica")
    replica.client().replicaof("127.0.0.1", server.port)
    until(lambda: replica.client().info("replication")["master_link_status"] == "up")
    stack.produce(300)
    running = stack.start()
    until(stack.is_done)
    stack.produce(2000)

    server.stop()
    replica.client().replicaof("NO", "ONE")
    replica.client().config_set("port", server.port)  # as an address that is moved

    until(stack.is_done)
    stack.stop(running)
    check(stack.workspace, stack.sent_count)
    replica.stop()


def test_rows_that_somebody_deleted_are_repaired_by_hand(stack: Stack, server: Server) -> None:
    stack.produce(300)
    stack.done()
    keys = [key for key in server.client().scan_iter() if not key.startswith(b"freshet:")]
    server.client().delete(*keys)

    stack.ended(stack.spawn([*FRESHET, "repair"]), 0)

    check(stack.workspace, stack.sent_count)


def test_a_redis_that_stays_away_ends_the_flow_with_the_cause_and_nothing_is_lost(stack: Stack, server: Server) -> None:
    stack.produce(300)
    running = stack.start(FRESHET_PATIENCE="2s")
    until(stack.is_done)
    server.stop()
    stack.produce(300)

    last = stack.ended(running, 5)

    assert last.startswith(f"freshet: online store Redis at 127.0.0.1:{server.port} cannot be used: ")
    assert "Connection refused" in last
    server.start()
    stack.done()
    check(stack.workspace, stack.sent_count)


TROUBLES = {
    "out of memory": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "OOM|OutOfMemory"),
    "read-only, failing over": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"], "read.?only"),
    "slow": (["CLIENT", "PAUSE", "600000", "WRITE"], ["CLIENT", "UNPAUSE"], "timeout|timed out"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_redis_in_trouble_is_waited_for(stack: Stack, server: Server, trouble: str) -> None:
    begin, end, _ = TROUBLES[trouble]
    stack.produce(200)
    running = stack.start()
    until(stack.is_done)

    server.client().execute_command(*begin)
    stack.produce(200)
    until(lambda: "Redis at" in stack.health())
    time.sleep(OUTAGE_S)
    server.client().execute_command(*end)

    until(stack.is_done)
    stack.stop(running)
    check(stack.workspace, stack.sent_count)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_redis_that_stays_in_trouble_ends_the_flow_with_the_cause(stack: Stack, server: Server, trouble: str) -> None:
    begin, end, said = TROUBLES[trouble]
    stack.produce(200)
    running = stack.start(FRESHET_PATIENCE="1s")
    until(stack.is_done)
    server.client().execute_command(*begin)
    stack.produce(200)

    last = stack.ended(running, 5)

    assert re.search(rf"Redis at 127.0.0.1:{server.port} cannot be used: .*({said})", last, re.IGNORECASE), last
    server.client().execute_command(*end)
    stack.done()
    check(stack.workspace, stack.sent_count)


@pytest.mark.parametrize("words", [(), CLUSTER], ids=["one process", "two processes"])
def test_a_redis_that_refuses_the_password_ends_the_flow_at_once(
    stack: Stack, server: Server, words: tuple[str, ...]
) -> None:
    stack.produce(200)
    running = stack.start(*words)
    until(stack.is_done)
    server.client().config_set("requirepass", "secret")
    admin = server.client("secret")
    admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    last = stack.ended(running, 5)

    assert f"Redis at 127.0.0.1:{server.port} cannot be used" in last
    assert "uthentication required" in last
    assert "Traceback" not in stack.log.read_text()
    admin.config_set("requirepass", "")
    stack.done()
    check(stack.workspace, stack.sent_count)


# Kafka


def test_a_kafka_that_is_away_for_a_while_is_waited_for(stack: Stack, own_broker: Broker) -> None:
    stack.produce(300)
    running = stack.start()
    until(stack.is_done)

    own_broker.down()
    until(lambda: f'kafka "{own_broker.address}" is not available' in stack.health())
    time.sleep(OUTAGE_S)
    own_broker.up()

    until(lambda: stack.health() == "ok\n")
    stack.produce(300)
    until(stack.is_done)
    stack.stop(running)
    check(stack.workspace, stack.sent_count)


def test_a_kafka_that_stays_away_ends_the_flow_with_the_cause_and_nothing_is_lost(
    stack: Stack, own_broker: Broker
) -> None:
    stack.produce(300)
    running = stack.start(FRESHET_PATIENCE="2s")
    until(stack.is_done)
    own_broker.down()

    last = stack.ended(running, 5)

    assert last.startswith(f'freshet: kafka "{own_broker.address}" is not available: ')
    own_broker.up()
    stack.produce(300)
    stack.done()
    check(stack.workspace, stack.sent_count)


@pytest.fixture
def own_kafka(real_kafka: str) -> Iterator[dict[str, str]]:
    """A real Kafka that may be stopped; its jars are those of the one that runs."""
    del real_kafka
    port = free_pair()
    environment = {**os.environ, "FRESHET_KAFKA_PORT": str(port), "KAFKA": f"127.0.0.1:{port}"}
    kafka_does(environment, "start")
    yield environment
    kafka_does(environment, "stop", "--wipe")


@pytest.mark.kafka
@pytest.mark.parametrize("wipe", [False, True], ids=["with its data", "without its data"])
def test_a_real_kafka_that_is_stopped_and_started(
    own_kafka: dict[str, str], server: Server, tmp_path: Path, *, wipe: bool
) -> None:
    stack = prepared(own_kafka["KAFKA"], server.url, tmp_path)
    stack.produce(300)
    running = stack.start(FRESHET_PATIENCE=f"{OUTAGE_S + 20}s" if wipe else "60s")
    until(stack.is_done)

    kafka_does(own_kafka, "stop", *(["--wipe"] if wipe else []))
    until(lambda: "is not available" in stack.health())
    time.sleep(OUTAGE_S)
    kafka_does(own_kafka, "start")

    if not wipe:
        stack.produce(300)
        until(stack.is_done, 400)
        stack.stop(running)
        check(stack.workspace, stack.sent_count)
        return
    topic = stack.workspace.contracts[STREAM].stream.topic
    assert running.wait(180) in (2, 5)  # the topic is gone, or, once somebody made it anew, the offset
    kafka.create_topics(stack.workspace.kafka, kafka.topics_of(stack.workspace.contracts.values()))
    last = stack.ended(stack.start("--until-end"), 2)
    found = re.search(rf'topic "{topic}" partition (\d) does not have the offset (\d+) that is to be read next', last)
    assert found is not None, last
    assert "got offsets from 0 up to 0. Hint: what is between is lost to Freshet" in last
    stack.done("--accept-gap")
    stack.close()


@pytest.mark.kafka
def test_a_resume_offset_that_kafka_has_deleted_is_an_error_that_says_what_to_do(
    real_kafka: str, server: Server, tmp_path: Path
) -> None:
    stack = prepared(real_kafka, server.url, tmp_path)
    stack.produce(200)
    stack.done()
    stack.produce(200)
    topic = stack.workspace.contracts[STREAM].stream.topic
    wanted = stack.ledger().offsets[source_key(STREAM, 0)]
    admin = AdminClient({"bootstrap.servers": real_kafka})
    [deleted] = admin.delete_records([TopicPartition(topic, 0, wanted + 3)]).values()
    assert deleted.result().low_watermark == wanted + 3

    last = stack.ended(stack.start("--until-end"), 2)

    assert f'topic "{topic}" partition 0 does not have the offset {wanted} that is to be read next' in last
    assert f"got offsets from {wanted + 3} up to" in last
    assert "run `freshet run materializer --accept-gap`" in last
    stack.done("--accept-gap")
    assert f"a gap is accepted: offsets from {wanted} up to {wanted + 3} are lost" in stack.said()
    check(stack.workspace, stack.sent_count - 3)


@pytest.mark.parametrize("processes", [1, 2])
def test_partitions_that_are_added_while_a_flow_runs_are_read(
    real_kafka: str, server: Server, tmp_path: Path, processes: int
) -> None:
    stack = prepared(real_kafka, server.url, tmp_path)
    stack.produce(200)
    running = stack.start("--processes", str(processes))
    until(stack.is_done)
    topic = stack.workspace.contracts[STREAM].stream.topic
    count = kafka.partitions_count(stack.workspace.kafka, topic)
    admin = AdminClient({"bootstrap.servers": real_kafka})
    [added] = admin.create_partitions([NewPartitions(topic, count + 4)]).values()
    added.result()

    until(lambda: kafka.partitions_count(stack.workspace.kafka, topic) == count + 4)
    stack.produce(400)

    until(stack.is_done)
    assert len(stack.ledger().offsets) > count
    assert f"topic {topic} has {count + 4} partitions by now" in stack.said()
    stack.stop(running)
    check(stack.workspace, stack.sent_count)


# The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("what", ["FRESHET_OFFLINE_STORE", "FRESHET_RECOVERY"])
def test_a_full_disk_ends_the_flow_and_once_there_is_room_nothing_is_lost(
    own_broker: Broker, server: Server, tmp_path: Path, small_disk: Path, what: str
) -> None:
    stack = prepared(own_broker.address, server.url, tmp_path, **{what: str(small_disk / "here")})
    stack.produce(300)
    stack.done()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    stack.produce(300)

    command = stack.start("--until-end")
    if what == "FRESHET_OFFLINE_STORE":
        assert "No space left on device" in stack.ended(command, 5)
    else:  # a state is written only now and then; the folder's own probe needs no room
        assert command.wait(60) in (0, 5)
    assert "Traceback" not in stack.said()

    filler.unlink()
    stack.done()
    check(stack.workspace, stack.sent_count)


def test_a_recovery_folder_that_cannot_be_written_is_refused(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    last = stack.ended(stack.start(FRESHET_RECOVERY=str(tmp_path / "file" / "recovery")), 2)

    assert "recovery folder" in last
    assert "cannot be written: Not a directory" in last
    assert "FRESHET_RECOVERY" in last


def test_a_lost_recovery_folder_is_refused_and_rebuilt_on_request(stack: Stack) -> None:
    stack.produce(300)
    stack.done()
    shutil.rmtree(stack.workspace.recovery_root)
    stack.produce(300)

    last = stack.ended(stack.start("--until-end"), 2)

    assert re.search(r'recovery folder "of epoch \d+" is lost; got none. Hint: .*--rebuild', last), last
    stack.done("--rebuild")
    check(stack.workspace, stack.sent_count)


def test_a_flow_has_a_shard_for_each_worker_and_more_if_it_is_rebuilt_for_more(stack: Stack) -> None:
    del stack.environment["FRESHET_SHARDS"]
    stack.produce(300)
    stack.done()
    assert stack.ledger().shards_count == 1
    stack.produce(300)

    stack.done("--processes", "2")
    assert "only 1 of 2 workers fold the windows of a view, since its state has no more shards" in stack.said()
    last = stack.ended(stack.start("--until-end", FRESHET_SHARDS="3"), 2)
    assert 'shards "3" differ; got 1' in last
    stack.produce(300)
    stack.ended(stack.start("--until-end", "--processes", "2", "--rebuild", FRESHET_SHARDS="3"), 0)
    stack.produce(300)
    stack.done("--processes", "2")

    assert stack.ledger().shards_count == 3
    check(stack.workspace, stack.sent_count)


@pytest.mark.parametrize("what", ["part", "ledger", "archive"])
def test_a_torn_file_is_named_and_once_it_is_whole_again_nothing_is_lost(stack: Stack, what: str) -> None:
    stack.produce(300)
    stack.done()
    root = stack.workspace.offline_root
    name = archive_name(STREAM) if what == "archive" else "wiki_edits_by_user"
    file = root / "_ledger.json" if what == "ledger" else max((root / name).glob("part-*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    stack.produce(300)

    last = stack.ended(stack.start("--until-end"), 2 if what == "ledger" else 5)

    assert str(file) in last
    assert "torn" in last
    assert "Traceback" not in stack.said()
    file.write_bytes(whole)
    stack.done()
    check(stack.workspace, stack.sent_count)


def test_a_torn_registry_is_named_by_who_reads_it_and_made_anew_by_apply(stack: Stack) -> None:
    stack.produce(300)
    stack.done()
    registry = stack.workspace.project.registry
    registry.write_bytes(registry.read_bytes()[:100])

    stack.produce(100)
    stack.done()  # rows do not depend on it

    last = stack.ended(stack.spawn([*FRESHET, "apply"]), 5)
    assert f"Feast registry {registry} cannot be read" in last
    assert "move it away and run `freshet apply`" in last
    registry.unlink()
    for verb in ("apply", "check"):
        stack.ended(stack.spawn([*FRESHET, verb]), 0)
    check(stack.workspace, stack.sent_count)


# Ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", [(), ("--workers", "2"), CLUSTER], ids=["alone", "two threads", "two processes"])
def test_a_signal_ends_the_flow_after_a_last_commit(stack: Stack, words: tuple[str, ...], number: int) -> None:
    stack.produce(300)
    running = stack.start(*words, FRESHET_EPOCH="1 hour")
    until(lambda: len(stack.workspace.online().sample(stack.workspace.pipeline.views[0], 10, SEED)) > 5)

    stack.stop(running, number)

    assert stack.is_done() or stack.ledger().offsets
    committed = kafka.GroupOffsets(stack.workspace.kafka, stack.workspace.group).committed(
        stack.workspace.contracts[STREAM].stream.topic, 4
    )
    assert {source_key(STREAM, part): offset for part, offset in committed.items()} == dict(stack.ledger().offsets)
    stack.done()
    check(stack.workspace, stack.sent_count)


BYTEWAX = [sys.executable, "-m", "bytewax.run", "freshet.flows.live:flow()"]


def test_bytewax_s_own_command_runs_the_flow_and_ends_it_well(stack: Stack) -> None:
    stack.produce(300)
    running = stack.spawn([*BYTEWAX, "-w", "2", "-s", "3600"])
    until(lambda: len(stack.workspace.online().sample(stack.workspace.pipeline.views[0], 10, SEED)) > 5)

    stack.stop(running)

    assert stack.ledger().offsets
    stack.done()
    check(stack.workspace, stack.sent_count)


def test_a_signal_to_one_process_of_a_cluster_ends_all_of_it(stack: Stack) -> None:
    addresses = ";".join(f"127.0.0.1:{port}" for port in free_ports(2))
    stack.produce(300)
    processes = [stack.spawn([*BYTEWAX, "-i", str(place), "-a", addresses, "-s", "1"]) for place in range(2)]
    until(stack.is_done)
    stack.produce(300)
    until(stack.is_done)

    processes[1].send_signal(signal.SIGTERM)

    assert [process.wait(60) for process in processes] == [0, 0], stack.said()
    check(stack.workspace, stack.sent_count)


def test_no_process_of_a_cluster_waits_for_others_that_ended_before_they_were_connected(stack: Stack) -> None:
    stack.produce(100)
    running = stack.start(*CLUSTER)
    family = psutil.Process(running.pid)

    def members() -> list[psutil.Process]:
        told = {child.environ().get("BYTEWAX_PROCESS_ID"): child for child in family.children()}
        return [told[number] for number in ("0", "1") if number in told]  # a child is a copy of its parent at first

    until(lambda: len(members()) == 2)
    first, second = members()
    second.suspend()  # it never connects
    until(lambda: b"materializing" in stack.log.read_bytes())

    second.kill()
    running.kill()

    until(lambda: not first.is_running())
    stack.done()
    check(stack.workspace, stack.sent_count)


def test_another_number_of_processes_and_workers_goes_on_from_the_same_state(stack: Stack) -> None:
    for words in ((), (*CLUSTER, "--workers", "2"), ("--workers", "3"), CLUSTER, ()):
        stack.produce(150)
        stack.done(*words)

    check(stack.workspace, stack.sent_count)


def test_a_second_materializer_of_one_offline_store_is_refused(stack: Stack) -> None:
    stack.produce(100)
    first = stack.start()
    until(stack.is_done)

    last = stack.ended(stack.start(), 2)

    assert "is being written by another materializer. Hint: stop the other one first" in last
    stack.stop(first)
