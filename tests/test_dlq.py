"""`freshet dlq`, as people and scripts meet it: what was not accepted is shown, and sent again once it would be accepted."""

import base64
import json
import time
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from freshet.flows import settings
from freshet.flows.edges import kafka
from freshet.flows.edges.broker import Broker
from freshet.flows.edges.dead_letters import DeadLetters
from freshet.flows.edges.partitions import records
from freshet.flows.edges.recovery import LedgerFile
from freshet.flows.workspace import Workspace
from freshet.schemas.event import VERSION_HEADER
from freshet.schemas.ledger import Ledger, PartitionMark, source_key
from freshet.schemas.record import Record, partition_of
from freshet.schemas.rejects import Reason, Reject
from freshet.schemas.units import instant_us
from freshet.scripts import cli

SAMPLE = json.loads(
    (Path(__file__).parent.parent / "schemas" / "samples" / "wiki_edits" / "good-edit.json").read_text()
)
STREAM = "wiki_edits"
PARTITIONS = 4
HOUR = timedelta(hours=1)


def edit(age: timedelta, user: str = "ada", **changes: object) -> bytes:
    return json.dumps({**SAMPLE, "time": (datetime.now(UTC) - age).isoformat(), "user": user, **changes}).encode()


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def told(self) -> Any:
        return json.loads(self.out)


@dataclass
class Stack:
    """A project whose topics are there, and what wrote to its dead letters."""

    project: Path
    address: str
    topic: str
    capsys: pytest.CaptureFixture[str]
    count: int = 0

    def __call__(self, *words: str) -> Done:
        self.capsys.readouterr()
        code = cli.main(["-C", str(self.project), "dlq", *words])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(code, said.out, said.err)

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(settings.read({"FRESHET_PROJECT": str(self.project), "FRESHET_BROKERS": self.address}))

    def give_up(self, value: bytes | None, reason: Reason, *, age: timedelta = HOUR, **changes: Any) -> Reject:
        """Put an event among the dead letters."""
        at_ms = int((datetime.now(UTC) - age).timestamp() * 1000)
        made = Reject(
            self.topic, 1, self.count, reason, f"it is {reason}", b"ada", value, ((VERSION_HEADER, b"1"),), at_ms
        )
        self.count += 1
        self.keep(replace(made, **changes))
        return replace(made, **changes)

    def keep(self, reject: Reject) -> None:
        sink = DeadLetters(kafka.Kafka(self.address), "freshet-wikipedia-materializer")
        sink.put([reject])
        sink.flush()

    def records(self) -> list[Record]:
        return [
            Record(self.topic, key, value, tuple((poll.headers[index] if poll.headers else None) or ()), int(at))
            for poll in records(kafka.Kafka(self.address), self.topic)
            for index, (key, value, at) in enumerate(zip(poll.keys, poll.values, poll.timestamps_ms, strict=True))
        ]

    def materialized(self, ages: dict[int, timedelta]) -> None:
        """Let the newest event of each partition be of an age."""
        now = datetime.now(UTC)
        marks = {source_key(STREAM, part): PartitionMark(newest_us=instant_us(now - age)) for part, age in ages.items()}
        root = self.workspace.offline_root
        root.mkdir(parents=True)
        LedgerFile(root).write(Ledger(id="a", shards_count=4, epoch=1, partitions=marks))


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def stack(
    request: pytest.FixtureRequest, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Stack:
    topic = f"edits-{uuid.uuid4().hex}"
    contract = project / "schemas" / "events" / "wiki_edits.py"
    contract.write_text(contract.read_text().replace('topic="wiki_edits"', f'topic="{topic}"'))
    topics = {topic: PARTITIONS, f"{topic}.dlq": PARTITIONS}
    if request.param == "real":
        address = str(request.getfixturevalue("real_kafka"))
    else:
        broker: Broker = request.getfixturevalue("broker")
        address = broker.address
        for name, count in topics.items():
            broker.create_topic(name, count)
    kafka.create_topics(kafka.Kafka(address), topics)
    monkeypatch.setenv("FRESHET_BROKERS", address)
    return Stack(project, address, topic, capsys)


# --- list -------------------------------------------------------------------------------------------------------------


def test_without_dead_letters_that_is_said(stack: Stack) -> None:
    assert stack("list").out == "no dead letters\n"
    assert stack("list", "--json").told == {"letters": [], "reasons": {}, "others": 0}
    done = stack("redrive")
    assert (done.code, done.out) == (0, "0 events redriven, 0 would be rejected again\n")


def test_a_letter_is_shown_once_with_when_where_why_and_what(stack: Stack) -> None:
    bad = stack.give_up(b'{"user": "\x1b[31mada", "\xff": 1}', Reason.UNDECODABLE, age=2 * HOUR)
    stack.keep(bad)
    none = stack.give_up(None, Reason.UNDECODABLE)
    stack.give_up(b"x" * 10_000, Reason.CONTRACT, age=timedelta(0), detail="line\nbreak")

    done = stack("list")

    at = np.datetime64(bad.timestamp_ms, "ms")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[:2] == [
        f"{at}Z {stack.topic}/1@0 undecodable: it is undecodable",
        r'    {"user": "\x1b[31mada", "\xff": 1}',
    ]
    assert lines[2].endswith(f"{none.origin} undecodable: it is undecodable")
    assert lines[3] == "    (no value)"
    assert lines[4].endswith(r"contract: line\nbreak")
    assert lines[5] == f"    {'x' * 160}… 10000 bytes"
    assert lines[6:] == ["3 dead letters: 2 undecodable, 1 contract"]


def test_json_has_everything_whole(stack: Stack) -> None:
    bad = stack.give_up(b"\xff\x00", Reason.UNDECODABLE, key=None, headers=(("h", b"\xfe"), ("g", None)))
    long = stack.give_up(edit(HOUR, comment="ü" * 1000), Reason.LATE, age=timedelta(0))

    told = stack("list", "--json").told

    assert told["reasons"] == {"undecodable": 1, "late": 1}
    first, second = told["letters"]
    assert first == {
        "time": f"{np.datetime64(bad.timestamp_ms, 'ms')}Z", "topic": stack.topic, "partition": 1, "offset": 0,
        "reason": "undecodable", "detail": "it is undecodable", "key": None, "value": {"base64": "/wA="},
        "headers": [["h", {"base64": base64.b64encode(b"\xfe").decode()}], ["g", None]], "redriven": False,
    }  # fmt: skip
    assert (second["key"], second["value"].encode()) == ("ada", long.value)


def test_filters_choose(stack: Stack) -> None:
    stack.give_up(b"{", Reason.UNDECODABLE, age=5 * HOUR)
    stack.give_up(b"{}", Reason.CONTRACT, age=3 * HOUR)
    stack.give_up(edit(HOUR), Reason.LATE, age=HOUR)

    def offsets(*words: str) -> list[int]:
        return [letter["offset"] for letter in stack("list", "--json", *words).told["letters"]]

    assert offsets("--stream", "wiki_edits") == [0, 1, 2]
    assert offsets("--reason", "late") == [2]
    assert offsets("--reason", "late, contract") == [1, 2]
    assert offsets("--since", "4h") == [1, 2]
    assert offsets("--since", "4h", "--until", "2 hours") == [1]
    assert offsets("--until", (datetime.now(UTC) - 4 * HOUR).isoformat()) == [0]
    assert offsets("--limit", "2") == [0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list", "--reason", "lat"), "argument \"--reason\" names 'lat'. Hint: did you mean late?"),
        (("list", "--reason", "zzz"), "use undecodable, contract, null_key"),
        (("list", "--since", "yesterday"), 'argument "--since" is yesterday. Hint: write a time such as'),
        (("redrive", "--until", "2026-13-01"), 'argument "--until" is 2026-13-01'),
        (("redrive", "--limit", "0"), 'argument "--limit" is 0'),
        (("list", "--stream", "edits"), 'argument "--stream" is edits. Hint: name one of wiki_edits'),
    ],
)
def test_a_filter_that_is_none_is_wrong_use(
    words: tuple[str, ...], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-C", str(project), "dlq", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_others_wrote_is_counted(stack: Stack) -> None:
    outbox = kafka.Outbox(kafka.Kafka(stack.address), "record")
    outbox.send(Record(f"{stack.topic}.dlq", b"k", b"v"), "k")
    outbox.flush()

    assert stack("list").out.endswith("1 records beside them are not Freshet's\n")


def test_dead_letters_that_nobody_made_are_named_with_what_makes_them(
    project: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FRESHET_BROKERS", broker.address)
    contract = project / "schemas" / "events" / "wiki_edits.py"
    contract.write_text(contract.read_text().replace('topic="wiki_edits"', 'topic="never_made"'))

    assert cli.main(["-C", str(project), "dlq", "list"]) == 2
    said = capsys.readouterr().err
    assert 'topic "never_made.dlq" cannot be read' in said
    assert "run `freshet apply`" in said


@pytest.mark.parametrize("deed", ["list", "redrive"])
def test_a_broker_that_is_not_there_is_named(
    deed: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Broker.start() as gone:
        monkeypatch.setenv("FRESHET_BROKERS", gone.address)

    assert cli.main(["-C", str(project), "dlq", deed]) == 5
    assert f'kafka "{gone.address}" is not available' in capsys.readouterr().err


# --- redrive ----------------------------------------------------------------------------------------------------------


def test_what_would_be_accepted_is_sent_once_and_the_rest_stays(stack: Stack) -> None:
    fixed = stack.give_up(edit(timedelta(minutes=1)), Reason.CONTRACT)
    stack.give_up(b"{", Reason.UNDECODABLE)
    old = stack.give_up(edit(timedelta(minutes=1)), Reason.UNKNOWN_VERSION, headers=((VERSION_HEADER, b"0"),))
    before_ms = int(time.time() * 1000)

    dry = stack("redrive", "--dry-run")
    assert stack.records() == []
    done = stack("redrive")

    assert (dry.code, done.code) == (1, 1)
    assert "1 events would be redriven, 2 would be rejected again" in dry.out
    assert "1 events redriven, 2 would be rejected again" in done.out
    assert f"{stack.topic}/1@1 stays, undecodable again: Invalid JSON" in done.out
    assert f"{old.origin} stays, unknown_version again: version b'0'" in done.out
    (sent,) = stack.records()
    assert (sent.key, sent.value) == (fixed.key, fixed.value)
    assert sent.headers == ((VERSION_HEADER, b"1"), ("freshet.redriven", str(fixed.origin).encode()))
    assert sent.timestamp_ms >= before_ms
    assert [letter["offset"] for letter in stack("list", "--json").told["letters"]] == [1, 2]
    everything = stack("list", "--json", "--all").told["letters"]
    assert {letter["offset"]: letter["redriven"] for letter in everything} == {0: True, 1: False, 2: False}
    assert stack("redrive").out.endswith("0 events redriven, 2 would be rejected again\n")
    assert len(stack.records()) == 1


def test_a_letter_that_a_crash_writes_anew_is_not_sent_again(stack: Stack) -> None:
    letter = stack.give_up(edit(timedelta(minutes=1)), Reason.CONTRACT)
    assert stack("redrive").code == 0
    stack.keep(letter)

    assert stack("list").out == "no dead letters\n"
    assert stack("redrive").out == "0 events redriven, 0 would be rejected again\n"


def test_lateness_is_judged_by_the_partition_s_newest_event(stack: Stack) -> None:
    own = partition_of(b"ada", PARTITIONS)
    stack.materialized({own: HOUR, (own + 1) % PARTITIONS: timedelta(0)})
    stack.give_up(edit(HOUR + timedelta(minutes=5)), Reason.LATE)
    stack.give_up(edit(HOUR + timedelta(minutes=15)), Reason.LATE)

    done = stack("redrive", "--json")

    assert done.code == 1
    assert done.told["redriven"] == [f"{stack.topic}/1@0"]
    assert [(one["origin"], one["reason"]) for one in done.told["again"]] == [(f"{stack.topic}/1@1", "late")]
    assert len(stack.records()) == 1


def test_before_anything_is_materialized_it_is_said_that_lateness_is_not_judged(stack: Stack) -> None:
    stack.give_up(edit(HOUR * 100), Reason.LATE)

    done = stack("redrive")

    assert done.code == 0
    assert "nothing is materialized yet, so lateness is not judged" in done.err


def test_filters_choose_what_is_sent(stack: Stack) -> None:
    for reason in (Reason.LATE, Reason.CONTRACT, Reason.CONTRACT):
        stack.give_up(edit(timedelta(minutes=1), page=reason.value), reason)

    assert stack("redrive", "--reason", "contract", "--limit", "1", "--json").told["redriven"] == [f"{stack.topic}/1@1"]
    assert [letter["offset"] for letter in stack("list", "--json").told["letters"]] == [0, 2]


def test_many_are_sent_in_several_transactions(stack: Stack) -> None:
    sink = DeadLetters(kafka.Kafka(stack.address), "g")
    value = edit(timedelta(minutes=1))
    sink.put(
        [Reject(stack.topic, 0, offset, Reason.CONTRACT, "", b"%d" % offset, value, (), 5) for offset in range(1200)]
    )
    sink.flush()

    done = stack("redrive")

    assert (done.code, done.out) == (0, "1200 events redriven, 0 would be rejected again\n")
    assert [line for line in done.err.splitlines() if "redriven" in line] == [
        "500 of 1200 redriven", "1000 of 1200 redriven", "1200 of 1200 redriven",
    ]  # fmt: skip
    assert len(stack.records()) == 1200
    assert {record.key for record in stack.records()} == {b"%d" % offset for offset in range(1200)}
